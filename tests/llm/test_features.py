from __future__ import annotations

import pytest
import torch

from metabook.llm import features
from metabook.llm.features import ONE_WORD, decoder_layers, hidden_states

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
