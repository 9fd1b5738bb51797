"""Features that an adapter changes, with the part of the model below the adapter computed once.

An adapter on the upper layers leaves what enters them as it was. :class:`LowerStates` keeps those hidden states for
each text, so that a training step, and every step of an adaptation, costs only the layers from there on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from metabook.llm.adapters import Adapter, resting
from metabook.llm.features import as_read, decoder_layers, fingerprint, hidden_states, pool
from metabook.llm.model import LanguageModel
from metabook.storage import StorageError, read_tensors, write_tensors

__all__ = ["AdaptedFeatures", "LowerStates"]


class LowerStates:
    """The hidden states that enter a decoder layer, for each text of a pool: computed when first asked for, then kept.

    They are those of the model without any adapter, whichever is at work.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
        The pool; states are asked for by row number.
    layer : int
        The lowest decoder layer that will be run again and again; 0 keeps nothing but the tokens' embeddings.
    pooling : {"last", "mean"}
        What the states are for, see :func:`~metabook.llm.features.features`: for ``"mean"`` a token is put before.
    template : str, optional
        The text stands in the place of ``{x}``; unless given, :data:`~metabook.llm.features.ONE_WORD` for ``"last"``
        and the text alone for ``"mean"``.

    Raises
    ------
    ValueError
        For a layer or a pooling that there is not, or a text that is empty or too long for the model.
    """

    def __init__(
        self, lm: LanguageModel, texts: Sequence[str], layer: int, pooling: str = "last", template: str | None = None
    ) -> None:
        if not 0 <= layer < lm.depth:
            raise ValueError(f"{lm.name} has decoder layers 0 to {lm.depth - 1}, not {layer}")
        self.lm, self.layer, self.pooling, self.template = lm, layer, pooling, template
        #: Token ids of each text, as the model reads it.
        self.ids = as_read(lm, texts, pooling, template)
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.ids)

    @property
    def skipped(self) -> int:
        """How many tokens at the start of each text are not its own."""
        return int(self.pooling == "mean")

    def fill(self, rows: Sequence[int] | None = None, *, batch: int = 16, progress: bool = False) -> None:
        """Compute what is not there yet.

        Parameters
        ----------
        rows : sequence of int, optional
            Of all texts unless given.
        batch : int
            Texts computed at a time, those of like length together.
        progress : bool
            Show a progress bar.
        """
        missing = {row for row in (range(len(self)) if rows is None else rows) if row not in self._kept}
        if not missing:
            return
        order = sorted(missing, key=lambda row: (-len(self.ids[row]), row))
        with (
            torch.no_grad(),
            resting(self.lm),
            tqdm(total=len(order), disable=not progress, unit="text", desc=f"states below layer {self.layer}") as bar,
        ):
            for start in range(0, len(order), batch):
                chunk = order[start : start + batch]
                found = hidden_states(self.lm, [self.ids[row] for row in chunk], [self.layer])[0]
                for row, states in zip(chunk, found):
                    self._kept[row] = states[: len(self.ids[row])].clone()  # not a view, which would keep the padding
                bar.update(len(chunk))

    def above(self, rows: Sequence[int], layer: int, adapter: Adapter | None = None) -> Tensor:
        """States after ``layer`` layers, ``[texts, longest, width]``, with the adapter at work; gradients flow to it.

        Parameters
        ----------
        rows : sequence of int
        layer : int
            ``self.layer`` to ``lm.depth``, where the last is after the last norm.
        adapter : Adapter, optional
            None: as the model is without.
        """
        self.fill(rows)
        entering = pad_sequence([self._kept[row] for row in rows], batch_first=True)
        with adapter.active() if adapter is not None else resting(self.lm), _from_layer(self.lm, self.layer, entering):
            return hidden_states(self.lm, [self.ids[row] for row in rows], [layer])[0]

    def save(self, path: Path | str) -> None:
        """Keep what was computed in a file, atomically."""
        rows = sorted(self._kept)
        tensors = {"rows": torch.tensor(rows), "states": torch.cat([self._kept[row] for row in rows])}
        write_tensors(path, tensors, {"states": self._key()})

    def load(self, path: Path | str) -> None:
        """Take up what :meth:`save` wrote.

        Raises
        ------
        StorageError
            If there is no such file, or it is damaged, or of another model, other texts or other settings.
        """
        tensors, header = read_tensors(path)
        if header.get("states") != self._key():
            raise StorageError(f"{path} holds the states of another model or other texts: delete it")
        rows = tensors["rows"].tolist()
        parts = tensors["states"].to(self.lm.device).split([len(self.ids[row]) for row in rows])
        self._kept |= {row: part.clone() for row, part in zip(rows, parts)}

    def _key(self) -> str:
        """A hash of all that the states depend on: tokens, layer and the model's own weights."""
        return hashlib.sha256(repr((self.layer, self.pooling, self.ids, fingerprint(self.lm))).encode()).hexdigest()


@contextmanager
def _from_layer(lm: LanguageModel, first: int, entering: Tensor) -> Iterator[None]:
    """Inside, the decoder layers below ``first`` do nothing, and ``entering`` is what enters it."""

    def skip(states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states

    def replace(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if arguments:
            return (entering, *arguments[1:]), named
        return (), {**named, "hidden_states": entering}

    layers = decoder_layers(lm)
    with ExitStack() as undo:
        for layer in layers[:first]:
            layer.forward = skip
            undo.callback(delattr, layer, "forward")
        undo.callback(layers[first].register_forward_pre_hook(replace, with_kwargs=True).remove)
        yield


class AdaptedFeatures(nn.Module):
    r"""Unit vectors of texts, from a layer above an adapter.

    .. math:: z = \frac{u}{\lVert u \rVert}, \qquad u_i = \frac{h_i(x) - \mu_i}{\sigma_i},

    where :math:`h` is the pooled hidden state with the adapter at work, and :math:`\mu`, :math:`\sigma` are mean and
    deviation of the training texts *without* it: they do not move when the adapter does. With an adapter at its plain
    start these are the features of :class:`~metabook.llm.prototypes.LLMPrototypes`.

    Parameters
    ----------
    adapter : Adapter
        Its parameters are those of this module.
    states : LowerStates
        Of the pool whose row numbers are asked for; it can serve several adapters.
    layer : int
        The features are the states after so many layers; more than the lowest layer of the adapter.
    training_rows : sequence of int or Tensor
        Rows of texts of training classes, which mean and deviation are taken from; a few hundred are enough.
    batch : int
        Texts computed at a time, those of like length together.

    Raises
    ------
    ValueError
        If the adapter acts below the states that are kept, or nowhere below ``layer``, or there are fewer than two
        training rows.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        adapter: Adapter,
        states: LowerStates,
        layer: int,
        training_rows: Sequence[int] | Tensor,
        *,
        batch: int = 32,
    ) -> None:
        super().__init__()
        lowest = adapter.lowest
        if lowest < states.layer:
            raise ValueError(f"the adapter changes layer {lowest}, but the states that are kept enter {states.layer}")
        if not lowest < layer <= states.lm.depth:
            raise ValueError(
                f"an adapter on layer {lowest} changes the features of layers {lowest + 1} to {states.lm.depth}, "
                f"not of {layer}"
            )
        if len(training_rows) < 2:
            raise ValueError(f"{len(training_rows)} training texts are too few to take a mean and a deviation from")
        self.adapter, self.states, self.layer, self.batch = adapter, states, layer, batch
        with torch.no_grad():
            known = self._pooled(torch.as_tensor(training_rows), None)
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("deviation", known.std(0).clamp_min(1e-6))

    def beside(self, adapter: Adapter) -> AdaptedFeatures:
        """The same features with another adapter on the same layers: kept states, mean and deviation are shared."""
        twin = object.__new__(AdaptedFeatures)
        nn.Module.__init__(twin)
        twin.adapter, twin.states, twin.layer, twin.batch = adapter, self.states, self.layer, self.batch
        twin.register_buffer("mean", self.mean)
        twin.register_buffer("deviation", self.deviation)
        return twin

    def forward(self, rows: Tensor) -> Tensor:
        """Unit vectors ``[..., width]`` of row numbers ``[...]``; a row that stands there twice is computed once."""
        different, back = rows.unique(return_inverse=True)
        pooled = self._pooled(different, self.adapter)
        return F.normalize((pooled - self.mean) / self.deviation, dim=-1)[back]

    def _pooled(self, rows: Tensor, adapter: Adapter | None) -> Tensor:
        """Pooled states ``[texts, width]``."""
        ids, numbers = self.states.ids, rows.tolist()
        order = sorted(range(len(numbers)), key=lambda place: -len(ids[numbers[place]]))
        found = []
        for start in range(0, len(order), self.batch):
            chunk = [numbers[place] for place in order[start : start + self.batch]]
            states = self.states.above(chunk, self.layer, adapter).unsqueeze(0)
            lengths = [len(ids[row]) for row in chunk]
            found.append(pool(states, lengths, self.states.skipped, self.states.pooling)[0])
        return torch.cat(found)[torch.tensor(order, device=found[0].device).argsort()]

    def extra_repr(self) -> str:
        adapter = self.adapter
        acts = f"rank={adapter.rank}, alpha={adapter.alpha}, layers={adapter.layers}, targets={adapter.targets}"
        return f"layer={self.layer}, pooling={self.states.pooling!r}, {acts}"
