"""Closed forms and estimators of the chapter on MAML's gradient.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017,
https://arxiv.org/abs/1703.03400. Other sources stand where they are used.

Everywhere ``theta [P]`` is one vector of parameters and a loss is a function ``loss(theta) -> []`` of one task that is
smooth in theta. Quadratic tasks are ``(theta - c_i)' A_i (theta - c_i) / 2``, ``A [tasks, P, P]``, ``c [tasks, P]``;
for them support and query loss are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from metabook.theory.reptile_expansion import fixed_point

__all__ = [
    "METHODS",
    "adjoints",
    "bowl",
    "conjugate_gradient",
    "curvature_seen",
    "drift",
    "first_order_bound",
    "first_order_gradient",
    "fixed_point",
    "hessian_vector",
    "hessian_vector_forward",
    "implicit_gradient",
    "inner_jacobian",
    "inner_path",
    "loss_after",
    "maml_gradient",
    "outer_direction",
    "proximal_minimum",
    "recomputed_gradient",
    "run_outer_loop",
    "unrolled_gradient",
]

Loss = Callable[[Tensor], Tensor]

METHODS = ("joint training", "MAML", "FOMAML", "Reptile")
"""The names that :func:`curvature_seen`, :func:`drift` and :func:`outer_direction` know."""


# --- The inner loop and its derivative ----------------------------------------------------------------------------


def inner_path(support: Loss, theta: Tensor, alpha: Tensor | float, n: int) -> Tensor:
    """``theta_0, ..., theta_n`` of ``theta_{k+1} = theta_k - alpha support'(theta_k)``.

    Returns
    -------
    Tensor [n + 1, P]
    """
    path = [theta]
    for _ in range(n):
        path.append(path[-1] - alpha * grad(support)(path[-1]))
    return torch.stack(path)


def maml_gradient(support: Loss, query: Loss, theta: Tensor, alpha: Tensor | float, n: int) -> Tensor:
    """The derivative of ``query(theta_n)`` by theta, by autograd. ``[P]``."""
    return grad(lambda start: query(inner_path(support, start, alpha, n)[-1]))(theta)


def first_order_gradient(support: Loss, query: Loss, theta: Tensor, alpha: Tensor | float, n: int) -> Tensor:
    """FOMAML: the gradient of the query loss at ``theta_n``. ``[P]``."""
    return grad(query)(inner_path(support, theta, alpha, n)[-1])


def hessian_vector(loss: Loss, theta: Tensor, v: Tensor) -> Tensor:
    """``H v`` as the gradient of the number ``loss'(theta) . v``: reverse mode twice. ``[P]``.

    B. A. Pearlmutter. Fast Exact Multiplication by the Hessian. Neural Computation 6, 1994.
    """
    return grad(lambda point: grad(loss)(point) @ v)(theta)


def hessian_vector_forward(loss: Loss, theta: Tensor, v: Tensor) -> Tensor:
    """``H v`` as the derivative of the gradient along v: forward mode over reverse mode. ``[P]``."""
    return jvp(grad(loss), (theta,), (v,))[1]


def _hessian(loss: Loss, theta: Tensor) -> Tensor:
    """The whole Hessian ``[P, P]``: P products, for checks on few parameters only."""
    return jacrev(grad(loss))(theta)


def inner_jacobian(support: Loss, theta: Tensor, alpha: float, n: int) -> Tensor:
    """``(I - alpha H_{n-1}) ... (I - alpha H_0)``, the Jacobian of ``theta_n`` by theta, with the Hessians written out.

    Returns
    -------
    Tensor [P, P]
    """
    jacobian = eye = torch.eye(len(theta), dtype=theta.dtype)
    for point in inner_path(support, theta, alpha, n)[:-1]:
        jacobian = (eye - alpha * _hessian(support, point)) @ jacobian
    return jacobian


def adjoints(support: Loss, query: Loss, path: Tensor, alpha: float) -> Tensor:
    """``v_n = query'(theta_n)`` and ``v_k = v_{k+1} - alpha H_k v_{k+1}``: row 0 is MAML's gradient.

    Parameters
    ----------
    support, query : callable
    path : Tensor [n + 1, P]
        Of :func:`inner_path`.
    alpha : float

    Returns
    -------
    Tensor [n + 1, P]
    """
    rows = [grad(query)(path[-1])]
    for point in reversed(path[:-1]):
        rows.append(rows[-1] - alpha * hessian_vector(support, point, rows[-1]))
    return torch.stack(rows[::-1])


def first_order_bound(support: Loss, path: Tensor, alpha: float) -> Tensor:
    """``(1 + alpha h)^n - 1``, which bounds FOMAML's error as a part of its gradient's length.

    ``h`` is the largest absolute curvature of the support loss at ``theta_0, ..., theta_{n-1}``.

    Parameters
    ----------
    support : callable
    path : Tensor [n + 1, P]
    alpha : float
    """
    norms = [torch.linalg.matrix_norm(_hessian(support, point), ord=2) for point in path[:-1]]
    return (1 + alpha * torch.stack(norms).max()) ** len(norms) - 1


# --- What it costs ------------------------------------------------------------------------------------------------


def unrolled_gradient(
    support: Loss, query: Loss, theta: Tensor, alpha: float, n: int, first_order: bool = False
) -> Tensor:
    """MAML's or FOMAML's gradient as libraries compute it: one graph through all inner steps, one backward pass.

    Parameters
    ----------
    support, query : callable
    theta : Tensor [P]
    alpha : float
    n : int
    first_order : bool
        Take the inner gradients for constants.
    """
    start = point = theta.detach().requires_grad_()
    for _ in range(n):
        (step,) = torch.autograd.grad(support(point), point, create_graph=not first_order)
        point = point - alpha * step
    return torch.autograd.grad(query(point), start)[0]


def recomputed_gradient(support: Loss, query: Loss, theta: Tensor, alpha: float, n: int) -> Tensor:
    """MAML's gradient by the recursion of :func:`adjoints`, which keeps the inner path and no graph.

    Beside the n + 1 vectors of the path only the graph of one Hessian-vector product exists at a time: each is built
    anew from its ``theta_k``. This is checkpointing (T. Chen and others, https://arxiv.org/abs/1604.06174) with one
    checkpoint for each inner step.
    """
    path = [theta.detach()]
    for _ in range(n):
        point = path[-1].requires_grad_()
        path.append((point - alpha * torch.autograd.grad(support(point), point)[0]).detach())
    end = path.pop().requires_grad_()
    (v,) = torch.autograd.grad(query(end), end)
    while path:
        point = path.pop()
        (step,) = torch.autograd.grad(support(point), point, create_graph=True)
        v = v - alpha * torch.autograd.grad(step, point, v)[0]
    return v


# --- Quadratic tasks ----------------------------------------------------------------------------------------------


def bowl(theta: Tensor, A: Tensor, c: Tensor) -> Tensor:
    """``(theta - c)' A (theta - c) / 2`` of one task: theta, c ``[P]``, A ``[P, P]``."""
    return 0.5 * (theta - c) @ A @ (theta - c)


def curvature_seen(method: str, A: Tensor, alpha: float, n: int) -> Tensor:
    """The matrix ``B(A)`` of a method: its mean outer step vanishes where ``sum_i B(A_i) (theta - c_i) = 0``.

    ======================  =============================
    joint training          ``A``
    MAML                    ``A (I - alpha A)^(2n)``
    FOMAML                  ``A (I - alpha A)^n``
    Reptile                 ``(I - (I - alpha A)^n) / alpha``
    implicit MAML           ``A (I + A / alpha)^(-2)``
    proximal Reptile        ``A (I + A / alpha)^(-1)``
    ======================  =============================

    The last two replace the inner loop by the minimum of ``loss + alpha / 2 |u - theta|^2``: ``alpha`` is then the
    weight lambda of this penalty, and n plays no part. Compare Z. Charles, J. Konecny, AISTATS 2021,
    https://arxiv.org/abs/2103.05032, where such matrices describe a family of methods.

    Parameters
    ----------
    method : str
    A : Tensor [..., P, P]
    alpha : float
    n : int
        Inner steps.

    Returns
    -------
    Tensor [..., P, P]

    Raises
    ------
    KeyError
        If the method is not in the table.
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    power = torch.linalg.matrix_power
    formulas: dict[str, Callable[[], Tensor]] = {
        "joint training": lambda: A,
        "MAML": lambda: A @ power(eye - alpha * A, 2 * n),
        "FOMAML": lambda: A @ power(eye - alpha * A, n),
        "Reptile": lambda: (eye - power(eye - alpha * A, n)) / alpha,
        "implicit MAML": lambda: A @ power(torch.linalg.inv(eye + A / alpha), 2),
        "proximal Reptile": lambda: A @ torch.linalg.inv(eye + A / alpha),
    }
    return formulas[method]()


def drift(method: str, A: Tensor, c: Tensor, n: int) -> Tensor:
    """The derivative by alpha, at alpha = 0, of a method's fixed point.

    It is ``r (sum_i A_i)^{-1} sum_i A_i^2 (theta_joint - c_i)`` with r = 2n for MAML, n for FOMAML and (n - 1) / 2 for
    Reptile.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.
    A : Tensor [tasks, P, P]
    c : Tensor [tasks, P]
    n : int

    Returns
    -------
    Tensor [P]
    """
    rate = {"joint training": 0.0, "MAML": 2.0 * n, "FOMAML": float(n), "Reptile": (n - 1) / 2}[method]
    pull = torch.einsum("tij,tj->i", A @ A, fixed_point(A, c) - c)
    return rate * torch.linalg.solve(A.sum(0), pull)


def loss_after(theta: Tensor, A: Tensor, c: Tensor, alpha: float, n: int) -> Tensor:
    """Mean over quadratic tasks of the loss after n inner steps from theta: MAML's objective. ``[]``."""
    return 0.5 * torch.einsum("ti,tij,tj->t", theta - c, curvature_seen("MAML", A, alpha, n), theta - c).mean()


def outer_direction(method: str, support: Loss, query: Loss, theta: Tensor, alpha: float, n: int) -> Tensor:
    """What the outer step of a method subtracts for one task: the algorithm itself, for any loss. ``[P]``.

    Reptile's is ``(theta - theta_n) / alpha`` and takes the support loss alone.

    Raises
    ------
    ValueError
        If the method is not one of :data:`METHODS`.
    """
    if method == "joint training":
        return grad(query)(theta)
    if method == "MAML":
        return maml_gradient(support, query, theta, alpha, n)
    if method == "FOMAML":
        return first_order_gradient(support, query, theta, alpha, n)
    if method == "Reptile":
        return (theta - inner_path(support, theta, alpha, n)[-1]) / alpha
    raise ValueError(f"the method must be one of {', '.join(METHODS)}, not {method!r}")


def run_outer_loop(
    method: str, A: Tensor, c: Tensor, alpha: float, n: int, beta: float, steps: int, theta: Tensor | None = None
) -> Tensor:
    """The algorithm on quadratic tasks: ``steps`` outer steps with the mean over all tasks, gradients by autograd.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.
    A : Tensor [tasks, P, P]
    c : Tensor [tasks, P]
    alpha, beta : float
        Inner and outer rate.
    n, steps : int
        Inner steps, outer steps.
    theta : Tensor [P], optional
        The start, otherwise zero.

    Returns
    -------
    Tensor [steps + 1, P]
        The start after 0, 1, ..., ``steps`` outer steps.
    """

    def direction(theta: Tensor, A: Tensor, c: Tensor) -> Tensor:
        def loss(point: Tensor) -> Tensor:
            return bowl(point, A, c)

        return outer_direction(method, loss, loss, theta, alpha, n)

    path = [torch.zeros_like(c[0]) if theta is None else theta]
    for _ in range(steps):
        path.append(path[-1] - beta * vmap(direction, (None, 0, 0))(path[-1], A, c).mean(0))
    return torch.stack(path)


# --- Implicit gradients -------------------------------------------------------------------------------------------


def proximal_minimum(support: Loss, theta: Tensor, lam: float, steps: int = 20) -> Tensor:
    """The minimum over u of ``support(u) + lam / 2 |u - theta|^2``, by Newton's method from theta.

    Differentiable by theta nowhere on purpose: :func:`implicit_gradient` needs only where it is.

    Parameters
    ----------
    support : callable
    theta : Tensor [P]
    lam : float
        So large that the sum is convex.
    steps : int
        Newton steps.
    """
    u = theta.detach()
    eye = torch.eye(len(theta), dtype=theta.dtype)
    for _ in range(steps):
        slope = grad(support)(u) + lam * (u - theta.detach())
        u = u - torch.linalg.solve(_hessian(support, u) + lam * eye, slope)
    return u


def conjugate_gradient(apply: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 1e-14) -> Tensor:
    """Solve ``apply(x) = b`` for a symmetric positive definite ``apply`` by conjugate gradients.

    Parameters
    ----------
    apply : callable
        Multiplies a vector ``[P]`` by the matrix.
    b : Tensor [P]
    steps : int
        At most so many products.
    tolerance : float
        Stop when the residual is shorter than this part of ``b``.
    """
    x = torch.zeros_like(b)
    residual = direction = b
    for _ in range(steps):
        if residual.norm() <= tolerance * b.norm():
            break
        product = apply(direction)
        length = residual @ residual / (direction @ product)
        x = x + length * direction
        shorter = residual - length * product
        direction = shorter + (shorter @ shorter) / (residual @ residual) * direction
        residual = shorter
    return x


def implicit_gradient(support: Loss, query: Loss, adapted: Tensor, lam: float, steps: int = 200) -> Tensor:
    """``(I + H / lam)^{-1} query'(adapted)`` with H the support loss's Hessian at ``adapted``, by conjugate gradients.

    A. Rajeswaran, C. Finn, S. Kakade, S. Levine. Meta-Learning with Implicit Gradients. NeurIPS 2019,
    https://arxiv.org/abs/1909.04630

    Parameters
    ----------
    support, query : callable
    adapted : Tensor [P]
        The minimum that :func:`proximal_minimum` finds.
    lam : float
    steps : int
        At most so many Hessian-vector products.
    """
    return conjugate_gradient(lambda v: v + hessian_vector(support, adapted, v) / lam, grad(query)(adapted), steps)
