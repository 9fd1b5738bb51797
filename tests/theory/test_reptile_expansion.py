"""Reptile's Taylor expansion: every formula of the chapter against autograd or an exact enumeration, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metabook import data
from metabook.theory import reptile_expansion as reptile

F64 = torch.float64
UNITS = 6


def net(theta: Tensor, x: Tensor) -> Tensor:
    slopes, shifts, readout, offset = theta.split([UNITS, UNITS, UNITS, 1])
    return torch.tanh(x.unsqueeze(-1) * slopes + shifts) @ readout + offset


def loss(theta: Tensor, batch: Tensor) -> Tensor:
    return (net(theta, batch[..., 0]) - batch[..., 1]).square().mean()


def linear_loss(theta: Tensor, batch: Tensor) -> Tensor:
    """Half the squared error of a linear model; a batch is [points, inputs + 1]."""
    return 0.5 * (batch[:, :-1] @ theta - batch[:, -1]).square().mean()


def sinusoids(tasks: int, n: int, points: int, seed: int) -> Tensor:
    """Minibatches of sinusoid tasks, [tasks, n, points, 2]."""
    drawn = data.Sinusoids(n * points, 1, seed=seed).sample(tasks)
    return torch.cat([drawn.support_x, drawn.support_y], 2).double().view(tasks, n, points, 2)


@pytest.fixture
def theta() -> Tensor:
    return 0.7 * torch.randn(3 * UNITS + 1, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pool() -> Tensor:
    return sinusoids(3, 3, 4, seed=0)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def hessian(function):
    return jacrev(jacrev(function))


def value_and_slope(function) -> tuple[Tensor, Tensor]:
    """A function of alpha and its derivative, both at zero."""
    zero = torch.zeros((), dtype=F64)
    return function(zero), jacrev(function)(zero)


def log_slope(sizes: list[float], rates: np.ndarray) -> float:
    return float(np.polyfit(np.log(rates), np.log(sizes), 1)[0])


# --- One task -----------------------------------------------------------------------------------------------------


def test_inner_gradients_are_those_of_plain_sgd(theta: Tensor, pool: Tensor) -> None:
    point, found = theta.clone(), reptile.inner_gradients(loss, theta, pool[0], 0.05)
    for batch, gradient in zip(pool[0], found, strict=True):
        leaf = point.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf, batch), leaf)
        close(gradient, expected)
        point = point - 0.05 * expected
    close(reptile.reptile_gradient(loss, theta, pool[0], 0.05), (theta - point) / 0.05)
    close(reptile.fomaml_gradient(loss, theta, pool[0], 0.05), found[-1])
    close(reptile.joint_gradient(loss, theta, pool[0], 0.05), found[0])


def test_mamls_gradient_against_finite_differences(theta: Tensor, pool: Tensor) -> None:
    def after(point: Tensor) -> Tensor:
        for batch in pool[0][:-1]:
            point = point - 0.05 * grad(loss)(point, batch)
        return loss(point, pool[0][-1])

    h, eye = 1e-5, torch.eye(len(theta), dtype=F64)
    differences = torch.stack([(after(theta + h * e) - after(theta - h * e)) / (2 * h) for e in eye])
    close(reptile.maml_gradient(loss, theta, pool[0], 0.05), differences, atol=1e-7)


def test_the_linearised_gradients_are_the_tangent_at_alpha_zero(theta: Tensor, pool: Tensor) -> None:
    """check-reptile-inner."""
    value, slope = value_and_slope(lambda alpha: reptile.inner_gradients(loss, theta, pool[0], alpha))
    close(reptile.linearised_gradients(loss, theta, pool[0], 0.0), value)
    close(reptile.linearised_gradients(loss, theta, pool[0], 1.0) - value, slope)
    rates = np.logspace(-5, -3, 5)
    rest = [
        float((exact(loss, theta, pool[0], rate) - linear(loss, theta, pool[0], rate)).norm())
        for exact, linear in [(reptile.inner_gradients, reptile.linearised_gradients)]
        for rate in rates
    ]
    assert abs(log_slope(rest, rates) - 2) < 0.05


def test_the_three_outer_gradients_before_the_expectation(theta: Tensor, pool: Tensor) -> None:
    """check-reptile-methods, with Hessians written out."""
    bars = torch.stack([grad(loss)(theta, batch) for batch in pool[1]])
    hessians = torch.stack([hessian(loss)(theta, batch) for batch in pool[1]])
    k = len(bars)
    backward = hessians[-1] @ bars[:-1].sum(0)
    forward = hessians[:-1].sum(0) @ bars[-1]
    pairs = torch.stack([hessians[i] @ bars[j] for i in range(k) for j in range(i)]).sum(0)
    expected = {"MAML": (bars[-1], backward + forward), "FOMAML": (bars[-1], backward), "Reptile": (bars.sum(0), pairs)}
    for name, (start, bend) in expected.items():
        value, slope = value_and_slope(lambda alpha, name=name: reptile.METHODS[name](loss, theta, pool[1], alpha))
        close(value, start)
        close(slope, -bend)


# --- Expectations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list(reptile.METHODS))
def test_the_coefficients_are_exact(theta: Tensor, pool: Tensor, name: str, k: int) -> None:
    """check-reptile-expectations: the expectation by enumeration, and its derivative at alpha = 0 by autograd."""
    u, v = reptile.coefficients(name, k)
    method = reptile.METHODS[name]
    value, slope = value_and_slope(lambda alpha: reptile.expected_gradient(method, loss, theta, pool, k, alpha))
    inner = reptile.avg_grad_inner(loss, theta, pool)
    close(value, u * reptile.avg_grad(loss, theta, pool))
    close(slope, -v * inner)
    assert (slope + (v + 0.01) * inner).abs().max() > 1e-3  # another coefficient would be noticed


@pytest.mark.parametrize("name", ["MAML", "FOMAML", "Reptile"])
def test_what_is_left_over_is_quadratic_in_alpha(theta: Tensor, pool: Tensor, name: str) -> None:
    u, v = reptile.coefficients(name, 3)
    average, inner = reptile.avg_grad(loss, theta, pool), reptile.avg_grad_inner(loss, theta, pool)
    rates = np.logspace(-5, -3, 5)
    exact = [reptile.expected_gradient(reptile.METHODS[name], loss, theta, pool, 3, rate) for rate in rates]
    rest = [float((each - u * average + v * rate * inner).norm()) for each, rate in zip(exact, rates)]
    assert abs(log_slope(rest, rates) - 2) < 0.05


def test_minibatches_drawn_without_replacement_have_the_same_coefficients(theta: Tensor, pool: Tensor) -> None:
    """Exchangeable is enough: AvgGradInner is then a mean over pairs of different minibatches."""
    orders = torch.tensor([[a, b, c] for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3])
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    inner = torch.stack(
        [hessian(loss)(theta, task[a]) @ grad(loss)(theta, task[b]) for task in pool for a, b in pairs]
    ).mean(0)
    sequences = pool[:, orders].flatten(0, 1)
    for name, method in reptile.METHODS.items():

        def mean(alpha: Tensor, method=method) -> Tensor:
            return vmap(lambda sequence: method(loss, theta, sequence, alpha))(sequences).mean(0)

        close(value_and_slope(mean)[1], -reptile.coefficients(name, 3)[1] * inner)


def test_monte_carlo_finds_the_coefficients() -> None:
    """Sinusoid tasks, fresh minibatches: every estimate within its own 99.9 % interval."""
    theta = 0.7 * torch.randn(3 * UNITS + 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    k, alpha, draws = 3, 1e-4, 2000
    pairs, runs = sinusoids(draws, 2, 5, seed=1), sinusoids(draws, k, 5, seed=2)
    bars = vmap(lambda pair: grad(loss)(theta, pair[0]))(pairs)
    bends = vmap(lambda pair: hessian(loss)(theta, pair[1]) @ grad(loss)(theta, pair[0]))(pairs)
    pilot = sinusoids(500, 2, 5, seed=3)
    along_u, along_v = reptile.avg_grad(loss, theta, pilot), reptile.avg_grad_inner(loss, theta, pilot)
    for name, method in reptile.METHODS.items():
        start, moved = (vmap(lambda run, a=a, m=method: m(loss, theta, run, a))(runs) for a in (0.0, alpha))
        u, half_u = reptile.ratio_of_means(start @ along_u, bars @ along_u, z=3.29)
        v, half_v = reptile.ratio_of_means((start - moved) @ along_v / alpha, bends @ along_v, z=3.29)
        expected = reptile.coefficients(name, k)
        assert abs(u - expected[0]) < half_u
        assert abs(v - expected[1]) <= half_v
        if name != "joint training":
            assert half_v < 0.25 * v  # the interval is narrow enough to mean something


def test_the_interval_of_a_ratio_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(1000):
        top = 3 + torch.randn(200, dtype=F64, generator=generator)
        bottom = 2 + torch.randn(100, dtype=F64, generator=generator)
        ratio, half = reptile.ratio_of_means(top, bottom)
        inside += abs(ratio - 1.5) < half
    assert 930 <= inside <= 968


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0), (1.0, 1.0, 1.0), (0.3, -1.0, 0.5, 2.0)])
def test_any_combination_of_the_inner_gradients(theta: Tensor, pool: Tensor, weights: tuple[float, ...]) -> None:
    w = torch.tensor(weights, dtype=F64)

    def combined(loss, theta, sequence, alpha):
        return w @ reptile.inner_gradients(loss, theta, sequence, alpha)

    u, v = reptile.combination_coefficients(weights)
    value, slope = value_and_slope(
        lambda alpha: reptile.expected_gradient(combined, loss, theta, pool, len(weights), alpha)
    )
    close(value, u * reptile.avg_grad(loss, theta, pool))
    close(slope, -v * reptile.avg_grad_inner(loss, theta, pool))
    assert reptile.combination_coefficients([0, 0, 1]) == reptile.coefficients("FOMAML", 3)
    assert reptile.combination_coefficients([1, 1, 1]) == reptile.coefficients("Reptile", 3)


# --- What AvgGradInner is -----------------------------------------------------------------------------------------


def test_avg_grad_inner_is_half_the_gradient_of_the_agreement(theta: Tensor, pool: Tensor) -> None:
    """check-reptile-averages and check-reptile-agreement."""
    inner = reptile.avg_grad_inner(loss, theta, pool)
    close(inner, 0.5 * grad(lambda w: reptile.agreement(loss, w, pool))(theta))
    by_hand = torch.stack(
        [hessian(loss)(theta, b) @ grad(loss)(theta, a) for task in pool for a in task for b in task]
    ).mean(0)
    close(inner, by_hand)
    close(
        reptile.avg_grad(loss, theta, pool),
        grad(lambda w: torch.stack([loss(w, b) for b in pool.flatten(0, 1)]).mean())(theta),
    )
    of_task = torch.stack([torch.stack([grad(loss)(theta, b) for b in task]).mean(0) for task in pool])
    close(reptile.agreement(loss, theta, pool), of_task.square().sum(1).mean())


def test_a_step_along_avg_grad_inner_raises_the_agreement(theta: Tensor, pool: Tensor) -> None:
    inner, before = reptile.avg_grad_inner(loss, theta, pool), reptile.agreement(loss, theta, pool)
    assert reptile.agreement(loss, theta + 1e-4 * inner, pool) > before
    assert reptile.agreement(loss, theta - 1e-4 * inner, pool) < before


def test_to_this_order_reptile_descends_a_loss(theta: Tensor, pool: Tensor) -> None:
    """check-reptile-surrogate."""
    k = 4

    def surrogate(w: Tensor, alpha: Tensor) -> Tensor:
        mean = torch.stack([loss(w, batch) for batch in pool.flatten(0, 1)]).mean()
        return k * mean - alpha * k * (k - 1) / 4 * reptile.agreement(loss, w, pool)

    for ours, theirs in zip(
        value_and_slope(lambda a: reptile.expected_gradient(reptile.reptile_gradient, loss, theta, pool, k, a)),
        value_and_slope(lambda a: grad(surrogate)(theta, a)),
    ):
        close(ours, theirs)


def test_the_same_minibatch_every_time(theta: Tensor, pool: Tensor) -> None:
    """check-reptile-repeat: the coefficients stay, the pair becomes one minibatch twice."""
    repeated = reptile.avg_grad_inner(loss, theta, pool, repeat=True)
    close(repeated, 0.5 * grad(lambda w: reptile.squared_norm(loss, w, pool))(theta))
    for name, method in reptile.METHODS.items():
        value, slope = value_and_slope(
            lambda a, method=method: reptile.expected_gradient(method, loss, theta, pool, 3, a, repeat=True)
        )
        u, v = reptile.coefficients(name, 3)
        close(value, u * reptile.avg_grad(loss, theta, pool))
        close(slope, -v * repeated)

    def noise(w: Tensor) -> Tensor:
        """Trace of the covariance of minibatch gradients in a task, the mean over tasks."""
        gradients = torch.stack([torch.stack([grad(loss)(w, batch) for batch in task]) for task in pool])
        return (gradients - gradients.mean(1, keepdim=True)).square().sum(2).mean()

    close(repeated - reptile.avg_grad_inner(loss, theta, pool), 0.5 * grad(noise)(theta))
    assert (repeated - reptile.avg_grad_inner(loss, theta, pool)).norm() > 1e-2  # the two are not the same


def test_joint_steps_pair_minibatches_of_different_tasks(theta: Tensor, pool: Tensor) -> None:
    """k steps on minibatches of random tasks are Reptile on one task that holds all minibatches."""
    merged = pool.flatten(0, 1).unsqueeze(0)

    def between(w: Tensor) -> Tensor:
        of_task = torch.stack([torch.stack([grad(loss)(w, batch) for batch in task]).mean(0) for task in pool])
        return (of_task - of_task.mean(0)).square().sum(1).mean()

    within, across = (reptile.avg_grad_inner(loss, theta, each) for each in (pool, merged))
    close(within - across, 0.5 * grad(between)(theta))


# --- Quadratic tasks, the outer step, distances -------------------------------------------------------------------


def test_quadratics_to_all_orders_with_random_minibatches() -> None:
    """check-reptile-quadratic."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1, 3, 4, 3, dtype=F64, generator=generator)
    theta = torch.tensor([0.5, -1.0], dtype=F64)
    curvature = hessian(lambda w: torch.stack([linear_loss(w, batch) for batch in pool[0]]).mean())(theta)
    slope = reptile.avg_grad(linear_loss, torch.zeros(2, dtype=F64), pool)
    centre = torch.linalg.solve(curvature, -slope)
    for k in (1, 2, 5):
        expected = reptile.expected_gradient(reptile.reptile_gradient, linear_loss, theta, pool, k, 0.3)
        close(reptile.curvature_seen(curvature, 0.3, k) @ (theta - centre), expected)


def test_the_binomial_series_starts_with_the_two_terms() -> None:
    """All orders: the coefficient of alpha^m is (-1)^m binom(k, m + 1); m = 0 and 1 are Reptile's u and -v."""
    matrix, k, alpha = torch.tensor([[0.9, 0.4], [0.4, 1.6]], dtype=F64), 5, 0.3
    terms = [math.comb(k, m + 1) * (-alpha) ** m * torch.linalg.matrix_power(matrix, m + 1) for m in range(k)]
    close(reptile.curvature_seen(matrix, alpha, k), torch.stack(terms).sum(0), atol=1e-12)
    assert reptile.coefficients("Reptile", k) == (math.comb(k, 1), math.comb(k, 2))


def test_the_fixed_point_moves_from_joint_training_to_the_mean_of_the_minima() -> None:
    """check-reptile-fixed-point."""
    hessians = torch.diag_embed(torch.tensor([[4.0, 0.5], [1.0, 2.0], [0.7, 0.4]], dtype=F64))
    centres = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], dtype=F64)
    seen = {k: reptile.curvature_seen(hessians, 0.2, k) for k in (1, 3, 500)}
    close(reptile.fixed_point(seen[1], centres), reptile.fixed_point(hessians, centres))
    close(reptile.fixed_point(seen[500], centres), centres.mean(0), atol=1e-8)
    theta = torch.zeros(2, dtype=F64)
    for _ in range(2000):
        adapted = theta.expand(3, 2)
        for _ in range(3):
            adapted = adapted - 0.2 * torch.einsum("tij,tj->ti", hessians, adapted - centres)
        theta = reptile.outer_step(theta, adapted, 0.5)
    close(reptile.fixed_point(seen[3], centres), theta)


def test_the_outer_step_is_the_mean_and_the_sign_is_towards_the_tasks() -> None:
    """check-reptile-algorithm and check-reptile-sum."""
    theta, adapted = torch.zeros(2, dtype=F64), torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64)
    close(reptile.outer_step(theta, adapted, 0.5), torch.tensor([0.25, 0.5], dtype=F64))
    close(reptile.outer_step(theta, adapted, 1.0), adapted.mean(0))
    parameter = torch.nn.Parameter(theta.clone())
    parameter.grad = theta - adapted.mean(0)
    torch.optim.SGD([parameter], lr=0.5).step()
    close(parameter.detach(), reptile.outer_step(theta, adapted, 0.5))
    summed = theta + 0.5 * (adapted - theta).sum(0)
    close(summed, reptile.outer_step(theta, adapted, 0.5 * len(adapted)))


@pytest.mark.parametrize(("beta", "converges"), [(0.5, True), (1.9, True), (2.5, False), (4.0, False)])
def test_the_radius_says_whether_the_outer_loop_converges(beta: float, converges: bool) -> None:
    """check-reptile-sum: with four tasks and beta = 1, the sum is the last case."""
    hessians = torch.diag_embed(torch.tensor([[4.0, 0.5], [1.0, 2.0]], dtype=F64))
    centres = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=F64)
    seen, theta = reptile.curvature_seen(hessians, 0.2, 10), torch.tensor([5.0, 5.0], dtype=F64)
    goal = reptile.fixed_point(seen, centres)
    distances = []
    for _ in range(60):
        ends = theta - 0.2 * torch.einsum("tij,tj->ti", seen, theta - centres)
        theta = reptile.outer_step(theta, ends, beta)
        distances.append(float((theta - goal).norm()))
    radius = reptile.outer_radius(seen, 0.2, beta)
    assert (radius < 1) == converges
    assert (distances[-1] < 1e-2) == converges
    if not converges:
        assert distances[-1] / distances[-2] == pytest.approx(radius, rel=1e-6)


def test_the_gradient_of_the_squared_distance_points_away_from_the_projection() -> None:
    """check-reptile-distance: line and circle by autograd, the parabola by a search and finite differences."""
    theta = torch.tensor([0.7, -0.4], dtype=F64)
    normal, centre = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([-0.5, 0.3], dtype=F64)
    for project in (
        lambda w: reptile.project_on_line(w, normal, 1.5),
        lambda w: reptile.project_on_circle(w, centre, 0.6),
    ):
        close(grad(lambda w: 0.5 * (w - project(w)).square().sum())(theta), theta - project(theta))  # noqa: B023
    assert normal @ reptile.project_on_line(theta, normal, 1.5) == pytest.approx(1.5)
    assert (reptile.project_on_circle(theta, centre, 0.6) - centre).norm() == pytest.approx(0.6)

    feet = torch.linspace(-3, 3, 600_001, dtype=F64)
    curve = torch.stack([feet, 0.4 + 0.8 * feet.square() / 2], 1)
    found = reptile.project_on_parabola(theta, 0.8, 0.4)
    nearest = curve[(curve - theta).square().sum(1).argmin()]
    close(found, nearest, atol=2e-5)  # the search has a grid

    def half_square(point: Tensor) -> Tensor:
        return 0.5 * (point - reptile.project_on_parabola(point, 0.8, 0.4)).square().sum()

    h, eye = 1e-5, torch.eye(2, dtype=F64)
    slopes = torch.stack([(half_square(theta + h * e) - half_square(theta - h * e)) / (2 * h) for e in eye])
    close(slopes, theta - found, atol=1e-8)


def test_plausible_wrong_formulas_are_noticed(theta: Tensor, pool: Tensor) -> None:
    """Reptile's k(k + 1)/2 (one pair too many a step), and MAML's without the Jacobian's half."""
    inner = reptile.avg_grad_inner(loss, theta, pool)
    for name, wrong in (("Reptile", 3 * 4 / 2), ("MAML", 2.0), ("FOMAML", 4.0)):
        method = reptile.METHODS[name]
        _, slope = value_and_slope(lambda a, m=method: reptile.expected_gradient(m, loss, theta, pool, 3, a))
        with pytest.raises(AssertionError):
            close(slope, -wrong * inner)


def test_the_four_methods_are_told_apart() -> None:
    with pytest.raises(KeyError):
        reptile.coefficients("iMAML", 2)
