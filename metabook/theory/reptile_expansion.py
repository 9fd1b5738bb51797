"""Closed forms and estimators of the chapter on Reptile's Taylor expansion.

A. Nichol, J. Achiam, J. Schulman. On First-Order Meta-Learning Algorithms. 2018, https://arxiv.org/abs/1803.02999,
section 5. Their phi is ``theta`` here, their epsilon ``beta``.

Everywhere ``theta [P]`` is one vector of parameters, a minibatch is one tensor ``[...]`` and ``loss(theta, batch)`` a
scalar that is smooth in theta. A *sequence* ``[k, ...]`` holds the minibatches of one task in the order of their use, a
*pool* ``[tasks, n, ...]`` a finite distribution: every task is equally likely, and so is each of its n minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

__all__ = [
    "METHODS",
    "agreement",
    "avg_grad",
    "avg_grad_inner",
    "coefficients",
    "combination_coefficients",
    "curvature_seen",
    "expected_gradient",
    "fixed_point",
    "fomaml_gradient",
    "inner_gradients",
    "joint_gradient",
    "linearised_gradients",
    "maml_gradient",
    "outer_radius",
    "outer_step",
    "project_on_circle",
    "project_on_line",
    "project_on_parabola",
    "ratio_of_means",
    "reptile_gradient",
    "squared_norm",
]

Loss = Callable[[Tensor, Tensor], Tensor]
Method = Callable[[Loss, Tensor, Tensor, "Tensor | float"], Tensor]


# --- One task: the inner loop and the four outer gradients --------------------------------------------------------


def inner_gradients(loss: Loss, theta: Tensor, sequence: Tensor, alpha: Tensor | float) -> Tensor:
    """Gradients along the inner loop, ``g_i = L_i'(theta_i)`` with ``theta_{i+1} = theta_i - alpha g_i``.

    Parameters
    ----------
    loss : callable
    theta : Tensor [P]
        ``theta_1``.
    sequence : Tensor [k, ...]
    alpha : float

    Returns
    -------
    Tensor [k, P]
    """
    gradients = []
    for batch in sequence:
        gradients.append(grad(loss)(theta, batch))
        theta = theta - alpha * gradients[-1]
    return torch.stack(gradients)


def linearised_gradients(loss: Loss, theta: Tensor, sequence: Tensor, alpha: float) -> Tensor:
    """The same to first order in alpha: ``gbar_i - alpha Hbar_i sum_{j<i} gbar_j``, all taken at theta.

    Returns
    -------
    Tensor [k, P]
    """
    at_start = torch.stack([grad(loss)(theta, batch) for batch in sequence])
    before = at_start.cumsum(0) - at_start
    bends = [_hessian_times(loss, theta, batch, vector) for batch, vector in zip(sequence, before)]
    return at_start - alpha * torch.stack(bends)


def _hessian_times(loss: Loss, theta: Tensor, batch: Tensor, vector: Tensor) -> Tensor:
    return grad(lambda point: grad(loss)(point, batch) @ vector)(theta)


def joint_gradient(loss: Loss, theta: Tensor, sequence: Tensor, alpha: Tensor | float) -> Tensor:
    """Joint training: the gradient of the first minibatch at theta; alpha plays no part. ``[P]``."""
    return grad(loss)(theta, sequence[0])


def maml_gradient(loss: Loss, theta: Tensor, sequence: Tensor, alpha: Tensor | float) -> Tensor:
    """MAML: ``d/dtheta L_k(theta_k)``, through the k - 1 inner steps. ``[P]``."""

    def after(point: Tensor) -> Tensor:
        for batch in sequence[:-1]:
            point = point - alpha * grad(loss)(point, batch)
        return loss(point, sequence[-1])

    return grad(after)(theta)


def fomaml_gradient(loss: Loss, theta: Tensor, sequence: Tensor, alpha: Tensor | float) -> Tensor:
    """First-order MAML: ``g_k``, the last gradient of the inner loop. ``[P]``."""
    return inner_gradients(loss, theta, sequence, alpha)[-1]


def reptile_gradient(loss: Loss, theta: Tensor, sequence: Tensor, alpha: Tensor | float) -> Tensor:
    """Reptile: ``(theta_1 - theta_{k+1}) / alpha = g_1 + ... + g_k``. ``[P]``."""
    return inner_gradients(loss, theta, sequence, alpha).sum(0)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "joint training": joint_gradient,
        "MAML": maml_gradient,
        "FOMAML": fomaml_gradient,
        "Reptile": reptile_gradient,
    }
)
"""The four outer gradients by name: each ``(loss, theta [P], sequence [k, ...], alpha) -> [P]``."""


# --- Expectations -------------------------------------------------------------------------------------------------


def coefficients(method: str, k: int) -> tuple[float, float]:
    """``(u, v)`` of ``E[g] = u AvgGrad - v alpha AvgGradInner + O(alpha^2)`` with k exchangeable minibatches.

    Raises
    ------
    KeyError
        If the method is not one of :data:`METHODS`.
    """
    return {
        "joint training": (1.0, 0.0),
        "MAML": (1.0, 2.0 * (k - 1)),
        "FOMAML": (1.0, float(k - 1)),
        "Reptile": (float(k), k * (k - 1) / 2),
    }[method]


def combination_coefficients(weights: Sequence[float]) -> tuple[float, float]:
    """``(u, v)`` of the outer gradient ``sum_i weights_i g_i``: FOMAML is (0, ..., 0, 1), Reptile (1, ..., 1)."""
    return float(sum(weights)), float(sum(i * weight for i, weight in enumerate(weights)))


def expected_gradient(
    method: Method, loss: Loss, theta: Tensor, pool: Tensor, k: int, alpha: Tensor | float, repeat: bool = False
) -> Tensor:
    """Exact expectation of an outer gradient: the mean over all tasks and all sequences of k minibatches.

    Parameters
    ----------
    method : callable
        One of :data:`METHODS`, or another with its signature.
    loss : callable
    theta : Tensor [P]
    pool : Tensor [tasks, n, ...]
        The sequences are the n^k ones of independent draws with replacement.
    k : int
    alpha : float or Tensor []
    repeat : bool
        Take one minibatch k times instead (n sequences a task).

    Returns
    -------
    Tensor [P]
    """
    n = pool.shape[1]
    order = torch.arange(n).repeat(k, 1).T if repeat else torch.cartesian_prod(*[torch.arange(n)] * k).view(-1, k)
    sequences = pool[:, order].flatten(0, 1)  # [tasks n^k, k, ...]
    return vmap(lambda sequence: method(loss, theta, sequence, alpha))(sequences).mean(0)


def avg_grad(loss: Loss, theta: Tensor, pool: Tensor) -> Tensor:
    """AvgGrad: the mean of ``gbar_1`` over tasks and minibatches. ``[P]``."""
    return _gradients(loss, theta, pool).mean((0, 1))


def avg_grad_inner(loss: Loss, theta: Tensor, pool: Tensor, repeat: bool = False) -> Tensor:
    """AvgGradInner: the mean of ``Hbar_2 gbar_1`` over tasks and pairs of independent minibatches.

    Parameters
    ----------
    loss : callable
    theta : Tensor [P]
    pool : Tensor [tasks, n, ...]
    repeat : bool
        The second minibatch is the first one: the mean of ``Hbar_1 gbar_1``.

    Returns
    -------
    Tensor [P]
    """
    n = pool.shape[1]
    pairs = torch.arange(n).repeat(2, 1).T if repeat else torch.cartesian_prod(*[torch.arange(n)] * 2)
    first, second = pool[:, pairs[:, 0]].flatten(0, 1), pool[:, pairs[:, 1]].flatten(0, 1)

    def product(first: Tensor, second: Tensor) -> Tensor:
        return _hessian_times(loss, theta, second, grad(loss)(theta, first))

    return vmap(product)(first, second).mean(0)


def agreement(loss: Loss, theta: Tensor, pool: Tensor) -> Tensor:
    """Mean inner product ``gbar_1 . gbar_2`` of the gradients of two independent minibatches of a task. ``[]``."""
    of_task = _gradients(loss, theta, pool)
    return torch.einsum("tip,tjp->tij", of_task, of_task).mean()


def squared_norm(loss: Loss, theta: Tensor, pool: Tensor) -> Tensor:
    """Mean squared norm ``|gbar_1|^2`` of the gradient of one minibatch. ``[]``."""
    return _gradients(loss, theta, pool).square().sum(2).mean()


def _gradients(loss: Loss, theta: Tensor, pool: Tensor) -> Tensor:
    """``gbar`` of every minibatch, ``[tasks, n, P]``."""
    return vmap(vmap(lambda batch: grad(loss)(theta, batch)))(pool)


def ratio_of_means(numerator: Tensor, denominator: Tensor, z: float = 1.96) -> tuple[float, float]:
    """``E[numerator] / E[denominator]`` from two independent samples, with the half-width of its interval.

    The standard error is that of the linearised ratio (the delta method).

    Parameters
    ----------
    numerator : Tensor [n]
    denominator : Tensor [m]
    z : float
        Normal quantile: 1.96 for 95 %, 3.29 for 99.9 %.
    """
    top, bottom = numerator.mean(), denominator.mean()
    ratio = top / bottom
    variance = numerator.var() / len(numerator) + ratio.square() * denominator.var() / len(denominator)
    return ratio.item(), z * (variance.sqrt() / bottom.abs()).item()


# --- Tasks that are quadratic -------------------------------------------------------------------------------------


def curvature_seen(hessian: Tensor, alpha: float, k: int) -> Tensor:
    """What k inner steps make of the curvature: ``(I - (I - alpha H)^k) / alpha``.

    On the loss ``(theta - c)' H (theta - c) / 2`` Reptile's gradient is this matrix times ``theta - c``.

    Parameters
    ----------
    hessian : Tensor [..., P, P]
    alpha : float
    k : int

    Returns
    -------
    Tensor [..., P, P]
    """
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype)
    return (eye - torch.linalg.matrix_power(eye - alpha * hessian, k)) / alpha


def fixed_point(curvatures: Tensor, centres: Tensor) -> Tensor:
    """Where ``sum_t B_t (theta - c_t)`` vanishes.

    Parameters
    ----------
    curvatures : Tensor [tasks, P, P]
        The ``B_t``: the Hessians for joint training, :func:`curvature_seen` for Reptile.
    centres : Tensor [tasks, P]

    Returns
    -------
    Tensor [P]
    """
    return torch.linalg.solve(curvatures.sum(0), torch.einsum("tij,tj->i", curvatures, centres))


def outer_radius(curvatures: Tensor, alpha: float, beta: float) -> float:
    """Spectral radius of the outer iteration ``I - beta alpha mean_t B_t``: it converges if and only if this is < 1.

    Parameters
    ----------
    curvatures : Tensor [tasks, P, P]
        The ``B_t`` of :func:`curvature_seen`.
    alpha : float
    beta : float
        The outer rate for the mean over tasks. For the sum it is ``tasks`` times what the code says.
    """
    eye = torch.eye(curvatures.shape[-1], dtype=curvatures.dtype)
    return float(torch.linalg.eigvals(eye - beta * alpha * curvatures.mean(0)).abs().max())


# --- The outer step, and the distance to the tasks' solutions -----------------------------------------------------


def outer_step(theta: Tensor, adapted: Tensor, beta: float) -> Tensor:
    """Reptile's outer step: from theta a part beta of the way to the mean of the adapted parameters.

    Parameters
    ----------
    theta : Tensor [P]
    adapted : Tensor [tasks, P]
    beta : float
    """
    return theta + beta * (adapted - theta).mean(0)


def project_on_line(theta: Tensor, normal: Tensor, offset: float) -> Tensor:
    """The point of ``{x : normal . x = offset}`` nearest to theta; ``normal [P]`` of any length."""
    return theta - (normal @ theta - offset) / (normal @ normal) * normal


def project_on_circle(theta: Tensor, centre: Tensor, radius: float) -> Tensor:
    """The point at the distance ``radius`` from ``centre`` nearest to theta, which is not the centre itself."""
    return centre + radius * (theta - centre) / (theta - centre).norm()


def project_on_parabola(theta: Tensor, bend: float, height: float) -> Tensor:
    """The point of ``{x : x_2 = height + bend x_1^2 / 2}`` nearest to ``theta [2]``.

    The foot ``s = x_1`` solves ``s - theta_1 + bend s (height + bend s^2 / 2 - theta_2) = 0``; of its real solutions
    the nearest one is taken.
    """
    first, second = theta.tolist()
    roots = np.roots([bend**2 / 2, 0.0, 1 + bend * (height - second), -first])
    feet = torch.as_tensor(roots[abs(roots.imag) < 1e-9].real, dtype=theta.dtype)
    points = torch.stack([feet, height + bend * feet.square() / 2], 1)
    return points[(points - theta).square().sum(1).argmin()]
