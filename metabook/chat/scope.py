"""How near is near enough: prototypes that are fair to new classes, and the threshold of *I don't know*."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners import ProtoNet
from metabook.learners.prototypes import class_means, squared_distances

__all__ = ["Threshold", "UnbiasedPrototypes", "auroc", "choose_threshold", "within_class_spread"]


class UnbiasedPrototypes(ProtoNet):
    r"""Nearest class mean for classes with different numbers of examples.

    The mean :math:`c_k` of :math:`K_k` examples scatters around the true mean :math:`\mu_k`, which makes its squared
    distance from a query too large by :math:`\operatorname{tr}\Sigma / K_k` on average: a class with one example looks
    further away than one with twenty. Here that is subtracted:

    .. math:: \ell_k = -\lVert f(x) - c_k \rVert^2 + \operatorname{tr}\Sigma / K_k .

    With equal numbers of shots the answers are those of :class:`~metabook.learners.ProtoNet`.

    Parameters
    ----------
    net : Module
        The embedding.
    spread : float
        :math:`\operatorname{tr}\Sigma`, from :func:`within_class_spread` on other classes.
    """

    def __init__(self, net: nn.Module, spread: float) -> None:
        super().__init__(net)
        self.spread = float(spread)

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = self.embed_both(episodes)
        shots = F.one_hot(episodes.support_y, episodes.ways).sum(1)  # [tasks, ways]
        distances = squared_distances(query, class_means(support, episodes.support_y, episodes.ways))
        return self.spread / shots.unsqueeze(1) - distances


def within_class_spread(z: Tensor, y: Tensor) -> float:
    """The trace of the covariance within a class, the mean over the classes.

    Parameters
    ----------
    z : Tensor [examples, d]
        Embeddings.
    y : Tensor [examples]
        Classes; each needs two examples.

    Raises
    ------
    ValueError
        If a class has a single example.
    """
    classes = [z[y == k] for k in y.unique()]
    if min(map(len, classes)) < 2:
        raise ValueError("a class with a single example has no spread: give two of each at least")
    return float(torch.stack([members.var(0).sum() for members in classes]).mean())


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a message inside of the scope has a larger score than one outside; ties count half.

    Parameters
    ----------
    inside, outside : ndarray [messages]
        Scores.
    """
    ranks = stats.rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.mean() - (len(inside) + 1) / 2) / len(outside))


@dataclass(frozen=True)
class Threshold:
    """Below it the bot says that it does not know.

    Parameters
    ----------
    value : float
        Of the largest score.
    inside : float
        Share of the messages inside of the scope that are answered, and rightly.
    outside : float
        Share of the messages outside that are refused.
    """

    value: float
    inside: float
    outside: float


def choose_threshold(
    inside: np.ndarray, right: np.ndarray, outside: np.ndarray, weights: np.ndarray | None = None
) -> Threshold:
    """The threshold with the largest mean of two shares: answered rightly inside, refused outside.

    Parameters
    ----------
    inside : ndarray [messages]
        Largest score of each message inside of the scope.
    right : ndarray [messages] of bool
        Whether the answer with that score is right.
    outside : ndarray [messages]
        Largest score of each message outside.
    weights : ndarray [messages], optional
        Of the messages inside; equal by default.

    Returns
    -------
    Threshold
        In the middle between two of the scores.
    """
    scores = np.concatenate([inside, outside])
    lowest = scores[np.isfinite(scores)].min(initial=0.0) - 1  # in the place of -inf: a message without a score
    inside, outside = np.maximum(inside, lowest), np.maximum(outside, lowest)
    scores = np.unique(np.concatenate([inside, outside]))
    candidates = np.concatenate([scores[:1], (scores[1:] + scores[:-1]) / 2, np.nextafter(scores[-1:], np.inf)])
    gain = np.where(right, np.ones(len(inside)) if weights is None else weights, 0.0)
    total = float(len(inside) if weights is None else weights.sum())
    order = np.argsort(inside)
    above = np.concatenate([gain[order][::-1].cumsum()[::-1], [0.0]])  # what is won by all from that place on
    answered = above[np.searchsorted(inside[order], candidates)] / total
    refused = np.searchsorted(np.sort(outside), candidates) / len(outside)
    best = int(np.argmax(answered + refused))
    return Threshold(float(candidates[best]), float(answered[best]), float(refused[best]))
