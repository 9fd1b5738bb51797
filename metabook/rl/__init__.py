"""Meta-reinforcement learning: families of environments with hidden tasks, and agents that learn to learn in them.

Importing this registers the environments with Gymnasium: ``metabook/Bandits-v0``, ``metabook/CartPoles-v0``,
``metabook/HiddenGoal-v0``, ``metabook/Navigation-v0`` and ``metabook/Rooms-v0``.
"""

from metabook.rl.bandits import UCB1, Bandits, BayesOptimal, Gittins, Greedy, Thompson, Uniform, regret
from metabook.rl.base import EnvTasks, TaskEnv, Tasks, Trajectories, rollout
from metabook.rl.control import CartPoles, Engineer, pole_replay
from metabook.rl.grid import HiddenGoal, Searcher, optimal_search, replay, row_by_row, search_value
from metabook.rl.maml_rl import MAMLRL, PretrainedPolicy
from metabook.rl.navigation import Navigation
from metabook.rl.policies import CategoricalPolicy, GaussianPolicy
from metabook.rl.rl2 import RL2, Memoryless, RewardBlind, TaskBelief
from metabook.rl.rooms import Room, Rooms, Walker

__all__ = [
    "MAMLRL",
    "RL2",
    "UCB1",
    "Bandits",
    "BayesOptimal",
    "CartPoles",
    "CategoricalPolicy",
    "Engineer",
    "EnvTasks",
    "GaussianPolicy",
    "Gittins",
    "Greedy",
    "HiddenGoal",
    "Memoryless",
    "Navigation",
    "PretrainedPolicy",
    "RewardBlind",
    "Room",
    "Rooms",
    "Searcher",
    "TaskBelief",
    "TaskEnv",
    "Tasks",
    "Thompson",
    "Trajectories",
    "Uniform",
    "Walker",
    "optimal_search",
    "pole_replay",
    "regret",
    "replay",
    "rollout",
    "row_by_row",
    "search_value",
]
