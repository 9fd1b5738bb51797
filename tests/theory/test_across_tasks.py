"""Learning across tasks: every formula of the chapter against autograd, linear algebra, quadrature or simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.func import grad, jacrev

from metabook.theory import across_tasks as across

F64 = torch.float64
MU, TAU2, SIGMA2 = 1.5, 0.8, 2.0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def agrees(sample: np.ndarray, expected: float, sigmas: float = 4.0) -> bool:
    """Whether the mean of a sample is that expected, up to so many standard errors."""
    return abs(sample.mean() - expected) < sigmas * sample.std(ddof=1) / math.sqrt(sample.size)


def draw(rng: np.random.Generator, T: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    phi = MU + math.sqrt(TAU2) * rng.standard_normal(T)
    return phi, phi[:, None] + math.sqrt(SIGMA2) * rng.standard_normal((T, K))


def normal(x: np.ndarray, mean: np.ndarray | float, variance: float) -> np.ndarray:
    return stats.norm.pdf(x, mean, math.sqrt(variance))


# --- Hierarchical Bayes -------------------------------------------------------------------------------------------


def test_posterior_is_the_conditional_of_the_joint_gaussian(rng: np.random.Generator) -> None:
    K = 4
    _, y = draw(rng, 3, K)
    C = SIGMA2 * np.eye(K) + TAU2
    c = np.full(K, TAU2)
    mean, variance = across.posterior(y, MU, TAU2, SIGMA2)
    np.testing.assert_allclose(mean, MU + (y - MU) @ np.linalg.solve(C, c), rtol=0, atol=1e-12)
    assert variance == pytest.approx(TAU2 - c @ np.linalg.solve(C, c), abs=1e-12)


def test_log_marginal_is_the_integral_over_the_parameter_and_a_multivariate_normal(rng: np.random.Generator) -> None:
    K = 4
    _, y = draw(rng, 3, K)
    tensors = torch.tensor(y), torch.tensor(TAU2, dtype=F64), torch.tensor(SIGMA2, dtype=F64)
    ours = across.log_marginal(tensors[0], MU, *tensors[1:])
    C = SIGMA2 * torch.eye(K, dtype=F64) + TAU2
    law = torch.distributions.MultivariateNormal(torch.full((K,), MU, dtype=F64), C)
    torch.testing.assert_close(ours, law.log_prob(tensors[0]), rtol=0, atol=1e-12)
    for row, value in zip(y, ours):

        def integrand(phi: float, row: np.ndarray = row) -> float:
            return float(normal(row, phi, SIGMA2).prod() * normal(phi, MU, TAU2))

        assert integrate.quad(integrand, -20, 20, epsabs=1e-14, points=[MU, row.mean()])[0] == pytest.approx(
            math.exp(value), abs=1e-10
        )


def test_empirical_bayes_is_a_stationary_maximum(rng: np.random.Generator) -> None:
    _, y = draw(rng, 30, 3)
    mu, tau2 = across.empirical_bayes(y, SIGMA2)
    assert tau2 > 0

    def likelihood(p: Tensor) -> Tensor:
        return across.log_marginal(torch.tensor(y), p[0], p[1], torch.tensor(SIGMA2, dtype=F64)).sum()

    at = torch.tensor([mu, tau2], dtype=F64)
    torch.testing.assert_close(grad(likelihood)(at), torch.zeros(2, dtype=F64), rtol=0, atol=1e-10)
    for step in (-0.05, 0.05):
        for unit in torch.eye(2, dtype=F64):
            assert likelihood(at + step * unit) < likelihood(at)


def test_empirical_bayes_stops_at_zero_variance(rng: np.random.Generator) -> None:
    y = rng.standard_normal((4, 1)) * 0.1
    mu, tau2 = across.empirical_bayes(y, SIGMA2)
    assert tau2 == 0.0

    def likelihood(tau2: Tensor) -> Tensor:
        return across.log_marginal(torch.tensor(y), mu, tau2, torch.tensor(SIGMA2, dtype=F64)).sum()

    assert grad(likelihood)(torch.zeros((), dtype=F64)) < 0


@pytest.mark.parametrize("T", [8, 20])  # for fewer than 6 the error has no variance, and no interval
def test_james_stein_risk_by_simulation(rng: np.random.Generator, T: int) -> None:
    noise = SIGMA2 / 2
    phi = MU + math.sqrt(TAU2) * rng.standard_normal((40_000, T))
    means = phi + math.sqrt(noise) * rng.standard_normal(phi.shape)
    errors = np.square(across.james_stein(means, noise) - phi).mean(1)
    risk = across.james_stein_risk(T, TAU2, noise)
    assert agrees(errors, risk)
    assert not agrees(errors, noise)  # not the risk of the means themselves
    assert risk < noise


@pytest.mark.parametrize("T", [4, 6, 10, 50])
def test_james_stein_risk_by_quadrature(T: int) -> None:
    """Pythagoras: error of the known prior, of the centre, and of the factor, the last by integration over S."""
    noise = SIGMA2 / 2
    v, kappa = TAU2 + noise, across.data_weight(TAU2, noise)

    def factor(S: float) -> float:
        error = (1 - kappa) - (T - 3) * noise / S
        return error**2 * S * stats.chi2.pdf(S / v, T - 1) / v

    third = integrate.quad(factor, 0, np.inf, epsabs=1e-12, limit=200)[0] / T
    expected = kappa * noise + (1 - kappa) ** 2 * v / T + third
    assert across.james_stein_risk(T, TAU2, noise) == pytest.approx(expected, abs=1e-8)


def test_one_step_is_the_posterior_mean_where_the_risk_is_least() -> None:
    K = 3
    kappa = across.data_weight(TAU2, SIGMA2 / K)

    def risk(p: Tensor) -> Tensor:
        return across.query_risk(p[0], p[1], MU, TAU2, SIGMA2, K)

    best = torch.tensor([MU, kappa], dtype=F64)
    torch.testing.assert_close(grad(risk)(best), torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    assert risk(best) == pytest.approx(SIGMA2 + kappa * SIGMA2 / K, abs=1e-12)
    for other in ([MU + 0.1, kappa], [MU, kappa + 0.1], [MU, kappa - 0.1]):
        assert risk(torch.tensor(other, dtype=F64)) > risk(best)


def test_risks_of_query_and_support_by_simulation(rng: np.random.Generator) -> None:
    K, theta, alpha = 3, 0.7, 0.6
    _, y = draw(rng, 400_000, K + 1)
    support, query = y[:, :K], y[:, K]
    prediction = theta + alpha * (support.mean(1) - theta)
    on_query, on_support = np.square(prediction - query), np.square(prediction - support[:, 0])
    arguments = (theta, alpha, MU, TAU2, SIGMA2, K)
    assert agrees(on_query, across.query_risk(*arguments))
    assert agrees(on_support, across.support_risk(*arguments))
    assert not agrees(on_support, across.query_risk(*arguments))


def test_the_support_risk_is_least_without_shrinkage() -> None:
    risk = grad(lambda alpha: across.support_risk(MU, alpha, MU, TAU2, SIGMA2, 3))
    assert abs(risk(torch.ones((), dtype=F64))) < 1e-12


# --- Early stopping -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[(10, 4), (3, 6)], ids=["overdetermined", "underdetermined"])
def regression(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    K, d = request.param
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(K, d, dtype=F64, generator=generator)
    return X, torch.randn(K, dtype=F64, generator=generator), torch.randn(d, dtype=F64, generator=generator)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_early_stopping_is_the_map_estimate(regression: tuple[Tensor, Tensor, Tensor], steps: int) -> None:
    X, y, theta = regression
    alpha = 0.5 / torch.linalg.eigvalsh(X.T @ X / len(X)).max().item()
    run = across.gradient_descent(X, y, theta, alpha, steps)
    torch.testing.assert_close(across.early_stopped(X, y, theta, alpha, steps), run, rtol=0, atol=1e-10)
    Sigma = across.implied_covariance(X, alpha, steps, sigma2=0.3)
    torch.testing.assert_close(across.map_estimate(X, y, theta, Sigma, 0.3), run, rtol=0, atol=1e-8)

    def log_posterior(phi: Tensor) -> Tensor:
        way = phi - theta
        return -(X @ phi - y).square().sum() / 0.6 - 0.5 * way @ torch.linalg.solve(Sigma, way)

    torch.testing.assert_close(grad(log_posterior)(run), torch.zeros_like(theta), rtol=0, atol=1e-8)


def test_a_wrong_exponent_is_no_such_prior(regression: tuple[Tensor, Tensor, Tensor]) -> None:
    X, y, theta = regression
    alpha = 0.5 / torch.linalg.eigvalsh(X.T @ X / len(X)).max().item()
    run = across.gradient_descent(X, y, theta, alpha, 5)
    wrong = across.map_estimate(X, y, theta, across.implied_covariance(X, alpha, 4, 0.3), 0.3)
    isotropic = 0.3 * 5 * alpha / len(X) * torch.eye(X.shape[1], dtype=F64)
    for estimate in (wrong, across.map_estimate(X, y, theta, isotropic, 0.3)):
        assert (estimate - run).abs().max() > 1e-3


def test_there_is_no_prior_for_an_odd_number_of_long_steps(regression: tuple[Tensor, Tensor, Tensor]) -> None:
    X, y, theta = regression
    alpha = 1.5 / torch.linalg.eigvalsh(X.T @ X / len(X)).max().item()
    with pytest.raises(ValueError, match="no Gaussian prior"):
        across.implied_covariance(X, alpha, 3, 0.3)
    Sigma = across.implied_covariance(X, alpha, 4, 0.3)  # an even number comes back to the near side
    run = across.gradient_descent(X, y, theta, alpha, 4)
    torch.testing.assert_close(across.map_estimate(X, y, theta, Sigma, 0.3), run, rtol=0, atol=1e-8)


# --- Generalisation over tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "K", "K_new"), [(5, 1, 1), (10, 4, 1), (40, 2, 5), (200, 3, 3)])
def test_excess_risk_by_simulation(rng: np.random.Generator, T: int, K: int, K_new: int) -> None:
    sample = across.simulate_excess(rng, 100_000, T, K, K_new, TAU2, SIGMA2)
    parts = across.excess_risk(T, K, K_new, TAU2, SIGMA2)
    assert agrees(sample, parts.total)
    assert not agrees(sample, parts.mean)


def test_excess_risk_does_not_depend_on_the_quadrature() -> None:
    for T in (3, 10, 300):
        noise, v = SIGMA2 / 2, TAU2 + SIGMA2 / 4
        B = noise / (TAU2 + noise)

        def error(x: float, power: int, shift: float, T: int = T, v: float = v, noise: float = noise) -> float:
            tau2 = max(0.0, v * x / (T - 1) - SIGMA2 / 4)
            return (noise / (tau2 + noise) - shift) ** power * stats.chi2.pdf(x, T - 1)

        kink = SIGMA2 / 4 * (T - 1) / v
        edges = sorted({0.0, kink, T - 1.0, T + 10 * math.sqrt(2 * T), T + 60 * math.sqrt(2 * T)})
        moments = [
            sum(integrate.quad(error, a, b, (2, s), epsabs=1e-13, limit=300)[0] for a, b in pairwise(edges))
            for s in (0.0, B)
        ]
        ours = across.excess_risk(T, 4, 2, TAU2, SIGMA2)
        assert ours.mean == pytest.approx(moments[0] * v / T, abs=1e-8)
        assert ours.shrinkage == pytest.approx(moments[1] * (TAU2 + noise), abs=1e-8)


def test_excess_risk_for_many_tasks() -> None:
    for K in (1, 3, 10):
        exact = across.excess_risk(20_000, K, 2, TAU2, SIGMA2)
        large = across.excess_risk_large(20_000, K, 2, TAU2, SIGMA2)
        assert exact.mean == pytest.approx(large.mean, rel=2e-3)
        assert exact.shrinkage == pytest.approx(large.shrinkage, rel=2e-3)


@pytest.mark.parametrize(("K_new", "sigma2"), [(1, 8.0), (5, 20.0), (50, 3.0)])
def test_best_shots(K_new: int, sigma2: float) -> None:
    best = across.best_shots(K_new, TAU2, sigma2)

    def total(K: Tensor) -> Tensor:
        return across.excess_risk_large(1000 / K, K, K_new, TAU2, sigma2).total

    assert abs(grad(total)(torch.tensor(best, dtype=F64))) < 1e-10
    assert total(best) < min(total(0.9 * best), total(1.1 * best))


def test_miss_risk_by_simulation(rng: np.random.Generator) -> None:
    K, theta, alpha, radius = 3, 0.7, 0.6, 1.2
    _, y = draw(rng, 200_000, K + 1)
    misses = np.abs(theta + alpha * (y[:, :K].mean(1) - theta) - y[:, K]) > radius
    assert agrees(misses, across.miss_risk(theta, alpha, MU, TAU2, SIGMA2, K, radius))


def test_simulated_misses_have_the_risk_as_their_mean(rng: np.random.Generator) -> None:
    candidates = np.array([[0.0, 0.3], [-1.0, 0.8]])
    losses = across.simulate_misses(rng, 2000, 30, 3, candidates, TAU2, SIGMA2, 1.2)
    risk = across.miss_risk(*candidates.T, 0.0, TAU2, SIGMA2, 3, 1.2)
    reused = across.simulate_misses(rng, 2000, 30, 3, candidates, TAU2, SIGMA2, 1.2, reuse=True)
    for c in range(2):
        assert agrees(losses[:, c], risk[c])
        assert reused[:, c].mean() < risk[c] - 0.02


def test_bounds_hold_and_shrink_with_the_tasks() -> None:
    assert across.hoeffding_gap(400, 100, 0.05) == pytest.approx(across.hoeffding_gap(100, 100, 0.05) / 2)
    for mean, budget in ((0.0, 0.1), (0.2, 0.05), (0.7, 0.3)):
        p = across.kl_inverse(mean, budget)
        kl = (mean * math.log(mean / p) if mean else 0) + (1 - mean) * math.log((1 - mean) / (1 - p))
        assert kl == pytest.approx(budget, abs=1e-9)
        assert mean < p < mean + math.sqrt(budget / 2) + 1e-12  # Pinsker
    assert across.kl_inverse(1.0, 0.1) == 1.0


def test_bounds_hold_for_simulated_meta_learners(rng: np.random.Generator) -> None:
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(0, 1, 6)), -1).reshape(-1, 2)
    risk = across.miss_risk(*grid.T, 0.0, TAU2, SIGMA2, 3, 1.0)
    losses, reused = (
        across.simulate_misses(rng, 200, 320, 3, grid, TAU2, SIGMA2, 1.0, reuse) for reuse in (False, True)
    )
    allowed = across.hoeffding_gap(320, len(grid), 0.05)
    assert ((risk - losses).max(1) > allowed).mean() <= 0.05
    assert ((risk - reused).max(1) > allowed).mean() > 0.95  # without held-out queries it is no bound
    for each in losses:
        gibbs, bound = across.pac_bayes_bound(each, 320, 0.05, 30.0)
        assert gibbs @ risk < bound


def test_pac_bayes_with_a_flat_posterior_pays_nothing_for_it() -> None:
    losses = np.linspace(0.2, 0.6, 5)
    gibbs, bound = across.pac_bayes_bound(losses, 100, 0.05, 0.0)
    np.testing.assert_allclose(gibbs, 0.2)
    assert bound == pytest.approx(across.kl_inverse(0.4, math.log(20 / 0.05) / 100))
    sharp, _ = across.pac_bayes_bound(losses, 100, 0.05, 1e6)
    np.testing.assert_allclose(sharp, [1, 0, 0, 0, 0])


# --- Self-evolution: Gaussians ------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [False, True])
def test_unfiltered_refits_lose_the_variance(rng: np.random.Generator, unbiased: bool) -> None:
    n, rounds = 6, 5
    mean, variance = across.simulate_refits(rng, 200_000, rounds, n, unbiased=unbiased)
    for t in range(1, rounds + 1):
        keep = 1.0 if unbiased else (1 - 1 / n) ** t
        assert agrees(np.log(variance[t] / variance[t - 1]), across.collapse_drift(n, unbiased))
        assert agrees(variance[t], keep)
        if not unbiased:
            assert agrees(np.square(mean[t]), 1 - keep)
    assert across.collapse_drift(n, unbiased) < 0


@pytest.mark.parametrize("real", [0.0, 0.1, 0.5])
def test_the_real_distribution_is_stable_with_real_data(real: float) -> None:
    target = torch.tensor([0.0, 1.0], dtype=F64)
    torch.testing.assert_close(across.mixture_round(target, real), target, rtol=0, atol=1e-12)
    J = jacrev(across.mixture_round)(target, real)
    torch.testing.assert_close(J, (1 - real) * torch.eye(2, dtype=F64), rtol=0, atol=1e-12)
    points, weights = np.polynomial.hermite_e.hermegauss(20)  # moments of the mixture, by quadrature
    weights = weights / weights.sum()
    x = np.concatenate([points, 0.3 + math.sqrt(0.6) * points])
    w = np.concatenate([real * weights, (1 - real) * weights])
    moments = torch.tensor([w @ x, w @ x**2 - (w @ x) ** 2])
    state = torch.tensor([0.3, 0.6], dtype=F64)
    torch.testing.assert_close(across.mixture_round(state, real), moments, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "real"), [(5, 0.2), (10, 0.1), (50, 0.02)])
def test_moments_of_the_mixed_loop(rng: np.random.Generator, n: int, real: float) -> None:
    matrix, offset = across.mixed_moments(n, real)
    fixed = np.linalg.solve(np.eye(2) - matrix, offset)
    assert fixed[1] == pytest.approx(across.mixed_variance(n, real), abs=1e-12)
    assert abs(np.linalg.eigvals(matrix)).max() < 1
    moments = np.array([0.0, 1.0])
    mean, variance = across.simulate_refits(rng, 20_000, 12, n, real)
    for t in range(1, 13):
        moments = matrix @ moments + offset
        assert agrees(np.square(mean[t]), moments[0])
        assert agrees(variance[t], moments[1])


def test_without_real_data_the_moments_have_radius_one() -> None:
    matrix, offset = across.mixed_moments(7, 0.0)
    assert abs(np.linalg.eigvals(matrix)).max() == pytest.approx(1.0, abs=1e-12)
    assert not offset.any()


def test_accumulated_data_keep_a_known_part_of_the_variance(rng: np.random.Generator) -> None:
    n = 4
    variances = across.simulate_accumulation(rng, 100_000, 8, n)
    for t in range(8):
        assert agrees(variances[t], across.accumulated_variance(n, t + 1))
    x = math.pi / math.sqrt(n)
    assert across.accumulated_variance(n, 10**6) == pytest.approx(math.sin(x) / x, abs=1e-6)


# --- Self-evolution: classes and a verifier -------------------------------------------------------------------------


def test_categories_are_a_martingale_that_loses_diversity(rng: np.random.Generator) -> None:
    n, start = 10, np.array([0.6, 0.3, 0.1])
    p = across.simulate_categories(rng, 100_000, 6, n, start)
    for t in range(1, 7):
        for c in range(3):
            assert agrees(p[t, :, c], start[c])
        assert agrees(across.diversity(p[t]), (1 - 1 / n) ** t * across.diversity(start))
    assert agrees(p[1, :, 2] == 0, (1 - 0.1) ** n)


@pytest.mark.parametrize("n", [2, 7, 20])
def test_diversity_decays_with_the_second_eigenvalue(n: int) -> None:
    P = across.transition_matrix(n)
    x = np.arange(n + 1) / n
    np.testing.assert_allclose(P @ x, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(P @ (x * (1 - x)), (1 - 1 / n) * x * (1 - x), rtol=0, atol=1e-12)
    eigenvalues = np.sort(np.linalg.eigvals(P).real)[::-1]
    np.testing.assert_allclose(eigenvalues[:3], [1, 1, 1 - 1 / n], rtol=0, atol=1e-8)
    np.testing.assert_allclose(across.absorption(n), x, rtol=0, atol=1e-8)


def test_a_verifier_raises_the_odds_by_its_ratio() -> None:
    p, tpr, fpr = 0.2, 0.9, 0.3
    assert across.verified(p, tpr / fpr) == pytest.approx(p * tpr / (p * tpr + (1 - p) * fpr), abs=1e-15)
    q = p
    for _ in range(5):
        q = float(across.verified(q, tpr / fpr))
    logit = math.log(p / (1 - p)) + 5 * math.log(tpr / fpr)
    assert q == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)


def test_a_verifier_makes_the_right_answer_win_more_often() -> None:
    better, neutral, worse = (across.absorption(10, ratio) for ratio in (1.5, 1.0, 1 / 1.5))
    assert (better[1:-1] > neutral[1:-1]).all()
    np.testing.assert_allclose(worse, 1 - better[::-1], rtol=0, atol=1e-10)
    assert better[1] < 1


@pytest.mark.parametrize("ratio", [0.2, 0.9, 1.0, 1.5, 10.0])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("anchor", [0.1, 0.7, 1.0])
def test_fixed_point_of_the_mixed_verified_loop(ratio: float, share: float, anchor: float) -> None:
    fixed = across.verified_fixed_point(ratio, anchor, share)
    assert across.verified_round(fixed, ratio, anchor, share) == pytest.approx(fixed, abs=1e-12)
    for start in (0.01, 0.99):
        p = start
        for _ in range(20_000):
            p = float(across.verified_round(p, ratio, anchor, share))
        assert p == pytest.approx(fixed, abs=1e-8)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 3.0])
def test_a_loop_that_continues_ends_where_the_verifier_points(ratio: float) -> None:
    share, p = 0.7, 0.3
    slopes = jacrev(across.continued_round)(torch.tensor([0.0, 1.0], dtype=F64), ratio, share).diagonal()
    expected = torch.tensor([1 - share + share * ratio, 1 - share + share / ratio], dtype=F64)
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-12)
    assert across.continued_round(p, ratio, 1.0) == pytest.approx(float(across.verified(p, ratio)), abs=1e-12)
    for _ in range(1000):
        p = across.continued_round(p, ratio, share)
    assert p == pytest.approx(float(ratio > 1), abs=1e-8)
    restart = across.verified_fixed_point(ratio, 0.3, 1 - share)
    assert (1 - share) * 0.3 < restart < 1


def test_correct_data_beat_a_bad_verifier_from_a_share_on() -> None:
    ratio = 0.6
    assert across.verified_fixed_point(ratio, 1.0, 0.3) == pytest.approx(0.3 / 0.4, abs=1e-12)
    assert across.verified_fixed_point(ratio, 1.0, 0.5) == pytest.approx(1.0, abs=1e-12)
    above, below = (float(across.verified_round(p, ratio, 1.0, 0.3)) for p in (0.75 + 1e-6, 0.75 - 1e-6))
    assert (above - below) / 2e-6 == pytest.approx(ratio / (1 - 0.3), abs=1e-8)
