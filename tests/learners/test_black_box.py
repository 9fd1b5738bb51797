import math

import pytest
import torch

from metabook import Episodes, batched, evaluate, fit
from metabook.data import Sinusoids
from metabook.learners import LearnedOptimiser, NeuralProcess
from metabook.learners.black_box import encode_gradient
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


@pytest.mark.slow
def test_a_trained_optimiser_beats_an_untrained_one():
    torch.manual_seed(0)
    learner, held_out = LearnedOptimiser(MLP(1, (20,), 1), steps=10), Sinusoids(seed=1)
    before = evaluate(learner, held_out, tasks=60).mean
    fit(learner, Sinusoids(), steps=60, tasks=16, lr=1e-2, progress=False)
    assert evaluate(learner, held_out, tasks=60).mean < 0.9 * before


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
