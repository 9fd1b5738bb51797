"""Adapters: a few low-rank weights beside a language model's own, which stay as they are.

LoRA (E. Hu and others, 2022, https://arxiv.org/abs/2106.09685), as the library PEFT computes it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from metabook.episodes import generator_for
from metabook.llm.features import decoder_layers
from metabook.llm.model import LanguageModel

__all__ = ["TARGETS", "Adapter"]

#: The linear maps that get an adapter: all of a Llama's.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapter(nn.Module):
    r"""Low-rank weights that change a language model inside a ``with`` block, and only there.

    .. math:: W x \to W x + \frac{\alpha}{r} B A x, \quad A \in \mathbb{R}^{r \times n}, B \in \mathbb{R}^{m \times r}.

    The adapter's parameters are those of this module: train them with any optimiser, keep them with ``state_dict``. One
    model can carry several adapters; outside of :meth:`active` it computes what it did before.

    Parameters
    ----------
    lm : LanguageModel
    rank : int
        :math:`r`.
    alpha : int
        :math:`\alpha`; the product :math:`BA` is weighted by :math:`\alpha / r`.
    layers : sequence of int, optional
        Which decoder layers, from 0; all unless given.
    targets : sequence of str
        Names of the linear maps in a layer.
    seed : int
        Of the starting values, see :meth:`reset`.

    Raises
    ------
    ValueError
        For a layer or a map that the model does not have.

    Examples
    --------
    >>> with adapter.active():  # doctest: +SKIP
    ...     features(lm, texts, layer=8)
    """

    def __init__(
        self,
        lm: LanguageModel,
        rank: int = 8,
        *,
        alpha: int = 16,
        layers: Sequence[int] | None = None,
        targets: Sequence[str] = TARGETS,
        seed: int = 0,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        super().__init__()
        self.lm, self.rank, self.alpha, self.layers, self.targets, self.seed = lm, rank, alpha, layers, targets, seed
        chosen = list(range(lm.depth)) if layers is None else sorted(layers)
        if unknown := [layer for layer in chosen if not 0 <= layer < lm.depth]:
            raise ValueError(f"{lm.name} has decoder layers 0 to {lm.depth - 1}, not {unknown[0]}")
        known = {name.rsplit(".", 1)[-1] for name, _ in decoder_layers(lm)[0].named_modules()}
        if missing := [target for target in targets if target not in known]:
            raise ValueError(f"the layers of {lm.name} have no map {missing[0]}: give targets")
        carrying = [len(part.lora_A) for part in lm.model.modules() if isinstance(part, LoraLayer)]
        self.name = f"adapter {max(carrying, default=0)}"
        config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(targets), layers_to_transform=chosen, lora_dropout=0.0
        )
        with torch.random.fork_rng(), warnings.catch_warnings():  # PEFT draws values that reset() replaces,
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # and wonders about a second adapter
            inject_adapter_in_model(config, lm.model, self.name)
        for name, part in lm.model.named_modules():
            if isinstance(part, LoraLayer) and self.name in part.lora_A:
                for letter, maps in (("A", part.lora_A), ("B", part.lora_B)):
                    (parameter,) = maps[self.name].parameters()
                    self.register_parameter(f"{name}.{letter}".replace(".", "_"), parameter)
        _switch(lm, None)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """The plain start: A drawn as PEFT draws it, B zero, so that the model computes what it did without.

        Parameters
        ----------
        seed : int, optional
            That of the constructor unless given.
        """
        generator = generator_for("adapter", self.seed if seed is None else seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("_A"):
                    start = torch.empty(parameter.shape)
                    parameter.copy_(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator))
                else:
                    parameter.zero_()

    @contextmanager
    def active(self) -> Iterator[LanguageModel]:
        """The model with this adapter, and no other, at work."""
        before = _switch(self.lm, self.name)
        try:
            yield self.lm
        finally:
            _switch(self.lm, before)


def _switch(lm: LanguageModel, name: str | None) -> str | None:
    """Let one adapter work, or none; returns which one did."""
    from peft.tuners.lora import LoraLayer

    before = None
    for part in lm.model.modules():
        if isinstance(part, LoraLayer):
            before = before if part.disable_adapters else part.active_adapters[0]
            if name is not None:
                part.set_adapter(name)
            part.enable_adapters(name is not None)
            for maps in (part.lora_A, part.lora_B):  # whoever is off duty can still be trained: PEFT freezes it
                maps.requires_grad_(True)
    return before
