"""Tasks for agents: environments side by side, each with a hidden task of its own, and what happens in them.

The environments keep to Gymnasium's vector interface (M. Towers et al., Gymnasium: A Standard Interface for
Reinforcement Learning Environments, 2024, https://arxiv.org/abs/2407.17032) and have registered ids:
``gymnasium.make_vec(id, n)`` gives ``n`` of them side by side, ``gymnasium.make(id)`` a single one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metabook.episodes import generator_for

__all__ = ["EnvTasks", "SingleEnv", "TaskEnv", "Tasks", "Trajectories", "register", "rollout"]


class TaskEnv(VectorEnv):
    """Environments side by side, all with the same horizon, each with a hidden task: the base of ours.

    A task lives on through episodes: :meth:`reset` begins a new episode of the same tasks, unless it is given others.
    An episode that is over stays as it is and pays nothing until all are reset together.

    A subclass says what a task is (:meth:`sample_tasks`), where an episode begins (:meth:`_begin`), what an action does
    (:meth:`_advance`) and what the agent sees (:meth:`_observe`).

    Parameters
    ----------
    num_envs : int
    horizon : int
        Steps an episode.
    observation_space, action_space : gymnasium.Space
        Of a single environment.

    Attributes
    ----------
    tasks : ndarray [num_envs, ...]
        The hidden tasks.

    Raises
    ------
    ValueError
        Without environments or steps.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 (Gymnasium's)
    tasks: np.ndarray

    def __init__(
        self, num_envs: int, horizon: int, observation_space: gymnasium.Space, action_space: gymnasium.Space
    ) -> None:
        if num_envs < 1 or horizon < 1:
            raise ValueError(
                f"at least one environment and one step an episode are needed, not {num_envs} and {horizon}"
            )
        self.num_envs, self.horizon = num_envs, horizon
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw tasks from the family, ``[tasks, ...]``."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Put every environment where an episode begins."""

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        """Let every environment take its action; the rewards ``[num_envs]``."""
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        """What each agent sees, ``[num_envs, ...]``."""
        raise NotImplementedError

    def _terminal(self) -> np.ndarray:
        """Which environments have come to an end before the horizon, ``[num_envs]``."""
        return np.zeros(self.num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in every environment.

        Parameters
        ----------
        seed : int, optional
            Of everything that is random from now on, new tasks included.
        options : dict, optional
            ``{"tasks": array [num_envs, ...]}`` sets the tasks. Without it, those of the last episode stay.

        Returns
        -------
        observations : ndarray [num_envs, ...]
        info : dict

        Raises
        ------
        ValueError
            If there are not as many tasks as environments.
        """
        super().reset(seed=seed)
        given = (options or {}).get("tasks")
        if given is not None:
            if len(given) != self.num_envs:
                raise ValueError(f"{len(given)} tasks for {self.num_envs} environments")
            self.tasks = np.asarray(given)
        elif seed is not None or not hasattr(self, "tasks"):
            self.tasks = self.sample_tasks(self.num_envs, self.np_random)
        self._time, self._over = 0, np.zeros(self.num_envs, bool)
        self._begin()
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take one action in every environment: observations, rewards, terminations, truncations, info."""
        rewards = np.where(self._over, 0.0, self._advance(np.asarray(actions)))
        self._time += 1
        terminated = self._terminal() & ~self._over
        truncated = np.full(self.num_envs, self._time >= self.horizon) & ~terminated & ~self._over
        self._over = self._over | terminated | truncated
        return self._observe(), rewards, terminated, truncated, {}


class SingleEnv(gymnasium.Env):
    """One environment alone, on Gymnasium's ordinary interface.

    Parameters
    ----------
    family : callable
        ``family(num_envs=1, **settings)`` to a :class:`TaskEnv`.
    settings
        Of the family.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, family: Callable[..., TaskEnv], render_mode: None = None, **settings: Any) -> None:
        self.vector, self.render_mode = family(num_envs=1, **settings), render_mode
        self.observation_space, self.action_space = (
            self.vector.single_observation_space,
            self.vector.single_action_space,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if options and "tasks" in options:
            options = {**options, "tasks": np.asarray(options["tasks"])[None]}
        observations, info = self.vector.reset(seed=seed, options=options)
        return observations[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observations, rewards, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info


def register(id: str, family: Callable[..., TaskEnv]) -> None:
    """Let ``gymnasium.make`` and ``gymnasium.make_vec`` know a family of environments by its id."""
    gymnasium.register(
        id, lambda **settings: SingleEnv(family, **settings), vector_entry_point=family, disable_env_checker=True
    )


@dataclass(frozen=True)
class Tasks:
    """A batch of tasks of one family: what a learner that acts is given in place of ``Episodes``.

    Parameters
    ----------
    family : callable
        ``family(num_envs)`` to a :class:`TaskEnv`.
    parameters : ndarray [tasks, ...]
        The hidden part.
    seed : int
        Of what is random in the environments.
    """

    family: Callable[[int], TaskEnv]
    parameters: np.ndarray
    seed: int

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.parameters)

    def environments(self, copies: int = 1, stream: int = 0) -> tuple[TaskEnv, np.ndarray]:
        """``copies`` environments of each task, side by side, and their first observations.

        Parameters
        ----------
        copies : int
        stream : int
            Another number, other randomness: say for the trajectories after each update.

        Returns
        -------
        TaskEnv
            With ``tasks * copies`` environments; those of a task beside each other.
        ndarray [tasks * copies, ...]
        """
        env = self.family(len(self) * copies)
        observations, _ = env.reset(
            seed=generator_for("environment", self.seed, stream).initial_seed(),
            options={"tasks": self.parameters.repeat(copies, axis=0)},
        )
        return env, observations


class EnvTasks:
    """Tasks from a registered family of environments: the source that ``fit`` draws from.

    Parameters
    ----------
    id : str
        Of the family, say ``"metabook/Bandits-v0"``.
    seed : int
        With the step number, fixes what :meth:`sample` draws.
    settings
        Of the environments.
    """

    def __init__(self, id: str, *, seed: int = 0, **settings: Any) -> None:
        self.id, self.seed, self.settings = id, seed, settings

    def family(self, num_envs: int) -> TaskEnv:
        """Environments of the family, side by side."""
        env = gymnasium.make_vec(self.id, num_envs, **self.settings)
        assert isinstance(env, TaskEnv)
        return env

    def sample(self, tasks: int, step: int = 0) -> Tasks:
        """Draw ``tasks`` tasks: a pure function of the settings, the seed and ``step``."""
        seed = generator_for("tasks of environments", self.id, self.seed, step).initial_seed()
        return Tasks(self.family, self.family(1).sample_tasks(tasks, np.random.default_rng(seed)), seed)


@dataclass(frozen=True)
class Trajectories:
    """What happened in the environments of a batch of tasks, an episode in each.

    Parameters
    ----------
    observations : Tensor [tasks, copies, steps, ...]
    actions : Tensor [tasks, copies, steps, ...]
    rewards : Tensor [tasks, copies, steps]
    alive : Tensor [tasks, copies, steps]
        1 where the action was taken, 0 where the episode was already over.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor

    @property
    def returns(self) -> Tensor:
        """Sum of the rewards of each task's episodes, the mean over its copies, ``[tasks]``."""
        return self.rewards.sum(2).mean(1)


@torch.no_grad()
def rollout(
    tasks: Tasks, act: Callable[[Tensor], Tensor], *, copies: int, stream: int = 0, device: torch.device | str = "cpu"
) -> Trajectories:
    """Let a policy act for an episode in ``copies`` environments of each task.

    Parameters
    ----------
    tasks : Tasks
    act : callable
        ``act(observations [tasks, copies, ...])`` to the actions ``[tasks, copies, ...]``.
    copies, stream : int
        See :meth:`Tasks.environments`.
    device : torch.device or str
        Of the policy, and of the trajectories.
    """
    env, seen = tasks.environments(copies, stream)
    shape, kept = (len(tasks), copies), []
    over = np.zeros(env.num_envs, bool)
    for _ in range(env.horizon):
        x = torch.as_tensor(seen, dtype=torch.float32, device=device).unflatten(0, shape)
        actions = act(x)
        seen, rewards, terminated, truncated, _ = env.step(actions.flatten(0, 1).cpu().numpy())
        kept.append((x, actions, *(_numbers(each, shape, device) for each in (rewards, ~over))))
        over = over | terminated | truncated
        if over.all():
            break
    return Trajectories(*(torch.stack(each, 2) for each in zip(*kept, strict=True)))


def _numbers(values: np.ndarray, shape: tuple[int, int], device: torch.device | str) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device).view(shape)
