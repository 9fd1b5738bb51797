import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.calibration import calibration_curve
from torch import nn
from torch.distributions import Normal, StudentT

from metabook.calibration import (
    by_points,
    central_interval,
    class_nll,
    coverage,
    expected_calibration_error,
    fit_temperature,
    regression_scores,
)
from metabook.data import Sinusoids
from metabook.learners import ALPaCA, NeuralProcess, StudentALPaCA


def two_classes(confidences):
    """Predictions of class 0 with these confidences."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1)


def test_ece_by_hand():
    # Two bins: (0, 1/2] is empty; five in (1/2, 1] with the mean 0.76, of which three are right.
    p, y = two_classes([0.6, 0.7, 0.7, 0.8, 1.0]), torch.tensor([0, 1, 0, 1, 0])
    found = expected_calibration_error(p, y, bins=2)
    np.testing.assert_allclose(found.share, [0, 1])
    assert np.isnan(found.accuracy[0])
    assert np.isnan(found.confidence[0])
    assert found.ece == pytest.approx(abs(0.6 - 0.76))
    # Ten bins: 0.6 closes the sixth; two of 0.7 with one right; 0.8 wrong; 1.0 right.
    ten = expected_calibration_error(p, y, bins=10)
    np.testing.assert_allclose(ten.share[5:], [0.2, 0.4, 0.2, 0, 0.2])
    assert ten.ece == pytest.approx(0.2 * 0.4 + 0.4 * 0.2 + 0.2 * 0.8 + 0)


def test_bins_of_equal_mass_by_hand():
    p, y = two_classes([0.9, 0.6, 0.55, 0.8]), torch.tensor([0, 1, 0, 0])
    found = expected_calibration_error(p, y, bins=2, equal_mass=True)
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    np.testing.assert_allclose(found.confidence, [0.575, 0.85])
    np.testing.assert_allclose(found.accuracy, [0.5, 1])
    assert found.ece == pytest.approx(0.5 * 0.075 + 0.5 * 0.15)


def test_bins_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 500)
    right = generator.random(500) < confidence**2
    found = expected_calibration_error(two_classes(confidence), torch.tensor(1 - right.astype(int)), bins=10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose(found.accuracy[5:], accuracy)
    np.testing.assert_allclose(found.confidence[5:], mean)


def test_a_calibrated_predictor_has_an_ece_of_its_noise_only():
    generator = torch.Generator().manual_seed(0)
    p = torch.distributions.Dirichlet(torch.ones(4)).sample((100, 200))
    y = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(100, 200)
    assert expected_calibration_error(p, y).ece < 0.015
    assert expected_calibration_error((3 * p.log()).softmax(-1), y).ece > 0.1


@pytest.mark.parametrize(
    ("p", "y", "bins", "message"),
    [
        (torch.ones(2, 3) / 3, torch.zeros(3).long(), 15, "probabilities for"),
        (torch.ones(0, 3), torch.zeros(0).long(), 15, "probabilities for"),
        (torch.ones(2, 3) / 3, torch.zeros(2).long(), 0, "bins must be"),
        (torch.randn(2, 3), torch.zeros(2).long(), 15, "softmax"),
    ],
)
def test_ece_refuses(p, y, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(p, y, bins)


def test_class_nll_is_the_cross_entropy():
    logits, y = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    torch.testing.assert_close(class_nll(logits, y).flatten(), wanted)


def test_the_temperature_that_was_applied_is_found():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    y = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for applied in (0.2, 1.0, 5.0):
        assert fit_temperature(logits * applied, y) == pytest.approx(applied, rel=0.03)


def test_no_other_temperature_is_better():
    logits, y = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1, 0])
    best = fit_temperature(logits, y)
    nll = [class_nll(logits.double() / (best * factor), y).mean().item() for factor in (0.9, 1, 1.1)]
    assert min(nll) == nll[1]


def test_misleading_logits_are_made_to_say_nothing():
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert fit_temperature(logits, torch.tensor([1, 1])) == math.inf
    torch.testing.assert_close((logits / math.inf).softmax(1), torch.full((2, 2), 0.5))


def test_intervals_hold_what_they_promise():
    mean, scale = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    lower, upper = central_interval(Normal(mean, scale))
    torch.testing.assert_close(upper, mean + 1.959964 * scale)
    torch.testing.assert_close(lower + upper, 2 * mean)
    df = torch.tensor([[3.0], [30.0]])
    lower, upper = central_interval(StudentT(df, mean, scale), 0.8)
    inside = stats.t.cdf(upper, df, mean, scale) - stats.t.cdf(lower, df, mean, scale)
    np.testing.assert_allclose(inside, np.full((2, 2), 0.8), atol=1e-6)
    with pytest.raises(ValueError, match="between 0 and 1"):
        central_interval(Normal(mean, scale), 95)
    with pytest.raises(TypeError, match="Laplace"):
        central_interval(torch.distributions.Laplace(mean, scale))


def test_coverage_by_hand():
    found = coverage(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor(1.0), torch.tensor([2.0, 2, 2, math.inf]))
    assert found.tolist() == [0, 1, 1, 1]


def test_scores_of_a_regression_by_hand():
    y = torch.tensor([[[0.0], [3.0]], [[1.0], [1.0]]])
    found = regression_scores(Normal(torch.ones(2, 2, 1), torch.full((2, 2, 1), 0.7)), y)
    np.testing.assert_allclose(found["mse"], [2.5, 0])
    np.testing.assert_allclose(found["coverage"], [0.5, 1])  # 3 is more than 1.96 * 0.7 from 1
    np.testing.assert_allclose(found["width"], [2 * 1.959964 * 0.7] * 2, rtol=1e-6)
    constant = math.log(0.7 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(found["nll"], [constant + 2.5 / (2 * 0.49), constant], rtol=1e-6)


def test_after_some_points_is_as_if_there_were_no_others():
    episodes = Sinusoids(5, 3).sample(2)
    alpaca = ALPaCA(nn.Identity(), 1)
    mean, variance = alpaca.predictive(episodes)
    for n, found in by_points(alpaca, episodes, (0, 2, 5)).items():
        torch.testing.assert_close(found.loc, mean[:, n])
        torch.testing.assert_close(found.scale, variance[:, n].sqrt())
    found = by_points(StudentALPaCA(nn.Identity(), 1, shape=2.0), episodes, (0, 4))
    assert [found[n].df.unique().item() for n in (0, 4)] == pytest.approx([4, 8])
    process = NeuralProcess()  # which has no method of its own for it
    mean, variance = process.predictive(episodes)
    torch.testing.assert_close(by_points(process, episodes, [5])[5].variance, variance)
