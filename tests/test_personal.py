import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as TheirRidge

from metabook import fit, seed_everything
from metabook.episodes import Episodes
from metabook.learners import ANIL, MAML, ALPaCA, FineTune
from metabook.nets import MLP
from metabook.personal import Constant, Global, Profile, Remembered, Ridge, learning_curve, picked, world


@pytest.fixture(scope="module")
def here():
    return world(people=60, test_people=40, requests=60, dimensions=64)


@pytest.fixture(scope="module")
def episodes(here):
    return here.test.sample(40)


def net():
    seed_everything(0)
    return MLP(64, (16, 8), 1)


LEARNERS = {
    "global": lambda: Global(net()),
    "remembered": lambda: Remembered(net(), 5.0, 0.3),
    "fine-tuned": lambda: FineTune(net(), 0.01, 5),
    "ridge": lambda: Ridge(100.0),
    "ridge head": lambda: Ridge(30.0, net()),
    "MAML": lambda: MAML(net(), 0.01, 3),
    "ANIL": lambda: ANIL(net(), 0.01, 3),
    "ALPaCA": lambda: ALPaCA(MLP(64, (16,), 8), 8),
}


def test_the_two_populations_are_other_people_and_other_messages(here):
    assert not set(here.train.pool.requests) & set(here.test.pool.requests)
    assert not torch.equal(here.train.tastes[:40], here.test.tastes)
    mean_square = here.train.inputs.square().mean()
    assert mean_square == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_curve_is_what_a_learner_says_after_so_many_messages(name, episodes):
    learner = LEARNERS[name]()
    some = episodes[:10]
    curve = learning_curve(learner, some, (0, 1, 10))
    assert curve.shape == (3, *some.query_y.shape)
    assert bool(curve.isfinite().all())
    torch.testing.assert_close(curve[2], learner.predict(some).detach())
    one = Episodes(some.support_x[:, :1], some.support_y[:, :1], some.query_x, some.query_y)
    torch.testing.assert_close(curve[1], learner.predict(one).detach())
    changed = not torch.equal(curve[0], curve[2])
    assert changed == (name != "global")


def test_before_the_first_message_all_that_start_from_a_model_say_what_it_says(episodes):
    shared = net()
    answers = shared(episodes.query_x).detach()
    for learner in (Global(shared), FineTune(shared, 0.1, 5), Remembered(shared), Ridge(10.0, shared)):
        torch.testing.assert_close(learning_curve(learner, episodes, [0])[0], answers)


def test_more_messages_than_there_are_have_no_answer(episodes):
    with pytest.raises(ValueError, match="no answer after 11"):
        learning_curve(Global(net()), episodes, [0, 11])


def test_a_large_sharpness_remembers_the_same_reply_and_none_the_mean(episodes):
    shared = net()
    again = Episodes(episodes.support_x, episodes.support_y, episodes.support_x, episodes.support_y)
    exact = Remembered(shared, 1e4, 1e-6).predict(again)
    torch.testing.assert_close(exact, again.support_y, atol=1e-3, rtol=0)
    deviation = episodes.support_y - shared(episodes.support_x)
    expected = shared(episodes.query_x) + deviation.sum(1, keepdim=True) / (10 + 3.0)
    torch.testing.assert_close(Remembered(shared, 0.0, 3.0).predict(episodes), expected)


def test_ridge_is_ridge_regression(episodes):
    x, y, query = (part[0].double().numpy() for part in (episodes.support_x, episodes.support_y, episodes.query_x))
    penalty = 50.0
    # The constant as a feature: ten times as large, its penalty is a hundredth.
    theirs = TheirRidge(penalty, fit_intercept=False).fit(np.c_[x, np.full(len(x), 10)], y[:, 0])
    ours = Ridge(penalty).predict(episodes[:1])[0, :, 0].detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict(np.c_[query, np.full(len(query), 10)]), atol=1e-3)


def test_a_ridge_head_is_a_ridge_of_the_deviations(episodes):
    shared = net()
    learner = Ridge(20.0, shared)
    body = torch.nn.Sequential(*list(shared)[:-1])
    phi, asked = (body(part[0]).detach().numpy() for part in (episodes.support_x, episodes.query_x))
    y = (episodes.support_y[0] - shared(episodes.support_x[0])).detach().numpy()[:, 0]
    theirs = TheirRidge(20.0, fit_intercept=False).fit(np.c_[phi, np.full(len(phi), 10)], y)
    base = shared(episodes.query_x[0]).detach().numpy()[:, 0]
    ours = learner.predict(episodes[:1])[0, :, 0].detach().numpy()
    np.testing.assert_allclose(ours, base + theirs.predict(np.c_[asked, np.full(len(asked), 10)]), atol=1e-3)
    with pytest.raises(ValueError, match="positive"):
        Ridge(0.0)


def test_picked_is_the_rating_of_the_best_predicted_reply_to_each_message():
    ratings = torch.tensor([[1.0, 2, 5, 4], [0, 1, 2, 3]]).unsqueeze(2)
    predictions = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]]).unsqueeze(2)
    assert picked(predictions, ratings, 2).tolist() == [3.0, 1.0]
    assert picked(torch.stack([predictions, ratings]), ratings, 2)[1].tolist() == [3.5, 2.0]


def test_a_learned_prior_beats_the_global_model_on_new_users(here, episodes):
    seed_everything(0)
    learner = ALPaCA(torch.nn.Sequential(MLP(64, (32,), 16), Constant()), 17, noise=0.5)
    fit(learner, here.train, steps=150, tasks=16, lr=3e-3, progress=False)
    errors = (learning_curve(learner, episodes, (0, 10)) - episodes.query_y).square().mean((1, 2, 3))
    assert errors[1] < 0.85 * errors[0]


@pytest.mark.parametrize("name", LEARNERS)
def test_what_was_forgotten_has_no_effect_bit_for_bit(name, episodes):
    learner = LEARNERS[name]()
    x, y, query = episodes.support_x[0], episodes.support_y[0, :, 0].tolist(), episodes.query_x[0]
    one, never = Profile(learner), Profile(learner)
    before = one.predict(query)
    numbers = [one.rate(each, rating) for each, rating in zip(x, y)]
    with_all = one.predict(query)
    for place in (7, 2):
        one.forget(numbers[place])
    for place in (0, 1, 3, 4, 5, 6, 8, 9):
        never.rate(x[place], y[place])
    assert torch.equal(one.predict(query), never.predict(query))
    assert torch.equal(with_all, one.predict(query)) == (name == "global")
    one.forget_all()
    assert len(one) == 0
    assert torch.equal(one.predict(query), before)


def test_a_profile_keeps_its_own_copy_and_knows_its_numbers(episodes):
    profile, x = Profile(Ridge(100.0)), episodes.support_x[0, 0].clone()
    number = profile.rate(x, 2.0)
    answer = profile.predict(episodes.query_x[0])
    x.zero_()
    assert torch.equal(profile.predict(episodes.query_x[0]), answer)
    assert profile.numbers == [number]
    profile.forget(number)
    assert profile.numbers == []
    with pytest.raises(ValueError, match="no rating 0"):
        profile.forget(number)
    assert profile.rate(x, 1.0) != number  # a number never stands for two ratings


def test_a_profile_answers_as_its_learner_does(episodes):
    learner = Ridge(100.0)
    profile = Profile(learner)
    for each, rating in zip(episodes.support_x[0], episodes.support_y[0, :, 0].tolist()):
        profile.rate(each, rating)
    torch.testing.assert_close(profile.predict(episodes.query_x[0]), learner.predict(episodes[:1])[0, :, 0].detach())
