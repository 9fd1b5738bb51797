"""A small grid world whose goal is hidden: an agent has to search once, and then to remember.

The setting of L. Zintgraf et al., VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via Meta-Learning, ICLR 2020,
https://arxiv.org/abs/1910.08348, section 5.1.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from metabook.rl.base import TaskEnv, register

__all__ = ["HiddenGoal"]


class HiddenGoal(TaskEnv):
    """A square of cells; a task is the cell that pays, any but the start in the lower left corner.

    The agent sees its own cell alone, as a one-hot vector. Actions: stay, up, right, down, left; a wall stops it. The
    reward is 1 in the goal, and ``-cost`` elsewhere, after each step; reaching the goal does not end the episode.

    Parameters
    ----------
    num_envs : int
    size : int
        Cells a side.
    horizon : int
        Steps an episode.
    cost : float

    Raises
    ------
    ValueError
        If there is but one cell.
    """

    MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])

    def __init__(self, num_envs: int = 1, size: int = 5, horizon: int = 15, cost: float = 0.1) -> None:
        if size < 2:
            raise ValueError(f"a grid needs at least two cells a side, not {size}")
        super().__init__(
            num_envs, horizon, spaces.Box(0.0, 1.0, (size**2,), np.float32), spaces.Discrete(len(self.MOVES))
        )
        self.size, self.cost = size, cost

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Goals as columns and rows, ``[tasks, 2]``."""
        cells = generator.integers(1, self.size**2, tasks)  # 0 is the start
        return np.stack([cells % self.size, cells // self.size], 1)

    def _begin(self) -> None:
        self.position = np.zeros((self.num_envs, 2), int)

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        moved = np.clip(self.position + self.MOVES[actions], 0, self.size - 1)
        self.position = np.where(self._over[:, None], self.position, moved)
        return np.where((self.position == self.tasks).all(1), 1.0, -self.cost)

    def _observe(self) -> np.ndarray:
        return np.eye(self.size**2, dtype=np.float32)[self.position @ (1, self.size)]


register("metabook/HiddenGoal-v0", HiddenGoal)
