import pytest
import torch

from metabook.data import LinearFunctions


def test_a_step_gives_the_same_tasks_and_another_step_others():
    source = LinearFunctions(seed=3)
    one, again, other = source.sample(4, 7), LinearFunctions(seed=3).sample(4, 7), source.sample(4, 8)
    assert torch.equal(one.support_x, again.support_x)
    assert torch.equal(one.query_y, again.query_y)
    assert not torch.equal(one.support_y, other.support_y)


def test_support_and_queries_are_of_one_function():
    source = LinearFunctions(inputs=3, shots=4, queries=5, noise=0.0)
    episodes, w = source.sample(6), source.weights(6)
    assert episodes.support_x.shape == (6, 4, 3)
    assert episodes.query_y.shape == (6, 5, 1)
    torch.testing.assert_close(episodes.support_x @ w, episodes.support_y)
    torch.testing.assert_close(episodes.query_x @ w, episodes.query_y)


def test_noise_and_scale_have_the_standard_deviations_given():
    source = LinearFunctions(inputs=2, shots=50, queries=50, noise=0.3, scale=2.0)
    episodes = source.sample(200)
    residual = episodes.query_y - episodes.query_x @ source.weights(200)
    assert residual.std().item() == pytest.approx(0.3, rel=0.05)
    assert episodes.support_x.std().item() == pytest.approx(2.0, rel=0.05)
    quiet = LinearFunctions(inputs=2, shots=50, queries=50, noise=0.0, scale=2.0).sample(200)
    assert torch.equal(quiet.support_x, episodes.support_x)  # the same points with another noise


@pytest.mark.parametrize("wrong", [{"inputs": 0}, {"shots": 0}, {"queries": 0}, {"noise": -1.0}, {"scale": 0.0}])
def test_settings_that_make_no_tasks_are_refused(wrong):
    with pytest.raises(ValueError):
        LinearFunctions(**wrong)
