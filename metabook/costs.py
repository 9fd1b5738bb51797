"""What a computation costs: CPU time, and the memory that autograd holds for the backward pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["cpu_seconds", "kept_for_backward"]


def cpu_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """CPU seconds of a call: the mean of ``repeats`` calls after one that pays for what is set up once."""
    function()
    started = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - started) / repeats


def kept_for_backward(function: Callable[[], Any]) -> int:
    """Most bytes that autograd keeps at the same time for backward passes while ``function`` runs.

    Every tensor that a forward operation saves is seen; memory that several of them share counts once. Parameters and
    inputs count where they are saved. What is needed only for a moment, inside one operation, does not.
    """
    kept = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(kept, tensor), lambda saved: saved.tensor):
        function()
    return kept.peak


class _Kept:
    """The storages that are held now, and how much they came to at most."""

    def __init__(self) -> None:
        self.holders: Counter[int] = Counter()
        self.total = self.peak = 0

    def hold(self, key: int, size: int) -> None:
        self.holders[key] += 1
        if self.holders[key] == 1:
            self.total += size
            self.peak = max(self.peak, self.total)

    def release(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            self.total -= size


class _Saved:
    """A saved tensor; alive as long as the graph that needs it."""

    def __init__(self, kept: _Kept, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.kept, self.tensor = kept, tensor
        self.memory = storage.data_ptr(), storage.nbytes()
        kept.hold(*self.memory)

    def __del__(self) -> None:
        self.kept.release(*self.memory)
