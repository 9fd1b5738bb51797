"""Adapters on tasks: kept lower states, inner steps and outer updates by hand, and nothing left behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from metabook import Episodes, EpisodeSampler, LabelledData, evaluate, fit
from metabook.chat import UnbiasedPrototypes
from metabook.learners import ProtoNet
from metabook.llm import (
    AdaptedFeatures,
    Adapter,
    AdapterFewShot,
    LanguageModel,
    LLMPrototypes,
    LowerStates,
    MaskedAdapter,
    MetaAdapter,
    features,
)
from metabook.llm.features import hidden_states
from metabook.llm.few_shot import leave_one_out, rarity
from metabook.nets import Adapted
from metabook.storage import StorageError

WORDS = ["play", "weather", "transfer", "message"]
POOL = tuple(f"{'please ' * (n % 3)}{word} number {n * n}" for word in WORDS for n in range(5))
TRAINING = list(range(10))


@pytest.fixture
def own(lm) -> LanguageModel:
    """A model of each test's own, in float64 throughout: adapters stay in it."""
    return LanguageModel(copy.deepcopy(lm.model), lm.tokeniser, "tiny")


def disturbed(adapter: Adapter, scale: float = 0.3, seed: int = 1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.double().parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return adapter


def adapted(own: LanguageModel, pooling: str = "mean", first: int = 1, layer: int = 3, scale: float = 0.3):
    adapter = disturbed(Adapter(own, rank=2, layers=range(first, own.depth)), scale)
    return AdaptedFeatures(adapter, LowerStates(own, POOL, first, pooling), layer, TRAINING, batch=4)


@pytest.fixture
def source() -> EpisodeSampler:
    data = LabelledData(torch.arange(20), torch.arange(4).repeat_interleave(5), tuple(WORDS), ("all",) * 4)
    return EpisodeSampler(data, ways=3, shots=2, queries=2)


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# --- Kept states and features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_from_kept_states_the_model_computes_what_it_computes_from_the_start(own, pooling, first) -> None:
    adapter = disturbed(Adapter(own, rank=2, layers=range(first, 3)))
    states, rows = LowerStates(own, POOL, first, pooling), [3, 11, 0]
    ids = [states.ids[row] for row in rows]
    for layer in range(first, 4):
        for acting in (None, adapter):
            found = states.above(rows, layer, acting)
            if acting is None:
                expected = hidden_states(own, ids, [layer])[0]
            else:
                with adapter.active():
                    expected = hidden_states(own, ids, [layer])[0]
            for one, other, tokens in zip(found, expected, ids):
                torch.testing.assert_close(one[: len(tokens)], other[: len(tokens)], rtol=0, atol=1e-10)


def test_states_are_those_of_the_model_without_adapters_and_are_computed_once(own, monkeypatch) -> None:
    adapter = disturbed(Adapter(own, rank=2))  # acts below as well
    states = LowerStates(own, POOL, 2)
    plain = hidden_states(own, [states.ids[4]], [2])[0, 0]
    with adapter.active():
        states.fill([4])
    calls: list[int] = []
    monkeypatch.setattr("metabook.llm.adapted.hidden_states", lambda *a: calls.append(1) or hidden_states(*a))
    states.fill([4])
    assert not calls
    assert torch.equal(states._kept[4], plain)
    states.fill([4, 5])
    assert len(calls) == 1


def test_states_can_be_kept_in_a_file_which_fits_no_other_pool(own, tmp_path) -> None:
    states, path = LowerStates(own, POOL, 2), tmp_path / "states.safetensors"
    states.fill([1, 7, 4])
    states.save(path)
    Adapter(own, rank=2)  # does not change what the states depend on
    again = LowerStates(own, POOL, 2)
    again.load(path)
    assert sorted(again._kept) == [1, 4, 7]
    assert all(torch.equal(again._kept[row], states._kept[row]) for row in again._kept)
    for other in (LowerStates(own, POOL[1:], 2), LowerStates(own, POOL, 1), LowerStates(own, POOL, 2, "mean")):
        with pytest.raises(StorageError, match="delete it"):
            other.load(path)
    own.model.model.layers[0].mlp.up_proj.weight.data += 1
    with pytest.raises(StorageError, match="another model"):
        again.load(path)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_at_the_plain_start_they_are_those_of_frozen_prototypes(own, pooling) -> None:
    table = features(own, POOL, 3, pooling)
    expected = LLMPrototypes(table, TRAINING).embed(torch.arange(20))
    plain = AdaptedFeatures(Adapter(own, rank=2, layers=[2]), LowerStates(own, POOL, 2, pooling), 3, TRAINING)
    torch.testing.assert_close(plain(torch.arange(20)), expected, rtol=0, atol=1e-10)


def test_rows_of_any_shape_and_twice(own) -> None:
    net = adapted(own)
    every = net(torch.arange(20))
    rows = torch.tensor([[7, 2, 7], [19, 0, 2]])
    torch.testing.assert_close(net(rows), every[rows], rtol=0, atol=1e-10)


def test_another_adapter_beside_shares_mean_and_states_but_not_weights(own) -> None:
    net = adapted(own)
    twin = net.beside(Adapter(own, rank=2, layers=[1, 2], seed=5))
    assert twin.states is net.states
    assert torch.equal(twin.mean, net.mean)
    assert not torch.allclose(twin(torch.arange(3)), net(torch.arange(3)), atol=1e-2)
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in net.parameters()})


def test_gradients_are_right_and_only_the_adapters(own) -> None:
    net, rows = adapted(own), torch.arange(6)
    weights = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value() -> torch.Tensor:
        return (net(rows) * weights).sum()

    value().backward()
    directions = [torch.randn_like(p) for p in net.parameters()]
    slope, h, ends = sum((p.grad * d).sum() for p, d in zip(net.parameters(), directions)), 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(net.parameters(), directions):
                p += sign * h * d
            ends.append(value())
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for name, p in own.model.named_parameters() if "lora" not in name)


# --- Adaptation ---------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand() -> None:
    z = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, total = torch.tensor([0, 1, 2, 0, 1, 0, 1]), 0.0  # class 2 has one example
    for i in range(7):
        logits = []
        for k in range(3):
            others = [j for j in range(7) if y[j] == k and j != i]
            centre = torch.stack([z[j] for j in others]).mean(0) if others else z[i]
            logits.append(-2.0 * (z[i] - centre).square().sum())
        total = total - torch.stack(logits).log_softmax(0)[y[i]]
    torch.testing.assert_close(leave_one_out(z, y, 3, 2.0), total / 7)


def test_without_steps_it_is_prototypes_of_the_start(own, source) -> None:
    net, episodes = adapted(own), source.sample(2)
    expected = ProtoNet(torch.nn.Identity())
    expected.embed = lambda x: math.sqrt(10.0) * net(x)
    logits = AdapterFewShot(net, steps=0).predict(episodes)
    torch.testing.assert_close(logits, expected.predict(episodes).detach())
    torch.testing.assert_close(AdapterFewShot(net, steps=2).trajectory(episodes, [0, 2])[0], logits)


@pytest.fixture
def noisy() -> EpisodeSampler:
    """Classes that differ in two of twelve features; the others, ten times as loud, are noise."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(map(str, range(24)))
    x = 4 * torch.randn(24, 12, 12, generator=generator)
    x[:, :, :2] = 2 * torch.randn(24, 1, 2, generator=generator) + 0.2 * x[:, :, 2:4]
    y = torch.arange(24).repeat_interleave(12)
    return EpisodeSampler(LabelledData(x.flatten(0, 1), y, names, names), ways=4, shots=4, queries=4)


def test_behind_frozen_features_a_start_is_meta_learned_and_steps_from_it_help(noisy) -> None:
    torch.manual_seed(0)
    plain = AdapterFewShot(Adapted(12, 4, 1.0), 1e-2, 5)
    learner = MetaAdapter(Adapted(12, 4, 1.0), "fomaml", 1e-2, 5)
    before = evaluate(plain, noisy, tasks=30).mean
    fit(learner, noisy, steps=60, tasks=4, lr=3e-2, progress=False)
    after = evaluate(learner, noisy, tasks=30).mean
    assert after > before + 0.1
    task, losses = noisy.sample(1, step=1), []
    with learner.restored():
        for _ in learner.descend(task, 5):
            losses.append(learner.inner_loss(task, 0).item())
    assert losses[-1] < losses[0], "steps go down on the task's own examples"


def test_an_adaptation_is_kept_until_something_changes(noisy, monkeypatch) -> None:
    torch.manual_seed(0)
    learner = AdapterFewShot(Adapted(12, 4, 1.0), 1e-2, 3)
    runs: list[int] = []
    descend = AdapterFewShot.descend
    monkeypatch.setattr(AdapterFewShot, "descend", lambda *a: runs.append(1) or descend(*a))
    task, other = noisy.sample(2).split(1)
    first = learner.predict(task)
    assert torch.equal(first, learner.predict(task))
    assert len(runs) == 1
    changes = [
        lambda: None,  # another task, and this one again
        lambda: setattr(learner, "steps", 2),
        lambda: setattr(learner, "inner_lr", 2e-2),
        lambda: learner.net.down.weight.data.mul_(2),
    ]
    for count, change in enumerate(changes):
        learner.predict(other)
        change()
        fresh = copy.deepcopy(learner)
        fresh._kept = None
        assert torch.equal(learner.predict(task), fresh.trajectory(task, [fresh.steps])[0]), count
    corrected = Episodes(task.support_x, task.support_y.flip(1), task.query_x, task.query_y)
    assert not torch.allclose(learner.predict(corrected), learner.predict(task))


def test_the_spread_is_taken_away_as_unbiased_prototypes_do(noisy) -> None:
    task = noisy.sample(1)
    rows = [0, 4, 8, 12, 1, 2, 3]  # four examples of the first class, one of each other
    unequal = Episodes(task.support_x[:, rows], task.support_y[:, rows], task.query_x, task.query_y)
    learner = AdapterFewShot(Adapted(12, 4, 1.0), steps=0, sharpness=16.0, spread=0.7)
    expected = UnbiasedPrototypes(Adapted(12, 4, 4.0), 16.0 * 0.7)
    torch.testing.assert_close(learner.predict(unequal), expected.predict(unequal).detach())
    with pytest.raises(ValueError, match="spread"):
        AdapterFewShot(Adapted(12, 4, 1.0), spread=-1.0)


@pytest.mark.parametrize("adam", [False, True])
def test_inner_steps_by_hand(own, source, adam) -> None:
    net, episodes = adapted(own), source.sample(2)
    learner = AdapterFewShot(net, inner_lr=0.05, steps=2, adam=adam)
    found, start = learner.trajectory(episodes, [1, 2]), values(net)
    for t, task in enumerate(episodes.split(1)):
        squares = [torch.zeros_like(p) for p in start]
        for step in range(2):
            z = net(task.support_x[0])
            grads = torch.autograd.grad(leave_one_out(z, task.support_y[0], 3, 10.0), list(net.parameters()))
            with torch.no_grad():
                for p, g, v in zip(net.parameters(), grads, squares):
                    v.mul_(0.999).add_(0.001 * g**2)
                    scale = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8 if adam else 1.0
                    p -= 0.05 * g / scale
            expected = AdapterFewShot(net, steps=0).predict(task)[0]
            torch.testing.assert_close(found[step, t], expected, rtol=0, atol=1e-7)
        for p, value in zip(net.parameters(), start):
            p.data.copy_(value)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_nothing_is_left_behind(own, source, monkeypatch) -> None:
    before, ids = own.logits([5, 17, 42]), [5, 17, 42]
    net = adapted(own)
    learner, start = AdapterFewShot(net, steps=3, inner_lr=0.1), values(net)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    first = learner.predict(source.sample(2))
    assert torch.equal(learner.predict(source.sample(2)), first)  # one task leaves nothing for the next
    monkeypatch.setattr(learner, "inner_loss", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        learner.predict(source.sample(1))
    assert all(torch.equal(one, other) for one, other in zip(values(net), start))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert torch.equal(own.logits(ids), before)


def test_steps_lower_the_inner_loss(own, source) -> None:
    learner = AdapterFewShot(adapted(own, scale=0.05), inner_lr=1e-2)
    (task,) = source.sample(1).split(1)
    losses = []
    for _ in learner.descend(task, 6):
        losses.append(learner.inner_loss(task, 0).item())
    assert losses[-1] < 0.9 * losses[0]


# --- Meta-learned starts ------------------------------------------------------------------------------------------


def test_fomaml_is_the_query_gradient_where_the_inner_loop_ends(own, source) -> None:
    # At ten times the rate the loop is chaotic: a change of a weight by 1e-15 of itself changes the gradient by 1e-3.
    net, episodes = adapted(own), source.sample(2)
    start = values(net)
    learner = MetaAdapter(net, "fomaml", inner_lr=0.005, train_steps=2, adam=False)
    loss = learner.accumulate_gradients(episodes)
    expected, losses = [torch.zeros_like(p) for p in start], []
    for task in episodes.split(1):
        for _ in range(2):
            z = net(task.support_x[0])
            grads = torch.autograd.grad(leave_one_out(z, task.support_y[0], 3, 10.0), list(net.parameters()))
            for p, g in zip(net.parameters(), grads):
                p.data -= 0.005 * g
        z = net(torch.cat([task.support_x[0], task.query_x[0]]))
        means = torch.stack([z[:6][task.support_y[0] == k].mean(0) for k in range(3)])
        query = F.cross_entropy(-10.0 * torch.cdist(z[6:], means).square(), task.query_y[0])
        losses.append(query.item())
        for total, g in zip(expected, torch.autograd.grad(query, list(net.parameters()))):
            total += g / 2
        for p, value in zip(net.parameters(), start):
            p.data.copy_(value)
    for p, g in zip(net.parameters(), expected):
        torch.testing.assert_close(p.grad, g, rtol=1e-11, atol=1e-11)
    assert float(loss) == pytest.approx(sum(losses) / 2)


def test_reptile_is_the_mean_way_back_from_the_end_of_training_on_all_examples(own, source) -> None:
    net, episodes = adapted(own), source.sample(2)
    start, expected = values(net), []
    for task in episodes.split(1):
        x, y = torch.cat([task.support_x[0], task.query_x[0]]), torch.cat([task.support_y[0], task.query_y[0]])
        for _ in range(3):
            grads = torch.autograd.grad(leave_one_out(net(x), y, 3, 10.0), list(net.parameters()))
            for p, g in zip(net.parameters(), grads):
                p.data -= 0.05 * g
        expected.append([before - p.detach() for before, p in zip(start, net.parameters())])
        for p, value in zip(net.parameters(), start):
            p.data.copy_(value)
    learner = MetaAdapter(net, "reptile", inner_lr=0.05, train_steps=3, adam=False)
    learner.accumulate_gradients(episodes)
    learner.accumulate_gradients(episodes)  # gradients add up, as those of a loss do
    for p, one, two in zip(net.parameters(), *expected):
        torch.testing.assert_close(p.grad, one + two, rtol=1e-7, atol=1e-8)


def test_the_prototypical_start_is_trained_by_its_loss_without_inner_steps(own, source) -> None:
    net, episodes = adapted(own), source.sample(2)
    learner = MetaAdapter(net, in_turn=False, steps=2)
    learner.accumulate_gradients(episodes)
    found = [p.grad.clone() for p in net.parameters()]
    loss = F.cross_entropy(ProtoNet.predict(learner, episodes).flatten(0, 1), episodes.query_y.flatten())
    for g, expected in zip(found, torch.autograd.grad(loss, list(net.parameters()))):
        torch.testing.assert_close(g, expected)
    in_turn = MetaAdapter(net).loss(episodes)
    assert in_turn.item() != pytest.approx(loss.item())


@pytest.mark.parametrize("method", ["prototypes", "fomaml", "reptile"])
def test_fit_improves_each_start_and_leaves_the_model(own, source, method) -> None:
    before = own.logits([5, 17, 42])
    net = adapted(own, scale=0.02)
    learner = MetaAdapter(net, method, inner_lr=2e-3, train_steps=2)
    tasks = source.sample(4, 99)
    first = learner.loss(tasks).item()
    outer = dict(optimiser="sgd", lr=1.0) if method == "reptile" else dict(lr=5e-3)
    fit(learner, source, steps=12, tasks=2, progress=False, **outer)
    assert learner.loss(tasks).item() < first
    assert torch.equal(own.logits([5, 17, 42]), before)
    assert 0 <= evaluate(learner, source, tasks=2, chunk=2).mean <= 1


def test_a_run_can_be_interrupted_and_resumed(own, source, tmp_path) -> None:
    net = adapted(own, scale=0.02)
    start, path = values(net), tmp_path / "run.safetensors"
    learner = MetaAdapter(net)
    fit(learner, source, steps=4, tasks=1, progress=False)
    whole = values(net)

    class Stops:
        def sample(self, tasks, step=0):
            if step == 2:
                raise KeyboardInterrupt
            return source.sample(tasks, step)

    for p, value in zip(net.parameters(), start):
        p.data.copy_(value)
    with pytest.raises(KeyboardInterrupt):
        fit(learner, Stops(), steps=4, tasks=1, progress=False, checkpoint=path, save_seconds=0)
    fit(learner, source, steps=4, tasks=1, progress=False, checkpoint=path)
    assert all(torch.equal(one, other) for one, other in zip(values(net), whole))
    with pytest.raises(StorageError, match="another run"):
        fit(MetaAdapter(net, "reptile"), source, steps=4, tasks=1, progress=False, checkpoint=path)


# --- Self-supervision ---------------------------------------------------------------------------------------------


def test_the_masked_loss_by_hand(own) -> None:
    net = adapted(own)
    weights = rarity(own, POOL[:10])
    learner, rows = MaskedAdapter(net, weights=weights), torch.tensor([4, 13, 7])
    total = size = 0.0
    for row in rows.tolist():
        ids = net.states.ids[row]
        with net.adapter.active():
            log_p = own.logits(ids).log_softmax(1)
        for j in range(1, len(ids)):
            w = weights.get(ids[j], weights[-1])
            total, size = total - w * log_p[j - 1, ids[j]], size + w
    torch.testing.assert_close(learner.masked_loss(rows), total / size)
    assert learner.masked_loss(rows).requires_grad


def test_rarity_counts_texts(own) -> None:
    weights = rarity(own, ["aa b", "a c", "b"])
    a, b, c = (own.encode(text)[-1] for text in ("a", "b", "c"))
    assert weights[c] == pytest.approx(math.log(4 / 2))
    assert weights[a] == pytest.approx(math.log(4 / 3))  # twice in a text counts once
    assert weights[-1] == pytest.approx(math.log(4))
    assert b in weights


def test_a_rate_leaves_tokens_out_anew_in_each_step_and_none_is_no_error(own) -> None:
    net, rows = adapted(own), torch.arange(5)
    learner = MaskedAdapter(net, rate=0.3)
    losses = [learner.masked_loss(rows, step).item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    assert learner.masked_loss(rows).item() == MaskedAdapter(net).masked_loss(rows, 0).item()
    nothing = MaskedAdapter(net, weights={-1: 0.0}).masked_loss(rows)
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in net.parameters())


def test_only_with_the_queries_is_it_transductive(own, source) -> None:
    net, episodes = adapted(own), source.sample(1)
    alone = Episodes(
        episodes.support_x, episodes.support_y, episodes.query_x[:, :1], episodes.query_y[:, :1], episodes.classes
    )
    for queries in (False, True):
        learner = MaskedAdapter(net, inner_lr=0.02, steps=2, queries=queries)
        assert learner.transductive == queries
        same = torch.allclose(learner.predict(alone), learner.predict(episodes)[:, :1], atol=1e-9)
        assert same != queries


def test_labels_do_not_matter_to_masked_steps_unless_they_are_asked_for(own, source) -> None:
    net, episodes = adapted(own), source.sample(1)
    (task,) = episodes.split(1)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]])  # other pairs than 0, 1, 2, 0, 1, 2
    other = Episodes(task.support_x, labels, task.query_x, task.query_y, task.classes)
    for labelled in (0.0, 0.5):
        learner = MaskedAdapter(net, labelled=labelled)
        same = torch.equal(learner.inner_loss(task, 0), learner.inner_loss(other, 0))
        assert same == (labelled == 0)
    plain = AdapterFewShot(net).inner_loss(task, 0)
    expected = learner.masked_loss(task.support_x[0], 0) + 0.5 * plain
    torch.testing.assert_close(learner.inner_loss(task, 0), expected)


def test_fit_lowers_the_masked_loss_also_for_features_of_another_template(own, source) -> None:
    adapter = Adapter(own, rank=2, layers=[1, 2])
    net = AdaptedFeatures(adapter, LowerStates(own, POOL, 1, "last"), 3, TRAINING)
    learner = MaskedAdapter(net, LowerStates(own, POOL, 1, "mean"))
    first = learner.masked_loss(torch.arange(20)).item()
    fit(learner, source, steps=10, tasks=1, lr=1e-2, progress=False)
    assert learner.masked_loss(torch.arange(20)).item() < first - 0.05


def test_errors(own, source) -> None:
    states, adapter = LowerStates(own, POOL, 1), Adapter(own, rank=2, layers=[1])
    net = AdaptedFeatures(adapter, states, 3, TRAINING)
    with pytest.raises(ValueError, match="decoder layers 0 to 2, not 3"):
        LowerStates(own, POOL, 3)
    with pytest.raises(ValueError, match="pooling must be one of"):
        LowerStates(own, POOL, 1, "max")
    with pytest.raises(ValueError, match="text 1 has 0 tokens"):
        LowerStates(own, ["fine", ""], 1, "mean")
    with pytest.raises(ValueError, match="changes layer 0, but the states"):
        AdaptedFeatures(Adapter(own, rank=2), states, 3, TRAINING)
    with pytest.raises(ValueError, match="changes the features of layers 2 to 3, not of 1"):
        AdaptedFeatures(adapter, states, 1, TRAINING)
    with pytest.raises(ValueError, match="1 training texts are too few"):
        AdaptedFeatures(adapter, states, 3, [0])
    with pytest.raises(ValueError, match="take MetaAdapter"):
        fit(AdapterFewShot(net), source, steps=1, tasks=1, progress=False)
    with pytest.raises(ValueError, match="steps must increase"):
        AdapterFewShot(net).trajectory(source.sample(1), [5, 1])
    with pytest.raises(ValueError, match="must be positive"):
        AdapterFewShot(net, inner_lr=0)
    with pytest.raises(ValueError, match="method must be one of"):
        MetaAdapter(net, "maml")
    with pytest.raises(ValueError, match="train_steps must be at least 1"):
        MetaAdapter(net, "fomaml", train_steps=0)
    with pytest.raises(ValueError, match="the loss is for plain texts"):
        MaskedAdapter(net)
    with pytest.raises(ValueError, match="3 texts, but the features are of 20"):
        MaskedAdapter(net, LowerStates(own, POOL[:3], 1, "mean"))
    with pytest.raises(ValueError, match="but the texts' states enter layer 2"):
        MaskedAdapter(net, LowerStates(own, POOL, 2, "mean"))
    with pytest.raises(ValueError, match="rate must be"):
        MaskedAdapter(net, LowerStates(own, POOL, 1, "mean"), rate=0)
