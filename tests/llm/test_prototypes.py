from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from metabook import EpisodeSampler, LabelledData, evaluate
from metabook.llm import LLMPrototypes, Whitening, choose


@pytest.fixture
def pool() -> LabelledData:
    return LabelledData(
        torch.arange(60), torch.arange(6).repeat_interleave(10), tuple("abcdef"), ("train",) * 3 + ("validation",) * 3
    )


@pytest.fixture
def table() -> torch.Tensor:
    """Six classes far apart in four features, behind one loud and empty feature and a large constant."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 4, generator=generator).repeat_interleave(10, 0)
    informative = centres + 0.3 * torch.randn(60, 4, generator=generator)
    loud = 100 * torch.randn(60, 1, generator=generator)
    return torch.cat([informative, loud], 1) + 50


def test_by_hand(table, pool) -> None:
    rows = list(range(30))
    learner = LLMPrototypes(table, rows)
    episodes = EpisodeSampler(pool, ways=3, shots=2, queries=2).sample(2)
    logits = learner.predict(episodes)
    z = F.normalize((table - table[:30].mean(0)) / table[:30].std(0), dim=1)
    for task in range(2):
        support, labels = z[episodes.support_x[task]], episodes.support_y[task]
        for way in range(3):
            centre = support[labels == way].mean(0)
            expected = -(z[episodes.query_x[task]] - centre).square().sum(1)
            assert torch.allclose(logits[task, :, way], expected, atol=1e-5)
    assert not learner.transductive
    assert not list(learner.parameters())


def test_only_training_rows_scale(table) -> None:
    changed = table.clone()
    changed[30:] += 7
    one, other = LLMPrototypes(table, range(30)), LLMPrototypes(changed, range(30))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.deviation, other.deviation)
    assert not torch.equal(one.mean, LLMPrototypes(changed, range(60)).mean)


def test_a_constant_feature_is_no_division_by_zero(table) -> None:
    table[:, 0] = 3.0
    assert bool(LLMPrototypes(table, range(30)).embed(torch.arange(60).unsqueeze(0)).isfinite().all())


def test_scalings(table) -> None:
    rows = torch.arange(60).unsqueeze(0)
    plain, centred = (LLMPrototypes(table, range(30), scaling).embed(rows)[0] for scaling in ("none", "centred"))
    assert torch.allclose(plain, F.normalize(table, dim=1))
    assert torch.allclose(centred, F.normalize(table - table[:30].mean(0), dim=1), atol=1e-6)


def test_whitening_makes_classes_round(table, pool) -> None:
    table, y = table[:30].double(), pool.y[:30]
    white = Whitening(table, y, shrinkage=1e-13)(table)
    within = torch.cat([white[y == c] - white[y == c].mean(0) for c in range(3)])
    assert torch.allclose(within.T @ within / 27, torch.eye(5).double(), atol=1e-6)
    assert torch.allclose(white.mean(0), torch.zeros(5).double(), atol=1e-9)


def test_lengths_after_whitening_are_mahalanobis_distances(table, pool) -> None:
    table, y = table[:30].double(), pool.y[:30]
    fitted = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(table.numpy(), y.numpy())
    covariance = fitted.covariance_ * 30 / 27  # scikit-learn divides by the number of texts
    white = Whitening(table, y, shrinkage=1e-13)(table)
    expected = cdist(table, table, "mahalanobis", VI=np.linalg.inv(covariance))
    assert np.allclose(torch.cdist(white, white), expected, atol=1e-6)


def test_whitening_helps_classes_that_it_has_not_seen(table, pool) -> None:
    validation = EpisodeSampler(pool.in_groups(["validation"]), ways=3, shots=1, queries=5)
    # The loud direction is turned so that every feature has a part of it: none can be scaled down by itself.
    turned = table @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3))).Q
    white = Whitening(turned[:30], pool.y[:30], shrinkage=1e-4)(turned)
    before, after = (evaluate(LLMPrototypes(each, range(30)), validation, tasks=100).mean for each in (turned, white))
    assert after > before + 0.2


def test_shrinkage_keeps_texts_that_are_fewer_than_features(table, pool) -> None:
    wide = torch.randn(30, 40, generator=torch.Generator().manual_seed(2))
    assert bool(Whitening(wide, pool.y[:30])(wide).isfinite().all())


def test_the_best_setting_comes_first(table, pool) -> None:
    validation = EpisodeSampler(pool.in_groups(["validation"]), ways=3, shots=1, queries=5)
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    choices = choose({("last", 3): table, ("mean", 1): noise}, range(30), validation, tasks=50)
    assert len(choices) == 6
    assert (choices[0].setting, choices[0].scaling) == (("last", 3), "standardised")
    accuracies = [choice.accuracy for choice in choices]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.8
    best = LLMPrototypes(table, range(30), choices[0].scaling)
    assert evaluate(best, validation, tasks=50).mean == pytest.approx(accuracies[0])


def test_errors(table) -> None:
    with pytest.raises(ValueError, match="scaling must be one of"):
        LLMPrototypes(table, range(30), "shaken")
    with pytest.raises(ValueError, match="1 training texts are too few"):
        LLMPrototypes(table, [0])
    with pytest.raises(ValueError, match="shrinkage must be positive"):
        Whitening(table, torch.arange(60) // 10, 0.0)
    with pytest.raises(ValueError, match="60 texts of 60 classes"):
        Whitening(table, torch.arange(60))
