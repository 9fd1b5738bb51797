"""The chapter's statements on masked losses, each against autograd, an enumeration or torch's own loss."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from metabook.theory import masked_losses as masked


@pytest.fixture
def joint():
    """A distribution of four tokens from a vocabulary of three, with nothing independent."""
    torch.manual_seed(0)
    p = torch.rand(3, 3, 3, 3, dtype=torch.float64) ** 3 + 0.01
    return p / p.sum()


@pytest.fixture
def chain():
    torch.manual_seed(1)
    P = torch.rand(3, 3, dtype=torch.float64) ** 2 + 0.02
    return P / P.sum(1, keepdim=True)


def close(ours, theirs, atol=1e-8):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_the_minimum_of_the_total_loss_and_its_path():
    torch.manual_seed(0)
    A, B = (m @ m.T + torch.eye(3, dtype=m.dtype) for m in torch.randn(2, 3, 3, dtype=torch.float64))
    a, b = torch.randn(2, 3, dtype=torch.float64)

    def total(x, weight):
        return 0.5 * (x - a) @ A @ (x - a) + weight * 0.5 * (x - b) @ B @ (x - b)

    weight = torch.tensor(0.7, dtype=torch.float64)
    best = masked.minimiser(A, a, B, b, weight)
    close(grad(total)(best, weight), torch.zeros(3, dtype=torch.float64))
    step = torch.tensor(1e-5, dtype=torch.float64)
    slope = (masked.minimiser(A, a, B, b, weight + step) - masked.minimiser(A, a, B, b, weight - step)) / (2 * step)
    close(masked.minimiser_slope(A, a, B, b, weight), slope)
    close(masked.minimiser(A, a, B, b, 0.0), a)


def test_the_weighted_mean_is_what_torch_computes_with_ignore_index_and_class_weights():
    torch.manual_seed(0)
    logits, y = torch.randn(4, 6, 5, dtype=torch.float64), torch.randint(5, (4, 6))
    losses = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    mask = torch.rand(4, 6) < 0.4
    ignored = F.cross_entropy(logits.transpose(1, 2), y.masked_fill(~mask, -100))
    close(masked.weighted_mean(losses, mask.double()), ignored)
    of_class = torch.rand(5, dtype=torch.float64) + 0.1
    close(masked.weighted_mean(losses, of_class[y]), F.cross_entropy(logits.transpose(1, 2), y, weight=of_class))


def test_no_mask_has_no_mean():
    with pytest.raises(ValueError, match="no token is masked"):
        masked.weighted_mean(torch.ones(3), torch.zeros(3))


def test_cross_entropy_is_the_conditional_entropy_and_a_divergence(joint):
    torch.manual_seed(2)
    for token in range(4):
        truth = masked.conditional(joint, token)
        q = torch.rand_like(joint)
        q = q / q.sum(token, keepdim=True)
        divergence = (joint * (truth / q).log()).sum()
        close(masked.cross_entropy(joint, q), masked.conditional_entropy(joint, token) + divergence)
        assert divergence > 1e-3
        # H(x_j | rest) by the chain rule
        close(masked.conditional_entropy(joint, token), masked.entropy(joint) - masked.entropy(joint.sum(token)))


def test_the_true_conditional_is_where_the_gradient_vanishes(joint):
    logits = masked.conditional(joint, 1).log()
    close(grad(lambda z: masked.cross_entropy(joint, z.softmax(1)))(logits), torch.zeros_like(logits))


def test_a_masked_loss_bounds_the_mutual_information(joint):
    torch.manual_seed(3)
    margin, rest = joint.sum((1, 2, 3)), joint.sum(0)
    information = (joint * (joint / (margin.view(3, 1, 1, 1) * rest)).log()).sum()
    close(masked.entropy(margin) - masked.conditional_entropy(joint, 0), information)
    q = torch.rand_like(joint)
    assert masked.entropy(margin) - masked.cross_entropy(joint, q / q.sum(0, keepdim=True)) < information


def test_every_order_gives_the_entropy_and_so_does_the_mean_over_masks(joint):
    total = masked.entropy(joint)
    for order in permutations(range(4)):
        close(sum(masked.conditional_entropy(joint, j, order[:t]) for t, j in enumerate(order)), total)
    close(masked.order_agnostic_entropy(joint), total)


def test_the_pseudo_likelihood_is_not_the_likelihood(joint):
    pseudo = sum(masked.conditional_entropy(joint, j) for j in range(4))
    assert pseudo < masked.entropy(joint) - 0.01


def test_the_odds_ratio_of_a_joint_is_that_of_both_conditionals():
    torch.manual_seed(0)
    p = torch.rand(2, 2, dtype=torch.float64)
    p = p / p.sum()
    for token in (0, 1):
        close(masked.log_odds_ratio(masked.conditional(p, token)), masked.log_odds_ratio(p))


def test_weighting_by_one_over_the_probability_is_unbiased_and_the_plain_mean_is_not():
    torch.manual_seed(0)
    losses, probability = torch.rand(6, dtype=torch.float64) * 3, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)

    def estimate(mask):
        return masked.horvitz_thompson(losses, mask, probability)

    close(masked.expectation_over_masks(estimate, probability), losses.mean())
    squared = masked.expectation_over_masks(lambda mask: (estimate(mask) - losses.mean()).square(), probability)
    close(masked.horvitz_thompson_variance(losses, probability), squared)
    plain = masked.expectation_over_masks(
        lambda mask: (mask * losses).sum() / mask.sum().clamp_min(1e-300), probability
    )
    assert abs(plain - losses.mean()) > 0.05


def test_the_self_normalised_estimate_is_exact_for_equal_losses():
    probability = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    losses = torch.full((3,), 1.7, dtype=torch.float64)
    for bits in ([1, 0, 0], [1, 1, 0], [0, 1, 1]):
        close(masked.self_normalised(losses, losses.new_tensor(bits), probability), losses[0])


def test_the_stationary_distribution_stays(chain):
    pi = masked.stationary(chain)
    close(pi @ chain, pi)
    close(pi.sum(), torch.ones((), dtype=torch.float64))
    assert (pi > 0).all()


def test_the_posterior_of_a_chain_is_that_of_the_whole_joint(chain):
    n, V = 5, 3
    pi = masked.stationary(chain)
    joint = torch.zeros((V,) * n, dtype=torch.float64)
    for x in product(range(V), repeat=n):
        p = pi[x[0]]
        for left, right in pairwise(x):
            p = p * chain[left, right]
        joint[x] = p
    torch.manual_seed(0)
    tokens = torch.randint(V, (7, n))
    hidden = torch.rand(7, n) < 0.5
    posterior = masked.chain_posterior(chain, tokens, hidden)
    for row in range(7):
        for j in range(n):
            seen = [i for i in range(n) if i != j and not hidden[row, i]]
            index = tuple(slice(None) if i == j else (int(tokens[row, i]) if i in seen else 0) for i in range(n))
            close(posterior[row, j], masked.conditional(joint, j, seen)[index])


def test_only_the_nearest_observed_neighbours_matter(chain):
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2]])
    hidden = torch.tensor([[False, False, True, True, False, False]])
    expected = torch.linalg.matrix_power(chain, 1)[1] * torch.linalg.matrix_power(chain, 2)[:, 1]
    close(masked.chain_posterior(chain, tokens, hidden)[0, 2], expected / expected.sum())


def test_the_weight_of_an_example_has_the_agreement_of_gradients_as_its_derivative():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    theta, alpha = torch.randn(3, dtype=torch.float64), 0.1

    def losses(theta, rows):
        return (x[rows] @ theta - y[rows]).square()

    def validation(w):
        adapted = theta - alpha * grad(lambda t: (w * losses(t, slice(0, 5))).sum())(theta)
        return losses(adapted, slice(5, 8)).mean()

    w = torch.full((5,), 0.2, dtype=torch.float64)
    adapted = theta - alpha * grad(lambda t: (w * losses(t, slice(0, 5))).sum())(theta)
    outer = grad(lambda t: losses(t, slice(5, 8)).mean())(adapted)
    inner = torch.stack([grad(lambda t, i=i: losses(t, slice(i, i + 1)).sum())(theta) for i in range(5)])
    close(grad(validation)(w), -alpha * inner @ outer)


def test_a_wrong_normaliser_is_noticed():
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 0.0])
    assert (weights * losses).mean() != masked.weighted_mean(losses, weights)
