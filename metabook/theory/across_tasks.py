r"""Learning across tasks: the closed forms and simulations of the chapter of that name.

Three parts. *Hierarchical Bayes*: a task's parameter :math:`\phi_t \sim N(\mu, \tau^2)`, its examples
:math:`y_{ti} \sim N(\phi_t, \sigma^2)`. *Generalisation over tasks*: what a meta-learner loses when it knows the prior
only from T tasks of K shots, and bounds on that. *Self-evolution*: a model that is trained on what it generates.

Variances are passed as ``tau2`` and ``sigma2``; ``noise`` is the variance of a support mean, sigma2 / K. Functions on
tensors are differentiable, the others are NumPy, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special, stats
from torch import Tensor

__all__ = [
    "ExcessRisk",
    "absorption",
    "accumulated_variance",
    "best_shots",
    "collapse_drift",
    "continued_round",
    "data_weight",
    "diversity",
    "early_stopped",
    "empirical_bayes",
    "excess_risk",
    "excess_risk_large",
    "gradient_descent",
    "hoeffding_gap",
    "implied_covariance",
    "james_stein",
    "james_stein_risk",
    "kl_inverse",
    "log_marginal",
    "map_estimate",
    "miss_risk",
    "mixed_moments",
    "mixed_variance",
    "mixture_round",
    "pac_bayes_bound",
    "posterior",
    "query_risk",
    "simulate_accumulation",
    "simulate_categories",
    "simulate_excess",
    "simulate_misses",
    "simulate_refits",
    "support_risk",
    "transition_matrix",
    "verified",
    "verified_fixed_point",
    "verified_round",
]


# --- Hierarchical Bayes -------------------------------------------------------------------------------------------


def data_weight(tau2: float, noise: float) -> float:
    r"""Weight of the support mean in the posterior mean, :math:`\kappa = \tau^2 / (\tau^2 + \sigma^2/K)`."""
    return tau2 / (tau2 + noise)


def posterior(y: np.ndarray, mu: float, tau2: float, sigma2: float) -> tuple[np.ndarray, float]:
    """Mean ``[T]`` and variance of each task's parameter, given its examples ``y [T, K]``."""
    noise = sigma2 / y.shape[1]
    kappa = data_weight(tau2, noise)
    return mu + kappa * (y.mean(1) - mu), kappa * noise


def log_marginal(y: Tensor, mu: Tensor | float, tau2: Tensor, sigma2: Tensor) -> Tensor:
    r"""Log-density ``[T]`` of each task's examples ``y [T, K]`` with the task's parameter integrated out.

    The factor with :math:`\mu` and :math:`\tau^2` is :math:`N(\bar y_t; \mu, \tau^2 + \sigma^2/K)`; the other, of the
    deviations from the task's mean, depends on :math:`\sigma^2` alone.
    """
    K = y.shape[1]
    mean, v = y.mean(1), tau2 + sigma2 / K
    within = (y - mean[:, None]).square().sum(1)
    of_mean = -0.5 * (math.log(2 * math.pi) + v.log() + (mean - mu).square() / v)
    of_deviations = -0.5 * ((K - 1) * (math.log(2 * math.pi) + sigma2.log()) + math.log(K) + within / sigma2)
    return of_mean + of_deviations


def empirical_bayes(y: np.ndarray, sigma2: float) -> tuple[float, float]:
    """Mean and variance of the tasks' parameters that maximise the marginal likelihood of ``y [T, K]``."""
    means = y.mean(1)
    return float(means.mean()), max(0.0, float(means.var()) - sigma2 / y.shape[1])


def james_stein(means: np.ndarray, noise: float) -> np.ndarray:
    """Support means ``[..., T]`` of variance ``noise``, shrunk to their common mean (Efron and Morris, 1973).

    The factor ``1 - (T - 3) noise / S``, S the sum of squares around the common mean, is an unbiased estimate of kappa.
    """
    centre = means.mean(-1, keepdims=True)
    S = np.square(means - centre).sum(-1, keepdims=True)
    return centre + (1 - (means.shape[-1] - 3) * noise / S) * (means - centre)


def james_stein_risk(T: int, tau2: float, noise: float) -> float:
    """Expected squared error of :func:`james_stein` a task, over tasks and examples; T > 3."""
    return noise * (1 - (1 - data_weight(tau2, noise)) * (T - 3) / T)


def query_risk(
    theta: Tensor | float, alpha: Tensor | float, mu: float, tau2: float, sigma2: float, K: int
) -> Tensor | float:
    """Expected squared error on a query after one step ``theta' = theta + alpha (mean of the support - theta)``."""
    return (1 - alpha) ** 2 * ((theta - mu) ** 2 + tau2) + alpha**2 * sigma2 / K + sigma2


def support_risk(
    theta: Tensor | float, alpha: Tensor | float, mu: float, tau2: float, sigma2: float, K: int
) -> Tensor | float:
    """The same on an example of the support itself: smaller by ``2 alpha sigma2 / K``."""
    return query_risk(theta, alpha, mu, tau2, sigma2, K) - 2 * alpha * sigma2 / K


# --- Early stopping as a prior ------------------------------------------------------------------------------------


def gradient_descent(X: Tensor, y: Tensor, theta: Tensor, alpha: float, steps: int) -> Tensor:
    """Run it: ``steps`` steps on half the mean squared error of ``X [K, d]``, ``y [K]`` from ``theta [d]``."""
    for _ in range(steps):
        theta = theta - alpha * X.T @ (X @ theta - y) / len(X)
    return theta


def _of_curvature(X: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the matrix ``X.T X / K``, by its eigenvalues."""
    values, vectors = torch.linalg.eigh(X.T @ X / len(X))
    return vectors @ torch.diag(function(values)) @ vectors.T


def early_stopped(X: Tensor, y: Tensor, theta: Tensor, alpha: float, steps: int) -> Tensor:
    """The same in closed form: of the way to a least-squares solution the part ``1 - (1 - alpha a)^steps``."""
    way = torch.linalg.pinv(X) @ (y - X @ theta)
    return theta + _of_curvature(X, lambda a: 1 - (1 - alpha * a) ** steps) @ way


def implied_covariance(X: Tensor, alpha: float, steps: int, sigma2: float) -> Tensor:
    r"""Covariance of the Gaussian prior for which the early-stopped solution is the most probable one (Santos, 1996).

    .. math:: \Sigma_k = \frac{\sigma^2}{K} A^{-1} \bigl((I - \alpha A)^{-k} - I\bigr), \qquad A = X^\top X / K;

    where an eigenvalue of A is zero, its limit ``alpha steps sigma2 / K``.

    Raises
    ------
    ValueError
        If there is no such prior: an odd number of steps longer than Newton's, or a step that reaches the solution.
    """

    def variance(a: Tensor) -> Tensor:
        left = (1 - alpha * a) ** steps
        if (left <= 0).any():
            raise ValueError("no Gaussian prior: along some eigenvector the steps reach the solution or pass it")
        flat = a.abs() < 1e-12 * a.abs().max()
        return sigma2 / len(X) * torch.where(flat, alpha * steps, (1 / left - 1) / torch.where(flat, 1.0, a))

    return _of_curvature(X, variance)


def map_estimate(X: Tensor, y: Tensor, theta: Tensor, covariance: Tensor, sigma2: float) -> Tensor:
    """Most probable parameters under the prior ``N(theta, covariance)`` and noise of variance ``sigma2``."""
    gain = covariance @ X.T @ torch.linalg.inv(X @ covariance @ X.T + sigma2 * torch.eye(len(X), dtype=X.dtype))
    return theta + gain @ (y - X @ theta)


# --- Generalisation over tasks ------------------------------------------------------------------------------------


class ExcessRisk(NamedTuple):
    """What is lost against the known prior: by the error of the estimated mean, and by that of the shrinkage."""

    mean: float
    shrinkage: float

    @property
    def total(self) -> float:
        return self.mean + self.shrinkage


def excess_risk(T: int, K: int, K_new: int, tau2: float, sigma2: float) -> ExcessRisk:
    r"""Expected excess risk on a new task with ``K_new`` shots, the prior estimated from T tasks with K shots.

    The estimates are the mean of the T support means and :math:`\hat\tau^2 = \max(0, S/(T-1) - \sigma^2/K)`. With B the
    weight of the prior, ``1 - kappa``, for the new task,

    .. math:: E[\hat B^2] v / T + E[(\hat B - B)^2] v_{new}, \qquad S / v \sim \chi^2_{T-1}.

    The expectations over the chi-squared variable are done by Gauss-Legendre quadrature. T > 1.
    """
    noise, v = sigma2 / K_new, tau2 + sigma2 / K
    law = stats.gamma((T - 1) / 2, scale=2 * v / (T - 1))  # of S / (T - 1)
    B = noise / (tau2 + noise)
    kink = sigma2 / K  # below, the estimated variance is zero and the new task's examples are ignored
    low, high = max(kink, law.ppf(1e-15)), max(kink, law.isf(1e-15))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    variance = low + (high - low) * (nodes + 1) / 2
    mass = weights * (high - low) / 2 * law.pdf(variance)
    B_hat = noise / (variance - kink + noise)
    at_zero = law.cdf(kink)
    second = at_zero + mass @ B_hat**2
    error = at_zero * (1 - B) ** 2 + mass @ (B_hat - B) ** 2
    return ExcessRisk(float(second * v / T), float(error * (tau2 + noise)))


def excess_risk_large(T: float, K: float, K_new: int, tau2: float, sigma2: float) -> ExcessRisk:
    """The leading terms of :func:`excess_risk` for many tasks."""
    v, v_new = tau2 + sigma2 / K, tau2 + sigma2 / K_new
    B = 1 - tau2 / v_new
    return ExcessRisk(B**2 * v / T, 2 * B**2 * v**2 / (v_new * T))


def best_shots(K_new: int, tau2: float, sigma2: float) -> float:
    """Shots a task that minimise :func:`excess_risk_large` for a fixed number of examples T K; not rounded."""
    a = 2 * data_weight(tau2, sigma2 / K_new)
    return sigma2 / tau2 * math.sqrt(a / (1 + a))


def simulate_excess(
    rng: np.random.Generator, runs: int, T: int, K: int, K_new: int, tau2: float, sigma2: float
) -> np.ndarray:
    """Excess risk ``[runs]`` of meta-learners, each with T tasks of K shots and one new task of its own.

    Only the support means are drawn: they are all that the estimates depend on.
    """
    means = rng.normal(0, math.sqrt(tau2 + sigma2 / K), (runs, T))
    noise = sigma2 / K_new
    new = rng.normal(0, math.sqrt(tau2 + noise), runs)
    variance = np.maximum(0, means.var(1, ddof=1) - sigma2 / K)
    prediction = means.mean(1) + variance / (variance + noise) * (new - means.mean(1))
    return np.square(prediction - data_weight(tau2, noise) * new)


def miss_risk(
    theta: np.ndarray, alpha: np.ndarray, mu: float, tau2: float, sigma2: float, K: int, radius: float
) -> np.ndarray:
    """Probability that ``theta + alpha (mean of the support - theta)`` is farther than radius from a query."""
    bias = (1 - alpha) * (mu - theta)
    sd = np.sqrt((1 - alpha) ** 2 * tau2 + alpha**2 * sigma2 / K + sigma2)
    return 1 - special.ndtr((radius - bias) / sd) + special.ndtr((-radius - bias) / sd)


def simulate_misses(
    rng: np.random.Generator,
    runs: int,
    T: int,
    K: int,
    candidates: np.ndarray,
    tau2: float,
    sigma2: float,
    radius: float,
    reuse: bool = False,
) -> np.ndarray:
    """Mean loss ``[runs, candidates]`` over T tasks, the loss being the share of K queries farther off than radius.

    ``candidates [., 2]`` are pairs of theta and alpha, each task has K support examples; the tasks' mean is zero. With
    ``reuse`` the support examples serve as queries as well.
    """
    phi = math.sqrt(tau2) * rng.standard_normal((runs, T, 1), dtype=np.float32)
    support = phi + math.sqrt(sigma2) * rng.standard_normal((runs, T, K), dtype=np.float32)
    query = support if reuse else phi + math.sqrt(sigma2) * rng.standard_normal((runs, T, K), dtype=np.float32)
    mean = support.mean(2, keepdims=True)
    losses = [(np.abs(theta + alpha * (mean - theta) - query) > radius).mean((1, 2)) for theta, alpha in candidates]
    return np.stack(losses, 1)


def hoeffding_gap(T: int, candidates: int, delta: float) -> float:
    """With probability 1 - delta no candidate's risk exceeds its mean loss over T tasks by more; losses in [0, 1]."""
    return math.sqrt(math.log(candidates / delta) / (2 * T))


def kl_inverse(mean: float, budget: float) -> float:
    """The largest p with ``kl(mean || p) <= budget``, kl between Bernoulli distributions."""

    def surplus(p: float) -> float:
        return float(special.rel_entr(mean, p) + special.rel_entr(1 - mean, 1 - p)) - budget

    return 1.0 if surplus(1 - 1e-15) <= 0 else float(optimize.brentq(surplus, mean, 1 - 1e-15, xtol=1e-14))


def pac_bayes_bound(losses: np.ndarray, T: int, delta: float, inverse_temperature: float) -> tuple[np.ndarray, float]:
    """The Gibbs distribution over candidates with mean ``losses`` over T tasks, and Maurer's bound on its risk (2004).

    The prior is uniform. ``kl(mean loss || risk) <= (KL(Gibbs || prior) + log(2 sqrt(T) / delta)) / T``.
    """
    gibbs = special.softmax(-inverse_temperature * losses)
    divergence = special.rel_entr(gibbs, 1 / len(losses)).sum()
    return gibbs, kl_inverse(float(gibbs @ losses), (divergence + math.log(2 * math.sqrt(T) / delta)) / T)


# --- Self-evolution: a Gaussian refitted to its own samples --------------------------------------------------------


def collapse_drift(n: int, unbiased: bool = False) -> float:
    """Expected change of the log-variance when a Gaussian is refitted to n of its own samples."""
    return float(special.digamma((n - 1) / 2) - math.log((n - unbiased) / 2))


def simulate_refits(
    rng: np.random.Generator, chains: int, rounds: int, n: int, real: float = 0.0, unbiased: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances ``[rounds + 1, chains]`` of N(0, 1), refitted in each round to n samples.

    Every sample is from N(0, 1) with probability ``real``, otherwise from the model of the round before.
    """
    mean, variance = np.zeros((rounds + 1, chains)), np.ones((rounds + 1, chains))
    for t in range(rounds):
        own = mean[t] + np.sqrt(variance[t]) * rng.standard_normal((n, chains))
        samples = np.where(rng.random((n, chains)) < real, rng.standard_normal((n, chains)), own) if real else own
        mean[t + 1], variance[t + 1] = samples.mean(0), samples.var(0, ddof=int(unbiased))
    return mean, variance


def mixture_round(state: Tensor, real: float) -> Tensor:
    """One round with infinitely many samples: mean and variance ``[2]`` of the mixture; the real one is N(0, 1)."""
    mean, variance = state
    own = (1 - real) * variance + real * (1 - real) * mean**2
    return torch.stack([(1 - real) * mean, real + own])


def mixed_moments(n: int, real: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Matrix and offset of the map of :math:`(E(\mu_t - \mu_0)^2, E\sigma_t^2)` from round to round, real variance 1.

    The n samples of a round come from a mixture of the real distribution, with weight ``real``, and the model.
    """
    keep = 1 - real
    spread = np.array([real * keep, keep])  # the mixture's expected variance is spread @ moments + real
    matrix = np.stack([spread / n + [keep**2, 0], (1 - 1 / n) * spread])
    return matrix, real * np.array([1 / n, 1 - 1 / n])


def mixed_variance(n: int, real: float) -> float:
    """Where the expected variance of that loop settles, as a part of the real variance."""
    return (1 - 1 / n) / (1 + (1 - real) ** 2 / (n * real * (2 - real)))


def accumulated_variance(n: int, rounds: int) -> float:
    """Expected variance after ``rounds`` refits to *all* samples so far: n real ones, then n own ones a round."""
    return float(np.prod(1 - 1 / (n * np.arange(1, rounds + 1) ** 2)))


def simulate_accumulation(rng: np.random.Generator, chains: int, rounds: int, n: int) -> np.ndarray:
    """Variances ``[rounds, chains]`` of models that are refitted to all samples so far."""
    samples = rng.standard_normal((n, chains))
    variances = [samples.var(0)]
    for _ in range(rounds - 1):
        own = samples.mean(0) + samples.std(0) * rng.standard_normal((n, chains))
        samples = np.concatenate([samples, own])
        variances.append(samples.var(0))
    return np.stack(variances)


# --- Self-evolution: classes, and a verifier ------------------------------------------------------------------------


def diversity(p: np.ndarray) -> np.ndarray:
    """Probability ``[...]`` that two draws from ``p [..., classes]`` differ."""
    return 1 - np.square(p).sum(-1)


def simulate_categories(rng: np.random.Generator, chains: int, rounds: int, n: int, start: np.ndarray) -> np.ndarray:
    """Class probabilities ``[rounds + 1, chains, classes]`` of models refitted to n own samples a round."""
    p = [np.broadcast_to(start, (chains, len(start)))]
    for _ in range(rounds):
        p.append(rng.multinomial(n, p[-1]) / n)
    return np.stack(p)


def transition_matrix(n: int, ratio: float = 1.0) -> np.ndarray:
    """``[n + 1, n + 1]``: from j correct answers among n kept samples to k in the next round.

    The model answers correctly with the probability j / n; a verifier with ``ratio`` = tpr / fpr decides what is kept.
    """
    counts = np.arange(n + 1)
    return stats.binom.pmf(counts, n, verified(counts / n, ratio)[:, None])


def absorption(n: int, ratio: float = 1.0) -> np.ndarray:
    """Probability ``[n + 1]`` that all samples are correct in the end, from each number of correct ones."""
    P = transition_matrix(n, ratio)[1:-1]
    inside = np.linalg.solve(np.eye(n - 1) - P[:, 1:-1], P[:, -1])
    return np.concatenate([[0.0], inside, [1.0]])


def verified(p: np.ndarray | float, ratio: float) -> np.ndarray:
    """Probability of a correct answer among the samples that a verifier with ``ratio`` = tpr / fpr lets pass."""
    p = np.asarray(p, dtype=float)
    return ratio * p / (1 + (ratio - 1) * p)


def verified_round(p: np.ndarray | float, ratio: float, anchor: float, share: float) -> np.ndarray:
    """One round: a ``share`` of the next model's answers comes from ``anchor``, the rest from verified own samples.

    Fresh real data: ``anchor`` is their share of correct answers. Restart from the base model: its own share.
    """
    return share * anchor + (1 - share) * verified(p, ratio)


def continued_round(p: Tensor | float, ratio: float, learnt: float) -> Tensor | float:
    """One round of training that goes on from the last model, a share ``learnt`` of the way to the verified samples."""
    return (1 - learnt) * p + learnt * ratio * p / (1 + (ratio - 1) * p)


def verified_fixed_point(ratio: float, anchor: float, share: float) -> float:
    """The fixed point of :func:`verified_round` that attracts every start in (0, 1); 0 < share <= 1."""
    a, b, c = ratio - 1, 1 - share * anchor * (ratio - 1) - (1 - share) * ratio, -share * anchor
    root = math.sqrt(b * b - 4 * a * c)
    return -2 * c / (b + root) if b >= 0 else (root - b) / (2 * a)
