"""MAML's gradient: every formula of the chapter against autograd or the algorithm itself, in float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metabook.memory import saved_bytes
from metabook.theory import maml_gradient as theory

F64 = torch.float64
UNITS = 5
EYE = torch.eye(2, dtype=F64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def hessian(function):
    return jacrev(grad(function))


def net(theta: Tensor, x: Tensor) -> Tensor:
    slopes, shifts, readout, offset = theta.split([UNITS, UNITS, UNITS, 1])
    return torch.tanh(x.unsqueeze(-1) * slopes + shifts) @ readout + offset


def squared_error(theta: Tensor, points: Tensor) -> Tensor:
    return (net(theta, points[0]) - points[1]).square().mean()


def points(seed: int) -> Tensor:
    x = 4 * torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(seed)) - 2
    return torch.stack([x, (2 * x).sin()])


SUPPORT, QUERY = points(1), points(2)


def support(theta: Tensor) -> Tensor:
    return squared_error(theta, SUPPORT)


def query(theta: Tensor) -> Tensor:
    return squared_error(theta, QUERY)


@pytest.fixture
def theta() -> Tensor:
    return 0.7 * torch.randn(3 * UNITS + 1, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def v() -> Tensor:
    return torch.randn(3 * UNITS + 1, dtype=F64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def bowls() -> tuple[Tensor, Tensor]:
    """Five tasks whose curvatures do not commute: A [5, 2, 2], c [5, 2]."""
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(5, 2, 2, dtype=F64, generator=generator)
    return root @ root.mT + 0.2 * EYE, torch.randn(5, 2, dtype=F64, generator=generator)


def small_rate(A: Tensor) -> float:
    """Half of what makes the steepest direction vanish in one step."""
    return 0.5 / float(torch.linalg.eigvalsh(A).max())


# --- The Jacobian of the inner loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_jacobian_is_the_product_of_the_steps(theta: Tensor, n: int) -> None:
    close(
        theory.inner_jacobian(support, theta, 0.1, n),
        jacrev(lambda t: theory.inner_path(support, t, 0.1, n)[-1])(theta),
    )


def test_the_gradient_is_the_transposed_jacobian_times_the_last_gradient(theta: Tensor) -> None:
    jacobian = theory.inner_jacobian(support, theta, 0.1, 4)
    last = theory.first_order_gradient(support, query, theta, 0.1, 4)
    exact = theory.maml_gradient(support, query, theta, 0.1, 4)
    close(jacobian.T @ last, exact)
    assert (jacobian @ last - exact).norm() > 1e-4 * exact.norm()  # not transposed: the factors in the wrong order


def test_the_gradient_against_finite_differences(theta: Tensor, v: Tensor) -> None:
    def after(start: Tensor) -> Tensor:
        return query(theory.inner_path(support, start, 0.1, 3)[-1])

    h = 1e-5
    slope = (after(theta + h * v) - after(theta - h * v)) / (2 * h)
    torch.testing.assert_close(theory.maml_gradient(support, query, theta, 0.1, 3) @ v, slope, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward mode
@pytest.mark.parametrize("product", [theory.hessian_vector, theory.hessian_vector_forward])
def test_hessian_vector_products(theta: Tensor, v: Tensor, product) -> None:
    close(product(support, theta, v), hessian(support)(theta) @ v)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_the_recursion_ends_in_mamls_gradient(theta: Tensor, n: int) -> None:
    path = theory.inner_path(support, theta, 0.1, n)
    rows = theory.adjoints(support, query, path, 0.1)
    assert rows.shape == path.shape
    close(rows[0], theory.maml_gradient(support, query, theta, 0.1, n))
    close(rows[-1], theory.first_order_gradient(support, query, theta, 0.1, n))
    for k in range(n + 1):  # each row is the gradient of a shorter inner loop
        close(rows[k], theory.maml_gradient(support, query, path[k], 0.1, n - k))


@pytest.mark.parametrize("n", [1, 3])
def test_the_three_ways_to_compute_it_agree(theta: Tensor, n: int) -> None:
    exact = theory.maml_gradient(support, query, theta, 0.1, n)
    close(theory.unrolled_gradient(support, query, theta, 0.1, n), exact)
    close(theory.recomputed_gradient(support, query, theta, 0.1, n), exact)
    first = theory.unrolled_gradient(support, query, theta, 0.1, n, first_order=True)
    close(first, theory.first_order_gradient(support, query, theta, 0.1, n))
    assert (first - exact).norm() > 1e-3 * exact.norm()
    assert not theta.requires_grad


# --- The error of first order -------------------------------------------------------------------------------------


def test_the_error_is_a_sum_over_steps(theta: Tensor) -> None:
    path = theory.inner_path(support, theta, 0.1, 4)
    rows = theory.adjoints(support, query, path, 0.1)
    error = 0.1 * sum(hessian(support)(path[k]) @ rows[k + 1] for k in range(4))
    close(rows[-1] - rows[0], error)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_error_is_within_its_bound(theta: Tensor, alpha: float) -> None:
    path = theory.inner_path(support, theta, alpha, 4)
    rows = theory.adjoints(support, query, path, alpha)
    assert (rows[-1] - rows[0]).norm() <= theory.first_order_bound(support, path, alpha) * rows[-1].norm()


def test_the_bound_is_reached_by_negative_curvature() -> None:
    """On -theta^2 / 2 every step stretches by 1 + alpha: no smaller bound holds in general."""

    def hill(theta: Tensor) -> Tensor:
        return -0.5 * theta.square().sum()

    start = torch.ones(1, dtype=F64)
    path = theory.inner_path(hill, start, 0.2, 3)
    rows = theory.adjoints(hill, hill, path, 0.2)
    close((rows[-1] - rows[0]).norm() / rows[-1].norm(), theory.first_order_bound(hill, path, 0.2))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_error_is_linear_in_the_rate(theta: Tensor, n: int) -> None:
    def error(alpha: Tensor) -> Tensor:
        first = theory.first_order_gradient(support, query, theta, alpha, n)
        return first - theory.maml_gradient(support, query, theta, alpha, n)

    zero = torch.zeros((), dtype=F64)
    close(error(zero), torch.zeros_like(theta))
    close(jacrev(error)(zero), n * hessian(support)(theta) @ grad(query)(theta))


# --- What it costs ------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_steps_only_where_the_graph_is_kept(theta: Tensor) -> None:
    def kept(compute, n: int, **options: bool) -> int:
        return saved_bytes(lambda: compute(support, query, theta, 0.1, n, **options))

    second = [kept(theory.unrolled_gradient, n) for n in (1, 2, 3, 4, 5)]
    steps = np.diff(second)
    assert (steps == steps[0]).all()
    assert steps[0] > 0
    assert second == [kept(theory.unrolled_gradient, n) for n in (1, 2, 3, 4, 5)]
    first = [kept(theory.unrolled_gradient, n, first_order=True) for n in (2, 3, 5)]
    assert len(set(first)) == 1
    again = [kept(theory.recomputed_gradient, n) for n in (2, 3, 5)]
    assert len(set(again)) == 1


# --- Quadratic tasks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", theory.METHODS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_outer_direction_on_a_bowl(bowls: tuple[Tensor, Tensor], method: str, n: int) -> None:
    A, c = bowls[0][0], bowls[1][0]
    start = torch.tensor([1.5, -0.7], dtype=F64)

    def loss(theta: Tensor) -> Tensor:
        return theory.bowl(theta, A, c)

    found = theory.outer_direction(method, loss, loss, start, 0.2, n)
    close(theory.curvature_seen(method, A, 0.2, n) @ (start - c), found)


@pytest.mark.parametrize("method", theory.METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_the_algorithms_end_in_their_fixed_points(bowls: tuple[Tensor, Tensor], method: str, n: int) -> None:
    A, c = bowls
    alpha = small_rate(A)
    seen = theory.curvature_seen(method, A, alpha, n)
    beta = 1 / float(torch.linalg.matrix_norm(seen.mean(0), ord=2))
    end = theory.run_outer_loop(method, A, c, alpha, n, beta, 600)[-1]
    close(end, theory.fixed_point(seen, c), 1e-9)
    others = [theory.fixed_point(theory.curvature_seen(m, A, alpha, n), c) for m in theory.METHODS if m != method]
    distances = [float((end - other).norm()) for other in others]
    assert min(distances) > 1e-3 or (n == 1 and method in ("joint training", "Reptile"))


def test_a_wrong_weight_is_noticed(bowls: tuple[Tensor, Tensor]) -> None:
    """MAML's fixed point with FOMAML's power, a slip of the pen, is not where MAML ends."""
    A, c = bowls
    alpha = small_rate(A)
    end = theory.run_outer_loop("MAML", A, c, alpha, 2, 0.5, 2000)[-1]
    wrong = theory.fixed_point(theory.curvature_seen("FOMAML", A, alpha, 2), c)
    assert (end - wrong).norm() > 1e-3


def test_identities_between_the_weights(bowls: tuple[Tensor, Tensor]) -> None:
    A, _ = bowls
    close(theory.curvature_seen("FOMAML", A, 0.1, 6), theory.curvature_seen("MAML", A, 0.1, 3))
    total = sum(theory.curvature_seen("FOMAML", A, 0.1, k) for k in range(4))
    close(theory.curvature_seen("Reptile", A, 0.1, 4), total)
    close(theory.curvature_seen("Reptile", A, 0.1, 1), A)
    moreau = theory.curvature_seen("proximal Reptile", A, 3.0, 1)
    close(moreau @ torch.linalg.inv(EYE + A / 3.0), theory.curvature_seen("implicit MAML", A, 3.0, 1))


def test_an_unknown_method_is_an_error(bowls: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(KeyError):
        theory.curvature_seen("Reptil", bowls[0], 0.1, 1)
    with pytest.raises(ValueError, match="must be one of joint training, MAML"):
        theory.outer_direction("Reptil", support, query, torch.zeros(16, dtype=F64), 0.1, 1)


def test_the_loss_after_adaptation_and_its_minimum(bowls: tuple[Tensor, Tensor]) -> None:
    A, c = bowls
    alpha, start = small_rate(A), torch.tensor([0.4, 1.0], dtype=F64)

    def after(theta: Tensor) -> Tensor:
        ends = [theory.inner_path(lambda p, a=a, m=m: theory.bowl(p, a, m), theta, alpha, 3)[-1] for a, m in zip(A, c)]
        return torch.stack([theory.bowl(end, a, m) for end, a, m in zip(ends, A, c)]).mean()

    close(theory.loss_after(start, A, c, alpha, 3), after(start))
    best = theory.fixed_point(theory.curvature_seen("MAML", A, alpha, 3), c)
    close(grad(after)(best), torch.zeros(2, dtype=F64))
    for method in ("joint training", "FOMAML", "Reptile"):
        other = theory.fixed_point(theory.curvature_seen(method, A, alpha, 3), c)
        assert theory.loss_after(other, A, c, alpha, 3) > theory.loss_after(best, A, c, alpha, 3)


# --- When MAML is joint training ----------------------------------------------------------------------------------


def test_equal_curvatures_make_all_equal(bowls: tuple[Tensor, Tensor]) -> None:
    A, c = bowls
    same = A[:1].expand(5, 2, 2)
    for method in (*theory.METHODS, "implicit MAML", "proximal Reptile"):
        close(theory.fixed_point(theory.curvature_seen(method, same, small_rate(A), 3), c), c.mean(0))


def test_all_pairs_of_curvatures_and_optima_make_all_equal(bowls: tuple[Tensor, Tensor]) -> None:
    A, c = bowls
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    for method in theory.METHODS:
        seen = theory.curvature_seen(method, A[pairs[:, 0]], small_rate(A), 3)
        close(theory.fixed_point(seen, c[pairs[:, 1]]), c.mean(0))


@pytest.mark.parametrize("method", theory.METHODS)
def test_the_offset_is_a_covariance(bowls: tuple[Tensor, Tensor], method: str) -> None:
    A, c = bowls
    seen = theory.curvature_seen(method, A, small_rate(A), 3)
    covariance = torch.einsum("tij,tj->i", seen - seen.mean(0), c - c.mean(0)) / len(c)
    close(theory.fixed_point(seen, c) - c.mean(0), torch.linalg.solve(seen.mean(0), covariance))


@pytest.mark.parametrize("method", theory.METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_the_drift_is_the_derivative_at_zero(bowls: tuple[Tensor, Tensor], method: str, n: int) -> None:
    A, c = bowls

    def point(alpha: Tensor) -> Tensor:
        steps, B = EYE - alpha * A, A
        if method == "Reptile":  # the sum over FOMAML: alpha divides nothing
            B = sum((A @ torch.linalg.matrix_power(steps, k) for k in range(n)), torch.zeros_like(A))
        elif method != "joint training":
            B = A @ torch.linalg.matrix_power(steps, 2 * n if method == "MAML" else n)
        return theory.fixed_point(B, c)

    close(theory.drift(method, A, c, n), jacrev(point)(torch.zeros((), dtype=F64)))


def test_commuting_curvatures_are_not_enough() -> None:
    """Two tasks in one dimension, by hand: 2/3 and 8/17."""
    A, c = torch.tensor([[[1.0]], [[2.0]]], dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
    joint, maml = Fraction(2, 3), (2 * Fraction(1, 2) ** 2) / (Fraction(3, 4) ** 2 + 2 * Fraction(1, 2) ** 2)
    assert maml == Fraction(8, 17)
    for method, expected in (("joint training", joint), ("MAML", maml)):
        found = theory.fixed_point(theory.curvature_seen(method, A, 0.25, 1), c)
        assert float(found) == pytest.approx(float(expected), abs=1e-14)


def test_in_one_dimension_the_condition_is_mirrored_curvature() -> None:
    """a_1 + a_2 = 2 / alpha: unequal curvatures, and MAML is joint training for every pair of optima."""
    a, b, alpha = sp.symbols("a b alpha", positive=True)
    weight = sp.Lambda(a, a * (1 - alpha * a) ** 6)
    assert sp.simplify((weight(a) / weight(2 / alpha - a)) / (a / (2 / alpha - a))) == 1
    share = sp.cancel(weight(a) / weight(b) - a / b)
    assert share.subs({a: 1, b: 2, alpha: sp.Rational(1, 4)}) != 0


# --- Implicit gradients -------------------------------------------------------------------------------------------


def test_the_implicit_gradient_on_a_bowl(bowls: tuple[Tensor, Tensor]) -> None:
    A, c, lam = bowls[0][0], bowls[1][0], 2.0
    start = torch.tensor([1.0, -2.0], dtype=F64)

    def loss(theta: Tensor) -> Tensor:
        return theory.bowl(theta, A, c)

    adapted = theory.proximal_minimum(loss, start, lam)
    close(adapted - c, torch.linalg.solve(EYE + A / lam, start - c))
    found = theory.implicit_gradient(loss, loss, adapted, lam)
    close(found, theory.curvature_seen("implicit MAML", A, lam, 1) @ (start - c))
    close(found, grad(lambda t: loss(c + torch.linalg.solve(EYE + A / lam, t - c)))(start))
    close(lam * (start - adapted), theory.curvature_seen("proximal Reptile", A, lam, 1) @ (start - c))


def test_the_implicit_gradient_of_a_net(theta: Tensor, v: Tensor) -> None:
    lam, h = 6.0, 1e-4
    found = theory.implicit_gradient(support, query, theory.proximal_minimum(support, theta, lam), lam)
    ahead, behind = (query(theory.proximal_minimum(support, theta + s * h * v, lam)) for s in (1, -1))
    assert float(found @ v) == pytest.approx(float((ahead - behind) / (2 * h)), abs=1e-7)
    first = grad(query)(theory.proximal_minimum(support, theta, lam))
    assert (first - found).norm() > 0.05 * found.norm()


def test_the_implicit_gradient_is_the_limit_of_the_unrolled_one(theta: Tensor) -> None:
    lam = 6.0

    def unrolled(start: Tensor) -> Tensor:
        u = start
        for _ in range(400):
            u = u - 0.05 * (grad(support)(u) + lam * (u - start))
        return query(u)

    found = theory.implicit_gradient(support, query, theory.proximal_minimum(support, theta, lam), lam)
    close(found, grad(unrolled)(theta), 1e-9)


def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions() -> None:
    root = torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    matrix, b = root @ root.T + torch.eye(6, dtype=F64), torch.ones(6, dtype=F64)
    close(theory.conjugate_gradient(lambda x: matrix @ x, b, 6), torch.linalg.solve(matrix, b), 1e-9)
    assert (theory.conjugate_gradient(lambda x: matrix @ x, b, 2) - torch.linalg.solve(matrix, b)).norm() > 1e-3


# --- Exercises ----------------------------------------------------------------------------------------------------


def test_noise_in_the_support_set_moves_the_best_rate() -> None:
    """Loss after one step with a noisy support optimum, exactly: noise +s and -s, each with probability 1/2."""
    a, gap, s = 1.7, 0.8, 0.5

    def expected(alpha: Tensor) -> Tensor:
        theta = torch.tensor(gap, dtype=F64)  # the task's optimum is 0
        ends = torch.stack([theta - alpha * a * (theta - noise) for noise in (s, -s)])
        return 0.5 * a * ends.square().mean()

    best = gap**2 / (a * (gap**2 + s**2))
    assert float(grad(expected)(torch.tensor(best, dtype=F64))) == pytest.approx(0, abs=1e-12)
    assert float(expected(torch.tensor(best, dtype=F64))) < float(expected(torch.tensor(1 / a, dtype=F64)))


def test_first_order_weights_change_sign() -> None:
    """Beyond alpha a = 1 an odd number of steps gives FOMAML a negative weight; MAML's never is."""
    A = torch.tensor([[3.0]], dtype=F64)
    assert theory.curvature_seen("FOMAML", A, 0.5, 1) < 0 < theory.curvature_seen("MAML", A, 0.5, 1)
    assert theory.curvature_seen("FOMAML", A, 0.5, 2) > 0
    c = torch.zeros(1, 1, dtype=F64)
    start = torch.ones(1, dtype=F64)
    away = theory.run_outer_loop("FOMAML", A[None], c, 0.5, 1, 0.5, 20, start)[-1]
    home = theory.run_outer_loop("MAML", A[None], c, 0.5, 1, 0.5, 40, start)[-1]
    assert away.abs() > 100
    assert home.abs() < 1e-6
    assert math.isfinite(float(away))


def test_tasks_side_by_side_are_tasks_one_by_one(bowls: tuple[Tensor, Tensor]) -> None:
    A, c = bowls
    theta = torch.tensor([0.3, 0.1], dtype=F64)

    def gradient(a: Tensor, m: Tensor) -> Tensor:
        def loss(point: Tensor) -> Tensor:
            return theory.bowl(point, a, m)

        return theory.maml_gradient(loss, loss, theta, 0.1, 2)

    both = vmap(gradient)(A, c)
    for row, a, m in zip(both, A, c):
        close(row, theory.curvature_seen("MAML", a, 0.1, 2) @ (theta - m))
