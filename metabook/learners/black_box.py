"""Black-box meta-learning: a network takes the place of the learning algorithm, or of a part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook import batched
from metabook.batched import Parameters
from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses
from metabook.learners.bayes import gaussian_nll
from metabook.learners.gradient import GradientLearner
from metabook.nets import MLP

__all__ = ["LearnedOptimiser", "NeuralProcess"]


class LearnedOptimiser(GradientLearner):
    r"""A recurrent network that reads a parameter's gradient and writes its next step, the same for every parameter.

    .. math:: \theta_{t+1} = \theta_t + s\, g_t,\qquad (g_t, h_{t+1}) = m_\phi(\nabla_t, h_t),

    with a state :math:`h` for each parameter. Trained by differentiating through the steps; the gradients that go into
    the network are taken as constants. M. Andrychowicz et al., Learning to learn by gradient descent by gradient
    descent, NeurIPS 2016, https://arxiv.org/abs/1606.04474

    Parameters
    ----------
    net : Module
        What is optimised in each task; see :class:`~metabook.learners.gradient.GradientLearner`.
    steps : int
        How many steps are unrolled in training, and taken in :meth:`predict`.
    hidden : int
        Units of the LSTM.
    scale : float
        The factor s.
    learn_init : bool
        Learn the weights from which ``net`` starts as well (as S. Ravi and H. Larochelle, ICLR 2017). Otherwise
        training starts each task from new random weights, and :meth:`predict` from those that ``net`` has.
    """

    def __init__(
        self, net: nn.Module, steps: int = 20, hidden: int = 20, scale: float = 0.1, learn_init: bool = False
    ) -> None:
        super().__init__(net, scale, steps)
        self.hidden, self.scale, self.learn_init = hidden, scale, learn_init
        self.cell, self.step_of = nn.LSTMCell(2, hidden), nn.Linear(hidden, 1)
        for p in net.parameters():
            p.requires_grad_(learn_init)

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        flat = torch.cat([g.flatten(1) for g in grads.values()], 1)  # [tasks, parameters]
        rows = flat.numel()
        if not state:
            state["h"] = state["c"] = flat.new_zeros(rows, self.hidden)
        state["h"], state["c"] = self.cell(encode_gradient(flat).view(rows, 2), (state["h"], state["c"]))
        moves = self.scale * self.step_of(state["h"]).view_as(flat)
        sizes = [g[0].numel() for g in grads.values()]
        return {
            name: p + move.view_as(p) for (name, p), move in zip(params.items(), moves.split(sizes, 1), strict=True)
        }

    def inner_loop(self, episodes: Episodes, steps: int, second_order: bool = False) -> Iterator[Parameters]:
        self._check(episodes)
        fresh = self.training and not self.learn_init
        start = (batched.initialise if fresh else batched.expand)(self.net, len(episodes))
        if not self.learn_init:  # leaves of the graph, of which the gradients are taken
            start = {name: p.detach().requires_grad_() for name, p in start.items()}

        def losses(params: Parameters, step: int) -> Tensor:
            return task_losses(self.forward_adapted(params, episodes.support_x), episodes.support_y)

        yield from self.descend(start, losses, steps)

    def loss(self, episodes: Episodes) -> Tensor:
        """The query loss, the mean over tasks and over the steps: early progress counts too."""
        _, *path = self.inner_loop(episodes, self.steps)
        losses = [task_losses(self.forward_adapted(p, episodes.query_x), episodes.query_y).mean() for p in path]
        return torch.stack(losses).mean()


def encode_gradient(gradient: Tensor, p: float = 10.0) -> Tensor:
    r"""Gradients of all magnitudes as two numbers of ordinary size, ``[...]`` to ``[..., 2]``.

    :math:`(\log|g| / p,\; \operatorname{sign} g)` where :math:`|g| \ge e^{-p}`, otherwise :math:`(-1,\; e^p g)`
    (Andrychowicz et al., 2016, appendix A).
    """
    size = gradient.abs()
    large = size >= math.exp(-p)
    first = torch.where(large, size.clamp_min(math.exp(-p)).log() / p, -1.0)
    return torch.stack([first, torch.where(large, gradient.sign(), gradient * math.exp(p))], -1)


class NeuralProcess(Learner):
    r"""Map a support set straight to a predictor: no gradient, no distance, one pass through a network.

    Each support example is encoded together with its target, :math:`r_i = e(x_i, y_i)`; the query's answer is decoded
    from what they say on average, or from the part of it that the query attends to:

    .. math:: y_* \sim d\Bigl(x_*, \sum_i a_i\, r_i\Bigr),\qquad a_i = \tfrac1n
              \quad\text{or}\quad a_i = \operatorname{softmax}_i\bigl(q(x_*)^\top k(x_i) / \sqrt{h}\bigr).

    M. Garnelo et al., Conditional Neural Processes, ICML 2018, https://arxiv.org/abs/1807.01613; with attention:
    H. Kim et al., Attentive Neural Processes, ICLR 2019, https://arxiv.org/abs/1901.05761 (its deterministic path).

    Parameters
    ----------
    inputs : int
        Numbers of an input, or of its embedding.
    outputs : int
        Values of a target; for classification the number of classes.
    hidden : int
    attention : bool
    embed : Module, optional
        Applied to every input first, ``[examples, ...] -> [examples, inputs]``.
    regression : bool
        Whether targets are real numbers: then the decoder gives a mean and a variance.
    """

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        hidden: int = 64,
        attention: bool = False,
        embed: nn.Module | None = None,
        regression: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.hidden, self.attention = inputs, outputs, hidden, attention
        self.embed, self.regression = embed, regression
        self.encoder = MLP(inputs + outputs, (hidden, hidden), hidden)
        self.decoder = MLP(inputs + hidden, (hidden, hidden), 2 * outputs if regression else outputs)
        if attention:
            self.keys = MLP(inputs, (hidden,), hidden)

    def predictive(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Mean and variance of the queries' values, ``[tasks, queries, outputs]`` each; for regression."""
        mean, spread = self._decode(episodes).chunk(2, 2)
        return mean, (0.01 + 0.99 * F.softplus(spread)).square()

    def predict(self, episodes: Episodes) -> Tensor:
        return self.predictive(episodes)[0] if self.regression else self._decode(episodes)

    def loss(self, episodes: Episodes) -> Tensor:
        """Negative log-likelihood of the queries."""
        if self.regression:
            return gaussian_nll(*self.predictive(episodes), episodes.query_y).mean()
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _decode(self, episodes: Episodes) -> Tensor:
        if self.regression != episodes.regression or self.outputs != episodes.ways:
            kind = f"{self.outputs} values" if self.regression else f"{self.outputs} ways"
            raise ValueError(f"this neural process answers with {kind}; the tasks ask for {episodes.ways}")
        x, seen = (self._embed(each) for each in (episodes.query_x, episodes.support_x))
        y = episodes.support_y if self.regression else F.one_hot(episodes.support_y, self.outputs).to(seen.dtype)
        r = self.encoder(torch.cat([seen, y], 2))  # [tasks, support, hidden]
        if self.attention:
            said = F.scaled_dot_product_attention(self.keys(x), self.keys(seen), r)
        else:
            said = r.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        return self.decoder(torch.cat([x, said], 2))

    def _embed(self, x: Tensor) -> Tensor:
        return x if self.embed is None else self.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2])
