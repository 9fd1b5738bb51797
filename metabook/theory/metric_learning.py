r"""Metric learning as classification: the closed forms of the chapter of that name.

Distances to prototypes as linear models and as log-densities, the accuracy of the nearest prototype as a function of
the shots, relation scores as posterior probabilities, attention over a support set as kernel regression.

Class means :math:`\mu_k`, within-class covariance :math:`\Sigma`, prototypes :math:`c_k` (means of :math:`K` examples),
a query :math:`z`. Functions on tensors are differentiable; probabilities are computed in NumPy, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor
from torch.func import grad, vmap

__all__ = [
    "POTENTIALS",
    "attention",
    "bregman",
    "bregman_linear_model",
    "class_probabilities",
    "fitted_accuracy",
    "geometric_median",
    "linear_model",
    "prototypes_of",
    "random_class_accuracy",
    "rule_of_thumb",
    "same_class_probability",
    "shots_scale",
    "shrinkage",
    "two_way_accuracy",
    "two_way_accuracy_isotropic",
    "unsquared_gradient",
]

Potential = Callable[[Tensor], Tensor]

#: Strictly convex functions ``[d] -> []``, and the family of class models whose -log-density each one gives.
POTENTIALS: dict[str, Potential] = {
    "Gaussian": lambda x: 0.5 * x.square().sum(),
    "Poisson": lambda x: (x.xlogy(x) - x).sum(),
    "Bernoulli": lambda x: (x.xlogy(x) + (1 - x).xlogy(1 - x)).sum(),
    "exponential": lambda x: -x.log().sum(),
}


# --- Distances as linear models -----------------------------------------------------------------------------------


def linear_model(c: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Weights and biases of the softmax over negative squared distances (Snell et al., 2017, section 2.4).

    .. math:: -\lVert z - c_k \rVert^2 / \tau = w_k^\top z + b_k - \lVert z \rVert^2 / \tau

    Parameters
    ----------
    c : Tensor [ways, d]
        Prototypes.
    temperature : float
        :math:`\tau`.

    Returns
    -------
    weights : Tensor [ways, d]
    biases : Tensor [ways]
    """
    return 2 * c / temperature, -c.square().sum(1) / temperature


def prototypes_of(weights: Tensor, biases: Tensor) -> Tensor:
    r"""Prototypes that give the same probabilities as a linear softmax classifier, if there are any.

    A vector :math:`a` added to all weights and a number added to all biases change no probability. Then
    :math:`c_k = (w_k + a) / 2` has to satisfy :math:`b_k + \text{const} = -\lVert c_k \rVert^2`: linear equations in
    :math:`a` and a constant, ``ways`` of them with ``d + 1`` unknowns.

    Parameters
    ----------
    weights : Tensor [ways, d]
    biases : Tensor [ways]

    Returns
    -------
    Tensor [ways, d]

    Raises
    ------
    ValueError
        If the equations have no solution, which needs more than ``d + 1`` classes or weights in a common hyperplane.
    """
    system = torch.cat([weights / 2, torch.ones_like(biases)[:, None]], dim=1)
    target = -biases - weights.square().sum(1) / 4
    solution = torch.linalg.pinv(system) @ target
    if not torch.allclose(system @ solution, target, rtol=0, atol=1e-8 * float(1 + target.abs().max())):
        raise ValueError(f"no prototypes give these {len(biases)} classes in {weights.shape[1]} dimensions")
    return (weights + solution[:-1]) / 2


def bregman(phi: Potential, z: Tensor, c: Tensor) -> Tensor:
    r"""Bregman divergences of points from centres (Banerjee et al., 2005, definition 1).

    .. math:: D_\varphi(z, c) = \varphi(z) - \varphi(c) - \nabla\varphi(c)^\top (z - c)

    Parameters
    ----------
    phi : callable
        Strictly convex, ``[d] -> []``.
    z : Tensor [n, d]
    c : Tensor [ways, d]

    Returns
    -------
    Tensor [n, ways]
    """
    slopes = vmap(grad(phi))(c)
    height = vmap(phi)(z).unsqueeze(1) - vmap(phi)(c)
    return height - (slopes * (z.unsqueeze(1) - c)).sum(2)


def bregman_linear_model(phi: Potential, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights and biases with :math:`-D_\varphi(z, c_k) = w_k^\top z + b_k - \varphi(z)`.

    Parameters
    ----------
    phi : callable
        Strictly convex, ``[d] -> []``.
    c : Tensor [ways, d]

    Returns
    -------
    weights : Tensor [ways, d]
        :math:`\nabla\varphi(c_k)`.
    biases : Tensor [ways]
        :math:`\varphi(c_k) - \nabla\varphi(c_k)^\top c_k`.
    """
    weights = vmap(grad(phi))(c)
    return weights, vmap(phi)(c) - (weights * c).sum(1)


# --- The unsquared distance ---------------------------------------------------------------------------------------


def unsquared_gradient(z: Tensor, c: Tensor, y: int) -> Tensor:
    r"""Gradient by the query of the cross-entropy whose logits are minus the *unsquared* distances.

    .. math:: \partial\mathcal L / \partial z = \sum_k (\mathbb 1[k = y] - p_k)\, \frac{z - c_k}{\lVert z - c_k \rVert}

    Parameters
    ----------
    z : Tensor [d]
        Equal to no prototype.
    c : Tensor [ways, d]
    y : int
        Class of the query.

    Returns
    -------
    Tensor [d]
    """
    distance = (z - c).norm(dim=1)
    error = -(-distance).softmax(0)
    error[y] += 1
    return (error / distance) @ (z - c)


def geometric_median(points: Tensor, steps: int = 2_000) -> Tensor:
    r"""The point with the least sum of unsquared distances, by Weiszfeld's iteration.

    Each step is a mean with the weights :math:`1 / \lVert z_i - m \rVert`. It must not land on a point.

    Parameters
    ----------
    points : Tensor [n, d]
    steps : int

    Returns
    -------
    Tensor [d]
    """
    median = points.mean(0)
    for _ in range(steps):
        weights = 1 / (points - median).norm(dim=1)
        median = weights @ points / weights.sum()
    return median


# --- Shots --------------------------------------------------------------------------------------------------------


def _variances(noise: np.ndarray, shots: float) -> tuple[np.ndarray, np.ndarray]:
    """Variances of ``u = c_1 - c_2`` and ``v = z - (c_1 + c_2) / 2`` along each axis of the noise."""
    return 2 * noise / shots, noise * (1 + 1 / (2 * shots))


@lru_cache
def _gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the integral over 0 to 1."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return (1 + x) / 2, weights / 2


def _positive(log_transform: Callable[[np.ndarray], np.ndarray], scale: float, nodes: int = 200) -> np.ndarray:
    r"""P(D > 0) from the logarithm of D's characteristic function (Gil-Pelaez, 1951).

    .. math:: P(D > 0) = \frac12 + \frac1\pi \int_0^\infty \operatorname{Im} \xi(t)\, \frac{dt}{t}

    by Gauss-Legendre quadrature in :math:`x`, where :math:`t = 2x / ((1 - x) \cdot \text{scale})` and ``scale`` is
    about the standard deviation of D. ``log_transform`` maps t ``[nodes, 1]`` to ``[nodes, cases]``.
    """
    x, weights = _gauss_legendre(nodes)
    t = 2 * x / (1 - x) / scale
    measure = weights * 2 / (1 - x) ** 2 / scale / t
    value = log_transform(t[:, None])
    return 0.5 + measure @ (np.exp(value.real) * np.sin(value.imag)) / np.pi


def two_way_accuracy(gap2: np.ndarray, noise: np.ndarray, shots: float) -> np.ndarray:
    r"""Exact accuracy of the nearest of two prototypes, for Gaussian classes with a common covariance.

    The query of class 1 is answered correctly if :math:`D = u^\top v > 0` with the independent Gaussians
    :math:`u = c_1 - c_2` and :math:`v = z - (c_1 + c_2) / 2`. In the axes of :math:`\Sigma`, D is a sum of independent
    products, each with a known characteristic function.

    Parameters
    ----------
    gap2 : ndarray [d] or [pairs, d]
        Squared components of :math:`\mu_1 - \mu_2` along the eigenvectors of :math:`\Sigma`.
    noise : ndarray [d]
        Eigenvalues of :math:`\Sigma`.
    shots : float
        Support examples of each class.

    Returns
    -------
    ndarray [] or [pairs]
    """
    a, b = _variances(noise, shots)
    pairs = np.atleast_2d(gap2)

    def log_transform(t: np.ndarray) -> np.ndarray:
        q = 1 + t**2 * a * b  # [nodes, d]
        slope = (0.5j * t - 0.5 * t**2 * (a / 4 + b)) / q
        return -0.5 * np.log(q).sum(1, keepdims=True) + slope @ pairs.T

    scale = np.sqrt((a * b).sum() + (pairs @ (a / 4 + b)).mean())
    return _positive(log_transform, scale)[0 if np.ndim(gap2) == 1 else slice(None)]


def two_way_accuracy_isotropic(gap: float, shots: float, d: int, sigma: float = 1.0) -> float:
    r"""The same for :math:`\Sigma = \sigma^2 I`: which of two noncentral chi-squares is larger.

    .. math:: P\bigl(\chi'^2_d(\lambda_+) > \chi'^2_d(\lambda_-)\bigr), \qquad
              \lambda_\pm = \frac{K \Delta^2}{4 \sigma^2} \Bigl(1 \pm \frac{1}{\sqrt{2K + 1}}\Bigr)^2,

    as a mixture over two Poisson numbers of probabilities of a beta variable. Independent of :func:`two_way_accuracy`.

    Parameters
    ----------
    gap : float
        :math:`\Delta = \lVert \mu_1 - \mu_2 \rVert`.
    shots : float
    d : int
        Dimensions of the embedding.
    sigma : float
        Standard deviation within a class, in each dimension.
    """
    base = shots * gap**2 / (4 * sigma**2)
    means = [base * (1 + sign / np.sqrt(2 * shots + 1)) ** 2 / 2 for sign in (1, -1)]
    counts = [np.arange(int(mean + 12 * np.sqrt(mean + 1) + 30)) for mean in means]
    more, fewer = (stats.poisson.pmf(count, mean) for count, mean in zip(counts, means, strict=True))
    larger = special.betainc(d / 2 + counts[1], d / 2 + counts[0][:, None], 0.5)
    return float(more @ larger @ fewer)


def rule_of_thumb(gap2: np.ndarray, noise: np.ndarray, shots: float) -> float:
    r"""Normal approximation of :func:`two_way_accuracy`, from the mean and the variance of D.

    .. math:: \Phi\left(\frac{\tfrac12 \lVert\delta\rVert^2}{\sqrt{(1 + \frac1K)\, \delta^\top \Sigma \delta
              + (\frac2K + \frac{1}{K^2}) \operatorname{tr} \Sigma^2}}\right)

    Parameters
    ----------
    gap2, noise : ndarray [d]
        As for :func:`two_way_accuracy`.
    shots : float
    """
    variance = (1 + 1 / shots) * (gap2 * noise).sum() + (2 / shots + 1 / shots**2) * np.square(noise).sum()
    return float(stats.norm.cdf(0.5 * gap2.sum() / np.sqrt(variance)))


def shots_scale(gap2: np.ndarray, noise: np.ndarray) -> float:
    r"""Shots :math:`K^* = 2 \operatorname{tr}\Sigma^2 / \delta^\top\Sigma\delta` at which two variances are equal.

    Those of the query along the gap, and of the product of the query's and the prototypes' noise (leading terms of
    :func:`rule_of_thumb`).

    Parameters
    ----------
    gap2, noise : ndarray [d]
        As for :func:`two_way_accuracy`.
    """
    return float(2 * np.square(noise).sum() / (gap2 * noise).sum())


def random_class_accuracy(between: np.ndarray, noise: np.ndarray, shots: float) -> float:
    r"""Mean of :func:`two_way_accuracy` over pairs of classes whose means are random.

    Parameters
    ----------
    between : ndarray [d]
        Variance :math:`\rho_i^2` of a class mean, so that each component of the gap has the variance
        :math:`2\rho_i^2`.
    noise : ndarray [d]
        Variance within a class, along the same axes.
    shots : float
    """
    a, b = _variances(noise, shots)

    def log_transform(t: np.ndarray) -> np.ndarray:
        q = 1 + t**2 * a * b
        slope = (0.5j * t - 0.5 * t**2 * (a / 4 + b)) / q
        return -0.5 * (np.log(q) + np.log(1 - 4 * between * slope)).sum(1, keepdims=True)

    variance = a * b + 2 * between * (a / 4 + b) + 2 * between**2
    return float(_positive(log_transform, np.sqrt(variance.sum()))[0])


def fitted_accuracy(z: np.ndarray, pairs: np.ndarray, shots: tuple[int, ...], common: bool = False) -> np.ndarray:
    r"""Accuracy that :func:`two_way_accuracy` predicts for pairs of real classes, from their means and covariances.

    The squared gap of two sample means is too long by :math:`2 \sigma_j^2 / n` along each axis; that is taken off.

    Parameters
    ----------
    z : ndarray [classes, n, d]
        Embedded examples.
    pairs : ndarray [pairs, 2]
        Which classes.
    shots : tuple of int
    common : bool
        One covariance for all classes, instead of that of the two classes of each pair.

    Returns
    -------
    ndarray [shots, pairs]
    """
    classes, n, _ = z.shape
    means = z.mean(1)
    rest = z - means[:, None]
    gaps = means[pairs[:, 0]] - means[pairs[:, 1]]
    if common:
        gap2, noise = _gap_and_noise(rest.reshape(classes * n, -1) / np.sqrt(classes * (n - 1)), gaps, n)
        return np.stack([two_way_accuracy(gap2, noise, k) for k in shots])
    predicted = np.empty((len(shots), len(pairs)))
    for index, (one, other) in enumerate(pairs):
        rows = np.concatenate([rest[one], rest[other]]) / np.sqrt(2 * (n - 1))
        gap2, noise = _gap_and_noise(rows, gaps[index : index + 1], n)
        predicted[:, index] = [two_way_accuracy(gap2[0], noise, k) for k in shots]
    return predicted


def _gap_and_noise(rows: np.ndarray, gaps: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared gaps ``[pairs, m + 1]`` along the axes of ``rows.T @ rows``, and its eigenvalues ``[m + 1]``.

    The last axis stands for all directions in which the rows do not vary: it has no noise.
    """
    _, lengths, axes = np.linalg.svd(np.linalg.qr(rows, mode="r"), full_matrices=False)
    noise, along = np.square(lengths), np.square(gaps @ axes.T)
    noiseless = np.maximum(np.square(gaps).sum(1) - along.sum(1), 0)
    return np.column_stack([along - 2 * noise / n, noiseless]), np.append(noise, 0.0)


def shrinkage(within: float, between: float, shots: float) -> tuple[float, float]:
    r"""How Bayes' rule uses a prototype when class means are Gaussian too: shrunken, and with a temperature.

    For :math:`\mu_k \sim \mathcal N(0, \rho^2 I)` and :math:`z \mid \mu_k \sim \mathcal N(\mu_k, \sigma^2 I)`, the
    posterior is the softmax of :math:`-\lVert z - s_K c_k \rVert^2 / \tau_K`.

    Parameters
    ----------
    within, between : float
        :math:`\sigma^2` and :math:`\rho^2`.
    shots : float

    Returns
    -------
    shrink : float
        :math:`s_K = K\rho^2 / (K\rho^2 + \sigma^2)`.
    temperature : float
        :math:`\tau_K = 2\sigma^2 (1 + s_K / K)`.
    """
    shrink = shots * between / (shots * between + within)
    return shrink, 2 * within * (1 + shrink / shots)


# --- Relation scores and attention --------------------------------------------------------------------------------


def same_class_probability(types: Tensor, emission: Tensor, prior: float) -> Tensor:
    """P(same class | pair) in a discrete model: the score that minimises the expected squared error.

    Each class draws a hidden type, and each of its examples a symbol given the type.

    Parameters
    ----------
    types : Tensor [types]
        Probability of each type.
    emission : Tensor [types, symbols]
        Probability of each symbol given the type.
    prior : float
        Share of the pairs that are of one class: ``1 / ways`` in an episode.

    Returns
    -------
    Tensor [symbols, symbols]
    """
    same = torch.einsum("h,hi,hj->ij", types, emission, emission)
    single = types @ emission
    return prior * same / (prior * same + (1 - prior) * torch.outer(single, single))


def class_probabilities(scores: Tensor) -> Tensor:
    """Posterior over the classes of an episode from its relation scores: proportional to their odds.

    Parameters
    ----------
    scores : Tensor [..., ways]
        P(same class | pair) of the query with the support example of each class.
    """
    return scores.logit().softmax(-1)


def attention(similarity: Tensor, y: Tensor, ways: int) -> Tensor:
    r"""Class probabilities of a Matching Network: a softmax over the support, used as weights of its labels.

    Parameters
    ----------
    similarity : Tensor [queries, n]
        Of each query to each support example, divided by the temperature.
    y : Tensor [n]
        Labels of the support.
    ways : int

    Returns
    -------
    Tensor [queries, ways]
    """
    labels = torch.nn.functional.one_hot(y, ways).to(similarity)
    return similarity.softmax(1) @ labels
