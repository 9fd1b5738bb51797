"""Gymnasium's cart and pole with a pad of unlabelled buttons: every task has other buttons and other physics.

The cart and the pole are those of A. G. Barto, R. S. Sutton and C. W. Anderson, Neuronlike Adaptive Elements That Can
Solve Difficult Learning Control Problems, IEEE Transactions on Systems, Man, and Cybernetics 13, 1983, in the form of
Gymnasium's ``CartPole-v1``, which a test holds this against step by step.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metabook.rl.base import TaskEnv, Tasks, register
from metabook.rl.rl2 import RL2
from metabook.storage import load

__all__ = ["CartPoles", "Engineer", "Replayed", "pilot", "pole_replay", "push"]

CART, POLE = 1.0, 0.1  # masses in kg
TAU = 0.02  # seconds a step
LIMITS = np.array([2.4, math.radians(12)])  # of the place in m and the tilt: beyond, the episode is over
SCALE = np.array([LIMITS[0], 2.0, LIMITS[1], 2.0])  # what an agent sees is divided by this
UNKNOWN = 9  # what a button does: -1, 0, 1, or this
PILOT = Path(__file__).with_name("pilot.safetensors")


class CartPoles(TaskEnv):
    """Carts with poles to be kept upright by buttons of which nobody says what they do.

    One button pushes to the left, one to the right, and the others are dead. A task is which is which, how strong the
    pushes are (4 to 8 N), how long the pole is (half-length 0.4 to 0.8 m), and the gravity (8 to 12 m/s²):
    ``[force of every button, half-length, gravity]``. A button stays pressed for ``hold`` frames of 0.02 s, which are
    the steps of CartPole-v1. The reward of a press is the share of its frames that begin before the pole is tilted by
    more than 12° or the cart has left its track of 2.4 m to either side; that ends the episode.

    The agent sees place, speed, tilt and angular speed, divided by 2.4 m, 2 m/s, 12° and 2 rad/s.

    Parameters
    ----------
    num_envs : int
    buttons : int
    horizon : int
        Presses an episode.
    hold : int
        Frames a press.
    spread : float
        An episode begins with all four numbers of the state uniform in [-spread, spread], in SI units. CartPole-v1 has
        0.05, and other numbers as options of its ``reset``.
    told : bool
        Let the agent see its task as well, after the state.

    Raises
    ------
    ValueError
        With fewer than two buttons, without frames, or if the pole could begin beyond its limit.
    """

    def __init__(
        self,
        num_envs: int = 1,
        buttons: int = 3,
        horizon: int = 20,
        hold: int = 4,
        spread: float = 0.15,
        told: bool = False,
    ) -> None:
        if buttons < 2:
            raise ValueError(f"two buttons are needed to push to both sides, not {buttons}")
        if hold < 1:
            raise ValueError(f"a press takes at least one frame, not {hold}")
        if not 0 <= spread < LIMITS[1]:
            raise ValueError(f"spread must be from 0 to below {LIMITS[1]:.3f}, not {spread}")
        seen = spaces.Box(-10.0, 10.0, (4 + told * (buttons + 2),), np.float32)
        super().__init__(num_envs, horizon, seen, spaces.Discrete(buttons))
        self.buttons, self.hold, self.spread, self.told = buttons, hold, spread, told

    def sample_tasks(self, tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Forces of the buttons, half-lengths and gravities, ``[tasks, buttons + 2]``."""
        strength = generator.uniform(4, 8, (tasks, 1))
        sides = generator.permuted(np.tile(np.append([-1, 1], np.zeros(self.buttons - 2)), (tasks, 1)), axis=1)
        return np.hstack([strength * sides, generator.uniform((0.4, 8.0), (0.8, 12.0), (tasks, 2))])

    def _begin(self) -> None:
        self.state = self.np_random.uniform(-self.spread, self.spread, (self.num_envs, 4))

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        forces = np.take_along_axis(self.tasks, np.asarray(actions)[:, None], 1)[:, 0]
        lived = np.zeros(self.num_envs)
        for _ in range(self.hold):
            stands = ~self._over & ~self._terminal()
            moved = push(self.state, forces, self.tasks[:, -2], self.tasks[:, -1])
            self.state = np.where(stands[:, None], moved, self.state)
            lived += stands
        return lived / self.hold

    def _observe(self) -> np.ndarray:
        seen = self.state / SCALE
        if self.told:
            seen = np.hstack([seen, self.tasks[:, :-2] / 8, self.tasks[:, -2:] / (0.6, 10.0) - 1])
        return seen.astype(np.float32)

    def _terminal(self) -> np.ndarray:
        return np.any(np.abs(self.state[:, ::2]) > LIMITS, axis=1)


register("metabook/CartPoles-v0", CartPoles)


def push(state: np.ndarray, force: np.ndarray, length: np.ndarray, gravity: np.ndarray) -> np.ndarray:
    """The state one frame later, 0.02 s: a step of Euler's method.

    Parameters
    ----------
    state : ndarray [..., 4]
        Place (m), speed (m/s), tilt (rad, to the right) and angular speed (rad/s).
    force : ndarray [...]
        On the cart, to the right, in N.
    length : ndarray [...]
        Half of the pole's, in m.
    gravity : ndarray [...]
        In m/s².

    Returns
    -------
    ndarray [..., 4]
    """
    _, speed, tilt, turning = np.moveaxis(state, -1, 0)
    sine, cosine, mass = np.sin(tilt), np.cos(tilt), CART + POLE
    driven = (force + POLE * length * turning**2 * sine) / mass
    angular = (gravity * sine - cosine * driven) / (length * (4 / 3 - POLE * cosine**2 / mass))
    linear = driven - POLE * length * angular * cosine / mass
    return state + TAU * np.stack([speed, linear, turning, angular], -1)


class Replayed(NamedTuple):
    """What a trial looked like from outside.

    Parameters
    ----------
    states : ndarray [tasks, episodes, horizon + 1, 4]
        After each press, in SI units, the start included; after the end of an episode the last one again.
    forces : ndarray [tasks, episodes, horizon]
        Of the buttons that were pressed, in N.
    """

    states: np.ndarray
    forces: np.ndarray


def pole_replay(tasks: Tasks, actions: Tensor | np.ndarray) -> Replayed:
    """The states and forces of agents that pressed these buttons: episodes begin as the seed of the tasks says.

    Parameters
    ----------
    tasks : Tasks
    actions : [tasks, steps]
        Of all episodes of a trial, in order.
    """
    env, _ = tasks.environments()
    assert isinstance(env, CartPoles)
    states, forces = [], []
    for episode, pressed in enumerate(np.split(np.asarray(actions), np.shape(actions)[1] // env.horizon, axis=1)):
        if episode:
            env.reset()
        path = [env.state]
        for buttons in pressed.T:
            env.step(buttons)
            path.append(env.state)
        states.append(np.stack(path, 1))
        forces.append(np.take_along_axis(env.tasks, pressed, 1))
    return Replayed(np.stack(states, 1), np.stack(forces, 1))


def pilot() -> RL2:
    """The recurrent agent that comes with the package: ``benchmarks/control.py`` trained it, for the default family."""
    learner = load(PILOT)
    assert isinstance(learner, RL2)
    return learner


class Engineer:
    r"""An agent by hand that knows the equations, and has to find out the buttons.

    It wants to push to the side to which :math:`w \cdot s` points, with ``w`` of ``rule`` and the state ``s``. It
    presses the button that does so if it knows it, else one that it has not tried, else a dead one. What a button does
    it sees in the speed of the cart, once it has been pressed.

    Parameters
    ----------
    episodes : int
        Of a trial.
    told : bool
        Know the buttons from the start.
    remembers : bool
        Keep what is known when an episode ends.
    rule : sequence of 4 float
    """

    RULE = (0.2, 0.4, 4.0, 1.0)

    def __init__(
        self, episodes: int, told: bool = False, remembers: bool = True, rule: tuple[float, ...] = RULE
    ) -> None:
        self.episodes, self.told, self.remembers, self.rule = episodes, told, remembers, np.array(rule)

    def play(self, tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
        """Actions ``[tasks, steps]`` and returns ``[tasks, episodes]`` of one trial in each task."""
        env, _ = tasks.environments()
        assert isinstance(env, CartPoles)
        everyone, returns = np.arange(len(tasks)), np.zeros((len(tasks), self.episodes))
        truth = np.sign(env.tasks[:, : env.buttons])
        known, actions = np.where(self.told, truth, UNKNOWN), []
        for episode in range(self.episodes):
            if episode:
                env.reset()
                known = known if self.remembers or self.told else np.full_like(known, UNKNOWN)
            for _ in range(env.horizon):
                side = np.where(env.state @ self.rule > 0, 1, -1)
                action = self._press(known, side)
                before = env.state
                _, rewards, *_ = env.step(action)
                gained = env.state[:, 1] - before[:, 1]
                least = 1.5 * TAU * env.hold * rewards  # pushes give 3 m/s² and more, the pole alone less than 1
                found = np.where(np.abs(gained) < least, 0, np.sign(gained))
                alive = (env.state != before).any(1)
                known[everyone[alive], action[alive]] = found[alive]
                known = _concluded(known)
                actions.append(action)
                returns[:, episode] += rewards
        return np.stack(actions, 1), returns

    def _press(self, known: np.ndarray, side: np.ndarray) -> np.ndarray:
        """The button that is most likely to push to ``side``; a dead one is better than a wrong one."""
        worth = np.select([known == side[:, None], known == UNKNOWN, known == 0], [3, 2, 1], 0)
        return worth.argmax(1)

    def predict(self, tasks: Tasks) -> Tensor:
        """Returns of the episodes of one trial in each task, ``[tasks, episodes]``."""
        return torch.from_numpy(self.play(tasks)[1]).float()


def _concluded(known: np.ndarray) -> np.ndarray:
    """What follows from what was seen: the last unknown button is that which is missing, or dead."""
    left, right = ((known == side).any(1) for side in (-1, 1))
    unknown = known == UNKNOWN
    both = (left & right)[:, None] & unknown
    last = (unknown.sum(1) == 1)[:, None] & unknown & ~both
    known = np.where(both, 0, known)
    return np.where(last, np.where(left, 1, np.where(right, -1, UNKNOWN))[:, None], known)
