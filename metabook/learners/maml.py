"""Model-agnostic meta-learning and its relatives: an initialisation from which a few gradient steps suffice.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, https://arxiv.org/abs/1703.03400. The relatives name their papers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metabook import batched
from metabook.episodes import Episodes
from metabook.learners.base import task_losses
from metabook.learners.gradient import GradientLearner, Parameters

__all__ = ["ANIL", "MAML", "MetaSGD"]


class MAML(GradientLearner):
    r"""MAML: an initialisation whose query loss is small *after* adaptation.

    .. math:: \min_\theta\; \mathbb E_\tau\, L^{query}_\tau(\theta'_\tau),\qquad
              \theta'_\tau = \theta - \alpha \nabla_\theta L^{support}_\tau(\theta).

    Transductive when the net normalises with batch statistics.

    Parameters
    ----------
    net : Module
        See :class:`~metabook.learners.gradient.GradientLearner`.
    inner_lr : float
        The step size alpha, for the mean loss over the support set. (The original code divides the
        summed loss by the shots alone: its 0.4 for 5-way tasks is 2.0 here.)
    steps : int
        Inner steps in training.
    first_order : bool
        Treat the inner gradients as constants (FOMAML): cheaper, and without the Hessian term.
    eval_steps : int, optional
        Inner steps of :meth:`predict`; by default ``steps``.
    learn_rates : bool
        Learn an inner rate for each parameter tensor and each step (Antoniou, Edwards and Storkey, "How to train your
        MAML", ICLR 2019, https://arxiv.org/abs/1810.09502). Steps beyond ``steps`` take the last one's.
    multi_step : int
        For so many updates, let the query loss after *every* inner step count, with weights that move from all steps
        alike to the last alone (the multi-step loss of the same paper). 0: the last alone from the start.
    """

    updates: Tensor  # how many there were

    def __init__(
        self,
        net: nn.Module,
        inner_lr: float = 0.4,
        steps: int = 1,
        first_order: bool = False,
        eval_steps: int | None = None,
        learn_rates: bool = False,
        multi_step: int = 0,
    ) -> None:
        super().__init__(net, inner_lr, steps)
        if eval_steps is not None and eval_steps < 1:
            raise ValueError(f"eval_steps must be at least 1, not {eval_steps}")
        self.first_order, self.eval_steps = first_order, eval_steps
        self.learn_rates, self.multi_step = learn_rates, multi_step
        if learn_rates:
            self.rates = nn.ParameterDict({_key(n): torch.full((steps,), inner_lr) for n, _ in net.named_parameters()})
        if multi_step:
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        if not self.learn_rates:
            return super().update(params, grads, step, state)
        k = min(step, self.steps - 1)
        return {name: p - self.rates[_key(name)][k] * grads[name] for name, p in params.items()}

    def step_weights(self) -> list[float]:
        """What the query loss after each of the inner steps counts in the next update; they sum to one."""
        left = 1 - min(1.0, int(self.updates) / self.multi_step) if self.multi_step else 0.0
        return [left / self.steps] * (self.steps - 1) + [1 - left * (self.steps - 1) / self.steps]

    def loss(self, episodes: Episodes) -> Tensor:
        _, *path = self.inner_loop(episodes, self.steps, second_order=not self.first_order)
        weights = self.step_weights()
        losses = [
            task_losses(self.forward_adapted(params, episodes.query_x), episodes.query_y).mean()
            for weight, params in zip(weights, path, strict=True)
            if weight > 0
        ]
        if len(losses) == 1:  # the last step's, with a weight of one
            return losses[0]
        return torch.stack([weight * loss for weight, loss in zip(filter(None, weights), losses, strict=True)]).sum()

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        loss = super().accumulate_gradients(episodes)
        if self.multi_step:
            self.updates += 1
        return loss

    def predict(self, episodes: Episodes) -> Tensor:
        return self._predict_after(episodes, self.eval_steps or self.steps)


class MetaSGD(MAML):
    r"""Meta-SGD: learn, with the initialisation, a step size for every single parameter.

    .. math:: \theta'_\tau = \theta - \alpha \circ \nabla_\theta L^{support}_\tau(\theta),
              \qquad \min_{\theta, \alpha}\; \mathbb E_\tau\, L^{query}_\tau(\theta'_\tau).

    A rate may become zero (the parameter stays) or negative. Z. Li, F. Zhou, F. Chen, H. Li. Meta-SGD: Learning to
    Learn Quickly for Few-Shot Learning. 2017, https://arxiv.org/abs/1707.09835

    Parameters
    ----------
    net, steps, first_order, eval_steps
        See :class:`MAML`.
    inner_lr : float
        Where every rate starts.
    """

    def __init__(
        self,
        net: nn.Module,
        inner_lr: float = 0.4,
        steps: int = 1,
        first_order: bool = False,
        eval_steps: int | None = None,
    ) -> None:
        super().__init__(net, inner_lr, steps, first_order, eval_steps)
        self.rates = nn.ParameterDict({_key(n): torch.full_like(p, inner_lr) for n, p in net.named_parameters()})

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        return {name: p - self.rates[_key(name)] * grads[name] for name, p in params.items()}


class ANIL(MAML):
    """ANIL, "almost no inner loop": the body is meta-trained as in MAML, but only the head adapts.

    The body runs once for each set of examples instead of once for each step. A. Raghu, M. Raghu, S. Bengio,
    O. Vinyals. Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML. ICLR 2020,
    https://arxiv.org/abs/1909.09157

    Parameters
    ----------
    net : Conv4 or Sequential
        Its last layer is the head.
    inner_lr, steps, first_order, eval_steps
        See :class:`MAML`.
    """

    def __init__(
        self,
        net: nn.Module,
        inner_lr: float = 0.4,
        steps: int = 1,
        first_order: bool = False,
        eval_steps: int | None = None,
    ) -> None:
        super().__init__(net, inner_lr, steps, first_order, eval_steps)
        self._adapted = batched.head_names(net)  # which raises where no layer is known to be the last

    def inner_loop(self, episodes: Episodes, steps: int, second_order: bool = False) -> Iterator[Parameters]:
        self._check(episodes)
        params = batched.expand(self.net, len(episodes))
        z = batched.embed(self.net, params, episodes.support_x)
        head = {name: params[name] for name in self._adapted}

        def losses(head: Parameters, step: int) -> Tensor:
            return task_losses(batched.head(self.net, head, z), episodes.support_y)

        for adapted in self.descend(head, losses, steps, second_order):
            yield params | adapted


def _key(name: str) -> str:
    """A parameter's name as a key of a ParameterDict, which must hold no dots."""
    return name.replace(".", "-")
