"""What MAML's relatives change: each against learn2learn, or against the step written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metabook import Episodes, EpisodeSampler, batched, fit
from metabook.data import Sinusoids
from metabook.learners import ANIL, MAML, MetaSGD, Reptile
from metabook.learners.gradient import GradientLearner
from metabook.nets import MLP, Conv4
from metabook.peers import learn2learn_algorithms

STEPS = [1, 3, 5]


def doubled(episodes):
    parts = (episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y)
    return Episodes(*(part.double() if part.is_floating_point() else part for part in parts))


@pytest.fixture(params=["images", "sinusoids"])
def case(request, make_pool):
    """A net in double precision, four tasks for it, and an inner rate."""
    torch.manual_seed(0)
    if request.param == "images":
        sampler = EpisodeSampler(make_pool(classes=6, instances=8, dtype=torch.float64), 3, 1, 2)
        return Conv4(3, 4, "stride").double(), doubled(sampler.sample(4)), 0.3
    return MLP().double(), doubled(Sinusoids(5, 5).sample(4)), 0.01


def criterion(outputs, targets):
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(outputs, targets)


def meta_gradient(learner, episodes):
    learner.zero_grad()
    learner.accumulate_gradients(episodes)
    return {name: p.grad.clone() for name, p in learner.named_parameters()}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_maml_is_learn2learns(case, steps, first_order):
    net, episodes, rate = case
    ours = meta_gradient(MAML(net, rate, steps, first_order), episodes)
    net.zero_grad()
    meta = learn2learn_algorithms().MAML(net, lr=rate, first_order=first_order)
    for task in range(len(episodes)):
        clone = meta.clone()
        for _ in range(steps):
            clone.adapt(criterion(clone(episodes.support_x[task]), episodes.support_y[task]))
        (criterion(clone(episodes.query_x[task]), episodes.query_y[task]) / len(episodes)).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(ours[f"net.{name}"], p.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_meta_sgd_is_learn2learns_in_weights_and_rates(case, steps, first_order):
    net, episodes, rate = case
    ours = meta_gradient(MetaSGD(net, rate, steps, first_order), episodes)
    net.zero_grad()
    meta = learn2learn_algorithms().MetaSGD(net, lr=rate, first_order=first_order)
    meta.lrs = nn.ParameterList([nn.Parameter(lr.detach().double()) for lr in meta.lrs])
    for task in range(len(episodes)):
        clone = meta.clone()
        for _ in range(steps):
            clone.adapt(criterion(clone(episodes.support_x[task]), episodes.support_y[task]), first_order)
        (criterion(clone(episodes.query_x[task]), episodes.query_y[task]) / len(episodes)).backward()
    for (name, p), lr in zip(net.named_parameters(), meta.lrs, strict=True):
        torch.testing.assert_close(ours[f"net.{name}"], p.grad, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours[f"rates.{name.replace('.', '-')}"], lr.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_anil_is_learn2learns_maml_on_the_head(case, steps, first_order):
    net, episodes, rate = case
    ours = meta_gradient(ANIL(net, rate, steps, first_order), episodes)
    net.zero_grad()
    if isinstance(net, Conv4):
        head, body = net.head, lambda x: net.blocks(x).mean((2, 3))
    else:
        head, body = net[-1], nn.Sequential(*list(net)[:-1])
    meta = learn2learn_algorithms().MAML(head, lr=rate, first_order=first_order)
    for task in range(len(episodes)):
        clone, z = meta.clone(), body(episodes.support_x[task])
        for _ in range(steps):
            clone.adapt(criterion(clone(z), episodes.support_y[task]))
        loss = criterion(clone(body(episodes.query_x[task])), episodes.query_y[task])
        (loss / len(episodes)).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(ours[f"net.{name}"], p.grad, rtol=0, atol=1e-10)


def test_anil_leaves_the_body_alone(case):
    net, episodes, rate = case
    adapted = ANIL(net, rate, 2).adapt(episodes)
    moved = {name for name, p in net.named_parameters() if not torch.equal(adapted[name], p.expand_as(adapted[name]))}
    assert moved == set(batched.head_names(net))


def test_rates_of_each_layer_and_step_start_as_one_and_are_used(case):
    net, episodes, rate = case
    plain, learner = MAML(net, rate, 2), MAML(net, rate, 2, learn_rates=True).double()
    for rates in learner.rates.values():
        nn.init.constant_(rates, rate)  # exactly: float32 would have rounded it
    torch.testing.assert_close(learner.loss(episodes), plain.loss(episodes), rtol=0, atol=1e-12)
    first = next(iter(dict(net.named_parameters())))
    with torch.no_grad():
        learner.rates[first.replace(".", "-")][1] = 0.0  # from the second step on, the first layer stays
        one, two, three = (learner.adapt(episodes, steps)[first] for steps in (1, 2, 3))
    assert not torch.equal(one, dict(net.named_parameters())[first].expand_as(one))
    assert torch.equal(one, two)
    assert torch.equal(two, three), "steps beyond the trained ones take the last one's rates"


def test_the_multi_step_loss_moves_from_all_steps_to_the_last(case):
    net, episodes, rate = case
    learner = MAML(net, rate, 3, multi_step=4)
    each = [MAML(net, rate, steps).loss(episodes) for steps in (1, 2, 3)]
    seen = []
    for _ in range(6):
        weights = learner.step_weights()
        assert sum(weights) == pytest.approx(1)
        expected = sum(w * loss for w, loss in zip(weights, each, strict=True))
        torch.testing.assert_close(learner.loss(episodes), expected, rtol=0, atol=1e-10)
        seen.append(weights)
        learner.accumulate_gradients(episodes)
    assert seen[0] == pytest.approx([1 / 3] * 3)
    assert seen[2] == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    assert seen[4] == seen[5] == [0.0, 0.0, 1.0]


CHUNKED = {
    "MAML": lambda net, rate: MAML(net, rate, 2),
    "multi-step": lambda net, rate: MAML(net, rate, 2, multi_step=10),
    "ANIL": lambda net, rate: ANIL(net, rate, 2),
    "Reptile": lambda net, rate: Reptile(net, rate, 3, batch=None, adam=False),
}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_no_result(case, name):
    net, episodes, rate = case
    learner = CHUNKED[name](net, rate)
    whole = meta_gradient(learner, episodes)
    predicted = learner.predict(episodes)
    if name == "multi-step":
        learner.updates.zero_()  # the weights of the steps are those of the first update again
    learner.chunk = 3  # which leaves a last chunk of another size
    for key, grad in meta_gradient(learner, episodes).items():
        torch.testing.assert_close(grad, whole[key], rtol=0, atol=1e-12)
    torch.testing.assert_close(learner.predict(episodes), predicted, rtol=0, atol=1e-12)


def test_the_default_chunk_follows_the_size_of_the_tasks(make_pool):
    learner = MAML(MLP(), 0.01)
    assert learner._chunk(Sinusoids(10, 10).sample(100)) == 100
    many = EpisodeSampler(make_pool(classes=6, instances=20), 5, 1, 15).sample(1)
    assert GradientLearner(Conv4(5), 0.1, 1)._chunk(many) == 1
    large = [torch.zeros(100, 5, 1, 84, 84), torch.zeros(100, 5, dtype=torch.long)] * 2
    assert 1 <= learner._chunk(Episodes(*large)) < 10


def test_chunks_are_of_about_the_same_size():
    learner = MAML(Conv4(5), 0.1)
    sizes = {learner._chunk(Episodes(*[torch.zeros(n, 5, 1, 28, 28), torch.zeros(n, 5)] * 2)) for n in (16, 15, 9)}
    assert sizes == {8, 5}  # 8 + 8, 8 + 7 and 5 + 4: not 8 + 1


def test_reptile_is_the_mean_over_tasks_of_what_training_on_each_did(case):
    net, episodes, rate = case
    ours = meta_gradient(Reptile(net, rate, 4, batch=None, adam=False), episodes)
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for task in range(len(episodes)):
        x = torch.cat([episodes.support_x[task], episodes.query_x[task]])
        y = torch.cat([episodes.support_y[task], episodes.query_y[task]])
        start = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimiser = torch.optim.SGD(net.parameters(), lr=rate)
        for _ in range(4):
            optimiser.zero_grad()
            criterion(net(x), y).backward()
            optimiser.step()
        for name, p in net.named_parameters():
            expected[name] += (start[name] - p.detach()) / len(episodes)
            p.data = start[name]
    for name, value in expected.items():
        torch.testing.assert_close(ours[f"net.{name}"], value, rtol=0, atol=1e-10)


def test_reptiles_inner_adam_is_torchs_without_momentum_and_new_in_every_task(case):
    net, episodes, _ = case
    learner = Reptile(net, 1e-3, 5, eval_steps=5)
    learner.predict(episodes)  # leaves nothing behind that the next adaptation could start from
    ours = learner.adapt(episodes, 5)
    for task in range(len(episodes)):
        start = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.999))
        for _ in range(5):
            optimiser.zero_grad()
            criterion(net(episodes.support_x[task]), episodes.support_y[task]).backward()
            optimiser.step()
        for name, p in net.named_parameters():
            if "bias" not in name or isinstance(net, MLP):  # rounding alone moves a bias before a normalisation
                torch.testing.assert_close(ours[name][task], p.detach(), rtol=0, atol=1e-7)
            p.data = start[name]


def test_one_outer_step_of_rate_one_on_one_task_ends_in_its_weights(case):
    net, episodes, rate = case
    learner = Reptile(net, rate, 3, batch=None, adam=False)
    phi, _ = learner._train(episodes[:1])

    class Source:
        def sample(self, tasks, step=0):
            return episodes[:tasks]

    fit(learner, Source(), steps=1, tasks=1, lr=1.0, optimiser="sgd", progress=False)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), phi[name][0], rtol=0, atol=1e-12)


def test_minibatches_use_every_example_before_one_comes_again():
    learner = Reptile(MLP(), 1e-3, 7, batch=4)
    rows = learner._minibatches(12)
    assert [len(each) for each in rows] == [4] * 7
    assert sorted(torch.cat(rows[:3]).tolist()) == sorted(torch.cat(rows[3:6]).tolist()) == list(range(12))
    assert Reptile(MLP(), 1e-3, 2, batch=20)._minibatches(12)[1].tolist() == list(range(12))


@pytest.mark.parametrize(("option", "value"), [("batch", 0), ("eval_steps", 0)])
def test_reptile_refuses_impossible_settings(option, value):
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        Reptile(MLP(), **{option: value})


def test_anil_needs_a_last_layer():
    class Odd(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="no layer that is known to be its last"):
        ANIL(Odd())
