"""Random quadratics: tasks on which nothing but optimisation is asked.

M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", NeurIPS 2016, section 3.1.
"""

from __future__ import annotations

import torch

from metabook.episodes import Episodes, generator_for

__all__ = ["Quadratics"]


class Quadratics:
    r"""Tasks :math:`\lVert W x + b - y \rVert^2 / n` with a random matrix W and vector y, to minimise over x and b.

    As episodes they are linear regressions: the rows of W are the inputs, y the targets, the queries the support again.

    Parameters
    ----------
    n : int
        Rows and columns of W.
    seed : int
        With the step number, fixes what :meth:`sample` draws.
    device : torch.device or str
        Where the episodes are made.

    Raises
    ------
    ValueError
        If W is empty.
    """

    def __init__(self, n: int = 10, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        self.n, self.seed, self.device = n, seed, torch.device(device)

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` quadratics: a pure function of the settings, the seed and ``step``.

        Returns
        -------
        Episodes
            ``support_x [tasks, n, n]`` and ``support_y [tasks, n, 1]``, standard normal; the queries are the same.
        """
        generator = generator_for("quadratics", self.seed, step)
        W, y = (torch.randn(tasks, self.n, columns, generator=generator) for columns in (self.n, 1))
        return Episodes(W, y, W, y).to(self.device)
