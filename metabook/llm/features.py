"""Texts as vectors: hidden states of a frozen language model.

Two traps. A causal model's first token collects attention that has nowhere else to go (an *attention sink*: G. Xiao, Y.
Tian, B. Chen, S. Han, M. Lewis, Efficient Streaming Language Models with Attention Sinks, 2024,
https://arxiv.org/abs/2309.17453); in the middle layers its state is some hundred times longer than the others and is
the same for every text, so that a plain mean over the tokens is mostly that constant. ``pooling="mean"`` therefore puts
a token before the text and leaves it out of the mean. And the last token of a plain text predicts what comes next and
does not sum up what was said; ``pooling="last"`` therefore asks for it in one word (T. Jiang, S. Huang, Z. Luan, D.
Wang, F. Zhuang, Scaling Sentence Embeddings with Large Language Models, 2024, https://arxiv.org/abs/2307.16645).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metabook.data import store
from metabook.llm.model import LanguageModel

__all__ = [
    "ONE_WORD",
    "POOLINGS",
    "as_read",
    "cached_features",
    "decoder_layers",
    "features",
    "fingerprint",
    "hidden_states",
    "pool",
]

#: The template that asks for a text's meaning in its last token.
ONE_WORD = 'This sentence: "{x}" means in one word: "'
POOLINGS = ("last", "mean")
_VERSION = 1  # of what features() computes: another number, and nothing that was kept is used any more


def features(
    lm: LanguageModel,
    texts: Sequence[str],
    layer: int | Sequence[int],
    pooling: str = "last",
    *,
    template: str | None = None,
    batch: int = 8,
    progress: bool = False,
) -> Tensor:
    """One vector a text: a hidden state, or the mean of several.

    Layers above the highest one asked for are not computed.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
    layer : int or sequence of int
        0 are the embeddings of the tokens, ``lm.depth`` is the output after the last norm.
    pooling : {"last", "mean"}
        The state of the last token, or the mean over all tokens but the one that is put before the text.
    template : str, optional
        The text stands in the place of ``{x}``; unless given, :data:`ONE_WORD` for ``"last"`` and the text alone for
        ``"mean"``.
    batch : int
        Texts computed at a time, those of like length together; makes no difference to the result but rounding.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tensor [texts, width]
        float32 (float64 if the model is); for several layers ``[layers, texts, width]``.

    Raises
    ------
    ValueError
        For a layer or a pooling that there is not, or a text that is empty or too long for the model.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    if unknown := [each for each in layers if not 0 <= each <= lm.depth]:
        raise ValueError(f"{lm.name} has layers 0 to {lm.depth}, not {unknown[0]}")
    ids, skipped = as_read(lm, texts, pooling, template), int(pooling == "mean")
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))  # the longest first: memory runs out at once or not
    pooled: list[Tensor] = []
    with tqdm(total=len(ids), disable=not progress, unit="text", desc="features") as bar:
        for start in range(0, len(order), batch):
            chunk = [ids[row] for row in order[start : start + batch]]
            states = hidden_states(lm, chunk, layers)
            pooled.append(pool(states, [len(tokens) for tokens in chunk], skipped, pooling))
            bar.update(len(chunk))
    if not pooled:
        return torch.empty([len(layers), 0, lm.width][isinstance(layer, int) :], device=lm.device)
    back = torch.tensor(order, device=lm.device).argsort()
    vectors = torch.cat(pooled, dim=1)[:, back]
    return vectors[0] if isinstance(layer, int) else vectors


def as_read(lm: LanguageModel, texts: Sequence[str], pooling: str, template: str | None = None) -> list[list[int]]:
    """Token ids of what the model reads of each text; for ``"mean"`` the first is the one that the mean leaves out.

    Parameters and errors are those of :func:`features`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if template is None:
        template = ONE_WORD if pooling == "last" else "{x}"
    before = [lm.start_token] if pooling == "mean" else []
    ids = [before + lm.encode(template.replace("{x}", text)) for text in texts]
    for row, tokens in enumerate(ids):
        if not len(before) < len(tokens) <= lm.context:
            raise ValueError(f"text {row} has {len(tokens) - len(before)} tokens; {lm.name} takes 1 to {lm.context}")
    return ids


def cached_features(
    lm: LanguageModel,
    texts: Sequence[str],
    layer: int | Sequence[int],
    pooling: str = "last",
    *,
    template: str | None = None,
    block: int = 250,
    progress: bool = False,
) -> Tensor:
    """:func:`features`, kept in the cache: computed once for the same model, settings and texts.

    The texts are cut into blocks, each a file of its own below ``llm`` in the cache; what is interrupted goes on at its
    block. A file's name is a hash of all that its content depends on: the weights, the tokens that are read, the layers
    and the pooling. Nothing ever needs to be deleted but to save room.

    Parameters
    ----------
    lm : LanguageModel
        Without adapters: their scale is in no weight, so that the hash would miss it.
    texts, layer, pooling, template
        As for :func:`features`.
    block : int
        Texts a file. The same texts in other blocks are computed again.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tensor [texts, width]
        For several layers ``[layers, texts, width]``.

    Raises
    ------
    ValueError
        As :func:`features`, and for a model with adapters.
    """
    if hasattr(lm.model, "peft_config"):
        raise ValueError(f"{lm.name} has adapters: use features(), or take them off")
    layer = layer if isinstance(layer, int) else list(layer)
    weights, found = fingerprint(lm), []
    with tqdm(total=len(texts), disable=not progress, unit="text", desc="features") as bar:
        for start in range(0, max(len(texts), 1), block):
            part = texts[start : start + block]
            key = json.dumps([_VERSION, weights, layer, pooling, as_read(lm, part, pooling, template)])

            def compute(part: Sequence[str] = part) -> store.Arrays:
                return {"features": features(lm, part, layer, pooling, template=template).cpu().numpy()}

            found.append(torch.from_numpy(store.cached_arrays("llm/features", key, compute)["features"]))
            bar.update(len(part))
    return torch.cat(found, dim=-2).to(lm.device)


def fingerprint(lm: LanguageModel) -> str:
    """A hash of a model's settings and own weights, in half a second; adapters, at work or not, do not count."""
    digest = hashlib.sha256(lm.config.to_json_string().encode())
    for name, tensor in lm.model.state_dict().items():
        if ".lora_" in name:
            continue
        digest.update(name.replace(".base_layer", "").encode())  # PEFT puts a weight that has an adapter one deeper
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def pool(states: Tensor, lengths: list[int], skipped: int, pooling: str) -> Tensor:
    """``[layers, texts, tokens, width]`` to ``[layers, texts, width]``, without the padding."""
    states = states if states.dtype == torch.float64 else states.float()
    ends = torch.tensor(lengths, device=states.device)
    if pooling == "last":
        return states[:, torch.arange(len(lengths), device=states.device), ends - 1]
    places = torch.arange(states.shape[2], device=states.device)
    inside = (places >= skipped) & (places < ends.unsqueeze(1))  # [texts, tokens]
    return states.masked_fill(~inside.unsqueeze(-1), 0.0).sum(2) / (ends - skipped).unsqueeze(1)


class _Enough(Exception):
    """The last state that was asked for is there."""


def hidden_states(lm: LanguageModel, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> Tensor:
    """Hidden states after some layers, ``[layers, texts, tokens, width]``; the computation ends with the highest.

    Texts are padded at their end, and need no mask: in a causal model nothing depends on what comes after it.

    Parameters
    ----------
    lm : LanguageModel
    ids : sequence of sequence of int
        Token ids of each text.
    layers : sequence of int
        Between 0 and ``lm.depth``, as for :func:`features`.
    """
    longest = max(map(len, ids))
    padded = torch.tensor([[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens in ids], device=lm.device)
    found: dict[int, Tensor] = {}

    def keep(layer: int, first: Callable[..., Tensor]) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], *rest: Any) -> None:
            found[layer] = first(arguments, *rest)
            if layer == max(layers):
                raise _Enough

        return hook

    with ExitStack() as hooks:
        for layer in set(layers):
            if layer == lm.depth:  # what enters the head: after the last norm
                hook = lm.model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
                    keep(layer, lambda arguments: arguments[0])
                )
            else:  # what enters the next layer
                hook = decoder_layers(lm)[layer].register_forward_pre_hook(
                    keep(layer, lambda arguments, named: arguments[0] if arguments else named["hidden_states"]),
                    with_kwargs=True,
                )
            hooks.callback(hook.remove)
        with suppress(_Enough):
            lm.model(padded, use_cache=False)
    return torch.stack([found[layer] for layer in layers])


def decoder_layers(lm: LanguageModel) -> nn.ModuleList:
    """The layers of a transformer, whatever its family calls them."""
    for module in lm.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == lm.depth:
            return module
    raise ValueError(f"{lm.name} is no stack of layers that metabook knows")
