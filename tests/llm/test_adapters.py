"""LoRA adapters: the formula, the plain start, and a model that is unchanged outside of the block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metabook.llm import Adapter, LanguageModel

IDS = [5, 17, 42, 7]


@pytest.fixture
def own(lm, make_llama, tokeniser) -> LanguageModel:
    """A model of each test's own: adapters stay in it."""
    return LanguageModel(make_llama(len(tokeniser)).double(), tokeniser, "tiny")


def disturb(adapter: Adapter, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def test_it_starts_as_the_model_itself_and_acts_only_inside_the_block(own) -> None:
    before = own.logits(IDS)
    adapter = Adapter(own, rank=2)
    with adapter.active() as lm:
        assert lm is own
        assert torch.equal(own.logits(IDS), before)
    disturb(adapter)
    assert torch.equal(own.logits(IDS), before)
    with adapter.active():
        assert not torch.allclose(own.logits(IDS), before, atol=1e-2)
    with pytest.raises(RuntimeError, match="stop"), adapter.active():
        raise RuntimeError("stop")
    assert torch.equal(own.logits(IDS), before)


def test_a_map_computes_the_formula(own) -> None:
    layer = own.model.model.layers[1].self_attn
    x, plain = torch.randn(3, 32, dtype=torch.float64), layer.q_proj.weight.clone()
    adapter = Adapter(own, rank=2, alpha=6, layers=[1], targets=["q_proj"])
    disturb(adapter)
    a, b = (parameter.double() for parameter in adapter.parameters())
    assert (a.shape, b.shape) == ((2, 32), (32, 2))
    with adapter.active():
        torch.testing.assert_close(layer.q_proj(x), F.linear(x, plain + 3.0 * b @ a))


def test_only_its_own_parameters_get_gradients_and_they_train(own) -> None:
    adapter = Adapter(own, rank=2, layers=[1, 2])
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        with adapter.active():
            loss = F.cross_entropy(own.logits(IDS)[:-1], torch.tensor(IDS[1:]))
        optimiser.zero_grad()
        loss.backward()  # outside of the block: the graph remembers
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    weights = [p for name, p in own.model.named_parameters() if "lora" not in name]
    assert all(p.grad is None and not p.requires_grad for p in weights)


def test_two_adapters_take_turns_and_blocks_nest(own) -> None:
    before, first, second = own.logits(IDS), Adapter(own, rank=2, layers=[0]), Adapter(own, rank=4, layers=[0, 2])
    disturb(first, 1)
    disturb(second, 2)
    with first.active():
        one = own.logits(IDS)
        with second.active():
            two = own.logits(IDS)
        assert torch.equal(own.logits(IDS), one)
    assert not torch.allclose(one, two)
    assert not torch.allclose(two, before)
    second.reset()
    with second.active():
        assert torch.equal(own.logits(IDS), before)


def test_a_state_can_be_kept_and_put_back_and_a_seed_fixes_the_start(own) -> None:
    adapter, twin = Adapter(own, rank=2, seed=3), Adapter(own, rank=2, seed=4)
    start = {name: value.clone() for name, value in adapter.state_dict().items()}
    disturb(adapter)
    adapter.load_state_dict(start)
    twin.reset(3)
    for one, other in zip(adapter.parameters(), twin.parameters()):
        assert torch.equal(one, other)
    twin.reset()
    assert not all(torch.equal(one, other) for one, other in zip(adapter.parameters(), twin.parameters()))


def test_making_one_draws_nothing_from_the_global_generator(own) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Adapter(own, rank=2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": [3]}, "has decoder layers 0 to 2, not 3"), ({"targets": ["c_attn"]}, "have no map c_attn")],
)
def test_what_the_model_lacks_is_named(own, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(own, **options)
