"""Black-box meta-learning: a network takes the place of the learning algorithm, or of a part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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

__all__ = ["LearnedOptimiser", "NeuralProcess", "loss_curves"]


class LearnedOptimiser(GradientLearner):
    r"""A recurrent network that reads a parameter's gradient and writes its next step, the same for every parameter.

    .. math:: \theta_{t+1} = \theta_t + s\, g_t,\qquad (g_t, h_{t+1}) = m_\phi(\nabla_t, h_t),

    with a state :math:`h` for each parameter. Trained by differentiating through the steps. M. Andrychowicz et al.,
    Learning to learn by gradient descent by gradient descent, NeurIPS 2016, https://arxiv.org/abs/1606.04474

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
    moments : bool
        Show the network also the gradient and its running mean in units of the root of its running mean square, as
        Adam does: two numbers that do not change with the scale of the loss (O. Wichrowska et al., Learned Optimizers
        that Scale and Generalize, ICML 2017, https://arxiv.org/abs/1703.04813, has such inputs).
    truncate : int, optional
        Cut the graph after every so many steps: the meta-gradient leaves out how a step acts beyond the next cut.
    second_order : bool
        Differentiate through the gradients that go into the network too; otherwise they are taken as constants.
    """

    def __init__(
        self,
        net: nn.Module,
        steps: int = 20,
        hidden: int = 20,
        scale: float = 0.1,
        learn_init: bool = False,
        moments: bool = True,
        truncate: int | None = None,
        second_order: bool = False,
    ) -> None:
        super().__init__(net, scale, steps)
        self.hidden, self.scale, self.learn_init = hidden, scale, learn_init
        self.moments, self.truncate, self.second_order = moments, truncate, second_order
        self.cell, self.step_of = nn.LSTMCell(4 if moments else 2, hidden), nn.Linear(hidden, 1)
        for p in net.parameters():
            p.requires_grad_(learn_init)

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        flat = torch.cat([g.flatten(1) for g in grads.values()], 1)  # [tasks, parameters]
        if not state:
            state["h"] = state["c"] = flat.new_zeros(flat.numel(), self.hidden)
        elif self.truncate and step % self.truncate == 0:
            params = {name: p.detach() for name, p in params.items()}
            state |= {name: value.detach() for name, value in state.items()}
        seen = encode_gradient(flat)
        if self.moments:
            seen = torch.cat([seen, normalised_gradient(flat, step, state)], -1)
        state["h"], state["c"] = self.cell(seen.flatten(0, 1), (state["h"], state["c"]))
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

        yield from self.descend(start, losses, steps, second_order)

    def loss(self, episodes: Episodes) -> Tensor:
        """The query loss, the mean over tasks and over the steps: early progress counts too."""
        _, *path = self.inner_loop(episodes, self.steps, self.second_order)
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


def normalised_gradient(gradient: Tensor, step: int, state: Parameters) -> Tensor:
    r"""The gradient and its running mean over the root of its running mean square, ``[...]`` to ``[..., 2]``.

    :math:`(g, \hat m) / \sqrt{\hat v}` with Adam's estimates (D. P. Kingma and J. Ba, 2015, algorithm 1), their decay
    rates 0.9 and 0.99; they are kept in ``state``.
    """
    for name, value, decay in (("m", gradient, 0.9), ("v", gradient.square(), 0.99)):
        state[name] = torch.lerp(value, state.get(name, torch.zeros_like(value)), decay)
    mean, square = state["m"] / (1 - 0.9 ** (step + 1)), state["v"] / (1 - 0.99 ** (step + 1))
    return torch.stack([gradient, mean], -1) * (square + 1e-16).rsqrt().unsqueeze(-1)


def loss_curves(
    optimiser: LearnedOptimiser | Callable[[list[Tensor]], torch.optim.Optimizer],
    net: nn.Module,
    start: Parameters,
    episodes: Episodes,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """How far an optimiser, learned or one of torch, brings each task's copy of ``net`` down from the same start.

    Parameters
    ----------
    optimiser : LearnedOptimiser or callable
        A callable makes an optimiser of torch from a list of tensors. It must treat each number by itself, as SGD and
        Adam do: the tasks lie side by side in the tensors.
    net : Module
        The architecture; a learned optimiser may have been trained with another one.
    start : dict of str to Tensor [tasks, ...]
        The weights to start from, say of :func:`metabook.batched.initialise`.
    episodes : Episodes
        The gradients are those of the loss on the support set.
    steps : int

    Returns
    -------
    support, query : Tensor [steps + 1, tasks]
        The two losses after 0, 1, ..., ``steps`` steps.
    """
    params = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
    given = None if isinstance(optimiser, LearnedOptimiser) else optimiser(list(params.values()))
    state: Parameters = {}
    curves = []
    for step in range(steps + 1):
        support = task_losses(batched.forward(net, params, episodes.support_x), episodes.support_y)
        grads = torch.autograd.grad(support.sum(), list(params.values()))
        with torch.no_grad():
            query = task_losses(batched.forward(net, params, episodes.query_x), episodes.query_y)
            curves.append(torch.stack([support.detach(), query]))
            if isinstance(optimiser, LearnedOptimiser):
                moved = optimiser.update(params, dict(zip(params, grads, strict=True)), step, state)
                params = {name: p.requires_grad_() for name, p in moved.items()}
            elif given is not None:
                for p, grad in zip(params.values(), grads, strict=True):
                    p.grad = grad
                given.step()
    support, query = torch.stack(curves, 1)
    return support, query


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
