"""Bandits: a row of levers with hidden payoffs, the smallest tasks in which exploring pays.

The setting of Y. Duan et al., RL²: Fast Reinforcement Learning via Slow Reinforcement Learning, 2016,
https://arxiv.org/abs/1611.02779, section 3.1, with the agents that need no training beside it. Those know the family of
tasks (the prior), or nothing at all; a meta-trained agent knows only the tasks that it was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from metabook.episodes import generator_for
from metabook.rl.base import TaskEnv, Tasks, register
from metabook.rl.rl2 import RL2, Trial

__all__ = [
    "UCB1",
    "BanditAgent",
    "Bandits",
    "BayesOptimal",
    "Belief",
    "Gittins",
    "Greedy",
    "Pulls",
    "Thompson",
    "Uniform",
    "beliefs",
    "regret",
    "replay",
]


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


@dataclass(frozen=True)
class Pulls:
    """What an agent did in the bandits of a batch of tasks.

    Parameters
    ----------
    actions, rewards : Tensor [tasks, pulls]
    """

    actions: Tensor
    rewards: Tensor


def regret(tasks: Tasks, actions: Tensor) -> np.ndarray:
    """What the best arm would have paid more on average than the arms that were pulled, summed up to each pull.

    Parameters
    ----------
    tasks : Tasks
    actions : Tensor [tasks, pulls]

    Returns
    -------
    ndarray [tasks, pulls]
    """
    means = tasks.parameters
    chosen = np.take_along_axis(means, actions.cpu().numpy(), 1)
    return np.cumsum(means.max(1, keepdims=True) - chosen, 1)


@dataclass(frozen=True)
class Belief:
    """All that matters of what an agent has seen of its bandits, and the posterior that follows from it.

    Parameters
    ----------
    pulled, paid : ndarray [tasks, ..., arms]
        How often each arm was pulled, and the sum of what it paid.
    left : int
        Pulls that are left (0 where that is not asked).
    payoff : str
        See :class:`Bandits`.
    """

    pulled: np.ndarray
    paid: np.ndarray
    left: int = 0
    payoff: str = "bernoulli"

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean of each arm's payoff, ``[tasks, ..., arms]``."""
        if self.payoff == "bernoulli":
            return (self.paid + 1) / (self.pulled + 2)
        return self.paid / (self.pulled + 1)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """A draw of each arm's payoff from the posterior, ``[tasks, ..., arms]``: Beta, or normal."""
        if self.payoff == "bernoulli":
            return generator.beta(self.paid + 1, self.pulled - self.paid + 1)
        return generator.normal(self.mean, 1 / np.sqrt(self.pulled + 1))


def beliefs(pulls: Pulls | Trial, arms: int, payoff: str = "bernoulli") -> Belief:
    """What could be known before each pull, ``[tasks, pulls, arms]``, whoever chose the arms.

    Parameters
    ----------
    pulls : Pulls or Trial
    arms : int
    payoff : str
        See :class:`Bandits`.
    """
    pulled = np.eye(arms)[pulls.actions.cpu().numpy()]  # [tasks, pulls, arms], one-hot
    paid = pulled * pulls.rewards.cpu().numpy()[:, :, None]
    pulled_before, paid_before = (np.cumsum(each, 1) - each for each in (pulled, paid))
    return Belief(pulled_before, paid_before, payoff=payoff)


@torch.no_grad()
def replay(learner: RL2, pulls: Pulls | Trial) -> Tensor:
    """The states before each pull of an agent that is told of these pulls, whoever chose them.

    Returns
    -------
    Tensor [tasks, pulls, hidden]
    """
    told = F.one_hot(pulls.actions, learner.actions).float()
    nothing = pulls.rewards.new_zeros(len(told), 1)
    state, action, reward = nothing.expand(-1, learner.hidden), torch.zeros_like(told[:, 0]), nothing
    states = []
    for pull in range(told.shape[1]):
        state = learner.remember(state, nothing, action, reward, nothing)
        states.append(state)
        action, reward = told[:, pull], pulls.rewards[:, pull : pull + 1]
    return torch.stack(states, 1)


class BanditAgent:
    """An agent that is not trained: it scores the arms by its belief and pulls one with the highest score."""

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        """Scores of the arms, ``[tasks, arms]``."""
        raise NotImplementedError

    def play(self, tasks: Tasks) -> Pulls:
        """Pull the arms of each task to the end; ties are broken at random.

        Raises
        ------
        TypeError
            If the tasks are not bandits.
        """
        env, _ = tasks.environments()
        if not isinstance(env, Bandits):
            raise TypeError(f"{type(self).__name__} plays bandits, not {type(env).__name__}")
        generator = np.random.default_rng(generator_for("agent", type(self).__name__, tasks.seed).initial_seed())
        every, pulled, paid = np.arange(len(tasks)), *np.zeros((2, len(tasks), env.arms))
        actions, rewards = np.zeros((2, len(tasks), env.horizon))
        for pull in range(env.horizon):
            scores = self.scores(Belief(pulled, paid, env.horizon - pull, env.payoff), generator)
            best = scores == scores.max(1, keepdims=True)
            action = np.where(best, generator.random(best.shape), -1.0).argmax(1)
            _, reward, *_ = env.step(action)
            actions[:, pull], rewards[:, pull] = action, reward
            pulled[every, action] += 1
            paid[every, action] += reward
        return Pulls(torch.from_numpy(actions).long(), torch.from_numpy(rewards).float())


class Uniform(BanditAgent):
    """Pulls any arm."""

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        return np.zeros_like(belief.mean)


@dataclass(frozen=True)
class Greedy(BanditAgent):
    """Pulls the arm with the highest posterior mean; with the probability ``epsilon`` any arm."""

    epsilon: float = 0.0

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        return belief.mean * (generator.random((len(belief.mean), 1)) >= self.epsilon)


@dataclass(frozen=True)
class UCB1(BanditAgent):
    r"""Optimism: the mean of what an arm paid plus a bonus, :math:`b \sqrt{2 \ln t / n}`; each arm once at first.

    P. Auer, N. Cesa-Bianchi, P. Fischer. Finite-time Analysis of the Multiarmed Bandit Problem. Machine Learning 47,
    2002, figure 1, where ``bonus`` is 1 and payoffs lie in [0, 1].
    """

    bonus: float = 1.0

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        once = np.maximum(belief.pulled, 1)
        total = np.maximum(belief.pulled.sum(1, keepdims=True), 1)
        index = belief.paid / once + self.bonus * np.sqrt(2 * np.log(total) / once)
        return np.where(belief.pulled == 0, np.inf, index)


class Thompson(BanditAgent):
    """Pulls an arm with the probability that it is the best: draws a bandit from the posterior and takes its best arm.

    W. R. Thompson. On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence of Two
    Samples. Biometrika 25, 1933.
    """

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        return belief.draw(generator)


class BayesOptimal(BanditAgent):
    r"""Earns the most that any agent can on average: dynamic programming over beliefs, Bernoulli arms alone.

    .. math:: V(b) = \max_a\; \mu_a(b) (1 + V(b^{a+})) + (1 - \mu_a(b)) V(b^{a-})

    Arms that change places change nothing, so that a belief is kept as its sorted row of (successes, failures).

    Parameters
    ----------
    arms, pulls : int

    Attributes
    ----------
    value : float
        The expected total reward.
    states : int
        Number of beliefs that can occur up to the last pull.

    Raises
    ------
    ValueError
        If there are so many arms or pulls that the table has no place in memory.
    """

    def __init__(self, arms: int, pulls: int) -> None:
        self.arms, self.pulls, self._base = arms, pulls, pulls + 1
        if math.comb(2 * arms + pulls, pulls) > 10**8 or self._base ** (2 * arms) >= 2**62:
            raise ValueError(f"{arms} arms and {pulls} pulls have too many beliefs: Gittins comes close to the optimum")
        self._places = self._base ** (2 * np.arange(arms - 1, -1, -1))  # of a row of pairs, read as one number
        levels, after = [np.zeros((1, arms), np.int64)], []
        change = np.eye(arms, dtype=np.int64)[:, None] * np.array([1, self._base])[:, None]
        for _ in range(pulls):
            states = np.sort(levels[-1][:, None, None] + change, -1)  # [beliefs, arms, 2, arms]
            _, where, index = np.unique(self._key(states), return_index=True, return_inverse=True)
            levels.append(states.reshape(-1, arms)[where])
            after.append(index.reshape(states.shape[:-1]))
        value, tables = np.zeros(len(levels[-1])), []
        for states, index in zip(levels[-2::-1], reversed(after), strict=True):
            mean = self._means(states)
            q = mean * (1 + value[index[..., 1]]) + (1 - mean) * value[index[..., 0]]
            value = q.max(1)
            tables.append((self._key(states), q))
        self._tables = tables  # by the number of pulls left, from 1
        self.value, self.states = float(value[0]), sum(map(len, levels[:-1]))

    def _key(self, states: np.ndarray) -> np.ndarray:
        return states @ self._places

    def _means(self, states: np.ndarray) -> np.ndarray:
        won, lost = np.divmod(states, self._base)
        return (won + 1) / (won + lost + 2)

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        return self.expected(belief)

    def expected(self, belief: Belief) -> np.ndarray:
        """Expected reward from here on if each arm is pulled next and all is done right afterwards, ``[tasks, arms]``.

        Raises
        ------
        ValueError
            For other bandits than these.
        """
        made_for = belief.payoff == "bernoulli" and belief.pulled.shape[1] == self.arms
        if not made_for or (belief.pulled.sum(1) + belief.left != self.pulls).any():
            raise ValueError(f"made for Bernoulli bandits with {self.arms} arms and {self.pulls} pulls")
        states = (belief.paid * self._base + belief.pulled - belief.paid).astype(np.int64)
        order = states.argsort(1)
        keys, q = self._tables[belief.left - 1]
        row = np.searchsorted(keys, self._key(np.take_along_axis(states, order, 1)))
        scores = np.empty(states.shape)
        np.put_along_axis(scores, order, q[row], 1)
        return scores

    def given_away(self, pulls: Pulls | Trial) -> np.ndarray:
        """What each pull gave away: the best of :meth:`expected` minus that of the arm which was pulled.

        On average its sum over the pulls is :attr:`value` minus what the agent earns, with far less noise than the
        difference of the two itself.

        Returns
        -------
        ndarray [tasks, pulls]
        """
        history, actions = beliefs(pulls, self.arms), pulls.actions.cpu().numpy()
        lost = np.empty(actions.shape)
        for pull, left in enumerate(range(actions.shape[1], 0, -1)):
            expected = self.expected(Belief(history.pulled[:, pull], history.paid[:, pull], left))
            lost[:, pull] = expected.max(1) - np.take_along_axis(expected, actions[:, [pull]], 1)[:, 0]
        return lost


class Gittins(BanditAgent):
    r"""Pulls the arm with the highest index: the sure payoff for which it would just be worth giving the arm up.

    The finite-horizon index of a Bernoulli arm, by calibration: for each sure payoff of a grid the optimal stopping
    problem of a single arm is solved. J. C. Gittins. Bandit Processes and Dynamic Allocation Indices. Journal of the
    Royal Statistical Society B 41, 1979. With discounted rewards without end such an index policy is optimal; with a
    fixed number of pulls it is close to it.

    Parameters
    ----------
    pulls : int
    grid : int
        Number of sure payoffs; an index is exact to half of their distance.

    Attributes
    ----------
    index : list of ndarray
        ``index[left - 1][won, lost]`` with ``left`` pulls left.
    """

    def __init__(self, pulls: int, grid: int = 501) -> None:
        self.pulls, self.index = pulls, []
        sure = np.linspace(0, 1, grid)[:, None, None]
        gain = np.zeros((grid, pulls + 1, pulls + 1))  # of going on, over the sure payoff for all pulls that are left
        for left in range(1, pulls + 1):
            won, lost = np.ogrid[: pulls + 1 - left, : pulls + 1 - left]
            mean = (won + 1) / (won + lost + 2)
            gain = np.maximum(mean - sure + mean * gain[:, 1:, :-1] + (1 - mean) * gain[:, :-1, 1:], 0)
            self.index.append(((gain > 0).sum(0) - 0.5) / (grid - 1))

    def scores(self, belief: Belief, generator: np.random.Generator) -> np.ndarray:
        if belief.payoff != "bernoulli" or belief.left > self.pulls:
            raise ValueError(f"made for Bernoulli bandits with at most {self.pulls} pulls")
        won, lost = belief.paid.astype(int), (belief.pulled - belief.paid).astype(int)
        return self.index[belief.left - 1][won, lost]
