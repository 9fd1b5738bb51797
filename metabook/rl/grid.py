"""A small grid world whose goal is hidden: an agent has to search once, and then to remember.

The setting of L. Zintgraf et al., VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via Meta-Learning, ICLR 2020,
https://arxiv.org/abs/1910.08348, section 5.1; and goals that move, with the agents that need no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metabook.rl.base import TaskEnv, Tasks, register

__all__ = ["HiddenGoal", "Searcher", "optimal_search", "replay", "row_by_row", "search_value"]


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
    change : float or sequence of float
        Probability that the goal of a task moves to another cell when :meth:`reset` begins a further episode of it. Of
        a sequence, the first number is for the second episode, and so on; after its end the goals stay.

    Raises
    ------
    ValueError
        If there are fewer than two cells a side, or a probability is none.
    """

    MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 5,
        horizon: int = 15,
        cost: float = 0.1,
        change: float | Sequence[float] = 0.0,
    ) -> None:
        if size < 2:
            raise ValueError(f"a grid needs at least two cells a side, not {size}")
        if not all(0 <= p <= 1 for p in np.atleast_1d(change)):
            raise ValueError(f"change must be probabilities, not {change}")
        super().__init__(
            num_envs, horizon, spaces.Box(0.0, 1.0, (size**2,), np.float32), spaces.Discrete(len(self.MOVES))
        )
        self.size, self.cost, self.change, self._episode = size, cost, change, 0

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Goals as columns and rows, ``[tasks, 2]``."""
        return self._cells(generator.integers(1, self.size**2, tasks))  # 0 is the start

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in every environment; goals may move if it is one more of the same tasks."""
        new = seed is not None or "tasks" in (options or {}) or not hasattr(self, "tasks")
        self._episode = 0 if new else self._episode + 1
        if not new:
            self._move_goals(self._probability(self._episode))
        return super().reset(seed=seed, options=options)

    def _probability(self, episode: int) -> float:
        if isinstance(self.change, Sequence):
            return self.change[episode - 1] if episode <= len(self.change) else 0.0
        return self.change

    def _move_goals(self, probability: float) -> None:
        if not probability:
            return
        goals, others = self.tasks @ (1, self.size), self.size**2 - 1
        shift = self.np_random.integers(1, others, self.num_envs)  # never a whole turn: always to another cell
        moved = self.np_random.random(self.num_envs) < probability
        self.tasks = self._cells(1 + (goals - 1 + shift * moved) % others)

    def _cells(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack([numbers % self.size, numbers // self.size], 1)

    def _begin(self) -> None:
        self.position = np.zeros((self.num_envs, 2), int)

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        moved = np.clip(self.position + self.MOVES[actions], 0, self.size - 1)
        self.position = np.where(self._over[:, None], self.position, moved)
        return np.where((self.position == self.tasks).all(1), 1.0, -self.cost)

    def _observe(self) -> np.ndarray:
        return np.eye(self.size**2, dtype=np.float32)[self.position @ (1, self.size)]


register("metabook/HiddenGoal-v0", HiddenGoal)


def replay(tasks: Tasks, actions: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where agents were, and where the goals were, when they took ``actions`` in hidden-goal tasks.

    The goals move by the seed of the tasks alone, so that what happened in a trial can be seen again.

    Parameters
    ----------
    tasks : Tasks
    actions : [tasks, steps]
        Of all episodes of a trial, in order.

    Returns
    -------
    positions : ndarray [tasks, episodes, horizon + 1, 2]
        The start included.
    goals : ndarray [tasks, episodes, 2]
    """
    env, _ = tasks.environments()
    assert isinstance(env, HiddenGoal)
    positions, goals = [], []
    for episode, chosen in enumerate(np.split(np.asarray(actions), np.shape(actions)[1] // env.horizon, axis=1)):
        if episode:
            env.reset()
        goals.append(env.tasks)
        path = [env.position]
        for action in chosen.T:
            env.step(action)
            path.append(env.position)
        positions.append(np.stack(path, 1))
    return np.stack(positions, 1), np.stack(goals, 1)


class Searcher:
    """An agent by hand: it visits the cells in a fixed order until one pays, and then goes straight to that one.

    If that cell pays no longer, the agent forgets everything and searches anew from where it is.

    Parameters
    ----------
    order : sequence of int
        Cells to visit, by number (column + size * row), all but the start. It goes to the first that it has not been
        in, first along the row, then along the column.
    episodes : int
        Of a trial.
    told : bool
        Be told the goal at the start of each episode: no agent can earn more.
    """

    def __init__(self, order: Sequence[int], episodes: int, told: bool = False) -> None:
        self.order, self.episodes, self.told = np.asarray(order), episodes, told

    def predict(self, tasks: Tasks) -> Tensor:
        """Returns of the episodes of one trial in each task, ``[tasks, episodes]``."""
        env, _ = tasks.environments()
        assert isinstance(env, HiddenGoal)
        rank = np.full(env.size**2, len(self.order))
        rank[self.order] = np.arange(len(self.order))
        seen, known = np.zeros((len(tasks), env.size**2), bool), np.full(len(tasks), -1)
        rows, returns = np.arange(len(tasks)), np.zeros((len(tasks), self.episodes))
        for episode in range(self.episodes):
            if episode:
                env.reset()
            if self.told:
                known = env.tasks @ (1, env.size)
            for _ in range(env.horizon):
                unseen = np.where(seen, len(self.order), rank).argmin(1)
                _, rewards, *_ = env.step(_towards(env, np.where(known >= 0, known, unseen)))
                here = env.position @ (1, env.size)
                pays, gone = rewards > 0, (known == here) & (rewards < 0)
                seen[gone] = False
                seen[rows, here] = True
                known = np.where(pays, here, np.where(gone, -1, known))
                returns[:, episode] += rewards
        return torch.from_numpy(returns).float()


def _towards(env: HiddenGoal, cells: np.ndarray) -> np.ndarray:
    """Actions that bring each agent nearer to a cell."""
    column, row = cells % env.size - env.position[:, 0], cells // env.size - env.position[:, 1]
    along = np.where(column > 0, 2, 4)
    return np.where(column != 0, along, np.where(row > 0, 1, np.where(row < 0, 3, 0)))


def row_by_row(size: int) -> list[int]:
    """The cells of a square but the start, back and forth, by number: the obvious order to search in."""
    cells = np.arange(size**2).reshape(size, size)
    cells[1::2] = cells[1::2, ::-1]
    return cells.flatten()[1:].tolist()


def search_value(order: Sequence[int], size: int, horizon: int, episodes: int, cost: float = 0.1) -> float:
    r"""Expected return of a trial of a :class:`Searcher`, from the times at which it first enters the cells.

    .. math:: -c E H + \frac{1 + c}{n} \sum_g \bigl[(H + 1 - t_g) + (E - e_g)(H + 1 - d_g)\bigr],

    over the ``n`` cells ``g`` with distance ``d_g`` from the start, first entered in step ``t_g`` of episode ``e_g``.

    Parameters
    ----------
    order : sequence of int
    size, horizon, episodes, cost
        Of the tasks and the trial.
    """
    place, paid, seen = 0, 0, {0}
    for episode, step in product(range(1, episodes + 1), range(1, horizon + 1)):
        place = 0 if step == 1 else place
        target = next((cell for cell in order if cell not in seen), place)
        column, row = target % size - place % size, target // size - place // size
        place += int(np.sign(column)) or size * int(np.sign(row))
        if place not in seen:
            seen.add(place)
            paid += int(_pays(np.array(place), episode, step, size, horizon, episodes))
    return _expected(paid, size, horizon, episodes, cost)


def _pays(cells: np.ndarray, episode: int, step: int, size: int, horizon: int, episodes: int) -> np.ndarray:
    """Steps of a trial in the goal, if the goal is one of ``cells`` and is first entered then."""
    return horizon + 1 - step + (episodes - episode) * np.maximum(horizon + 1 - cells % size - cells // size, 0)


def _expected(paid: float, size: int, horizon: int, episodes: int, cost: float) -> float:
    return -cost * episodes * horizon + (1 + cost) * paid / (size**2 - 1)


def optimal_search(size: int, horizon: int, episodes: int, cost: float = 0.1) -> tuple[list[int], float]:
    """The order of search with the largest expected return of a trial: what a Bayes-adaptive agent does.

    Until a cell pays, all that can be known is which cells do not; so the best plan is a path. Dynamic programming
    finds it, over the cell that a path has come to and the set of cells that it has been in. A state is left out if it
    could not beat the obvious order even by finding a new cell in each step to come.

    Parameters
    ----------
    size, horizon, episodes, cost
        Of the tasks and the trial. The number of sets grows exponentially with the cells: a size of 5 takes seconds.

    Returns
    -------
    order : list of int
        For a :class:`Searcher`.
    value : float
        Its expected return of a trial: no agent that is not told the goal can expect more.
    """
    trial = (size, horizon, episodes)
    neighbours = _neighbours(size)
    least = (search_value(row_by_row(size), *trial, cost) + cost * episodes * horizon) * (size**2 - 1) / (1 + cost)
    places, seen, paid = np.array([0]), np.array([1]), np.array([0])
    history = []
    for episode, step in product(range(1, episodes + 1), range(1, horizon + 1)):
        parents, moves = np.nonzero(neighbours[places if step > 1 else 0 * places] >= 0)
        places = neighbours[places if step > 1 else 0 * places][parents, moves]
        known = seen[parents] >> places & 1
        paid = paid[parents] + np.where(known, 0, _pays(places, episode, step, *trial))
        seen = seen[parents] | 1 << places
        best = np.lexsort((-paid, places, seen))  # of the paths to the same place and set, the first is the best
        best = best[np.append(True, np.diff(seen[best]).astype(bool) | np.diff(places[best]).astype(bool))]
        best = best[paid[best] + _at_most(seen[best], episode, step, *trial) > least - 1e-6]
        places, seen, paid = places[best], seen[best], paid[best]
        history.append((places, parents[best]))
    state, path = int(paid.argmax()), []
    for at, parents in reversed(history):
        path.append(int(at[state]))
        state = parents[state]
    order = dict.fromkeys([*reversed(path), *range(1, size**2)])
    return [cell for cell in order if cell], _expected(float(paid.max()), *trial, cost)


def _neighbours(size: int) -> np.ndarray:
    """Of each cell, ``[cells, 4]``; -1 where there is a wall."""
    cells = np.pad(np.arange(size**2).reshape(size, size), 1, constant_values=-1)
    return np.stack([cells[1:-1, 2:], cells[1:-1, :-2], cells[2:, 1:-1], cells[:-2, 1:-1]], -1).reshape(-1, 4)


def _at_most(seen: np.ndarray, episode: int, step: int, size: int, horizon: int, episodes: int) -> np.ndarray:
    """What paths can still add: a new cell in every step, and those that later episodes gain most by first."""
    cells = np.arange(size**2)
    later = np.maximum(horizon + 1 - cells % size - cells // size, 0).astype(np.int16)
    gains = -np.sort(-np.where(seen[:, None] >> cells & 1, 0, later), axis=1)
    unseen = size**2 - np.bitwise_count(seen)[:, None]
    ahead = np.arange(
        step, step + size**2
    )  # steps of the trial, from the next one on, counted from this episode's first
    worth = horizon - ahead % horizon + np.maximum(episodes - episode - ahead // horizon, 0) * gains
    worth = np.where(ahead < (episodes - episode + 1) * horizon, worth, 0)
    return np.where(cells < unseen, worth, 0).sum(1)
