"""Every check of the chapter, in float64, and wrong formulas that must be found out."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import distributions
from torch.func import grad, jacrev

from metabook.theory import metric_learning as theory

EXACT = dict(rtol=0, atol=1e-8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Distances as linear models ---


@pytest.mark.parametrize("temperature", [1.0, 0.3, 20.0])
def test_squared_distances_are_a_linear_model_and_temperature_is_a_scale(temperature):
    z, c = randn(7, 4), randn(5, 4, seed=1)
    logits = -(z[:, None] - c).square().sum(2) / temperature
    weights, biases = theory.linear_model(c, temperature)
    rest = z.square().sum(1, keepdim=True) / temperature
    torch.testing.assert_close(z @ weights.T + biases, logits + rest, **EXACT)
    scaled = (z[:, None] - c) / temperature**0.5
    torch.testing.assert_close(-scaled.square().sum(2), logits, **EXACT)


def test_wrong_linear_models_are_found_out():
    z, c = randn(7, 4), randn(5, 4, seed=1)
    p = (-(z[:, None] - c).square().sum(2)).softmax(1)
    weights, biases = theory.linear_model(c)
    for wrong in (z @ weights.T, z @ weights.T / 2 + biases, z @ weights.T - biases):
        assert (wrong.softmax(1) - p).abs().max() > 0.01


@pytest.mark.parametrize(("ways", "d"), [(2, 1), (5, 4), (3, 8)])
def test_every_linear_classifier_of_at_most_d_plus_1_classes_has_prototypes(ways, d):
    z, weights, biases = randn(9, d), randn(ways, d, seed=1), randn(ways, seed=2)
    c = theory.prototypes_of(weights, biases)
    distances = (z[:, None] - c).square().sum(2)
    torch.testing.assert_close((-distances).softmax(1), (z @ weights.T + biases).softmax(1), **EXACT)


def test_more_classes_have_prototypes_by_accident_only():
    with pytest.raises(ValueError, match="no prototypes"):
        theory.prototypes_of(randn(6, 4), randn(6, seed=1))
    theory.prototypes_of(*theory.linear_model(randn(6, 4)))  # these have, by construction


# --- Bregman divergences ---


def positive(name, *shape, seed=0):
    return {"Gaussian": randn(*shape, seed=seed), "exponential": 4 * rand(*shape, seed=seed) + 0.1}.get(
        name, 0.8 * rand(*shape, seed=seed) + 0.1
    )


@pytest.mark.parametrize("name", theory.POTENTIALS)
def test_the_mean_minimises_every_bregman_divergence(name):
    phi, points = theory.POTENTIALS[name], positive(name, 6, 3)
    mean = points.mean(0, keepdim=True)
    for seed in range(5):
        other = positive(name, 1, 3, seed=seed + 10)
        excess = theory.bregman(phi, points, other).mean() - theory.bregman(phi, points, mean).mean()
        torch.testing.assert_close(excess, theory.bregman(phi, mean, other)[0, 0], **EXACT)
        assert excess > 0


@pytest.mark.parametrize("name", theory.POTENTIALS)
def test_a_bregman_divergence_is_a_linear_model(name):
    phi, z, c = theory.POTENTIALS[name], positive(name, 7, 3), positive(name, 5, 3, seed=1)
    weights, biases = theory.bregman_linear_model(phi, c)
    height = torch.func.vmap(phi)(z)[:, None]
    torch.testing.assert_close(-theory.bregman(phi, z, c), z @ weights.T + biases - height, **EXACT)


FAMILIES = {
    "Gaussian": lambda mean: distributions.Normal(mean, torch.ones_like(mean)),
    "Poisson": distributions.Poisson,
    "Bernoulli": lambda mean: distributions.Bernoulli(probs=mean),
    "exponential": lambda mean: distributions.Exponential(1 / mean),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_posterior_of_an_exponential_family_is_a_softmax_of_divergences(name):
    means, prior = positive(name, 4, 3, seed=1), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    torch.manual_seed(3)
    z = FAMILIES[name](means[0]).sample((6,))
    log_joint = FAMILIES[name](means).log_prob(z[:, None]).sum(2) + prior.log()
    logits = prior.log() - theory.bregman(theory.POTENTIALS[name], z, means)
    torch.testing.assert_close(logits.softmax(1), log_joint.softmax(1), **EXACT)
    swapped = prior.log() - theory.bregman(theory.POTENTIALS[name], means, z.clamp(0.01, 0.99)).T
    if name != "Gaussian":  # the only symmetric one
        assert (swapped.softmax(1) - log_joint.softmax(1)).abs().max() > 1e-3


def test_a_shared_covariance_is_lda():
    y = torch.arange(3).repeat(20)
    x = randn(60, 4) @ randn(4, 4, seed=1) + randn(3, 4, seed=2)[y]
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    covariance = (x - means[y]).T @ (x - means[y]) / len(x)
    phi = lambda z: 0.5 * z @ torch.linalg.solve(covariance, z)  # noqa: E731
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    ours = (-theory.bregman(phi, x, means)).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(lda.predict_proba(x.numpy())), **EXACT)
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    euclid = -((x @ whiten)[:, None] - means @ whiten).square().sum(2) / 2
    torch.testing.assert_close(euclid.softmax(1), ours, **EXACT)


# --- The unsquared distance ---


def test_the_unsquared_distance_is_no_bregman_divergence():
    """The Hessian of a Bregman divergence by its first argument does not depend on the second."""
    z, one, other = randn(3), randn(3, seed=1), randn(3, seed=2)

    def difference(divergence):
        hessians = [jacrev(grad(lambda x, c=c: divergence(x, c)))(z) for c in (one, other)]
        return (hessians[0] - hessians[1]).abs().max()

    assert difference(lambda x, c: (x - c).square().sum()) < 1e-12
    assert difference(lambda x, c: theory.bregman(lambda v: v.pow(4).sum(), x[None], c[None])[0, 0]) < 1e-12
    assert difference(lambda x, c: (x - c).norm()) > 0.01


def test_the_geometric_median_minimises_the_unsquared_distances_and_the_mean_does_not():
    points = randn(9, 3).exp()
    total = lambda m: (points - m).norm(dim=1).sum()  # noqa: E731
    median = theory.geometric_median(points)
    torch.testing.assert_close(grad(total)(median), torch.zeros(3, dtype=torch.float64), **EXACT)
    assert grad(total)(points.mean(0)).norm() > 0.1
    assert total(points.mean(0)) > total(median)


def test_gradient_of_the_unsquared_loss():
    z, c = randn(4), randn(5, 4, seed=1)
    loss = lambda x: F.cross_entropy(-(x - c).norm(dim=1), torch.tensor(2))  # noqa: E731
    torch.testing.assert_close(theory.unsquared_gradient(z, c, 2), grad(loss)(z), **EXACT)
    p = (-(z - c).norm(dim=1)).softmax(0)
    assert theory.unsquared_gradient(z, c, 2).norm() <= 2 * (1 - p[2])
    assert (theory.unsquared_gradient(z, c, 1) - grad(loss)(z)).abs().max() > 0.01


# --- Shots ---


@pytest.mark.parametrize("d", [1, 2, 16, 300])
@pytest.mark.parametrize("gap", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("shots", [1, 5, 40])
def test_two_exact_formulas_agree(d, gap, shots):
    gap2, noise = np.zeros(d), np.full(d, 1.7**2)
    gap2[0] = gap**2
    series = theory.two_way_accuracy_isotropic(gap, shots, d, 1.7)
    assert abs(theory.two_way_accuracy(gap2, noise, shots) - series) < 1e-9
    assert abs(theory.rule_of_thumb(gap2, noise, shots) - series) < (0.05 if d < 16 else 0.01)


@pytest.mark.parametrize("shots", [1, 3, 10])
def test_in_one_dimension_the_accuracy_is_elementary(shots):
    gap = 1.3
    direction, threshold = gap / np.sqrt(2 / shots), gap / 2 / np.sqrt(1 + 1 / (2 * shots))
    both = stats.norm.cdf(direction) * stats.norm.cdf(threshold) + stats.norm.cdf(-direction) * stats.norm.cdf(
        -threshold
    )
    assert abs(theory.two_way_accuracy_isotropic(gap, shots, 1) - both) < 1e-10
    assert abs(float(theory.two_way_accuracy(np.array([gap**2]), np.ones(1), shots)) - both) < 1e-10


def simulate(gap, noise, shots, trials, rng):
    """Share of right answers with drawn prototypes and queries, and the half-width of its 99.9 % interval."""
    d, sd = len(noise), np.sqrt(noise)
    support = rng.standard_normal((2, trials, shots, d)) * sd
    c1, c2 = gap + support[0].mean(1), support[1].mean(1)
    z = gap + rng.standard_normal((trials, d)) * sd
    right = np.square(z - c1).sum(1) < np.square(z - c2).sum(1)
    return right.mean(), 3.29 * right.std() / np.sqrt(trials)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_accuracy_agrees_with_a_simulation_of_unequal_directions(shots):
    gap, noise = np.array([1.0, -0.5, 0.8, 0.0, 2.0]), np.array([1.0, 0.2, 3.0, 2.0, 0.5])
    simulated, half = simulate(gap, noise, shots, 40_000, np.random.default_rng(0))
    assert abs(theory.two_way_accuracy(gap**2, noise, shots) - simulated) < half
    # Wrong: prototypes without error; noise of a prototype that is not divided by the shots.
    bayes = stats.norm.cdf(0.5 * (gap**2).sum() / np.sqrt((gap**2 * noise).sum()))
    assert abs(bayes - simulated) > half
    if shots > 1:
        assert abs(theory.two_way_accuracy(gap**2, noise, 1) - simulated) > half


def test_many_shots_give_the_optimum_of_bayes():
    assert abs(float(theory.two_way_accuracy(np.ones(4), np.ones(4), 1e4)) - stats.norm.cdf(1.0)) < 1e-3


def test_several_pairs_at_once():
    gap2, noise = rand(6, 4).numpy(), rand(4, seed=1).numpy()
    each = [theory.two_way_accuracy(row, noise, 3) for row in gap2]
    np.testing.assert_allclose(theory.two_way_accuracy(gap2, noise, 3), each, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shots", [1, 5])
def test_random_classes_are_the_mean_over_their_gaps(shots):
    d, rho2 = 6, 0.7  # the squared gap is 2 rho^2 chi^2_d

    def weighted(x):
        return stats.chi2.pdf(x, d) * theory.two_way_accuracy_isotropic(np.sqrt(2 * rho2 * x), shots, d)

    mean = integrate.quad(weighted, 0, 80, epsabs=1e-11, limit=200)[0]
    assert abs(theory.random_class_accuracy(np.full(d, rho2), np.ones(d), shots) - mean) < 1e-8


def test_moments_behind_the_rule_of_thumb():
    """Mean and variance of D, simulated."""
    rng = np.random.default_rng(0)
    gap, noise, shots, n = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.3, 2.0]), 3, 200_000
    c1, c2 = (m + rng.standard_normal((n, 3)) * np.sqrt(noise / shots) for m in (gap, 0))
    z = gap + rng.standard_normal((n, 3)) * np.sqrt(noise)
    D = ((c1 - c2) * (z - (c1 + c2) / 2)).sum(1)
    variance = (1 + 1 / shots) * (gap**2 * noise).sum() + (2 / shots + 1 / shots**2) * (noise**2).sum()
    assert abs(D.mean() - 0.5 * (gap**2).sum()) < 3.29 * np.sqrt(variance / n)
    assert abs(D.var() / variance - 1) < 0.02


def test_the_scale_of_the_shots():
    gap2, noise = np.array([1.0, 4.0]), np.array([3.0, 0.5])
    shots = theory.shots_scale(gap2, noise)
    assert abs(2 / shots * np.square(noise).sum() - (gap2 * noise).sum()) < 1e-10
    assert abs(theory.shots_scale(np.append(9.0, np.zeros(63)), np.full(64, 2.0)) - 2 * 64 * 2 / 9) < 1e-10


@pytest.mark.parametrize("common", [True, False])
def test_the_accuracy_fitted_to_examples_is_that_of_the_model_they_come_from(common):
    rng = np.random.default_rng(0)
    noise, means = np.array([1.0, 0.3, 2.0, 0.5]), 1.5 * rng.standard_normal((12, 4))
    z = means[:, None] + rng.standard_normal((12, 400, 4)) * np.sqrt(noise)
    pairs = np.array([(i, j) for i in range(12) for j in range(i)])
    fitted = theory.fitted_accuracy(z, pairs, (1, 5), common)
    gap2 = np.square(means[pairs[:, 0]] - means[pairs[:, 1]])
    true = np.stack([theory.two_way_accuracy(gap2, noise, k) for k in (1, 5)])
    assert fitted.shape == (2, 66)
    assert np.abs(fitted.mean(1) - true.mean(1)).max() < 0.01


def test_the_longer_gap_of_sample_means_is_taken_off():
    """Classes without any difference: sample means differ, but the answer is to be near one half."""
    z = np.random.default_rng(0).standard_normal((40, 5, 30))
    pairs = np.arange(40).reshape(20, 2)
    assert abs(theory.fitted_accuracy(z, pairs, (1,), common=True).mean() - 0.5) < 0.03
    means, noise = z.mean(1), np.ones(30)
    plain = theory.two_way_accuracy(np.square(means[pairs[:, 0]] - means[pairs[:, 1]]), noise, 1)
    assert plain.mean() > 0.55


def all_disjoint_halves(pool, shots):
    """Every support of ``shots`` examples with every disjoint second one: half the squared distance of their means."""
    values = []
    for chosen in itertools.combinations(range(len(pool)), shots):
        rest = [i for i in range(len(pool)) if i not in chosen]
        for other in itertools.combinations(rest, shots):
            gap = pool[list(chosen)].mean(0) - pool[list(other)].mean(0)
            values.append(gap @ gap / 2)
    return float(np.mean(values))


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_disjoint_supports_measure_the_variance_of_a_prototype_in_a_finite_pool(shots):
    pool = np.random.default_rng(0).standard_normal((7, 3))
    trace = pool.var(0, ddof=1).sum()
    assert abs(all_disjoint_halves(pool, shots) - trace / shots) < 1e-10
    to_mean = np.mean(
        [
            np.square(pool[list(chosen)].mean(0) - pool.mean(0)).sum()
            for chosen in itertools.combinations(range(7), shots)
        ]
    )
    assert abs(to_mean - trace / shots * (1 - shots / 7)) < 1e-10


@pytest.mark.parametrize("shots", [1, 2, 7])
def test_shrunken_prototypes_are_bayes_rule(shots):
    """Against the joint Gaussian of query and support, whose class mean is integrated out by its covariance."""
    within, between, ways, d = 1.3, 0.6, 4, 3
    support, z = randn(ways, shots, d), randn(d, seed=1)

    def log_density(rows):  # [n, d]: n examples of one class
        covariance = within * torch.eye(len(rows), dtype=torch.float64) + between
        zero = torch.zeros(len(rows), dtype=torch.float64)
        return distributions.MultivariateNormal(zero, covariance).log_prob(rows.T).sum()

    scores = torch.stack([log_density(torch.cat([each, z[None]])) - log_density(each) for each in support])
    shrink, temperature = theory.shrinkage(within, between, shots)
    distances = (z - shrink * support.mean(1)).square().sum(1)
    torch.testing.assert_close((-distances / temperature).softmax(0), scores.softmax(0), **EXACT)
    plain = (-(z - support.mean(1)).square().sum(1) / (2 * within)).softmax(0)
    assert (plain - scores.softmax(0)).abs().max() > 1e-3


# --- Relation scores and attention ---


def discrete_model():
    types = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rows = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.05, 0.15, 0.2, 0.6]]
    return types, torch.tensor(rows, dtype=torch.float64)


def test_squared_error_on_pairs_is_minimised_by_the_posterior():
    types, emission = discrete_model()
    same = torch.einsum("h,hi,hj->ij", types, emission, emission) / 5
    other = 4 / 5 * torch.outer(types @ emission, types @ emission)
    score = theory.same_class_probability(types, emission, 1 / 5)
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(200):  # Gauss-Newton steps on the logit of each pair
        r = logits.sigmoid()
        slope = 2 * (same * (r - 1) + other * r)  # of the expected squared error, by r
        logits = logits - slope / (2 * (same + other)) / (r * (1 - r)).clamp_min(0.05)
    torch.testing.assert_close(logits.sigmoid(), score, **EXACT)


def test_the_posterior_over_classes_is_proportional_to_the_odds():
    """Against the enumeration of the hidden types of all classes."""
    types, emission = discrete_model()
    support, query, ways = [2, 0, 3], 1, 3
    joint = torch.zeros(ways, dtype=torch.float64)
    for hidden in torch.cartesian_prod(*[torch.arange(3)] * ways):
        weight = types[hidden].prod() * torch.stack([emission[h, s] for h, s in zip(hidden, support)]).prod()
        joint += weight * emission[hidden, query] / ways
    score = theory.same_class_probability(types, emission, 1 / ways)[query, support]
    torch.testing.assert_close(theory.class_probabilities(score), joint / joint.sum(), **EXACT)
    assert (score / score.sum() - joint / joint.sum()).abs().max() > 0.01  # scores are not class probabilities


def test_attention_with_one_shot_is_a_prototypical_network_on_the_sphere():
    z, support, y = F.normalize(randn(6, 4), dim=1), F.normalize(randn(5, 4, seed=1), dim=1), torch.arange(5)
    p = theory.attention(z @ support.T / 0.3, y, 5)
    torch.testing.assert_close(p, (-(z[:, None] - support).square().sum(2) / 0.6).softmax(1), **EXACT)
    assert (p - (-(z[:, None] - support).square().sum(2) / 0.3).softmax(1)).abs().max() > 0.01


def test_attention_with_several_shots_approaches_prototypes_at_high_temperature():
    z, support = randn(6, 4), randn(3, 2, 4, seed=1)  # [ways, shots, d]
    y, flat = torch.arange(3).repeat_interleave(2), support.flatten(0, 1)
    distances = (z[:, None] - flat).square().sum(2)
    scatter = (support - support.mean(1, keepdim=True)).square().sum(2).mean(1)
    to_mean = (z[:, None] - support.mean(1)).square().sum(2)

    def errors(offset):
        return [
            (theory.attention(-distances / t, y, 3) - (-(to_mean + offset) / t).softmax(1)).abs().max().item()
            for t in (1e3, 1e4)
        ]

    with_scatter, without = errors(scatter), errors(0 * scatter)
    assert abs(with_scatter[0] / with_scatter[1] - 100) < 10  # second order
    assert abs(without[0] / without[1] - 10) < 1  # first order only
