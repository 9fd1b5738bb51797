"""Model-agnostic meta-learning: an initialisation from which a few gradient steps suffice.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, https://arxiv.org/abs/1703.03400
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses

__all__ = ["MAML", "GradientLearner", "Parameters"]

Parameters = dict[str, Tensor]
"""Parameters by name, each with a leading task dimension."""


class GradientLearner(Learner):
    """A learner that adapts by gradient descent on the support set, all tasks side by side.

    Parameters
    ----------
    net : Module
        Maps inputs to logits (as many as ways) or values. Batch normalisation must use batch
        statistics (``norm="batch"``): running ones would mix the tasks and the steps.
    inner_lr : float
        Step size of the inner loop, for the *mean* loss over a task's support set.
    steps : int
        Inner steps.

    Raises
    ------
    ValueError
        For a net with running statistics, no inner steps, or an inner rate that is not positive.
    """

    def __init__(self, net: nn.Module, inner_lr: float, steps: int) -> None:
        super().__init__()
        if any(getattr(module, "track_running_stats", False) for module in net.modules()):
            raise ValueError("the inner loop needs batch statistics: build the net with norm='batch' or norm='none'")
        if steps < 1 or inner_lr <= 0:
            raise ValueError(
                f"at least one inner step and a positive inner rate are needed, not {steps} and {inner_lr}"
            )
        self.net, self.inner_lr, self.steps = net, inner_lr, steps

    def forward_adapted(self, params: Parameters, x: Tensor) -> Tensor:
        """Run every task's inputs ``[tasks, examples, ...]`` through that task's parameters."""
        forward = vmap(lambda p, inputs: functional_call(self.net, p, (inputs,)), randomness="different")
        return forward(params, x)

    def inner_loop(self, episodes: Episodes, steps: int, second_order: bool = False) -> Iterator[Parameters]:
        """Yield the tasks' parameters after 0, 1, ..., ``steps`` steps.

        Where gradients are recorded, all of them lead back to the shared initialisation. With
        ``second_order`` the inner gradients are themselves differentiable.
        """
        self._check(episodes)
        recording = torch.is_grad_enabled()
        params = {name: p.expand(len(episodes), *p.shape) for name, p in self.net.named_parameters()}
        yield params
        for _ in range(steps):
            with torch.enable_grad():
                if not recording:  # nobody differentiates through this loop: let each step's graph go
                    params = {name: p.detach().requires_grad_() for name, p in params.items()}
                losses = task_losses(self.forward_adapted(params, episodes.support_x), episodes.support_y)
                # A task's loss depends on its own copy of the parameters alone, so the gradient of
                # the sum holds each task's own gradient.
                grads = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=second_order)
            params = {name: p - self.inner_lr * grad for (name, p), grad in zip(params.items(), grads, strict=True)}
            yield params

    def adapt(self, episodes: Episodes, steps: int | None = None, second_order: bool = False) -> Parameters:
        """The tasks' parameters after ``steps`` inner steps (default: the learner's own number).

        Returns
        -------
        dict of str to Tensor [tasks, ...]
        """
        *_, params = self.inner_loop(episodes, self.steps if steps is None else steps, second_order)
        return params

    def predict(self, episodes: Episodes) -> Tensor:
        return self.forward_adapted(self.adapt(episodes), episodes.query_x)

    def trajectory(self, episodes: Episodes, steps: int | None = None) -> Tensor:
        """Predictions for the queries after 0, 1, ..., ``steps`` inner steps.

        Returns
        -------
        Tensor [steps + 1, tasks, queries, ways]
        """
        with torch.no_grad():
            loop = self.inner_loop(episodes, self.steps if steps is None else steps)
            return torch.stack([self.forward_adapted(params, episodes.query_x) for params in loop])

    def _check(self, episodes: Episodes) -> None:
        outputs = getattr(self.net, "outputs", episodes.ways)
        if outputs != episodes.ways:
            raise ValueError(f"the net has {outputs} outputs, but the tasks have {episodes.ways} ways")


class MAML(GradientLearner):
    r"""MAML: an initialisation whose query loss is small *after* adaptation.

    .. math:: \min_\theta\; \mathbb E_\tau\, L^{query}_\tau(\theta'_\tau),\qquad
              \theta'_\tau = \theta - \alpha \nabla_\theta L^{support}_\tau(\theta).

    Transductive when the net normalises with batch statistics.

    Parameters
    ----------
    net : Module
        See :class:`GradientLearner`.
    inner_lr : float
        The step size alpha, for the mean loss over the support set. (The original code divides the
        summed loss by the shots alone: its 0.4 for 5-way tasks is 2.0 here.)
    steps : int
        Inner steps in training.
    first_order : bool
        Treat the inner gradients as constants (FOMAML): cheaper, and without the Hessian term.
    eval_steps : int, optional
        Inner steps of :meth:`predict`; by default ``steps``.
    """

    def __init__(
        self,
        net: nn.Module,
        inner_lr: float = 0.4,
        steps: int = 1,
        first_order: bool = False,
        eval_steps: int | None = None,
    ) -> None:
        super().__init__(net, inner_lr, steps)
        if eval_steps is not None and eval_steps < 1:
            raise ValueError(f"eval_steps must be at least 1, not {eval_steps}")
        self.first_order, self.eval_steps = first_order, eval_steps

    def loss(self, episodes: Episodes) -> Tensor:
        params = self.adapt(episodes, second_order=not self.first_order)
        return task_losses(self.forward_adapted(params, episodes.query_x), episodes.query_y).mean()

    def predict(self, episodes: Episodes) -> Tensor:
        return self.forward_adapted(self.adapt(episodes, self.eval_steps), episodes.query_x)
