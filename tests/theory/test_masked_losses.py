"""Closed forms of the chapter on masked losses, each against an independent computation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch.func import grad, jacrev

from metabook.theory import masked_losses as theory

EXACT = {"rtol": 0, "atol": 1e-8}


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_joint(tokens=3, symbols=3, seed=0):
    return (1.5 * randn(symbols**tokens, seed=seed)).softmax(0).view([symbols] * tokens)


def random_model(tokens=3, symbols=2, seed=0):
    return randn((symbols + 1) ** tokens, tokens, symbols, seed=seed).log_softmax(2)


def positive(d, seed):
    B = randn(d, d, seed=seed)
    return B @ B.T


# --- Two losses added ---


def bowls(seed=0, rank=4):
    A = randn(4, rank, seed=seed)
    return A @ A.T, randn(4, seed=seed + 1), positive(4, seed + 2), randn(4, seed=seed + 3)


def total(theta, A, a, C, c, weight):
    return 0.5 * (theta - a) @ A @ (theta - a) + weight * 0.5 * (theta - c) @ C @ (theta - c)


@pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
def test_the_minimiser_of_the_sum_and_its_slope(weight):
    problem = bowls()
    theta = theory.minimiser(*problem, weight)
    torch.testing.assert_close(grad(total)(theta, *problem, weight), torch.zeros(4, dtype=torch.float64), **EXACT)
    by_autograd = jacrev(lambda w: theory.minimiser(*problem, w))(torch.tensor(weight, dtype=torch.float64))
    torch.testing.assert_close(theory.minimiser_slope(*problem, weight), by_autograd, **EXACT)


def test_along_the_path_one_loss_rises_and_the_other_falls():
    A, a, C, c = bowls()
    weights = torch.logspace(-3, 3, 30, dtype=torch.float64)
    path = [theory.minimiser(A, a, C, c, float(weight)) for weight in weights]
    supervised = torch.stack([total(theta, A, a, C, c, 0) for theta in path])
    own = torch.stack([total(theta, C, c, A, a, 0) for theta in path])
    assert (supervised.diff() > 0).all()
    assert (own.diff() < 0).all()


def test_with_few_labels_a_vanishing_weight_still_chooses():
    A, a, C, c = bowls(rank=2)
    limit = theory.minimiser_limit(A, a, C, c)
    torch.testing.assert_close(A @ (limit - a), torch.zeros(4, dtype=torch.float64), **EXACT)
    at_small = theory.minimiser(A, a, C, c, 1e-9)
    torch.testing.assert_close(at_small, limit, rtol=0, atol=1e-5)
    assert (limit - a).norm() > 0.1  # not just any minimum of the supervised loss


# --- Reductions ---


def test_ignore_index_is_the_weighted_mean_with_weights_0_and_1():
    logits, y, hidden = randn(6, 5), torch.tensor([0, 4, 2, 1, 1, 3]), torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    losses = F.cross_entropy(logits, y, reduction="none")
    theirs = F.cross_entropy(logits, torch.where(hidden, y, -100))
    torch.testing.assert_close(theory.weighted_mean(losses, hidden), theirs, **EXACT)
    assert (losses * hidden).mean() < 0.9 * theirs  # wrong: the mean over all tokens


def test_class_weights_are_divided_by_the_weights_of_the_labels():
    logits, y, w = randn(6, 3), torch.tensor([0, 0, 2, 1, 1, 0]), rand(3, seed=1)
    losses = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(theory.weighted_mean(losses, w[y]), F.cross_entropy(logits, y, w), **EXACT)
    assert ((losses * w[y]).mean() - F.cross_entropy(logits, y, w)).abs() > 0.1


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    losses = randn(4).requires_grad_()
    loss = theory.weighted_mean(losses * losses, torch.zeros(4))
    loss.backward()
    assert loss == 0
    assert (losses.grad == 0).all()
    assert F.cross_entropy(randn(2, 3), torch.tensor([-100, -100])).isnan()


def test_an_infinite_loss_of_a_visible_token_does_no_harm():
    losses = torch.tensor([1.0, math.inf, 3.0], dtype=torch.float64, requires_grad=True)
    loss = theory.weighted_mean(losses, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert loss == 2
    assert losses.grad.tolist() == [0.5, 0.0, 0.5]


def test_macro_minus_micro_is_a_covariance():
    losses, mask = rand(5, 8), rand(5, 8, seed=1) < torch.linspace(0.2, 0.9, 5).unsqueeze(1)
    mask[:, 0] = True
    counts = mask.sum(1).double()
    means = (losses * mask).sum(1) / counts
    gap = theory.macro_mean(losses, mask) - theory.weighted_mean(losses, mask)
    torch.testing.assert_close(theory.macro_minus_micro(counts, means), gap, **EXACT)
    assert gap.abs() > 1e-3
    equal = theory.macro_minus_micro(torch.full_like(counts, 3), means)
    torch.testing.assert_close(equal, torch.zeros_like(equal), **EXACT)


@pytest.mark.parametrize("averaged", [False, True])
def test_shards_give_the_gradient_of_the_whole(averaged):
    x, y, w = randn(12, 3), torch.arange(12) % 4, rand(12, seed=2)
    W = randn(3, 4, seed=3)
    shards = [slice(0, 2), slice(2, 9), slice(9, 12)]

    def losses(W, part):
        return F.cross_entropy(x[part] @ W, y[part], reduction="none")

    whole = grad(lambda W: theory.weighted_mean(losses(W, slice(None)), w))(W)
    factor = len(shards) if averaged else 1
    parts = [grad(lambda W, p=p: theory.shard_loss(losses(W, p), w[p], w.sum(), factor))(W) for p in shards]
    combined = sum(parts) / factor
    torch.testing.assert_close(combined, whole, **EXACT)
    wrong = sum(grad(lambda W, p=p: theory.weighted_mean(losses(W, p), w[p]))(W) for p in shards) / len(shards)
    assert (wrong - whole).abs().max() > 1e-3


# --- Entropies ---


def test_hidden_sets_have_the_bits_of_their_number():
    sets = theory.hidden_sets(3)
    assert sets[5].tolist() == [True, False, True]
    assert sets.shape == (8, 3)


def test_the_joint_of_a_hidden_markov_model_by_enumeration_of_its_states():
    start, transition = rand(2).softmax(0), randn(2, 2, seed=1).softmax(1)
    emission = randn(2, 3, seed=2).softmax(1)
    joint = theory.hmm_joint(start, transition, emission, 4)
    for x in [(0, 0, 0, 0), (1, 2, 0, 1), (2, 0, 1, 2)]:
        p = 0.0
        for h in itertools.product(range(2), repeat=4):
            steps = math.prod(float(transition[i, k]) for i, k in itertools.pairwise(h))
            p += float(start[h[0]]) * steps * math.prod(float(emission[i, s]) for i, s in zip(h, x))
        assert abs(float(joint[x]) - p) < 1e-12
    assert abs(float(joint.sum()) - 1) < 1e-12


def test_the_least_cross_entropy_is_the_conditional_entropy():
    joint, logits = random_joint(), torch.zeros(3, 3, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = theory.cross_entropy(joint, logits.log_softmax(1))
        loss.backward()
        return loss

    optimiser.step(closure)
    least = theory.conditional_entropy(joint, 1, [0, 2])
    torch.testing.assert_close(closure().detach(), least, **EXACT)
    q = logits.detach().softmax(1)
    torch.testing.assert_close(q, theory.conditional(joint, 1, [0, 2]), rtol=0, atol=1e-6)
    assert least < theory.conditional_entropy(joint, 1, [0]) - 1e-3


def test_cross_entropy_is_entropy_plus_divergence():
    joint, log_q = random_joint(), randn(3, 3, 3, seed=5).log_softmax(0)
    p = theory.conditional(joint, 0, [1, 2])
    divergence = (joint.sum(0, keepdim=True) * (p * (p.log() - log_q)).sum(0)).sum()
    total = theory.conditional_entropy(joint, 0, [1, 2]) + divergence
    torch.testing.assert_close(theory.cross_entropy(joint, log_q), total, **EXACT)


def test_the_table_of_entropies_is_the_loss_of_the_true_conditionals():
    joint, symbols, tokens = random_joint(3, 2), 2, 3
    log_q = torch.zeros(27, 3, 2, dtype=torch.float64)
    for context in itertools.product(range(3), repeat=3):
        visible = [j for j in range(3) if context[j] < symbols]
        for j in set(range(3)) - set(visible):
            p = theory.conditional(joint, j, visible)
            place = [context[i] if i in visible else 0 for i in range(3)]
            index = context[0] * 9 + context[1] * 3 + context[2]
            log_q[index, j] = torch.stack([p[tuple([*place[:j], v, *place[j + 1 :]])].log() for v in range(2)])
    losses = theory.token_losses(log_q, symbols)
    assert losses.shape == (2**tokens, 2**tokens, tokens)
    table = torch.einsum("x,xsj->sj", joint.flatten(), losses)
    torch.testing.assert_close(table, theory.entropy_table(joint), **EXACT)


# --- Orders ---


def test_the_sum_over_sizes_is_the_mean_over_orders():
    losses = theory.token_losses(random_model(4), 2)
    torch.testing.assert_close(theory.order_agnostic(losses), theory.order_losses(losses).mean(-1), **EXACT)


def test_with_the_true_conditionals_every_order_gives_the_joint():
    joint = random_joint(4, 2)
    table = theory.entropy_table(joint)
    orders = theory.order_losses(table)
    torch.testing.assert_close(orders, theory.entropy(joint).expand(24), **EXACT)
    torch.testing.assert_close(theory.order_agnostic(table), theory.entropy(joint), **EXACT)
    hidden = theory.hidden_sets(4)
    fixed = sum(0.15 ** int(h.sum()) * 0.85 ** int(4 - h.sum()) * table[s].sum() for s, h in enumerate(hidden))
    assert (fixed / 0.15 - theory.entropy(joint)).abs() > 0.05  # a fixed rate is another loss


@pytest.mark.parametrize("tokens", [2, 6])
def test_a_random_rate_and_its_inverse_give_the_weights_of_the_orders(tokens):
    for k in range(1, tokens + 1):
        assert abs(theory.random_rate_weight(tokens, k) - theory.order_weight(tokens, k)) < 1e-12
        integral = integrate.quad(lambda r, k=k: r ** (k - 1) * (1 - r) ** (tokens - k), 0, 1)[0]
        assert abs(integral - theory.order_weight(tokens, k)) < 1e-10


def test_the_mean_over_orders_bounds_the_mixture_of_orders():
    joint, losses = random_joint(3, 2), theory.token_losses(random_model(), 2)
    orders = theory.order_losses(losses)  # [sequences, orders]
    mixture = (-orders).logsumexp(1) - math.log(6)
    torch.testing.assert_close(mixture.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    p = joint.flatten()
    assert p @ theory.order_agnostic(losses) > p @ -mixture > theory.entropy(joint)


def test_pseudo_likelihood_is_no_likelihood():
    """At the truth its negative mean is below the entropy (Han's inequality)."""
    joint = random_joint()
    pseudo = sum(theory.conditional_entropy(joint, j, {0, 1, 2} - {j}) for j in range(3))
    assert pseudo < theory.entropy(joint) - 1e-2


# --- Conditionals without a joint ---


def test_the_joint_is_recovered_from_its_conditionals():
    joint = random_joint(2, 3)
    first, second = theory.conditional(joint, 0, [1]), theory.conditional(joint, 1, [0])
    torch.testing.assert_close(theory.joint_of_conditionals(first, second), joint, **EXACT)
    for last in (1, 2):
        torch.testing.assert_close(theory.gibbs_joint(first, second, last), joint, **EXACT)


def test_conditionals_of_two_joints_belong_to_none():
    first = theory.conditional(random_joint(2, 3), 0, [1])
    second = theory.conditional(random_joint(2, 3, seed=1), 1, [0])
    with pytest.raises(ValueError, match="no joint"):
        theory.joint_of_conditionals(first, second)
    after = [theory.gibbs_joint(first, second, last) for last in (1, 2)]
    torch.testing.assert_close(theory.conditional(after[0], 0, [1]), first, **EXACT)
    torch.testing.assert_close(theory.conditional(after[1], 1, [0]), second, **EXACT)
    torch.testing.assert_close(after[0].sum(0), after[1].sum(0), **EXACT)
    assert (after[0] - after[1]).abs().max() > 1e-2


# --- Weighting by the probability of a mask ---

P = torch.tensor([0.2, 0.5, 0.8, 0.3, 0.6, 0.4], dtype=torch.float64)


def test_inverse_probabilities_give_an_unbiased_estimate():
    losses, w = rand(6), theory.mask_probabilities(P)
    torch.testing.assert_close(w.sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    estimates = theory.horvitz_thompson(losses, P)
    torch.testing.assert_close(w @ estimates, losses.mean(), **EXACT)
    variance = w @ (estimates - losses.mean()) ** 2
    torch.testing.assert_close(variance, theory.horvitz_thompson_variance(losses, P), **EXACT)
    plain = theory.horvitz_thompson(losses * P, P)  # weights 1: wrong
    assert (w @ plain - losses.mean()).abs() > 0.05


def test_losses_that_depend_on_the_mask_keep_its_distribution_of_contexts():
    losses, w, hidden = rand(64, 6), theory.mask_probabilities(P), theory.hidden_sets(6)
    given = [(w[hidden[:, j]] @ losses[hidden[:, j], j]) / w[hidden[:, j]].sum() for j in range(6)]
    torch.testing.assert_close(w @ theory.horvitz_thompson(losses, P), torch.stack(given).mean(), **EXACT)


def test_the_ratio_estimator_does_not_see_a_common_level():
    losses, w = rand(6), theory.mask_probabilities(P)
    shifted = theory.hajek(losses + 10, P)[1:] - 10
    torch.testing.assert_close(shifted, theory.hajek(losses, P)[1:], **EXACT)
    bias = w[1:] @ theory.hajek(losses, P)[1:] / w[1:].sum() - losses.mean()
    assert 1e-4 < bias.abs() < 0.1


def test_the_variance_of_the_ratio_estimator_approaches_its_leading_term():
    """The relative error is of the order 1 / D: the error times D settles."""
    scaled = []
    for copies in (1, 3, 4):
        losses, p = rand(4).repeat(copies) + 1, (0.5 + 0.3 * rand(4, seed=1)).repeat(copies)
        w, estimates = theory.mask_probabilities(p)[1:], theory.hajek(losses, p)[1:]
        w = w / w.sum()
        variance = w @ (estimates - w @ estimates) ** 2
        scaled.append(float(theory.hajek_variance(losses, p) / variance - 1) * len(p))
        assert variance < 0.1 * theory.horvitz_thompson_variance(losses, p)
    assert abs(scaled[2] / scaled[1] - 1) < 0.02


def test_the_best_probabilities_are_proportional_to_the_loss():
    losses = rand(6) + 0.2
    best = theory.best_mask_probabilities(losses, 2.0)
    slope = grad(lambda p: theory.horvitz_thompson_variance(losses, p))(best)
    torch.testing.assert_close(slope, slope[0].expand(6), **EXACT)  # one multiplier for the one constraint
    even = theory.horvitz_thompson_variance(losses, torch.full_like(losses, 2 / 6))
    assert theory.horvitz_thompson_variance(losses, best) < even
    with pytest.raises(ValueError, match="probability"):
        theory.best_mask_probabilities(losses, 5.5)


def test_the_gradient_by_the_weights_of_one_step():
    theta, centres, target = randn(3), randn(5, 3, seed=1), randn(3, seed=2)

    def validation(theta):
        return ((theta - target) ** 4).sum()

    def token(theta, centre):
        return ((theta - centre) ** 2).sum()

    def after(w):
        step = sum(w[i] * grad(token)(theta, centres[i]) for i in range(5))
        return validation(theta - 0.1 * step)

    tokens = torch.stack([grad(token)(theta, centre) for centre in centres])
    formula = theory.weight_gradient(grad(validation)(theta), tokens, 0.1)
    torch.testing.assert_close(formula, grad(after)(torch.zeros(5, dtype=torch.float64)), **EXACT)
    assert (formula - grad(after)(torch.ones(5, dtype=torch.float64))).abs().max() > 1e-3
