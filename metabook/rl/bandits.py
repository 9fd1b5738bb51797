"""Bandits: a row of levers with hidden payoffs, the smallest tasks in which exploring pays.

The setting of Y. Duan et al., RL²: Fast Reinforcement Learning via Slow Reinforcement Learning, 2016,
https://arxiv.org/abs/1611.02779, section 3.1, with the algorithms that need no training beside it.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from metabook.rl.base import TaskEnv, register

__all__ = ["Bandits"]


class Bandits(TaskEnv):
    """Multi-armed bandits; a task is the mean payoff of each arm.

    ``bernoulli`` arms pay 1 with a probability that is uniform in [0, 1], and 0 otherwise. ``gaussian`` arms pay their
    mean, drawn from N(0, 1), plus noise from N(0, 1). There is nothing to see: the observation is a constant zero.

    Parameters
    ----------
    num_envs : int
    arms, pulls : int
    payoff : {"bernoulli", "gaussian"}

    Raises
    ------
    ValueError
        With fewer than two arms, no pulls or an unknown payoff.
    """

    def __init__(self, num_envs: int = 1, arms: int = 5, pulls: int = 10, payoff: str = "bernoulli") -> None:
        if arms < 2:
            raise ValueError(f"a bandit needs at least two arms, not {arms}")
        if payoff not in ("bernoulli", "gaussian"):
            raise ValueError(f"payoff must be bernoulli or gaussian, not {payoff!r}")
        super().__init__(num_envs, pulls, spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(arms))
        self.arms, self.payoff = arms, payoff

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Mean payoffs, ``[tasks, arms]``."""
        shape = (tasks, self.arms)
        return generator.random(shape) if self.payoff == "bernoulli" else generator.standard_normal(shape)

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        means = self.tasks[np.arange(self.num_envs), actions]
        if self.payoff == "bernoulli":
            return (self.np_random.random(self.num_envs) < means).astype(float)
        return means + self.np_random.standard_normal(self.num_envs)

    def _observe(self) -> np.ndarray:
        return np.zeros((self.num_envs, 1), np.float32)


register("metabook/Bandits-v0", Bandits)
