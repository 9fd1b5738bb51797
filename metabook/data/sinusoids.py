"""Sinusoids: regression tasks on which adaptation can be seen.

Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017, section 5.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metabook.episodes import Episodes, generator_for

__all__ = ["Sinusoids"]


class Sinusoids:
    """Tasks ``y = amplitude * sin(x - phase)``, each a few points of one curve.

    Amplitude is uniform in [0.1, 5], phase in [0, pi], x in [-5, 5]; there is no noise unless it is asked for.

    Parameters
    ----------
    shots, queries : int
        Support and query points a task.
    seed : int
        With the step number, fixes what :meth:`sample` draws.
    noise : float
        Standard deviation of the normal noise on every value, of the support and of the queries.
    device : torch.device or str
        Where the episodes are made.

    Raises
    ------
    ValueError
        If there is not at least one shot and one query, or the noise is negative.
    """

    AMPLITUDE = (0.1, 5.0)
    PHASE = (0.0, math.pi)
    X = (-5.0, 5.0)

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        *,
        seed: int = 0,
        noise: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if noise < 0:
            raise ValueError(f"noise is a standard deviation: not {noise}")
        self.shots, self.queries, self.seed, self.noise = shots, queries, seed, noise
        self.device = torch.device(device)

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` curves and points on them: a pure function of the settings, the seed and ``step``.

        Returns
        -------
        Episodes
            ``support_x, support_y [tasks, shots, 1]`` and ``query_x, query_y [tasks, queries, 1]``, float32.
        """
        amplitude, phase = (part.view(-1, 1, 1) for part in self.function(tasks, step))
        x = _uniform(self.X, (tasks, self.shots + self.queries, 1), generator_for("sinusoid points", self.seed, step))
        x = x.to(self.device)
        y = amplitude * torch.sin(x - phase)
        if self.noise:  # from a generator of its own: the same curves and points as without
            generator = generator_for("sinusoid noise", self.seed, step)
            y = y + self.noise * torch.randn(x.shape, generator=generator).to(self.device)
        k = self.shots
        return Episodes(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

    def function(self, tasks: int, step: int = 0) -> tuple[Tensor, Tensor]:
        """Amplitudes ``[tasks]`` and phases ``[tasks]`` of the curves that :meth:`sample` draws points of."""
        generator = generator_for("sinusoid curves", self.seed, step)
        amplitude = _uniform(self.AMPLITUDE, (tasks,), generator)
        return amplitude.to(self.device), _uniform(self.PHASE, (tasks,), generator).to(self.device)


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)
