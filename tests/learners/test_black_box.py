import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from metabook import Episodes, batched, evaluate, fit
from metabook.data import Quadratics, Sinusoids
from metabook.learners import LearnedOptimiser, NeuralProcess
from metabook.learners.black_box import encode_gradient, loss_curves, normalised_gradient
from metabook.nets import MLP


def test_gradients_are_encoded_as_in_the_paper():
    code = encode_gradient(torch.tensor([1.0, -math.exp(-5), 0.0, math.exp(-11)]))
    torch.testing.assert_close(code, torch.tensor([[0.0, 1.0], [-0.5, -1.0], [-1.0, 0.0], [-1.0, math.exp(-1)]]))


def test_the_learned_optimiser_treats_every_parameter_alike():
    learner = LearnedOptimiser(MLP(1, (3,), 1), hidden=4)
    params = batched.expand(learner.net, 2)
    grads = {name: torch.full_like(p, 0.3) for name, p in params.items()}
    state: dict = {}
    for step in range(2):
        after = learner.update(params, grads, step, state)
        moves = torch.cat([(after[name] - p).flatten() for name, p in params.items()])
        assert moves[0] != 0
        torch.testing.assert_close(moves, moves[0].expand_as(moves))
        params = after


def test_its_memory_begins_anew_in_each_task():
    learner, episodes = LearnedOptimiser(MLP(), steps=3).eval(), Sinusoids().sample(2)
    torch.testing.assert_close(learner.predict(episodes), learner.predict(episodes))


def test_new_weights_are_drawn_for_every_task_in_training_alone():
    learner, episodes = LearnedOptimiser(MLP(1, (4,), 1), steps=1), Sinusoids().sample(3)
    start = next(learner.train().inner_loop(episodes, 1))
    assert not torch.equal(start["0.weight"][0], start["0.weight"][1])
    start = next(learner.eval().inner_loop(episodes, 1))
    assert torch.equal(start["0.weight"][0], start["0.weight"][1])
    assert torch.equal(start["0.weight"][0], learner.net[0].weight)


def test_normalised_gradients_are_adams_and_do_not_know_the_unit_of_the_loss():
    gradients = [torch.tensor([0.5, -2.0]), torch.tensor([1.5, 1.0])]
    p = torch.zeros(2, requires_grad=True)
    adam, state, other = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99)), {}, {}
    for step, gradient in enumerate(gradients):
        before, p.grad = p.detach().clone(), gradient
        adam.step()
        seen = normalised_gradient(gradient, step, state)
        torch.testing.assert_close(-0.1 * seen[:, 1], p.detach() - before)
        torch.testing.assert_close(normalised_gradient(1000 * gradient, step, other), seen)
    torch.testing.assert_close(
        seen[:, 0] / seen[:, 1], gradients[1] / ((0.09 * gradients[0] + 0.1 * gradients[1]) / 0.19)
    )


def double(episodes: Episodes) -> Episodes:
    return replace(episodes, **{name: part.double() for name, part in vars(episodes).items() if part is not None})


def meta_gradient(learner: LearnedOptimiser, episodes: Episodes) -> torch.Tensor:
    learner.zero_grad()
    learner.loss(episodes).backward()
    return learner.step_of.weight.grad.clone()


def small(**settings) -> LearnedOptimiser:
    torch.manual_seed(0)
    net = MLP(1, (4,), 1, "tanh")
    return LearnedOptimiser(net, **{"steps": 4, "hidden": 3, **settings}).double().eval()


@pytest.mark.parametrize("moments", [False, True])
def test_only_the_second_order_is_the_derivative_of_the_loss(moments):
    episodes, h = double(Sinusoids().sample(3)), 1e-6
    learner = small(moments=moments, second_order=True)
    exact, constant = meta_gradient(learner, episodes), meta_gradient(small(moments=moments), episodes)
    differences = torch.zeros_like(exact)
    for i in range(exact.shape[1]):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                learner.step_of.weight[0, i] += sign * h
                values.append(learner.loss(episodes))
                learner.step_of.weight[0, i] -= sign * h
        differences[0, i] = (values[0] - values[1]) / (2 * h)
    torch.testing.assert_close(exact, differences, rtol=1e-5, atol=1e-7)
    assert (constant - differences).norm() > 1e-3 * differences.norm()


def test_a_truncated_gradient_ends_at_the_cuts():
    episodes = double(Sinusoids().sample(2))
    whole = meta_gradient(small(moments=False), episodes)
    uncut = meta_gradient(small(moments=False, truncate=4), episodes)
    torch.testing.assert_close(uncut, whole)  # the first cut is behind the end
    cut = small(moments=False, truncate=2)
    first, later = meta_gradient(small(moments=False, steps=2), episodes), meta_gradient(cut, episodes)
    # From the cut on: the same loss, started anew with the weights and the memory that were reached.
    path, state, losses = batched.expand(cut.net, 2), {}, []
    for step in range(4):
        path = {name: p.detach().requires_grad_() if step == 2 else p for name, p in path.items()}
        state = {name: value.detach() if step == 2 else value for name, value in state.items()}
        path = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in path.items()}
        loss = (cut.forward_adapted(path, episodes.support_x) - episodes.support_y).square().mean((1, 2)).sum()
        grads = torch.autograd.grad(loss, list(path.values()), retain_graph=True)
        path = cut.update(path, dict(zip(path, grads, strict=True)), 1, state)  # a step at which nothing is cut
        losses.append((cut.forward_adapted(path, episodes.query_x) - episodes.query_y).square().mean())
    second = torch.autograd.grad(losses[2] + losses[3], cut.step_of.weight)[0] / 4
    torch.testing.assert_close(later, first / 2 + second)
    assert (later - whole).norm() > 1e-3 * whole.norm()


def test_curves_are_those_of_each_task_alone():
    torch.manual_seed(0)
    net, episodes = MLP(1, (4,), 1), Sinusoids().sample(3)
    start = batched.initialise(net, 3)
    support, query = loss_curves(partial(torch.optim.Adam, lr=0.05), net, start, episodes, 5)
    assert support.shape == query.shape == (6, 3)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(start[name][1])
    adam = torch.optim.Adam(net.parameters(), lr=0.05)
    for step in range(6):
        loss = (net(episodes.support_x[1]) - episodes.support_y[1]).square().mean()
        torch.testing.assert_close(loss.detach(), support[step, 1])
        adam.zero_grad()
        loss.backward()
        adam.step()


def test_curves_of_a_learned_optimiser_are_its_trajectory_and_go_beyond_its_net():
    torch.manual_seed(0)
    learner, episodes = LearnedOptimiser(MLP(1, (4,), 1), hidden=4).eval(), Sinusoids().sample(3)
    query = loss_curves(learner, learner.net, batched.expand(learner.net, 3), episodes, 5)[1]
    torch.testing.assert_close(query, (learner.trajectory(episodes, 5) - episodes.query_y).square().mean((2, 3)))
    other = MLP(1, (7, 7), 1, "tanh")
    assert loss_curves(learner, other, batched.initialise(other, 3), episodes, 2)[1].shape == (3, 3)


@pytest.mark.slow
def test_a_trained_optimiser_beats_an_untrained_one_and_gradient_descent():
    torch.manual_seed(0)
    learner = LearnedOptimiser(torch.nn.Linear(10, 1), steps=10)
    held_out, start = Quadratics().sample(200, step=1000), batched.initialise(learner.net, 200)

    def after_ten(optimiser) -> float:
        return float(loss_curves(optimiser, learner.net, start, held_out, 10)[1][-1].mean())

    before = after_ten(learner)
    fit(learner, Quadratics(), steps=80, tasks=16, lr=1e-2, anneal="cosine", clip=1.0, progress=False)
    assert after_ten(learner) < 0.5 * before
    assert after_ten(learner) < min(after_ten(partial(torch.optim.SGD, lr=lr)) for lr in (0.03, 0.1, 0.3))


def test_learned_starts_are_shared():
    torch.manual_seed(0)
    learner = LearnedOptimiser(MLP(1, (8,), 1), steps=2, learn_init=True)
    learner.accumulate_gradients(Sinusoids().sample(2))
    assert all(p.grad is not None for p in learner.parameters())
    fixed = LearnedOptimiser(MLP(1, (8,), 1), steps=2)
    fixed.accumulate_gradients(Sinusoids().sample(2))
    assert all(p.grad is None for p in fixed.net.parameters())


@pytest.mark.parametrize("attention", [False, True])
def test_the_order_of_the_support_set_does_not_matter(attention):
    torch.manual_seed(0)
    process, e = NeuralProcess(hidden=8, attention=attention), Sinusoids().sample(2)
    turned = Episodes(e.support_x.flip(1), e.support_y.flip(1), e.query_x, e.query_y)
    torch.testing.assert_close(process.predict(e), process.predict(turned))


@pytest.mark.parametrize("attention", [False, True])
def test_a_neural_process_learns_sinusoids_and_how_sure_it_is(attention):
    torch.manual_seed(0)
    process, held_out = NeuralProcess(attention=attention), Sinusoids(seed=1)
    before = evaluate(process, held_out, tasks=100).mean
    fit(process, Sinusoids(), steps=600, tasks=32, lr=3e-3, anneal="cosine", progress=False)
    assert evaluate(process, held_out, tasks=100).mean < 0.5 * before
    episodes = held_out.sample(300)
    with torch.no_grad():
        mean, variance = process.predictive(episodes)
    inside = ((episodes.query_y - mean).abs() < 1.96 * variance.sqrt()).double().mean()
    assert 0.9 < inside < 0.99


def test_attention_looks_at_the_point_that_is_asked_for():
    """Without it all support points count alike, so that a far one moves the answer as much as a near one."""
    process = NeuralProcess(inputs=1, hidden=4, attention=True)
    with torch.no_grad():
        for p in process.keys.parameters():
            p.zero_()
    e = Sinusoids().sample(2)
    plain = NeuralProcess(inputs=1, hidden=4)
    plain.load_state_dict({k: v for k, v in process.state_dict().items() if not k.startswith("keys")})
    torch.testing.assert_close(process.predict(e), plain.predict(e))  # keys that are all alike: the mean


def test_tasks_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="answers with 3 values; the tasks ask for 1"):
        NeuralProcess(outputs=3).predict(Sinusoids().sample(2))


def test_layers_that_cannot_be_drawn_anew_are_named():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="Odd has no reset_parameters"):
        batched.initialise(torch.nn.Sequential(Odd()), 2)
