"""Random linear functions: regression tasks whose best predictor is known.

S. Garg, D. Tsipras, P. Liang, G. Valiant, "What can transformers learn in-context? A case study of simple function
classes", NeurIPS 2022, https://arxiv.org/abs/2208.01066
"""

from __future__ import annotations

import torch
from torch import Tensor

from metabook.episodes import Episodes, generator_for

__all__ = ["LinearFunctions"]


class LinearFunctions:
    r"""Tasks :math:`y = w^\top x + \varepsilon`, each with a weight vector of its own.

    Weights and inputs are standard normal, the noise is normal. So the best prediction after some points, in squared
    error, is that of ridge regression with the noise's variance as its penalty.

    Parameters
    ----------
    inputs : int
        Dimensions of x.
    shots, queries : int
        Support and query points a task.
    noise : float
        Standard deviation of the noise on every value, of the support and of the queries.
    scale : float
        Standard deviation of the inputs.
    seed : int
        With the step number, fixes what :meth:`sample` draws.
    device : torch.device or str
        Where the episodes are made.

    Raises
    ------
    ValueError
        If there is not at least one input, one shot and one query, the noise is negative, or the scale not positive.
    """

    def __init__(
        self,
        inputs: int = 2,
        shots: int = 8,
        queries: int = 9,
        *,
        noise: float = 0.5,
        scale: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("inputs", inputs), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if noise < 0 or scale <= 0:
            raise ValueError(f"noise and scale are standard deviations, scale positive: not {noise} and {scale}")
        self.inputs, self.shots, self.queries = inputs, shots, queries
        self.noise, self.scale, self.seed, self.device = noise, scale, seed, torch.device(device)

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` functions and points on them: a pure function of the settings, the seed and ``step``.

        Returns
        -------
        Episodes
            ``support_x [tasks, shots, inputs]``, ``support_y [tasks, shots, 1]``, queries likewise, float32.
        """
        generator = generator_for("linear points", self.seed, step)
        shape = (tasks, self.shots + self.queries)
        x = self.scale * torch.randn(*shape, self.inputs, generator=generator).to(self.device)
        noise = torch.randn(*shape, 1, generator=generator).to(self.device)
        y = x @ self.weights(tasks, step) + self.noise * noise
        k = self.shots
        return Episodes(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

    def weights(self, tasks: int, step: int = 0) -> Tensor:
        """The weights ``[tasks, inputs, 1]`` of the functions that :meth:`sample` draws points of."""
        generator = generator_for("linear functions", self.seed, step)
        return torch.randn(tasks, self.inputs, 1, generator=generator).to(self.device)
