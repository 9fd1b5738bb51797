from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from metabook.llm import cached_features, features
from metabook.llm.features import ONE_WORD, decoder_layers, fingerprint, hidden_states

TEXTS = ["play music", "What is the weather in Paris today?", "N/A", "transfer 20 pounds, please {x}", "play music"]


def reference(lm, ids):
    """All hidden states of one text, as transformers gives them: ``[layers, tokens, width]``."""
    states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat(states)


def test_the_last_token_of_every_layer(lm) -> None:
    found = features(lm, TEXTS, range(lm.depth + 1))
    assert found.shape == (4, 5, 32)
    for row, text in enumerate(TEXTS):
        ids = lm.encode(ONE_WORD.replace("{x}", text))
        assert torch.allclose(found[:, row], reference(lm, ids)[:, -1], atol=1e-12)


def test_the_mean_leaves_the_first_token_out(lm) -> None:
    found = features(lm, TEXTS, [2, 0], "mean")
    for row, text in enumerate(TEXTS):
        states = reference(lm, [lm.start_token, *lm.encode(text)])
        assert torch.allclose(found[0, row], states[2, 1:].mean(0), atol=1e-12)
        assert torch.allclose(found[1, row], states[0, 1:].mean(0), atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_batches_change_nothing(lm, pooling) -> None:
    alone = torch.stack([features(lm, [text], 2, pooling)[0] for text in TEXTS])
    for batch in (2, 3, 5):
        assert torch.allclose(features(lm, TEXTS, 2, pooling, batch=batch), alone, atol=1e-12)
    assert torch.equal(alone[0], alone[4])
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_layers_above_are_not_computed(lm) -> None:
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(decoder_layers(lm))
    ]
    features(lm, TEXTS[:1], 2)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]
    assert not any(block._forward_pre_hooks for block in decoder_layers(lm))
    assert not lm.model.get_output_embeddings()._forward_pre_hooks


def test_a_template_and_one_layer(lm) -> None:
    found = features(lm, ["Paris"], 1, template="In {x} today")
    assert torch.allclose(found[0], reference(lm, lm.encode("In Paris today"))[1, -1], atol=1e-12)


def test_states_of_shorter_texts_come_first(lm) -> None:
    states = hidden_states(lm, [[5, 6, 7], [5, 6]], [3])
    assert states.shape == (1, 2, 3, 32)
    assert torch.allclose(states[0, 0, :2], states[0, 1, :2], atol=1e-12)


def test_no_texts(lm) -> None:
    assert features(lm, [], 1).shape == (0, 32)
    assert features(lm, [], [1, 2]).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], 4), "layers 0 to 3, not 4"),
        ((["a"], -1), "layers 0 to 3, not -1"),
        ((["a"], 1, "max"), "pooling must be one of last, mean"),
        ((["a", ""], 1, "mean"), "text 1 has 0 tokens"),
        ((["a " * 600], 1), r"text 0 has \d+ tokens; tiny takes 1 to 512"),
    ],
)
def test_errors(lm, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        features(lm, *arguments)


# --- Kept in the cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many texts were put through the model, call by call."""
    module, made = importlib.import_module("metabook.llm.features"), []
    original = module.hidden_states

    def counted(lm, ids, layers):
        made.append(len(ids))
        return original(lm, ids, layers)

    monkeypatch.setattr(module, "hidden_states", counted)
    return made


@pytest.mark.parametrize("layer", [2, [0, 3]])
def test_kept_features_are_the_features(lm, cache, read, layer) -> None:
    found = cached_features(lm, TEXTS, layer, "mean", block=2)
    assert torch.allclose(found, features(lm, TEXTS, layer, "mean"), atol=1e-12)
    assert len(list((cache / "llm").iterdir())) == 3
    read.clear()
    assert torch.equal(cached_features(lm, TEXTS, layer, "mean", block=2), found)
    assert read == []
    assert cached_features(lm, [], layer).shape == features(lm, [], layer).shape


def test_an_interrupted_computation_goes_on_at_its_block(lm, cache, read, monkeypatch) -> None:
    with pytest.raises(ValueError, match="tokens; tiny takes"):
        cached_features(lm, [*TEXTS[:4], "long " * 500], 2, block=2)
    read.clear()
    cached_features(lm, TEXTS, 2, block=2)
    assert sum(read) == 1


def test_whatever_changes_the_features_is_another_file(lm, cache, read, make_llama) -> None:
    cached_features(lm, TEXTS, 2)
    other = replace(lm, model=make_llama(len(lm.tokeniser), seed=1).double())
    for changed in (
        lambda: cached_features(other, TEXTS, 2),
        lambda: cached_features(lm, TEXTS, 1),
        lambda: cached_features(lm, TEXTS, 2, "mean"),
        lambda: cached_features(lm, TEXTS, 2, template="{x}!"),
        lambda: cached_features(lm, TEXTS[1:], 2),
    ):
        read.clear()
        changed()
        assert read


def test_one_changed_weight_changes_the_fingerprint(lm) -> None:
    before = fingerprint(lm)
    weight = lm.model.get_output_embeddings().weight
    kept = weight[3, 3].item()
    weight[3, 3] = kept + 1e-9
    changed = fingerprint(lm)
    weight[3, 3] = kept
    assert changed != before
    assert fingerprint(lm) == before


def test_a_damaged_file_is_made_again(lm, cache, read) -> None:
    found = cached_features(lm, TEXTS, 2)
    (path,) = (cache / "llm").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(cached_features(lm, TEXTS, 2), found)


def test_adapters_are_refused(lm, cache) -> None:
    adapted = nn.Module()
    adapted.peft_config = {}
    with pytest.raises(ValueError, match="has adapters"):
        cached_features(replace(lm, model=adapted), TEXTS, 2)
