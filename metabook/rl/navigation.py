"""Two-dimensional navigation: a point that walks to a hidden goal.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017,
https://arxiv.org/abs/1703.03400, section 5.3.
"""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metabook.rl.base import TaskEnv, register

__all__ = ["Navigation", "oracle"]


class Navigation(TaskEnv):
    """A point that starts in the origin of the plane; a task is its goal, uniform in the square [-0.5, 0.5]².

    The agent sees where it is, and moves by at most 0.1 along each axis. The reward is *minus the squared distance* to
    the goal after the move. (A much used port pays minus the distance: returns are then not comparable.) An episode
    ends within 0.01 of the goal, or at the horizon.

    Parameters
    ----------
    num_envs : int
    horizon : int
        Steps an episode.
    """

    LARGEST = 0.1
    NEAR = 0.01

    def __init__(self, num_envs: int = 1, horizon: int = 100) -> None:
        reach = self.LARGEST * horizon
        places, moves = (spaces.Box(-length, length, (2,), np.float32) for length in (reach, self.LARGEST))
        super().__init__(num_envs, horizon, places, moves)

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Goals, ``[tasks, 2]``."""
        return generator.uniform(-0.5, 0.5, (tasks, 2))

    def _begin(self) -> None:
        self.position = np.zeros((self.num_envs, 2))

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        move = np.clip(actions, -self.LARGEST, self.LARGEST)
        self.position = np.where(self._over[:, None], self.position, self.position + move)
        return -np.square(self.position - self.tasks).sum(1)

    def _observe(self) -> np.ndarray:
        return self.position.astype(np.float32)

    def _terminal(self) -> np.ndarray:
        return (np.abs(self.position - self.tasks) < self.NEAR).all(1)


def oracle(goals: np.ndarray, x: Tensor) -> Tensor:
    """What a policy does that knows the goal: the largest move towards it along each axis.

    Parameters
    ----------
    goals : ndarray [tasks, 2]
    x : Tensor [tasks, copies, 2]

    Returns
    -------
    Tensor [tasks, copies, 2]
    """
    to_go = torch.as_tensor(goals, dtype=x.dtype, device=x.device).unsqueeze(1) - x
    return to_go.clamp(-Navigation.LARGEST, Navigation.LARGEST)


register("metabook/Navigation-v0", Navigation)
