"""Rooms of MiniGrid with coloured boxes, one colour of which holds a ball: a hidden rule, and a new room each episode.

M. Chevalier-Boisvert et al., Minigrid & Miniworld: Modular & Customizable Reinforcement Learning Environments for
Goal-Oriented Tasks, NeurIPS 2023 Datasets and Benchmarks, https://arxiv.org/abs/2306.13831.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from minigrid.core.actions import Actions
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box
from minigrid.minigrid_env import MiniGridEnv
from torch import Tensor

from metabook.rl.base import TaskEnv, Tasks, register

__all__ = ["Room", "Rooms", "Walked", "Walker", "first_right", "route"]

COLOURS = ("red", "green", "blue", "yellow")
MOVES = (Actions.left, Actions.right, Actions.forward, Actions.toggle)  # the others of MiniGrid's change nothing here
LEFT, RIGHT, FORWARD, OPEN = range(4)


class Room(MiniGridEnv):
    """A square room with a box of each colour, of which one has a ball in it: opening that one ends the episode.

    The steps, the view and the drawing are MiniGrid's, and nothing that is seen tells what a closed box holds. Opening
    the box with the ball is rewarded by MiniGrid's ``1 - 0.9 * steps / horizon``, opening an empty one by ``-cost``; it
    is gone then, as always in MiniGrid. Boxes do not touch, so that each can be reached.

    Parameters
    ----------
    rule : int
        Number of the colour whose box holds the ball.
    colours : int
        Two to four.
    size : int
        Cells a side, without the walls.
    horizon : int
        Steps of an episode.
    cost : float
    view : int
        Cells a side of what the agent sees: those in front of it, to both sides.
    render_mode : str, optional
        MiniGrid's: ``"rgb_array"`` or ``"human"``.

    Raises
    ------
    ValueError
        With a rule or a number of colours that there is not, or too small a room.
    """

    def __init__(
        self,
        rule: int = 0,
        colours: int = 3,
        size: int = 4,
        horizon: int = 16,
        cost: float = 0.1,
        view: int = 5,
        render_mode: str | None = None,
    ) -> None:
        if not 2 <= colours <= len(COLOURS):
            raise ValueError(f"there are two to {len(COLOURS)} colours, not {colours}")
        if not 0 <= rule < colours:
            raise ValueError(f"of {colours} colours, number {rule} cannot hold the ball")
        if size < 4:
            raise ValueError(f"a room needs four cells a side to keep the boxes apart, not {size}")
        self.rule, self.colours, self.cost = rule, COLOURS[:colours], cost
        super().__init__(
            MissionSpace(lambda: "find the ball"),
            grid_size=size + 2,
            max_steps=horizon,
            see_through_walls=True,
            agent_view_size=view,
            render_mode=render_mode,
        )

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        self.boxes: list[tuple[int, int]] = []  # column and row of each colour's
        for number, colour in enumerate(self.colours):
            box = Box(colour, Ball(colour) if number == self.rule else None)
            self.boxes.append(self.place_obj(box, reject_fn=self._touches))
        self.place_agent()

    @staticmethod
    def _touches(room: Room, at: tuple[int, int]) -> bool:
        return any(abs(at[0] - x) < 2 and abs(at[1] - y) < 2 for x, y in room.boxes)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """MiniGrid's step, with the reward for what is in a box that it opens."""
        opens = action == Actions.toggle and isinstance(self.grid.get(*self.front_pos), Box)
        seen, _, _, truncated, info = super().step(action)
        found = opens and self.grid.get(*self.front_pos) is not None
        reward = self._reward() if found else -self.cost * opens
        return seen, reward, found, truncated and not found, info


class _Unseen(Room):
    """A room that does not describe what is seen after each step: :class:`Rooms` does so for all rooms at once."""

    def gen_obs(self) -> dict[str, Any]:
        return {}


class Rooms(TaskEnv):
    """Rooms side by side, each stepped by MiniGrid; a task is the number of the colour whose box holds the ball.

    Where the boxes stand, and where the agent begins, is drawn anew for every episode: what can be carried over from
    one to the next is the colour, and no route. The agent sees MiniGrid's egocentric view, and of each cell of it
    whether there is a wall, a box or a ball of each colour, and whether it is the ball: ``view * view * (colours + 2)``
    numbers, 0 or 1. Actions: turn left, turn right, go forward, open.

    Parameters
    ----------
    num_envs : int
    colours, size, horizon, cost, view
        As for :class:`Room`.
    told : bool
        Let the agent see its task as well, one-hot, after the view.
    """

    def __init__(
        self,
        num_envs: int = 1,
        colours: int = 3,
        size: int = 4,
        horizon: int = 16,
        cost: float = 0.1,
        view: int = 5,
        told: bool = False,
    ) -> None:
        seen = spaces.Box(0.0, 1.0, (view**2 * (colours + 2) + told * colours,), np.float32)
        super().__init__(num_envs, horizon, seen, spaces.Discrete(len(MOVES)))
        self.colours, self.told = colours, told
        room = _Unseen(0, colours, size, horizon, cost, view)
        self.rooms = [copy(room) for _ in range(num_envs)]  # all that changes in a room is made anew by its reset
        self._offsets, self._margin = _in_view(view), view - 1
        self._walls = np.pad(np.zeros((size, size), int), view, constant_values=1)  # all that can come into view
        self._codes = _codes(colours)

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Numbers of the colours whose boxes hold the ball, ``[tasks]``."""
        return generator.integers(self.colours, size=tasks)

    def _begin(self) -> None:
        for room, rule in zip(self.rooms, self.tasks, strict=True):
            room.rule, room.np_random = int(rule), self.np_random
            room.reset()
        self._found = np.zeros(self.num_envs, bool)
        self._cells = np.tile(self._walls, (self.num_envs, 1, 1))  # by column and row, numbers as in _codes
        column, row = np.moveaxis(np.array([room.boxes for room in self.rooms]) + self._margin, 2, 0)
        self._cells[np.arange(self.num_envs)[:, None], column, row] = 2 + np.arange(self.colours)

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        rewards = np.zeros(self.num_envs)
        for i in np.flatnonzero(~self._over):
            room = self.rooms[i]
            _, rewards[i], self._found[i], *_ = room.step(MOVES[actions[i]])
            column, row = room.front_pos + self._margin
            if actions[i] == OPEN and self._cells[i, column, row] > 1:
                self._cells[i, column, row] = 2 + self.colours + room.rule if self._found[i] else 0
        return rewards

    def _terminal(self) -> np.ndarray:
        return self._found

    def _observe(self) -> np.ndarray:
        places = np.array([room.agent_pos for room in self.rooms]) + self._margin
        facing = self._offsets[[room.agent_dir for room in self.rooms]]
        column, row = np.moveaxis(places[:, None, None] + facing, 3, 0)
        seen = self._codes[self._cells[np.arange(self.num_envs)[:, None, None], column, row]]
        seen = seen.reshape(self.num_envs, -1)
        return np.hstack([seen, np.eye(self.colours, dtype=np.float32)[self.tasks]]) if self.told else seen


register("metabook/Rooms-v0", Rooms)


def _in_view(view: int) -> np.ndarray:
    """Where the cells of a view lie, seen from the agent, by its direction: ``[4, view, view, 2]``."""
    across, ahead = np.arange(view) - view // 2, np.arange(view)[::-1]
    forward = np.array(DIR_TO_VEC)[:, None, None]
    right = np.stack([-forward[..., 1], forward[..., 0]], -1)
    return across[:, None, None] * right + ahead[:, None] * forward


def _codes(colours: int) -> np.ndarray:
    """How empty cells, walls, boxes and balls of each colour are seen: ``[2 + 2 * colours, 2 + colours]``."""
    colour = np.eye(colours + 2)[1:-1]
    ball = colour + np.eye(colours + 2)[-1]
    return np.vstack([np.zeros(colours + 2), np.eye(colours + 2)[0], colour, ball]).astype(np.float32)


def route(room: Room, colour: int) -> list[int]:
    """Fewest actions of :class:`Rooms` that open the box of a colour and no other: breadth-first search.

    Parameters
    ----------
    room : Room
        That still has this box.
    colour : int
    """
    start = (*map(int, room.agent_pos), int(room.agent_dir))
    came = {start: (start, OPEN)}  # from where, and by which action
    queue = [start]
    for state in queue:
        x, y, facing = state
        ahead = (x + int(DIR_TO_VEC[facing][0]), y + int(DIR_TO_VEC[facing][1]))
        if ahead == room.boxes[colour]:
            break
        after = {LEFT: (x, y, (facing - 1) % 4), RIGHT: (x, y, (facing + 1) % 4)}
        if room.grid.get(*ahead) is None:
            after[FORWARD] = (*ahead, facing)
        for action, place in after.items():
            if place not in came:
                came[place] = (state, action)
                queue.append(place)
    actions = [OPEN]
    while state != start:
        state, action = came[state]
        actions.append(action)
    return actions[::-1]


class Walked(NamedTuple):
    """One trial in each task.

    Parameters
    ----------
    actions : ndarray [tasks, steps]
        Of all episodes, in order.
    rewards : ndarray [tasks, steps]
    """

    actions: np.ndarray
    rewards: np.ndarray


class Walker:
    """An agent by hand that sees the whole room, but not what is in the boxes.

    It takes the shortest way to the box of the colour that holds the ball, if it knows the colour, and else to the
    nearest of those that it has not seen empty.

    Parameters
    ----------
    episodes : int
        Of a trial.
    told : bool
        Know the rule from the start.
    remembers : bool
        Keep what is known when an episode ends.
    """

    def __init__(self, episodes: int, told: bool = False, remembers: bool = True) -> None:
        self.episodes, self.told, self.remembers = episodes, told, remembers

    def play(self, tasks: Tasks) -> Walked:
        """Live through one trial in each task."""
        env, _ = tasks.environments()
        assert isinstance(env, Rooms)
        everyone = np.arange(len(tasks))
        possible = np.eye(env.colours, dtype=bool)[tasks.parameters] | (not self.told)
        actions, rewards = [], []
        for episode in range(self.episodes):
            if episode:
                env.reset()
            possible = possible if self.remembers or self.told else np.ones_like(possible)
            target = np.full(len(tasks), -1)
            for _ in range(env.horizon):
                ways = list(map(self._way, env.rooms, possible, target))
                action, target = np.array([(way[0], colour) for way, colour in ways]).T
                _, paid, found, *_ = env.step(action)
                empty = (action == OPEN) & ~env._over & ~found
                possible[everyone[empty], target[empty]] = False
                possible[found] = np.eye(env.colours, dtype=bool)[target[found]]
                target = np.where(empty, -1, target)
                actions.append(action)
                rewards.append(paid)
        return Walked(np.stack(actions, 1), np.stack(rewards, 1))

    @staticmethod
    def _way(room: Room, possible: np.ndarray, target: int) -> tuple[list[int], int]:
        """The way to the target, or to the nearest possible box if there is none (-1); and to which it leads."""
        colours = np.flatnonzero(possible) if target < 0 else [target]
        ways = [(route(room, int(colour)), int(colour)) for colour in colours]
        return min(ways, key=lambda way: len(way[0]))

    def predict(self, tasks: Tasks) -> Tensor:
        """Returns of the episodes of one trial in each task, ``[tasks, episodes]``."""
        rewards = torch.from_numpy(self.play(tasks).rewards).float()
        return rewards.unflatten(1, (self.episodes, -1)).sum(2)


def first_right(rewards: Tensor, episodes: int) -> Tensor:
    """Of which episodes the first box that was opened held the ball, ``[tasks, episodes]``: 0 or 1.

    Parameters
    ----------
    rewards : Tensor [tasks, steps]
        Of all episodes of a trial, where empty boxes cost something.
    episodes : int
    """
    each = rewards.unflatten(1, (episodes, -1))
    first = (each != 0).int().argmax(2, keepdim=True)
    return (each.gather(2, first) > 0).squeeze(2).float()
