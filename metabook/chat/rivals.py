"""What a bot that adapts has to beat: training a classifier again, and fine-tuning the one that it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metabook.episodes import Episodes
from metabook.learners import Learner, task_losses

__all__ = ["FineTuned", "Retrained"]


class Retrained(Learner):
    """Logistic regression on everything that is remembered, trained anew when that has changed.

    Parameters
    ----------
    strength : float
        Inverse of the weight of the penalty.
    every : int
        Train only when so many examples have come or gone since the last time. Until then, a new intent is not known.
    balanced : bool
        Give every intent the same weight, however many examples it has.
    """

    def __init__(self, strength: float = 10.0, every: int = 1, balanced: bool = True) -> None:
        super().__init__()
        self.strength, self.every, self.trainings = strength, every, 0
        self.balanced = balanced
        self._x = torch.empty(0)
        self._y = torch.empty(0)
        self._model: LogisticRegression | None = None

    def predict(self, episodes: Episodes) -> Tensor:
        return torch.stack(
            [self._one(*task, episodes.ways) for task in zip(episodes.support_x, episodes.support_y, episodes.query_x)]
        )

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _one(self, x: Tensor, y: Tensor, query: Tensor, ways: int) -> Tensor:
        """Log-probabilities ``[queries, ways]``."""
        changed = not (torch.equal(x, self._x) and torch.equal(y, self._y))
        if self._model is None or (changed and max(1, abs(len(x) - len(self._x))) >= self.every):
            weight = "balanced" if self.balanced else None
            self._model = LogisticRegression(C=self.strength, class_weight=weight, max_iter=300)
            self._model.fit(x.flatten(1).numpy(force=True), y.numpy(force=True))
            self._x, self._y = x, y
            self.trainings += 1
        logits = torch.full((len(query), max(ways, int(self._y.max()) + 1)), -torch.inf)
        known = torch.from_numpy(self._model.predict_log_proba(query.flatten(1).numpy(force=True)))
        logits[:, torch.from_numpy(self._model.classes_)] = known.to(logits.dtype)
        return logits[:, :ways].to(query.device)


class FineTuned(Learner):
    """Logistic regression on the old examples, then gradient steps on the new ones alone.

    Parameters
    ----------
    old : int
        Number of old examples: those that come first in the support set, of the classes that come first.
    steps : int
        Of Adam, each on all new examples.
    lr : float
    strength : float
        See :class:`Retrained`.
    """

    def __init__(self, old: int, steps: int = 20, lr: float = 0.1, strength: float = 10.0) -> None:
        super().__init__()
        self.old, self.steps, self.lr, self.strength = old, steps, lr, strength
        self._base: tuple[Tensor, Tensor, Tensor] | None = None

    def predict(self, episodes: Episodes) -> Tensor:
        tasks = zip(episodes.support_x, episodes.support_y, episodes.query_x)
        return torch.stack([self._one(x.flatten(1), y, query.flatten(1), episodes.ways) for x, y, query in tasks])

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _one(self, x: Tensor, y: Tensor, query: Tensor, ways: int) -> Tensor:
        weight, bias = self._head(x[: self.old], y[: self.old])
        rows = ways - len(weight)
        head = [torch.cat([part, part.new_zeros(rows, *part.shape[1:])]).requires_grad_() for part in (weight, bias)]
        optimiser = torch.optim.Adam(head, lr=self.lr)
        with torch.enable_grad():
            for _ in range(self.steps if len(x) > self.old else 0):
                optimiser.zero_grad()
                F.cross_entropy(x[self.old :] @ head[0].T + head[1], y[self.old :]).backward()
                optimiser.step()
        return (query @ head[0].T + head[1]).detach().log_softmax(1)

    def _head(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._base is None or not torch.equal(self._base[0], x):
            model = LogisticRegression(C=self.strength, max_iter=300).fit(x.numpy(force=True), y.numpy(force=True))
            self._base = (x, torch.from_numpy(model.coef_).to(x), torch.from_numpy(model.intercept_).to(x))
        return self._base[1], self._base[2]
