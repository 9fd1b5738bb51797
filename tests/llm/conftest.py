"""A tiny Llama with random weights and a tiny tokeniser, in memory and in both kinds of file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from metabook.llm import LanguageModel

SENTENCES = [
    "Please transfer 20 pounds to my savings account.",
    "What is the weather in Paris today?",
    "Classify the user message by intent.",
    "This sentence means in one word",
    "Message: play some music\nIntent: play music\n\nMessage: N/A",
] * 3
CONTROL = ["<|end|>", "<|start|>"]


@pytest.fixture(scope="session")
def tokeniser():
    """Byte-level BPE with a few merges, digits one by one; two control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=alphabet, special_tokens=CONTROL, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>")


def _make_llama(vocabulary: int, tied: bool = True, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.3,  # large enough that predictions differ
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_llama():
    return _make_llama


@pytest.fixture(scope="session")
def lm(tokeniser) -> LanguageModel:
    """The tiny model in float64 throughout, so that rounding hides nothing."""
    llama = _make_llama(len(tokeniser)).double()
    for module in list(llama.modules()):  # transformers' norm computes in float32 whatever it is given
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight.data.copy_(child.weight)
                setattr(module, name, norm.requires_grad_(False))
    return LanguageModel(llama, tokeniser, "tiny")


PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _write_gguf(path: Path, model, tokeniser, *, kind: str = "F32", architecture: str = "llama") -> Path:
    """The model as llama.cpp's converter writes it; matrices in the given quantisation."""
    config, kind_of_matrices = model.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    spelled = json.loads(tokeniser.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(spelled["vocab"], key=spelled["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in CONTROL else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in spelled["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        if part in PARTS and name.startswith("model.layers."):
            stored = f"blk.{layer}.{PARTS[part]}"
        else:
            stored = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                name.removesuffix(".weight")
            ]
        if stored.endswith(("attn_q", "attn_k")):  # row i of a head's first half goes before row i of its second
            size = config.head_dim
            within = np.arange(size).reshape(2, size // 2).T.ravel()
            values = values[np.concatenate([size * head + within for head in range(len(values) // size)])]
        if values.ndim == 2 and kind != "F32":
            writer.add_tensor(f"{stored}.weight", gguf.quantize(values, kind_of_matrices), raw_dtype=kind_of_matrices)
        else:
            writer.add_tensor(f"{stored}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_gguf():
    return _write_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder of the user's own data."""
    monkeypatch.setenv("METABOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METABOOK_DATA", raising=False)
    return tmp_path / "cache"
