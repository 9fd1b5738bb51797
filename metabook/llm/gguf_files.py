"""GGUF files: the weights, the settings and the tokeniser of a Llama, read in two seconds.

GGUF is the format of llama.cpp: a header of named values, a table of tensors, and the tensors in blocks of a few bits a
weight (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The package ``gguf`` turns the blocks into numbers;
the header is read here, because its reader makes an array of every string of the vocabulary.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from metabook.data.store import DataError

__all__ = ["GGUF", "read"]

_NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # types of token that are matched whole in a text


@dataclass(frozen=True)
class GGUF:
    """A GGUF file with its header read; the tensors stay on the disk until they are asked for.

    Parameters
    ----------
    path : Path
    values : dict
        The header's named values: numbers, strings, and lists of strings or arrays of numbers.
    tensors : dict
        Raw blocks ``uint8 [rows, bytes]`` (mapped from the file), type of quantisation and shape of each tensor.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType, tuple[int, ...]]]

    def config(self) -> dict[str, Any]:
        """Arguments of ``transformers.LlamaConfig``.

        Raises
        ------
        DataError
            For another architecture than Llama, or positions that are rescaled.
        """
        if (kind := self.values.get("general.architecture")) != "llama":
            raise self._error(f"holds a model of the kind {kind!r}, and only Llama's are read from GGUF")
        if self._setting("rope.scaling.type", "none") != "none":
            raise self._error("rescales its positions, which is not read from GGUF")
        heads = self._setting("attention.head_count")
        return {
            "vocab_size": self.tensors["token_embd.weight"][2][0],
            "hidden_size": self._setting("embedding_length"),
            "intermediate_size": self._setting("feed_forward_length"),
            "num_hidden_layers": self._setting("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._setting("attention.head_count_kv", heads),
            "head_dim": self._setting("attention.key_length", self._setting("embedding_length") // heads),
            "max_position_embeddings": self._setting("context_length"),
            "rms_norm_eps": self._setting("attention.layer_norm_rms_epsilon"),
            "rope_parameters": {"rope_type": "default", "rope_theta": self._setting("rope.freq_base", 10_000.0)},
            "tie_word_embeddings": "output.weight" not in self.tensors,
            **{f"{name}_token_id": self._special(name) for name in ("bos", "eos", "pad")},
        }

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names, as in ``transformers.LlamaForCausalLM``, and float32 values of all tensors.

        Raises
        ------
        DataError
            For a tensor that a Llama does not have.
        """
        heads = self._setting("attention.head_count")
        counts = {"attn_q": heads, "attn_k": self._setting("attention.head_count_kv", heads)}
        for name, (blocks, kind, shape) in self.tensors.items():
            found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
            if found is None or found[2] not in _TENSORS:
                raise self._error(f"holds a tensor {name!r}, which is not read from GGUF")
            values = torch.from_numpy(dequantize(blocks, kind).reshape(shape).astype(np.float32, copy=False).copy())
            if found[2] in counts:  # llama.cpp pairs neighbouring rows in its rotations, transformers halves of a head
                values = values.view(counts[found[2]], -1, 2, *shape[1:]).transpose(1, 2).reshape(shape)
            layer = "" if found[1] is None else f"model.layers.{found[1]}."
            yield f"{layer}{_TENSORS[found[2]]}.{found[3]}", values

    def tokeniser(self) -> Any:
        """The tokeniser, a ``transformers.PreTrainedTokenizerFast`` that adds no tokens by itself.

        Raises
        ------
        DataError
            For another kind than byte-level BPE, or an unknown way to split a text into words.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        if (kind := self.values.get("tokenizer.ggml.model")) != "gpt2":
            raise self._error(f"has a tokeniser of the kind {kind!r}, which is not read from GGUF")
        words: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if (split := self.values.get("tokenizer.ggml.pre", "default")) == "smollm":
            words.insert(0, pre_tokenizers.Digits(individual_digits=True))
        elif split not in ("default", "gpt-2"):
            raise self._error(f"splits texts in a way, {split!r}, that is not read from GGUF")
        tokens = self.values["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in self.values["tokenizer.ggml.merges"]]
        backend = Tokenizer(models.BPE(vocab={token: row for row, token in enumerate(tokens)}, merges=merges))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(words), decoders.ByteLevel()
        kinds = self.values.get("tokenizer.ggml.token_type", np.ones(len(tokens)))
        for kind, add in ((_CONTROL, backend.add_special_tokens), (_USER_DEFINED, backend.add_tokens)):
            add([AddedToken(tokens[row], normalized=False) for row in np.flatnonzero(kinds == kind)])
        special = {f"{name}_token": self._special(name) for name in ("bos", "eos", "pad")}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=self.values.get("tokenizer.chat_template"),
            model_max_length=self._setting("context_length"),
            **{name: tokens[row] for name, row in special.items() if row is not None},
        )

    def _setting(self, name: str, default: Any = None) -> Any:
        value = self.values.get(f"llama.{name}", default)
        if value is None:
            raise self._error(f"does not say its {name}")
        return value

    def _special(self, name: str) -> int | None:
        key = {"pad": "padding"}.get(name, name)
        return self.values.get(f"tokenizer.ggml.{key}_token_id")

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.path} {what}: give a folder of transformers' instead (config.json, *.safetensors)")


def read(path: Path) -> GGUF:
    """Open a GGUF file and read its header.

    Raises
    ------
    DataError
        If the file is no GGUF, or damaged.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
        header = _Header(data)
        values, table = header.values(), header.tensors()
        tensors = {name: _blocks(data, header.start(values), *entry) for name, entry in table.items()}
    except (OSError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as a GGUF file ({error}): fetch it anew") from None
    return GGUF(path, values, tensors)


def _blocks(
    data: np.ndarray, start: int, shape: tuple[int, ...], kind: GGMLQuantizationType, offset: int
) -> tuple[np.ndarray, GGMLQuantizationType, tuple[int, ...]]:
    size, width = GGML_QUANT_SIZES[kind]  # weights a block, bytes a block
    rows, row = int(np.prod(shape[:-1])), shape[-1] // size * width
    blocks = data[start + offset : start + offset + rows * row]
    if len(blocks) != rows * row:
        raise ValueError("it ends before its tensors do")
    return blocks.reshape(rows, row), kind, shape


class _Header:
    """Reads a GGUF header from front to back."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data.data, 0
        magic, version, self.tensor_count, self.value_count = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it does not begin like one of version 2 or 3")

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if self.at + length > len(self.data):
            raise ValueError("it ends inside its header")
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            kind, count = self._take("<IQ")
            if kind in (GGUFValueType.STRING, GGUFValueType.ARRAY):
                return [self._value(kind) for _ in range(count)]
            return self._numbers(kind, count)
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        numbers = np.frombuffer(self.data, np.dtype(_NUMBERS[GGUFValueType(kind)]), count, self.at)
        self.at += numbers.nbytes
        return numbers

    def values(self) -> dict[str, Any]:
        return {self._string(): self._value(*self._take("<I")) for _ in range(self.value_count)}

    def tensors(self) -> dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]]:
        table = {}
        for _ in range(self.tensor_count):
            name = self._string()
            (dimensions,) = self._take("<I")
            shape = self._take(f"<{dimensions}Q")[::-1]  # llama.cpp counts dimensions from the last
            kind, offset = self._take("<IQ")
            table[name] = (shape, GGMLQuantizationType(kind), offset)
        return table

    def start(self, values: dict[str, Any]) -> int:
        """Where the tensors begin: after the header, at a multiple of the alignment."""
        alignment = values.get("general.alignment", 32)
        return -(-self.at // alignment) * alignment
