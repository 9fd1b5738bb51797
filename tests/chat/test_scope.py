import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from metabook import Episodes
from metabook.chat.scope import UnbiasedPrototypes, auroc, choose_threshold, within_class_spread
from metabook.learners import ProtoNet


def episodes(shots=(1, 20), tasks=400, d=8):
    """Two Gaussian classes, with unequal numbers of shots; the queries are halfway between their true means."""
    generator = torch.Generator().manual_seed(0)
    means = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(shots)])
    x = means[y] + torch.randn(tasks, len(y), d, generator=generator).double()
    query = means.mean(0).expand(tasks, 1, d)
    return Episodes(x, y.expand(tasks, -1), query, torch.zeros(tasks, 1).long())


def test_on_average_the_number_of_shots_makes_no_difference():
    drawn = episodes()
    plain = ProtoNet(nn.Identity()).predict(drawn)[:, 0]
    fair = UnbiasedPrototypes(nn.Identity(), 8.0).predict(drawn)[:, 0]
    true = -torch.tensor([2.0, 2.0]).double()  # the squared distance from either mean is 8 / 4
    error = fair.std(0) / len(fair) ** 0.5
    assert ((fair.mean(0) - true).abs() < 3 * error).all()
    assert (plain.mean(0) - true)[0] < -7, "one shot: too far by about 8"


def test_with_equal_shots_the_answers_are_those_of_protonet():
    drawn = episodes((4, 4), tasks=20)
    plain, fair = ProtoNet(nn.Identity()).predict(drawn), UnbiasedPrototypes(nn.Identity(), 8.0).predict(drawn)
    torch.testing.assert_close(fair - plain, torch.full_like(plain, 2.0))


def test_spread_is_the_trace_of_the_covariance():
    z, y = torch.randn(4000, 3).double() * torch.tensor([1.0, 2.0, 3.0]), torch.arange(4000) % 4
    z += 10 * torch.randn(4, 3).double()[y]  # the means have no part in it
    assert within_class_spread(z, y) == pytest.approx(14, rel=0.08)
    with pytest.raises(ValueError, match="single example"):
        within_class_spread(z[:5], y[:5])


def test_auroc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 50).round(1), rng.normal(0, 1, 80).round(1)  # rounded: with ties
    labels = np.r_[np.ones(50), np.zeros(80)]
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, np.r_[inside, outside]))


def balance(inside, right, outside, weights, at):
    return weights[(inside >= at) & right].sum() / weights.sum() + (outside < at).mean()


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_chosen_one(seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 30).round(1)
    right, weights = rng.random(40) < 0.8, rng.random(40)
    chosen = choose_threshold(inside, right, outside, weights)
    best = max(balance(inside, right, outside, weights, at) for at in np.linspace(-4, 5, 1001))
    assert chosen.inside + chosen.outside == pytest.approx(best)
    assert balance(inside, right, outside, weights, chosen.value) == pytest.approx(best)


def test_thresholds_at_the_ends():
    apart = choose_threshold(np.array([2.0, 3.0]), np.array([True, True]), np.array([0.0, 1.0]))
    assert (apart.value, apart.inside, apart.outside) == (1.5, 1.0, 1.0)
    hopeless = choose_threshold(np.array([2.0, 3.0]), np.array([False, False]), np.array([5.0]))
    assert (hopeless.inside, hopeless.outside) == (0.0, 1.0)
    assert hopeless.value > 5
    assert choose_threshold(np.array([2.0]), np.array([True]), np.array([-np.inf])).outside == 1.0
