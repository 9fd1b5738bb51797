"""Personalisation: a model that all users share, what a few ratings of one user make of it, and how to take that back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.data.users import Users, replies
from metabook.episodes import Episodes
from metabook.learners import ALPaCA, FineTune, Learner, task_losses
from metabook.learners.gradient import GradientLearner
from metabook.nets import MLP
from metabook.text import TfIdf

__all__ = [
    "Constant",
    "Global",
    "Profile",
    "Remembered",
    "World",
    "learning_curve",
    "picked",
    "ridge",
    "ridge_head",
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
        directions = (F.normalize(x, dim=2) for x in (episodes.query_x, episodes.support_x))
        query, support = directions
        weight = (self.sharpness * (query @ support.mT - 1)).exp()  # [tasks, queries, support]
        deviation = episodes.support_y - self.net(episodes.support_x)
        return self.net(episodes.query_x) + weight @ deviation / (self.prior + weight.sum(2, keepdim=True))

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


def ridge(inputs: int, penalty: float) -> ALPaCA:
    """Ridge regression for each user by itself, on the inputs and a constant: nothing is shared.

    Parameters
    ----------
    inputs : int
    penalty : float
        On the squared weights; on the square of the constant a hundredth of it.
    """
    return _ridge(Constant(), torch.zeros(inputs + 1, 1), penalty)


def ridge_head(net: MLP, penalty: float) -> ALPaCA:
    """Ridge regression on a shared model's last hidden layer, drawn towards the shared model's own head.

    Parameters
    ----------
    net : MLP
        The shared model, with one output; its weights are copied.
    penalty : float
        On the squared change of the weights; on that of the constant a hundredth of it.
    """
    *body, head = deepcopy(net)
    assert isinstance(head, nn.Linear)  # what an MLP ends with
    centre = torch.cat([head.weight.detach()[0], head.bias.detach()]).unsqueeze(1)
    return _ridge(nn.Sequential(*body, Constant()), centre, penalty)


def _ridge(net: nn.Module, centre: Tensor, penalty: float) -> ALPaCA:
    if penalty <= 0:
        raise ValueError(f"the penalty must be positive, not {penalty}")
    learner = ALPaCA(net, len(centre))
    with torch.no_grad():
        learner.prior_mean.copy_(centre)
        learner.log_diagonal.fill_(math.log(penalty) / 2)
        learner.log_diagonal[-1] = math.log(penalty / 100) / 2
    return learner.eval()


def _after(learner: Learner, episodes: Episodes, n: int) -> Tensor:
    """Predictions for the queries after the first ``n`` messages of the support."""
    fewer = replace(episodes, support_x=episodes.support_x[:, :n], support_y=episodes.support_y[:, :n])
    if n == 0 and isinstance(learner, GradientLearner):
        return learner.trajectory(fewer, 0)[0]  # the mean loss of no message has no gradient
    if isinstance(learner, ALPaCA):
        parts = fewer.split(8)  # a precision matrix for each task and each number of messages
        return torch.cat([learner.predict(part) for part in parts])
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
