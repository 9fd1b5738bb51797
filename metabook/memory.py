"""How much memory a computation needs: the tensors that it makes, and those that autograd keeps for backward passes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes", "saved_bytes"]


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes in tensors at one time that were made while ``run()`` runs.

    What was there before, parameters and inputs, does not count, nor do temporaries inside a single operation. The
    number is the same from run to run, unlike the size of a process. It runs more slowly.

    Parameters
    ----------
    run : callable

    Returns
    -------
    int
    """
    alive: dict[int, int] = {}  # bytes by the address of the memory
    peak = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    memory = tensor.untyped_storage()
                    address = memory.data_ptr()
                    if address not in given and address not in alive:  # a new tensor, and no view of an old one
                        alive[address] = memory.nbytes()
                        weakref.finalize(memory, alive.pop, address, None)
            peak = max(peak, sum(alive.values()))
            return out

    with Watch():
        run()
    return peak


def saved_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that autograd keeps at one time for backward passes, while ``run()`` runs.

    Memory that several kept tensors share counts once; so do parameters and inputs, where they are kept. Temporaries
    that no backward pass needs do not count, so that the number is the same from run to run, unlike the size of a
    process.

    Parameters
    ----------
    run : callable
        Runs forward and backward passes.

    Returns
    -------
    int
    """
    holders: Counter[int] = Counter()  # by the address of the memory
    sizes: dict[int, int] = {}
    peak = 0

    class Kept:
        """One tensor that autograd keeps; goes when autograd lets it go."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal peak
            memory = tensor.untyped_storage()
            self.tensor, self.address = tensor, memory.data_ptr()
            holders[self.address] += 1
            sizes[self.address] = memory.nbytes()
            peak = max(peak, sum(sizes.values()))

        def __del__(self) -> None:
            holders[self.address] -= 1
            if not holders[self.address]:
                sizes.pop(self.address, None)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return peak
