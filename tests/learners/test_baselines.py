from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from metabook import EpisodeSampler, LabelledData, evaluate, fit
from metabook.data import Sinusoids
from metabook.learners import MAML, FineTune, NearestNeighbour, PretrainedLinearProbe, PretrainedNearestMean
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


def test_the_linear_probe_is_scikit_learns_logistic_regression(make_pool):
    probe = PretrainedLinearProbe(Conv4(channels=8, norm="running"), classes=6, penalty=0.5).eval()
    episodes = EpisodeSampler(make_pool(classes=6, instances=8), 3, 3, 4).sample(3)
    with torch.no_grad():
        ours = probe.predict(episodes).log_softmax(2)
        support, query = probe.embed_both(episodes)
    for task in range(3):
        theirs = LogisticRegression(C=1 / 0.5, tol=1e-8, max_iter=1000)
        theirs.fit(support[task].numpy(), episodes.support_y[task].numpy())
        wanted = torch.tensor(theirs.predict_log_proba(query[task].numpy()), dtype=torch.float32)
        torch.testing.assert_close(ours[task], wanted, atol=2e-3, rtol=0)


def test_centring_subtracts_the_mean_feature_of_training(make_pool):
    torch.manual_seed(0)
    learner = PretrainedNearestMean(Conv4(channels=8, norm="none"), classes=6, centre=True).train()
    episodes = EpisodeSampler(make_pool(classes=6, instances=8), 3, 3, 4).sample(3)
    for _ in range(3):  # from the first batch on: a mean that starts at zero would still be near it
        learner.loss(episodes)
    x = torch.cat([episodes.support_x, episodes.query_x], 1).flatten(0, 1)
    with torch.no_grad():
        mean = learner.net(x).mean(0)
        torch.testing.assert_close(learner.average, mean, rtol=1e-4, atol=1e-5)
        wanted = nn.functional.normalize(learner.net(x[:2]) - learner.average, dim=1)
        torch.testing.assert_close(learner.embed(x[None, :2])[0], wanted)


def test_pre_training_takes_vectors_such_as_those_of_texts():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 1, 10, generator=generator)
    x = (centres + 0.3 * torch.randn(6, 8, 10, generator=generator)).flatten(0, 1)
    names = tuple("abcdef")
    source = EpisodeSampler(LabelledData(x, torch.arange(6).repeat_interleave(8), names, names), 3, 1, 2)
    learner = PretrainedNearestMean(MLP(10, (16,), 8), classes=6, centre=True)
    history = fit(learner, source, steps=60, tasks=4, lr=1e-2, progress=False)
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert evaluate(learner, source, tasks=20).mean > 0.9
