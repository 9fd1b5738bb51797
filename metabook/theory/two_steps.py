r"""The smallest problem on which every derivative of meta-reinforcement learning can be written out: two steps.

The first action leads from state 0 to state 1 or 2, the second ends the episode. A task is the reward of each action in
each state. With a table of logits there are four trajectories in all, so that an expected return is a sum of four
terms, and autograd gives the exact derivatives that estimators are to be compared with.

Everywhere ``logits [2, 3]`` are those of action (row) and state (column), the weights of a ``nn.Linear(3, 2)`` without
bias; ``rewards [3, 2]`` are those of state and action.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.func import grad

from metabook.rl.base import TaskEnv, Tasks

__all__ = [
    "PATHS",
    "STATES",
    "TwoSteps",
    "deviation",
    "expected_return",
    "meta_gradient",
    "path_log_probs",
    "path_rewards",
    "repeated",
    "two_step_tasks",
]

PATHS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
"""The four trajectories: first and second action."""

STATES = torch.stack([torch.zeros(4, dtype=torch.long), 1 + PATHS[:, 0]], 1)
"""Where each trajectory's actions are taken."""


class TwoSteps(TaskEnv):
    """The problem as an environment: the state is seen as a one-hot vector.

    Parameters
    ----------
    num_envs : int
    """

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__(num_envs, 2, spaces.Box(0.0, 1.0, (3,), np.float32), spaces.Discrete(2))

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Rewards, ``[tasks, 3, 2]``."""
        return generator.standard_normal((tasks, 3, 2))

    def _begin(self) -> None:
        self.state = np.zeros(self.num_envs, int)

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        rewards = self.tasks[np.arange(self.num_envs), self.state, actions]
        self.state = np.where(self.state == 0, 1 + actions, self.state)
        return rewards

    def _observe(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.state]


def two_step_tasks(rewards: Tensor, seed: int = 0) -> Tasks:
    """Tasks with the rewards ``[tasks, 3, 2]``, for a learner that acts."""
    return Tasks(TwoSteps, rewards.numpy(), seed)


def path_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of the actions of each trajectory, ``[paths, steps]``."""
    own = logits.log_softmax(0)
    return own[PATHS, STATES]


def path_rewards(rewards: Tensor) -> Tensor:
    """Rewards along each trajectory, ``[paths, steps]``."""
    return rewards[STATES, PATHS]


def expected_return(logits: Tensor, rewards: Tensor) -> Tensor:
    """J: the mean of the returns of the four trajectories, weighted with their probabilities."""
    return (path_log_probs(logits).sum(1).exp() * path_rewards(rewards).sum(1)).sum()


def meta_gradient(logits: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    """The gradient of the mean over tasks of J(theta + alpha grad J(theta)), ``[2, 3]``.

    Parameters
    ----------
    logits : Tensor [2, 3]
    rewards : Tensor [tasks, 3, 2]
    alpha : float
    """

    def after(logits: Tensor) -> Tensor:
        each = [partial(expected_return, rewards=task) for task in rewards]
        return torch.stack([J(logits + alpha * grad(J)(logits)) for J in each]).mean()

    return grad(after)(logits)


def deviation(estimates: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the means of ``estimates [repeats, ...]`` are away from ``exact [...]``."""
    standard_errors = estimates.std(0) / len(estimates) ** 0.5
    return (estimates.mean(0) - exact) / standard_errors


def repeated(estimate: Callable[[int], Tensor], repeats: int) -> Tensor:
    """Estimates with the seeds 0, 1, ..., from torch's generator too, which is left as it was: ``[repeats, ...]``."""
    with torch.random.fork_rng():
        kept = []
        for seed in range(repeats):
            torch.manual_seed(seed)
            kept.append(estimate(seed))
    return torch.stack(kept)
