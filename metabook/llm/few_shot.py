"""Few-shot learners that adapt a language model: LoRA on the support set, from a plain or from a meta-learned start.

The adapter can as well stand *behind* a frozen model (:class:`~metabook.nets.Adapted`): then the model's features are
computed once, and a step takes a millisecond. Gradient steps on a task change the adapter and nothing else; the
classes' prototypes (J. Snell, K. Swersky, R. Zemel, 2017) are then taken in the adapted features. The starts are
meta-learned by the prototypical loss itself, by first-order MAML (C. Finn, P. Abbeel, S. Levine, 2017,
https://arxiv.org/abs/1703.03400) or by Reptile (A. Nichol, J. Achiam, J. Schulman, 2018,
https://arxiv.org/abs/1803.02999).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes, generator_for
from metabook.learners import ProtoNet, task_losses
from metabook.learners.prototypes import squared_distances
from metabook.llm.adapted import AdaptedFeatures, LowerStates
from metabook.llm.model import LanguageModel
from metabook.theory.masked_losses import weighted_mean

__all__ = ["METHODS", "AdapterFewShot", "MaskedAdapter", "MetaAdapter", "leave_one_out", "rarity"]

METHODS = ("prototypes", "fomaml", "reptile")


def leave_one_out(z: Tensor, y: Tensor, ways: int, sharpness: float) -> Tensor:
    r"""Loss of a labelled set in itself: each example against the prototypes of all the others.

    .. math:: -\frac1n \sum_i \log \operatorname{softmax}_k\bigl(-s\, \lVert z_i - c_k^{(i)} \rVert^2\bigr)_{k = y_i},

    where :math:`c_k^{(i)}` is the mean of class :math:`k` without example :math:`i`. An example that is alone in its
    class has distance 0 from it, so that what is left of the loss pushes the classes apart.

    Parameters
    ----------
    z : Tensor [n, d]
    y : Tensor [n]
        Classes 0 to ``ways - 1``, each of which occurs.
    ways : int
    sharpness : float
        :math:`s`.

    Returns
    -------
    Tensor []
    """
    members = F.one_hot(y, ways).to(z.dtype)  # [n, ways]
    counts = members.sum(0)
    distances = squared_distances(z.unsqueeze(0), (members.T @ z / counts.unsqueeze(1)).unsqueeze(0))[0]
    # Without example i its class's mean is n / (n - 1) times as far away from it; if it is alone, it is its own mean.
    left_out = (counts / (counts - 1).clamp_min(1)).square().where(counts > 1, 0.0)
    return F.cross_entropy(-sharpness * distances * torch.where(members > 0, left_out, 1.0), y)


class AdapterFewShot(ProtoNet):
    r"""LoRA on each task's support set from the adapter's present start; then prototypes in the adapted features.

    .. math:: p(y = k \mid x) \propto \exp\bigl(-s\, \lVert z' - c'_k \rVert^2\bigr)

    With no steps: the prototypes of the start. The start itself is not trained: :class:`MetaAdapter` does that.
    Between two calls with the same support set the adaptation is kept: a bot is asked more often than it is corrected.

    Parameters
    ----------
    features : Module
        Inputs ``[..., *]`` to unit vectors ``[..., width]``. With :class:`~metabook.llm.adapted.AdaptedFeatures` the
        inputs of episodes are row numbers of its pool of texts, with :class:`~metabook.nets.Adapted` (of scale 1) they
        are features that were computed before.
    inner_lr : float
        Step size of the inner loop.
    steps : int
        Inner steps of :meth:`predict`; 0 is possible.
    sharpness : float
        :math:`s`. Squared distances of unit vectors are at most 4: without it no probability is near 1.
    adam : bool
        Inner steps are Adam's without momentum, as in Reptile's paper, with a state that starts anew in each task;
        False: plain gradient descent.
    spread : float
        Spread of the unit vectors within a class, which :class:`~metabook.chat.UnbiasedPrototypes` takes away from the
        distances, for classes with unequal numbers of examples; 0: nothing.

    Raises
    ------
    ValueError
        If the inner rate or the sharpness is not positive, or the number of steps or the spread negative.
    """

    def __init__(
        self,
        features: nn.Module,
        inner_lr: float = 1e-3,
        steps: int = 5,
        *,
        sharpness: float = 10.0,
        adam: bool = True,
        spread: float = 0.0,
    ) -> None:
        if inner_lr <= 0 or sharpness <= 0:
            raise ValueError(f"inner_lr and sharpness must be positive, not {inner_lr} and {sharpness}")
        if steps < 0 or spread < 0:
            raise ValueError(f"steps and spread must not be negative, but are {steps} and {spread}")
        super().__init__(features, in_turn=False)
        self.inner_lr, self.steps, self.sharpness, self.adam, self.spread = inner_lr, steps, sharpness, adam, spread
        self._kept: tuple[str, list[Tensor], list[Tensor]] | None = None

    @property
    def features(self) -> nn.Module:
        return self.net

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``[tasks, examples, width]`` of a task's inputs: unit vectors, scaled for the sharpness."""
        return math.sqrt(self.sharpness) * self.net(x)

    def inner_loss(self, task: Episodes, step: int) -> Tensor:
        """What an inner step goes down: here :func:`leave_one_out` of the support set.

        Parameters
        ----------
        task : Episodes
            One task.
        step : int
            Number of the step.
        """
        return leave_one_out(self.net(task.support_x[0]), task.support_y[0], task.ways, self.sharpness)

    def predict(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]``; the adapter is afterwards what it was."""
        if self.transductive or len(episodes) > 1 or not self.steps:
            return self.trajectory(episodes, [self.steps])[0]
        with self.restored(), torch.no_grad():
            for p, value in zip(self.parameters(), self.adapted(episodes)):
                p.copy_(value)
            return self.answer(episodes)

    def answer(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]`` of prototypes with the adapter as it stands."""
        logits = ProtoNet.predict(self, episodes)
        if not self.spread:
            return logits
        shots = F.one_hot(episodes.support_y, episodes.ways).sum(1)  # [tasks, ways]
        return logits + self.sharpness * self.spread / shots.unsqueeze(1)

    def adapted(self, task: Episodes) -> list[Tensor]:
        """Values of the parameters after all steps on a task's support set; they are computed once for the last one."""
        start = [p.detach().clone() for p in self.parameters()]
        settings, known = repr(self), [task.support_x, task.support_y, *start]
        kept = self._kept
        if kept is None or kept[0] != settings or not all(map(torch.equal, kept[1], known)):
            with self.restored():
                for _ in self.descend(task, self.steps):
                    pass
                self._kept = kept = settings, known, [p.detach().clone() for p in self.parameters()]
        return kept[2]

    def trajectory(self, episodes: Episodes, steps: Sequence[int] = (0, 1, 5)) -> Tensor:
        """Logits for the queries after several numbers of inner steps.

        Parameters
        ----------
        episodes : Episodes
        steps : sequence of int
            Increasing.

        Returns
        -------
        Tensor [len(steps), tasks, queries, ways]
        """
        if list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"steps must increase from 0 or more, not be {list(steps)}")
        if steps[-1] == 0:
            with torch.no_grad():
                return self.answer(episodes).unsqueeze(0)
        tasks = []
        for task in episodes.split(1):
            with self.restored(), torch.no_grad():
                tasks.append([self.answer(task) for n in self.descend(task, steps[-1]) if n in steps])
        return torch.stack([torch.cat(each) for each in zip(*tasks)])

    def loss(self, episodes: Episodes) -> Tensor:
        """Cross-entropy of the queries after adaptation: a report without a gradient."""
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        raise ValueError("a plain start is not trained: take MetaAdapter to learn one")

    @contextmanager
    def restored(self) -> Iterator[None]:
        """After the block, values and gradients of the adapter are what they were."""
        before = [(p, p.detach().clone(), p.grad) for p in self.parameters()]
        try:
            yield
        finally:
            for p, value, grad in before:
                p.data.copy_(value)
                p.grad = grad

    def descend(self, task: Episodes, steps: int) -> Iterator[int]:
        """Change the adapter in place, step by step; yield how many were made: 0, 1, ..., ``steps``.

        Parameters
        ----------
        task : Episodes
            One task.
        steps : int
        """
        params = list(self.parameters())
        optimiser = (
            torch.optim.Adam(params, self.inner_lr, betas=(0.0, 0.999))
            if self.adam
            else torch.optim.SGD(params, self.inner_lr)
        )
        yield 0
        for step in range(steps):
            optimiser.zero_grad()
            with torch.enable_grad():
                self.inner_loss(task, step).backward()
            optimiser.step()
            yield step + 1

    def extra_repr(self) -> str:
        inner = f"inner_lr={self.inner_lr}, steps={self.steps}, adam={self.adam}"
        return f"{inner}, sharpness={self.sharpness}, spread={self.spread}"


class MetaAdapter(AdapterFewShot):
    r"""The same with a start that is learned over training tasks.

    - ``"prototypes"``: the prototypical loss *before* any inner step. With ``in_turn`` every text of the task in turn
      is its class's only support text, for the price of one pass.
    - ``"fomaml"``: the gradient of the query loss after ``train_steps`` inner steps, put in at the start.
    - ``"reptile"``: minus the way that ``train_steps`` inner steps on support *and* queries went; train it by
      ``fit(..., optimiser="sgd", lr=1.0, anneal="linear")``.

    Parameters
    ----------
    features, inner_lr, steps, sharpness, adam, spread
        As for :class:`AdapterFewShot`; ``steps`` are those of :meth:`predict`, and so is ``spread``.
    method : {"prototypes", "fomaml", "reptile"}
    train_steps : int
        Inner steps in meta-training (not for ``"prototypes"``).
    in_turn : bool
        See :class:`~metabook.learners.ProtoNet`.

    Raises
    ------
    ValueError
        For another method, or no inner steps in meta-training.
    """

    def __init__(
        self,
        features: nn.Module,
        method: str = "prototypes",
        inner_lr: float = 1e-3,
        steps: int = 0,
        *,
        train_steps: int = 3,
        in_turn: bool = True,
        sharpness: float = 10.0,
        adam: bool = True,
        spread: float = 0.0,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        if train_steps < 1:
            raise ValueError(f"train_steps must be at least 1, not {train_steps}")
        super().__init__(features, inner_lr, steps, sharpness=sharpness, adam=adam, spread=spread)
        self.method, self.train_steps, self.in_turn = method, train_steps, in_turn

    def loss(self, episodes: Episodes) -> Tensor:
        """The prototypical loss at the start: what ``"prototypes"`` minimises; for the others a report."""
        if self.method == "prototypes" and self.in_turn:
            return self._loss_in_turn(episodes)
        return task_losses(ProtoNet.predict(self, episodes), episodes.query_y).mean()

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        """Put the outer update into ``.grad``; return the mean over tasks of the loss that it is from."""
        if self.method == "prototypes":
            loss = self.loss(episodes)
            loss.backward()
            return loss.detach()
        params, total = list(self.parameters()), torch.zeros((), device=episodes.device)
        updates = [torch.zeros_like(p) for p in params]
        for task in episodes.split(1):
            with self.restored():
                found, loss = self._fomaml(task) if self.method == "fomaml" else self._reptile(task)
            total += loss / len(episodes)
            for update, each in zip(updates, found):
                update += each / len(episodes)
        for p, update in zip(params, updates):
            p.grad = update if p.grad is None else p.grad + update
        return total

    def _fomaml(self, task: Episodes) -> tuple[list[Tensor], Tensor]:
        """The gradient of the query loss where the inner loop ends, and that loss."""
        for _ in self.descend(task, self.train_steps):
            pass
        loss = task_losses(ProtoNet.predict(self, task), task.query_y).mean()
        return list(torch.autograd.grad(loss, list(self.parameters()))), loss.detach()

    def _reptile(self, task: Episodes) -> tuple[list[Tensor], Tensor]:
        """Start minus end of the inner loop on all examples, and the loss at its end."""
        x, y = torch.cat([task.support_x, task.query_x], 1), torch.cat([task.support_y, task.query_y], 1)
        both = Episodes(x, y, task.query_x, task.query_y, task.classes)
        start = [p.detach().clone() for p in self.parameters()]
        for _ in self.descend(both, self.train_steps):
            pass
        with torch.no_grad():
            loss = self.inner_loss(both, self.train_steps)
        return [before - p.detach() for before, p in zip(start, self.parameters())], loss

    def extra_repr(self) -> str:
        return f"method={self.method!r}, train_steps={self.train_steps}, in_turn={self.in_turn}, {super().extra_repr()}"


def rarity(lm: LanguageModel, texts: Sequence[str]) -> dict[int, float]:
    r"""Weights of tokens by how few texts they stand in, :math:`\log \frac{1 + n}{1 + n_v}` for token :math:`v`.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
        :math:`n` texts, of training classes.

    Returns
    -------
    dict
        Of the tokens that occur; one that does not has the weight :math:`\log(1 + n)`, under the key -1.
    """
    counts: dict[int, int] = {}
    for text in texts:
        for token in set(lm.encode(text)):
            counts[token] = counts.get(token, 0) + 1
    total = math.log1p(len(texts))
    return {token: total - math.log1p(count) for token, count in counts.items()} | {-1: total}


class MaskedAdapter(AdapterFewShot):
    r"""Self-supervised steps on a task's own texts, without their labels; then prototypes in the adapted features.

    The loss is the weighted mean of the losses of single tokens,

    .. math:: \mathcal L_{\text{mask}} = \frac{\sum_j w_j m_j \ell_j}{\sum_j w_j m_j}, \qquad
              \ell_j = -\log q_\theta(x_j \mid x_1, \dots, x_{j-1}),

    over all tokens of all texts, where :math:`m_j` is 1 with probability ``rate`` and otherwise 0, anew in each step.
    A causal model sees no token that it is asked for, so nothing needs to be replaced in its input. ``fit`` trains the
    start by the same loss on the texts of the training tasks.

    Parameters
    ----------
    features : AdaptedFeatures
        The features can be those of any layer above the adapter; the loss needs all layers up to the last.
    texts : LowerStates, optional
        The same pool without a template, which the loss is taken on; unless given, the states of ``features``, if
        they are plain texts (``pooling="mean"``).
    inner_lr, steps, sharpness, adam
        As for :class:`AdapterFewShot`.
    queries : bool
        Adapt to the texts of the queries too, which makes the learner transductive.
    rate : float
        Probability that a token is asked for in a step.
    weights : mapping of int to float, optional
        :math:`w_j` by token, as :func:`rarity` gives them (-1: of tokens not listed); 1 for all unless given.
    labelled : float
        Weight of the loss of :class:`AdapterFewShot`, which is added.
    seed : int
        Of the masks.

    Raises
    ------
    ValueError
        For texts that stand in a template, or another number of them, or states from above the adapter's lowest layer,
        or a rate that is not in (0, 1].
    """

    def __init__(
        self,
        features: AdaptedFeatures,
        texts: LowerStates | None = None,
        inner_lr: float = 1e-3,
        steps: int = 5,
        *,
        queries: bool = False,
        rate: float = 1.0,
        weights: Mapping[int, float] | None = None,
        labelled: float = 0.0,
        sharpness: float = 10.0,
        adam: bool = True,
        seed: int = 0,
    ) -> None:
        texts = features.states if texts is None else texts
        if texts.pooling != "mean" or texts.template not in (None, "{x}"):
            raise ValueError('the loss is for plain texts: give LowerStates(lm, texts, layer, pooling="mean")')
        if len(texts) != len(features.states):
            raise ValueError(f"{len(texts)} texts, but the features are of {len(features.states)}")
        if texts.layer > features.adapter.lowest:
            raise ValueError(
                f"the adapter changes layer {features.adapter.lowest}, but the texts' states enter layer {texts.layer}"
            )
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, not {rate}")
        super().__init__(features, inner_lr, steps, sharpness=sharpness, adam=adam)
        self.texts, self.queries, self.rate, self.weights = texts, queries, rate, weights
        self.labelled, self.seed = labelled, seed

    @property
    def features(self) -> AdaptedFeatures:
        assert isinstance(self.net, AdaptedFeatures)  # for the type checker
        return self.net

    @property
    def transductive(self) -> bool:
        return self.queries and self.steps > 0

    def masked_loss(self, rows: Tensor, step: int | None = None) -> Tensor:
        """The masked loss of some texts, ``[]``; without ``step`` no token is left out."""
        texts, lm = self.texts, self.texts.lm
        order = sorted(rows.flatten().tolist(), key=lambda row: -len(texts.ids[row]))
        losses, weights = [], []
        generator = generator_for("masked tokens", self.seed, step)
        for start in range(0, len(order), self.features.batch):
            chunk = order[start : start + self.features.batch]
            targets = torch.tensor([token for row in chunk for token in texts.ids[row][1:]], device=lm.device)
            w = torch.tensor([self._weight(token) for token in targets.tolist()])
            if step is not None and self.rate < 1:
                w = w * (torch.rand(len(w), generator=generator) < self.rate)
            states = texts.above(chunk, lm.depth, self.features.adapter)
            kept = torch.cat([each[: len(texts.ids[row]) - 1] for row, each in zip(chunk, states)])[w > 0]
            logits = lm.model.get_output_embeddings()(kept)  # type: ignore[operator]
            losses.append(F.cross_entropy(logits.to(states.dtype), targets[w > 0], reduction="none"))
            weights.append(w[w > 0].to(lm.device))
        return weighted_mean(torch.cat(losses), torch.cat(weights))

    def _weight(self, token: int) -> float:
        return 1.0 if self.weights is None else self.weights.get(token, self.weights.get(-1, 1.0))

    def inner_loss(self, task: Episodes, step: int) -> Tensor:
        """The masked loss of the task's texts, and the labelled one with its weight."""
        rows = torch.cat([task.support_x[0], task.query_x[0]]) if self.queries else task.support_x[0]
        loss = self.masked_loss(rows, step)
        return loss + self.labelled * super().inner_loss(task, step) if self.labelled else loss

    def loss(self, episodes: Episodes) -> Tensor:
        """The masked loss of all texts of the tasks before any step: what ``fit`` trains the start by."""
        return self.masked_loss(torch.cat([episodes.support_x, episodes.query_x], 1))

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        loss = self.loss(episodes)
        loss.backward()
        return loss.detach()

    def extra_repr(self) -> str:
        return f"queries={self.queries}, rate={self.rate}, labelled={self.labelled}, {super().extra_repr()}"
