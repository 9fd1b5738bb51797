"""Personalisation: a model that all users share, what a user's few ratings make of it, and how to take them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.data.users import Users, replies
from metabook.episodes import Episodes
from metabook.learners import FineTune, Learner, task_losses
from metabook.learners.gradient import GradientLearner
from metabook.nets import MLP
from metabook.text import TfIdf

__all__ = [
    "Constant",
    "Global",
    "Profile",
    "Remembered",
    "Ridge",
    "World",
    "learning_curve",
    "picked",
    "world",
]


@dataclass(frozen=True)
class World:
    """Two populations of users, no person in both, who rate replies to messages of different domains.

    Parameters
    ----------
    train, test : Users
    """

    train: Users
    test: Users


def world(
    seed: int = 0,
    *,
    people: int = 200,
    test_people: int = 200,
    split: str = "test",
    dimensions: int = 256,
    requests: int = 200,
) -> World:
    """Made-up users, with TF-IDF features of the replies, fitted to those that the training users rate.

    Parameters
    ----------
    seed : int
        Of the replies and of the people.
    people, test_people : int
    split : {"validation", "test"}
        Where the messages for the second population are from.
    dimensions : int
        Of the features; each has a mean square of about one, which is what networks start well from.
    requests : int
        Messages that the replies of a population answer.
    """
    pools = [replies(each, requests, seed=seed) for each in ("train", split)]
    tfidf = TfIdf(pools[0].texts)
    inputs = [tfidf.dense(pool.texts, dimensions) * dimensions**0.5 for pool in pools]
    # One number for both would make the same people.
    train = Users(pools[0], inputs[0], people, seed=2 * seed)
    return World(train, Users(pools[1], inputs[1], test_people, seed=2 * seed + 1))


class Constant(nn.Module):
    """Append a one to every feature vector, ``[..., features] -> [..., features + 1]``: room for an offset."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)


class Global(FineTune):
    """One model for all users, which does not adapt.

    Parameters
    ----------
    net : Module
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, steps=1)

    def predict(self, episodes: Episodes) -> Tensor:
        return self._predict_after(episodes, 0)


class Remembered(Learner):
    r"""A shared model, corrected by what is remembered of the user; nothing is trained for a user.

    .. math:: \hat y(x) = g(x) + \frac{\sum_i k(x, x_i)\,(y_i - g(x_i))}{\kappa + \sum_i k(x, x_i)},\qquad
              k(x, x_i) = \exp\bigl(s\,(\cos(x, x_i) - 1)\bigr).

    With a sharpness of zero, the user's mean deviation, drawn towards none; with a large one, that of the most similar
    example.

    Parameters
    ----------
    net : Module
        The shared model g.
    sharpness, prior : float
        The numbers s, and kappa > 0: of how many remembered examples the shared model is worth.
    """

    def __init__(self, net: nn.Module, sharpness: float = 0.0, prior: float = 1.0) -> None:
        super().__init__()
        self.net, self.sharpness, self.prior = net, sharpness, prior

    def predict(self, episodes: Episodes) -> Tensor:
        query, support = (F.normalize(x, dim=2) for x in (episodes.query_x, episodes.support_x))
        weight = (self.sharpness * (query @ support.mT - 1)).exp()  # [tasks, queries, support]
        deviation = episodes.support_y - self.net(episodes.support_x)
        return self.net(episodes.query_x) + weight @ deviation / (self.prior + weight.sum(2, keepdim=True))

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


class Ridge(Learner):
    r"""Ridge regression of the user's deviations from a shared model, on features that do not change.

    .. math:: \hat y(x) = g(x) + \varphi(x)^\top w,\qquad
              w = \arg\min_w \sum_i \bigl(y_i - g(x_i) - \varphi(x_i)^\top w\bigr)^2 + \lambda \lVert w \rVert^2.

    In closed form, through the inner products of the features, of which there are as many as messages. One feature is
    constant (10, so that its weight costs a hundredth of another's).

    Parameters
    ----------
    penalty : float
        The number lambda > 0.
    net : MLP, optional
        The shared model g; its last hidden layer gives the features, so that this draws its head towards what it was.
        Without one, g is zero and the features are the inputs: nothing is shared.

    Raises
    ------
    ValueError
        If the penalty is not positive.
    """

    def __init__(self, penalty: float, net: MLP | None = None) -> None:
        if penalty <= 0:
            raise ValueError(f"the penalty must be positive, not {penalty}")
        super().__init__()
        self.penalty, self.net = penalty, net
        self.body = nn.Identity() if net is None else nn.Sequential(*list(net)[:-1])

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = (
            torch.cat([z, torch.full_like(z[..., :1], 10.0)], 2)
            for z in (self.body(episodes.support_x), self.body(episodes.query_x))
        )
        base, answer = episodes.support_y, query.new_zeros(*query.shape[:2], 1)
        if self.net is not None:
            base, answer = base - self.net(episodes.support_x), self.net(episodes.query_x)
        inner = support @ support.mT + self.penalty * torch.eye(support.shape[1], device=support.device)
        return answer + query @ support.mT @ torch.linalg.solve(inner, base)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


def _after(learner: Learner, episodes: Episodes, n: int) -> Tensor:
    """Predictions for the queries after the first ``n`` messages of the support."""
    fewer = replace(episodes, support_x=episodes.support_x[:, :n], support_y=episodes.support_y[:, :n])
    if n == 0 and isinstance(learner, GradientLearner):
        return learner.trajectory(fewer, 0)[0]  # the mean loss of no message has no gradient
    return learner.predict(fewer)


@torch.no_grad()
def learning_curve(learner: Learner, episodes: Episodes, messages: Sequence[int] = (0, 1, 2, 5, 10)) -> Tensor:
    """Predictions for every user's queries after the first so many messages that the user has rated.

    Parameters
    ----------
    learner : Learner
        Of regression.
    episodes : Episodes
        A task is a user.
    messages : sequence of int
        Numbers of messages, from 0 to as many as there are.

    Returns
    -------
    Tensor [numbers, users, queries, 1]

    Raises
    ------
    ValueError
        If there are not so many messages.
    """
    there = episodes.support_x.shape[1]
    if wrong := [n for n in messages if not 0 <= n <= there]:
        raise ValueError(f"the users have rated {there} messages: there is no answer after {wrong[0]}")
    return torch.stack([_after(learner, episodes, n) for n in messages])


def picked(predictions: Tensor, ratings: Tensor, choices: int) -> Tensor:
    """What users give to the replies that are predicted to please them most, one of each group of ``choices``.

    Parameters
    ----------
    predictions : Tensor [..., users, queries, 1]
    ratings : Tensor [users, queries, 1]
    choices : int
        Replies to the same message, which stand one after the other.

    Returns
    -------
    Tensor [..., users]
        The mean rating of what was picked, in the unit of ``ratings``.
    """
    grouped = predictions[..., 0].unflatten(-1, (-1, choices))
    given = ratings[..., 0].unflatten(-1, (-1, choices)).expand_as(grouped)
    return given.gather(-1, grouped.argmax(-1, keepdim=True)).squeeze(-1).mean(-1)


class Profile:
    """One user over a shared learner: the ratings that were given, and the answers that follow from them.

    Nothing that is derived from a rating is kept, so what is forgotten has no effect any more: the answers are, bit for
    bit, those for somebody who never gave it. What the *shared* learner was trained on is not in this list.

    Parameters
    ----------
    learner : Learner
        Of regression, in evaluation mode; never changed here.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._ratings: dict[int, tuple[Tensor, float]] = {}
        self._next = 0

    def __len__(self) -> int:
        """Number of ratings."""
        return len(self._ratings)

    @property
    def numbers(self) -> list[int]:
        """What the ratings can be forgotten by, the oldest first."""
        return list(self._ratings)

    def rate(self, x: Tensor, rating: float) -> int:
        """Take in a rating of a reply with the features ``x [features]``; returns the number to forget it by."""
        self._ratings[self._next] = (x.clone(), rating)
        self._next += 1
        return self._next - 1

    def forget(self, number: int) -> None:
        """Take a rating back.

        Raises
        ------
        ValueError
            If there is no rating of this number.
        """
        if number not in self._ratings:
            raise ValueError(f"there is no rating {number}: nothing was forgotten")
        del self._ratings[number]

    def forget_all(self) -> None:
        """Take all ratings back."""
        self._ratings.clear()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Ratings ``[n]`` that the user is expected to give to replies ``x [n, features]``, derived anew."""
        seen = [each for each, _ in self._ratings.values()]
        support = torch.stack(seen) if seen else x[:0]
        y = torch.tensor([rating for _, rating in self._ratings.values()], dtype=x.dtype).view(1, -1, 1)
        queries = Episodes(support.unsqueeze(0), y, x.unsqueeze(0), torch.zeros(1, len(x), 1, dtype=x.dtype))
        return _after(self.learner, queries, len(seen))[0, :, 0]
