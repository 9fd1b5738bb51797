"""How much memory a backward pass will need: the tensors that autograd keeps for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["saved_bytes"]


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
