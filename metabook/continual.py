"""Continual learning: classes come domain by domain, and the earlier ones must not be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metabook.episodes import Episodes, LabelledData, generator_for
from metabook.learners import Learner
from metabook.nets import MLP

__all__ = ["Continual", "Network", "Prototypes", "Recalled", "Stage", "Transfer", "measure", "stream"]


@dataclass(frozen=True)
class Stage:
    """One domain of a stream: a few labelled examples of its classes to learn from, others to be judged by.

    Parameters
    ----------
    name : str
    train_x, test_x : Tensor [n, features]
    train_y, test_y : Tensor [n]
        Classes, numbered over all domains.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Continual(Protocol):
    """What :func:`measure` runs: something that learns one domain after the other."""

    @property
    def memory(self) -> int:
        """How many numbers it keeps from one domain to the next, its weights included."""
        ...

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Take in the examples of a domain; earlier ones are given never again."""
        ...

    def scores(self, x: Tensor) -> Tensor:
        """Of every class, ``[n, classes]``; minus infinity for those not learnt yet."""
        ...


def stream(pool: LabelledData, shots: int, seed: int = 0) -> list[Stage]:
    """The domains of a pool as a stream, in an order and with examples that the seed draws.

    Parameters
    ----------
    pool : LabelledData
        Feature vectors ``[examples, features]``; its groups are the domains.
    shots : int
        Examples of a class to learn from; the others are for the test.
    seed : int

    Raises
    ------
    ValueError
        If a class has no more than ``shots`` examples.
    """
    if int(pool.counts.min()) <= shots:
        raise ValueError(f"{shots} shots leave no example for the test of {pool.names[int(pool.counts.argmin())]!r}")
    generator = generator_for("stream", seed)
    names = sorted(set(pool.groups))
    starts, stages = pool.counts.cumsum(0) - pool.counts, []
    for name in (names[i] for i in torch.randperm(len(names), generator=generator).tolist()):
        rows: dict[str, list[Tensor]] = {"train": [], "test": []}
        for c in (c for c, group in enumerate(pool.groups) if group == name):
            drawn = starts[c] + torch.randperm(int(pool.counts[c]), generator=generator)
            rows["train"].append(drawn[:shots])
            rows["test"].append(drawn[shots:])
        train, test = torch.cat(rows["train"]), torch.cat(rows["test"])
        stages.append(Stage(name, pool.x[train], pool.y[train], pool.x[test], pool.y[test]))
    return stages


class Network:
    """A network with one hidden layer, fine-tuned on each domain; it may keep examples and replay them.

    Parameters
    ----------
    inputs, classes : int
        Features, and classes of the whole stream.
    keep : int
        Examples of each class that are kept and learnt again with every later domain (replay; 0: fine-tuning).
    hidden, steps : int
        Units of the hidden layer; steps of Adam on each domain, each on all examples at hand.
    lr : float
    seed : int
        Of the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        keep: int = 0,
        hidden: int = 64,
        steps: int = 60,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = MLP(inputs, (hidden,), classes)
        self.keep, self.steps, self.lr = keep, steps, lr
        self.seen = torch.zeros(classes, dtype=torch.bool)
        self.kept_x, self.kept_y = torch.zeros(0, inputs), torch.zeros(0, dtype=torch.long)

    @property
    def memory(self) -> int:
        return sum(p.numel() for p in self.net.parameters()) + self.kept_x.numel()

    def learn(self, x: Tensor, y: Tensor) -> None:
        self.seen[y] = True
        both_x, both_y = torch.cat([x, self.kept_x]), torch.cat([y, self.kept_y])
        optimiser = torch.optim.Adam(self.net.parameters(), self.lr)
        for _ in range(self.steps):
            optimiser.zero_grad()
            F.cross_entropy(self._logits(both_x), both_y).backward()
            optimiser.step()
        for c in y.unique():
            self.kept_x = torch.cat([self.kept_x, x[y == c][: self.keep]])
            self.kept_y = torch.cat([self.kept_y, y[y == c][: self.keep]])

    def _logits(self, x: Tensor) -> Tensor:
        return self.net(x).masked_fill(~self.seen, -torch.inf)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        return self._logits(x)


class Prototypes:
    """The mean embedding of each class; a query goes to the class of the largest cosine.

    Nothing of an earlier class changes when a later one comes, so what is forgotten is only what a new class takes
    over. Whatever maps features to features can be the embedding: a meta-learned network, an adapted language model.

    Parameters
    ----------
    classes : int
    embed : callable
        ``[n, inputs] -> [n, features]``, never changed.
    """

    def __init__(self, classes: int, embed: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.embed, self.sums, self.counts = embed, torch.zeros(classes, 0), torch.zeros(classes)

    @property
    def memory(self) -> int:
        """Sums and counts of the classes seen; what the embedding holds is not counted, since it is fixed."""
        return int((self.counts > 0).sum()) * (self.sums.shape[1] + 1)

    @torch.no_grad()
    def learn(self, x: Tensor, y: Tensor) -> None:
        z = F.normalize(self.embed(x), dim=1)
        if not self.sums.shape[1]:
            self.sums = torch.zeros(len(self.counts), z.shape[1])
        self.sums.index_add_(0, y, z)
        self.counts += torch.bincount(y, minlength=len(self.counts))

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        cosines = F.normalize(self.embed(x), dim=1) @ F.normalize(self.sums, dim=1).T
        return cosines.masked_fill(self.counts == 0, -torch.inf)


class Recalled:
    """A few-shot learner whose support set is the domain at hand, and what is kept of the earlier ones.

    The learner adapts from its own start each time, so that only the examples come from the earlier domains.

    Parameters
    ----------
    learner : Learner
        Takes support sets with unequal classes; it is not trained here.
    inputs, classes : int
        Features, and classes of the whole stream.
    keep : int
        Examples of each class that are kept when the next domain comes, the first ones; with 0 earlier classes have
        no examples left and are never the answer.
    """

    def __init__(self, learner: Learner, inputs: int, classes: int, keep: int) -> None:
        self.learner, self.classes, self.keep = learner.eval(), classes, keep
        self.x, self.y = torch.zeros(0, inputs), torch.zeros(0, dtype=torch.long)

    @property
    def memory(self) -> int:
        """What is kept for the next domain: examples, and the learner's parameters."""
        return self._first().numel() * self.x.shape[1] + sum(p.numel() for p in self.learner.parameters())

    def learn(self, x: Tensor, y: Tensor) -> None:
        rows = self._first()
        self.x, self.y = torch.cat([self.x[rows], x]), torch.cat([self.y[rows], y])

    def _first(self) -> Tensor:
        """Rows of the first examples of each class."""
        each = [(self.y == c).nonzero()[: self.keep, 0] for c in self.y.unique()]
        return torch.cat(each) if each else torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        known, y = self.y.unique(return_inverse=True)
        task = (each.unsqueeze(0) for each in (self.x, y, x, torch.zeros(len(x), dtype=torch.long)))
        found = torch.full((len(x), self.classes), -torch.inf)
        found[:, known] = self.learner.predict(Episodes(*task))[0]
        return found


@dataclass(frozen=True)
class Transfer:
    """What a learner knew of each domain after each domain.

    Parameters
    ----------
    accuracy : ndarray [domains, domains]
        Row i, column j: accuracy on domain j after learning domain i, the answer being among all classes learnt so
        far; not a number where domain j has not come yet.
    within : ndarray [domains]
        Accuracy on each domain just after it was learnt, the answer being among its own classes.
    alone : ndarray [domains]
        The same of a fresh learner that has learnt this domain only.
    memory : int
        Numbers kept at the end.
    """

    accuracy: np.ndarray
    within: np.ndarray
    alone: np.ndarray
    memory: int

    @property
    def final(self) -> float:
        """Mean accuracy over all domains at the end."""
        return float(self.accuracy[-1].mean())

    @property
    def backward(self) -> float:
        """Mean change of the accuracy on a domain from when it was learnt to the end (the last domain left out)."""
        return float((self.accuracy[-1] - self.accuracy.diagonal())[:-1].mean())

    @property
    def forgetting(self) -> float:
        """Mean loss since the best moment of each domain (the last domain left out)."""
        return float((np.nanmax(self.accuracy[:-1, :-1], 0) - self.accuracy[-1, :-1]).mean())

    @property
    def forward(self) -> float:
        """What earlier domains add to learning the next: mean of within minus alone (the first domain left out)."""
        return float((self.within - self.alone)[1:].mean())


def measure(build: Callable[[], Continual], stages: Sequence[Stage]) -> Transfer:
    """Run a learner through a stream, and fresh ones through each domain by itself.

    Parameters
    ----------
    build : callable
        Makes a fresh learner, the same each time.
    stages : sequence of Stage

    Raises
    ------
    ValueError
        If there are fewer than two domains: nothing could be forgotten.
    """
    if len(stages) < 2:
        raise ValueError("a stream needs two domains or more")
    learner, accuracy = build(), np.full((len(stages), len(stages)), np.nan)
    within, alone = np.zeros(len(stages)), np.zeros(len(stages))
    for i, stage in enumerate(stages):
        learner.learn(stage.train_x, stage.train_y)
        accuracy[i, : i + 1] = [_accuracy(learner, each) for each in stages[: i + 1]]
        fresh = build()
        fresh.learn(stage.train_x, stage.train_y)
        within[i], alone[i] = _accuracy(learner, stage, own=True), _accuracy(fresh, stage, own=True)
    return Transfer(accuracy, within, alone, learner.memory)


def _accuracy(learner: Continual, stage: Stage, own: bool = False) -> float:
    scores = learner.scores(stage.test_x)
    if own:
        others = torch.ones(scores.shape[1], dtype=torch.bool)
        others[stage.train_y] = False
        scores = scores.masked_fill(others, -torch.inf)
    return float((scores.argmax(1) == stage.test_y).double().mean())
