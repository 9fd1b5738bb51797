from dataclasses import replace

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from metabook import EpisodeSampler, fit
from metabook.data import Sinusoids
from metabook.learners import MAML, FineTune, NearestNeighbour, PretrainedNearestMean
from metabook.nets import MLP, Conv4


@pytest.fixture
def episodes(make_pool):
    return EpisodeSampler(make_pool(classes=8, instances=10), 4, 3, 5).sample(6)


def test_nearest_neighbour_is_scikit_learns(episodes):
    ours = NearestNeighbour().predict(episodes).argmax(2)
    for task in range(6):
        reference = KNeighborsClassifier(1).fit(episodes.support_x[task].flatten(1), episodes.support_y[task])
        assert ours[task].tolist() == reference.predict(episodes.query_x[task].flatten(1)).tolist()


def test_fine_tuning_is_plain_gradient_descent(episodes):
    net = Conv4(4, 4, "stride", "none")
    predicted = FineTune(net, inner_lr=0.2, steps=3).predict(episodes[:1]).detach()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(3):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(episodes.support_x[0]), episodes.support_y[0]).backward()
        optimiser.step()
    assert torch.allclose(predicted[0], net(episodes.query_x[0]), atol=1e-5)


def test_joint_training_minimises_the_loss_before_adaptation():
    episodes, net = Sinusoids(shots=5, queries=3).sample(4), MLP()
    everything = torch.cat([net(episodes.support_x) - episodes.support_y, net(episodes.query_x) - episodes.query_y], 1)
    assert torch.allclose(FineTune(net).loss(episodes), everything.square().mean(), rtol=1e-5)
    assert not torch.allclose(FineTune(net).loss(episodes), MAML(net, 0.01).loss(episodes), rtol=1e-3)


def test_pre_training_is_classification_over_the_pool(episodes):
    learner = PretrainedNearestMean(Conv4(channels=4, norm="none"), classes=8)
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    local = torch.cat([episodes.support_y, episodes.query_y], 1)
    total = 0.0
    for task in range(6):
        total += torch.nn.functional.cross_entropy(
            learner.head(learner.net(x[task])), episodes.classes[task][local[task]]
        )
    assert torch.allclose(learner.loss(episodes), total / 6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"Episodes\.classes"):
        learner.loss(replace(episodes, classes=None))


def test_nearest_mean_looks_at_directions_only(episodes):
    learner = PretrainedNearestMean(Conv4(channels=4, norm="none"), classes=8).eval()
    with torch.no_grad():
        assert torch.allclose(learner.embed(episodes.query_x).norm(dim=-1), torch.ones(6, 20), atol=1e-5)


def test_joint_training_learns_the_mean_of_the_sinusoids():
    torch.manual_seed(0)
    history = fit(FineTune(MLP()), Sinusoids(), steps=200, tasks=20, lr=1e-2, progress=False)
    # No single curve fits all: the tasks' own variance, E[A^2] / 2 = 4.25, minus what their mean explains, stays.
    assert 2.0 < sum(history.losses[-50:]) / 50 < sum(history.losses[:5]) / 5
