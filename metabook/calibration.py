"""Is a stated probability as often right as it says? Scores of predicted classes and of predicted intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT

from metabook.episodes import Episodes
from metabook.learners import Learner

__all__ = [
    "Reliability",
    "by_points",
    "central_interval",
    "class_nll",
    "coverage",
    "expected_calibration_error",
    "fit_temperature",
    "regression_scores",
]


@dataclass(frozen=True)
class Reliability:
    """What lies in each bin of confidence, the raw material of a reliability diagram.

    Parameters
    ----------
    share : ndarray [bins]
        Part of the predictions that lie in the bin.
    confidence, accuracy : ndarray [bins]
        Their mean confidence and the share of them that is right; NaN in an empty bin.
    """

    share: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The mean of |accuracy - confidence| over the predictions."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = 15, equal_mass: bool = False
) -> Reliability:
    r"""Compare confidence, the largest probability, with accuracy, bin by bin.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \bigl|\operatorname{acc}(b) - \operatorname{conf}(b)\bigr|

    M. P. Naeini, G. F. Cooper, M. Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI
    2015; in this form, with 15 bins, C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
    https://arxiv.org/abs/1706.04599

    Parameters
    ----------
    probabilities : Tensor [..., classes]
        Each row sums to one.
    labels : Tensor [...]
        Class indices.
    bins : int
    equal_mass : bool
        Bins with the same number of predictions, as far as it divides, in the place of bins of the same width. Bins of
        the same width are ``(0, 1/bins], (1/bins, 2/bins], ...``.

    Returns
    -------
    Reliability
        Its ``ece`` is the error.

    Raises
    ------
    ValueError
        If there are no predictions or no bins, the shapes disagree, or the rows are no probabilities.
    """
    if probabilities.shape[:-1] != labels.shape or not labels.numel():
        raise ValueError(f"{tuple(probabilities.shape)} probabilities for {tuple(labels.shape)} labels")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if bool((probabilities < 0).any()) or bool(((probabilities.sum(-1) - 1).abs() > 1e-4).any()):
        raise ValueError("probabilities must be positive and sum to one: apply a softmax to logits")
    best, answer = probabilities.detach().double().max(-1)
    confidence, right = best.flatten().numpy(force=True), (answer == labels).flatten().numpy(force=True)
    if equal_mass:
        place = np.empty(len(confidence), dtype=int)
        place[confidence.argsort(kind="stable")] = np.arange(len(confidence)) * bins // len(confidence)
    else:  # each bin holds its upper end
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(place, weights=each, minlength=bins) for each in (confidence, right))
        mean_confidence, accuracy = (each / count for each in sums)
    return Reliability(count / len(confidence), mean_confidence, accuracy)


def class_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the log-probability of the right class, ``[..., classes]`` and ``[...]`` to ``[...]``, in nats."""
    return -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def fit_temperature(logits: Tensor, labels: Tensor, steps: int = 50) -> float:
    """The temperature by which logits have to be divided for the least negative log-likelihood (Guo et al., 2017).

    One number, found by Newton's method on the inverse temperature, in which the problem is convex. It changes no
    answer, only how sure it is. Fit it on validation tasks. Where every answer is right, the best is zero, and what is
    returned is a small number.

    Parameters
    ----------
    logits : Tensor [..., classes]
    labels : Tensor [...]
    steps : int
        At most so many.

    Returns
    -------
    float
        Infinity if the logits are no better than chance: then equal probabilities are best.
    """
    logits = logits.detach().double()
    logits = logits - logits.mean(-1, keepdim=True)
    right = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def slope_and_curvature(inverse: float) -> tuple[float, float]:
        p = (inverse * logits).softmax(-1)
        mean = (p * logits).sum(-1)
        variance = (p * logits.square()).sum(-1) - mean.square()
        return float((mean - right).mean()), float(variance.mean())

    if slope_and_curvature(0.0)[0] >= 0:
        return math.inf
    inverse = 1.0
    for _ in range(steps):
        slope, curvature = slope_and_curvature(inverse)
        if curvature <= 0:
            break
        new = float(np.clip(inverse - slope / curvature, inverse / 4, inverse * 4))  # positive, and no wild step
        if abs(new - inverse) < 1e-10 * inverse:
            break
        inverse = new
    return 1 / inverse


def central_interval(distribution: Distribution, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """The interval around the middle of a normal or a Student's distribution that holds ``level`` of it.

    Returns
    -------
    lower, upper : Tensor
        Of the distribution's shape.

    Raises
    ------
    ValueError
        If the level is not between 0 and 1.
    TypeError
        For another kind of distribution.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval is between 0 and 1, not {level}")
    if isinstance(distribution, Normal):
        half = float(stats.norm.ppf(0.5 + level / 2)) * distribution.scale
    elif isinstance(distribution, StudentT):
        quantile = stats.t.ppf(0.5 + level / 2, distribution.df.numpy(force=True))
        half = torch.as_tensor(quantile).to(distribution.scale) * distribution.scale
    else:
        raise TypeError(f"no interval is known for a {type(distribution).__name__}")
    return distribution.loc - half, distribution.loc + half


def coverage(y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Where the interval holds the value: 1.0 or 0.0 in double precision, to be averaged over what is wanted.

    Averages over the queries of one task are not independent: an interval for the coverage needs many tasks.
    """
    return ((lower <= y) & (y <= upper)).double()


@torch.no_grad()
def by_points(learner: Learner, episodes: Episodes, points: Sequence[int]) -> dict[int, Any]:
    """The predictive distributions of the queries after the first so many support points of each task.

    Parameters
    ----------
    learner : Learner
        With a method ``distribution(episodes)``, or ``predictive(episodes)`` to the mean and variance of normal ones.
    episodes : Episodes
        Of regression tasks.
    points : sequence of int

    Returns
    -------
    dict of int to Distribution [tasks, queries, outputs]
    """

    def ask(n: int) -> Any:
        fewer = replace(episodes, support_x=episodes.support_x[:, :n], support_y=episodes.support_y[:, :n])
        if hasattr(learner, "distribution"):
            return cast(Any, learner).distribution(fewer)
        mean, variance = cast(Any, learner).predictive(fewer)
        return Normal(mean, variance.sqrt())

    return {n: ask(n) for n in points}


def regression_scores(distribution: Normal | StudentT, y: Tensor, level: float = 0.95) -> dict[str, np.ndarray]:
    """How good the predicted distributions ``[tasks, queries, outputs]`` of the values ``y`` are, task by task.

    Returns
    -------
    dict of str to ndarray [tasks]
        ``nll``: negative log-likelihood in nats; ``mse``: squared error of the mean; ``coverage``: share of the values
        inside the central interval of that level; ``width`` of this interval.
    """
    lower, upper = central_interval(distribution, level)
    scores = {
        "nll": -distribution.log_prob(y),
        "mse": (distribution.loc - y).square(),
        "coverage": coverage(y, lower, upper),
        "width": upper - lower,
    }
    return {name: each.flatten(1).double().mean(1).numpy(force=True) for name, each in scores.items()}
