"""How probable a language model finds many texts that begin alike, in few forward passes.

Scoring five labels for ten queries after one prompt naively reads the prompt fifty times. The token sequences form a
tree (a trie): what they share, they share. The stem common to all is read once into the cache; then the branches are
laid side by side in *one* sequence, in which each token sees only its ancestors in the tree, and stands at the position
that it has in its own text. The result is that of separate passes, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metabook.llm.features import decoder_layers
from metabook.llm.model import LanguageModel

__all__ = ["METHODS", "Tree", "cache_argument", "log_probabilities", "read_into_cache"]

METHODS = ("packed", "cached", "naive")


def log_probabilities(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    method: str = "packed",
    *,
    tokens: int = 256,
) -> Tensor:
    r"""Log-probability of the end of each sequence given its beginning.

    .. math:: s_i = \sum_{t \ge \mathrm{start}_i} \log p(x_{i,t} \mid x_{i,<t}).

    Gradients flow if the model's parameters require them.

    Parameters
    ----------
    lm : LanguageModel
        For ``"packed"`` and ``"cached"``, one in which every layer attends to all earlier tokens.
    sequences : sequence of sequence of int
        Token ids.
    starts : sequence of int
        Index of the first token of each sequence that counts; at least 1.
    method : {"packed", "cached", "naive"}
        All branches in one pass; or one pass a branch, after a stem that is read once; or one pass a sequence.
    tokens : int
        Packed tokens a pass, unless a single sequence has more.

    Returns
    -------
    Tensor [sequences]

    Raises
    ------
    ValueError
        If nothing comes before a start or nothing after it, a sequence is too long for the model, or there is no such
        method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        if not 1 <= start < len(ids):
            raise ValueError(f"sequence {row}: something must come before its start, {start}, and something after it")
        if len(ids) > lm.context:
            raise ValueError(f"sequence {row} has {len(ids)} tokens and {lm.name} takes {lm.context}: give fewer shots")
    if not len(sequences):
        return torch.empty(0, device=lm.device)
    if method == "naive":
        return torch.stack([_alone(lm, ids, start) for ids, start in zip(sequences, starts)])
    differ = (at for at, here in enumerate(zip(*sequences)) if len(set(here)) > 1)
    stem = min(next(differ, min(starts)), *starts) - 1
    cache = read_into_cache(lm, sequences[0][:stem])  # without its last token, which is the root of the trees
    trees = [Tree(sequences[0][stem])]
    for ids, start in zip(sequences, starts):
        if len(trees[-1].ends) and (method == "cached" or len(trees[-1]) + trees[-1].added(ids[stem + 1 :]) > tokens):
            trees.append(Tree(ids[stem]))
        trees[-1].add(ids[stem + 1 :], start - stem - 1)
    return torch.cat([_score(lm, tree, cache, stem) for tree in trees])


@dataclass
class Tree:
    """Token sequences that share their first token, as the tree of their common beginnings.

    Parameters
    ----------
    root : int
        The first token.
    """

    root: int
    tokens: list[int] = field(init=False)
    parents: list[int] = field(init=False)
    depths: list[int] = field(init=False)
    #: For each sequence, the nodes whose log-probabilities are summed.
    ends: list[list[int]] = field(init=False, default_factory=list)
    _children: dict[tuple[int, int], int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens, self.parents, self.depths = [self.root], [-1], [0]

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.tokens)

    def added(self, ids: Sequence[int]) -> int:
        """How many nodes a sequence (without its root) would add."""
        node = 0
        for at, token in enumerate(ids):
            if (node := self._children.get((node, token), -1)) < 0:
                return len(ids) - at
        return 0

    def add(self, ids: Sequence[int], start: int) -> None:
        """Add a sequence, without its root, whose tokens from ``start`` on count."""
        node, path = 0, []
        for token in ids:
            child = self._children.setdefault((node, token), len(self))
            if child == len(self):
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1)
            path.append(node := child)
        self.ends.append(path[start:])

    def visible(self) -> Tensor:
        """Which node sees which: ``[nodes, nodes]``, true for itself and its ancestors."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):  # a parent comes before its children
            seen[node] |= seen[parent]
        return seen


def _alone(lm: LanguageModel, ids: Sequence[int], start: int) -> Tensor:
    inputs = torch.tensor([ids], device=lm.device)
    kept = torch.arange(start - 1, len(ids) - 1, device=lm.device)
    logits = lm.model(inputs, use_cache=False, logits_to_keep=kept).logits[0]
    return _log_p(logits, inputs[0, start:]).sum()


def _log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def read_into_cache(lm: LanguageModel, ids: Sequence[int]) -> Any:
    """A cache of the keys and values of some tokens."""
    from transformers import DynamicCache

    cache = DynamicCache(config=lm.config)
    if len(ids):
        inputs = torch.tensor([ids], device=lm.device)
        lm.model(inputs, use_cache=True, logits_to_keep=1, **{cache_argument(lm): cache})
    return cache


def cache_argument(lm: LanguageModel) -> str:
    """What this version of transformers calls it."""
    names = inspect.signature(type(decoder_layers(lm)[0]).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _score(lm: LanguageModel, tree: Tree, cache: Any, stem: int) -> Tensor:
    """Sums of the log-probabilities of a tree's sequences, ``[sequences]``; the cache is left as it was."""
    nodes = torch.tensor(sorted({node for path in tree.ends for node in path}))
    parents = torch.tensor(tree.parents)[nodes]
    kept, row = parents.unique(return_inverse=True)
    tokens, device = torch.tensor(tree.tokens), lm.device
    blocked = torch.zeros(len(tree), stem + len(tree), dtype=lm.dtype)
    blocked[:, stem:].masked_fill_(~tree.visible(), torch.finfo(lm.dtype).min)
    logits = lm.model(
        tokens.unsqueeze(0).to(device),
        attention_mask=blocked[None, None].to(device),
        position_ids=(stem + torch.tensor([tree.depths])).to(device),
        use_cache=True,
        logits_to_keep=kept.to(device),
        **{cache_argument(lm): cache},
    ).logits[0]
    cache.crop(-len(tree))
    log_p = _log_p(logits[row.to(device)], tokens[nodes].to(device))
    places = {int(node): place for place, node in enumerate(nodes)}
    return torch.stack([log_p[[places[node] for node in path]].sum() for path in tree.ends])
