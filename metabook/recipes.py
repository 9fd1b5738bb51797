"""How the command line trains each learner: the network, the tasks and the optimiser that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from metabook.learners import MAML, FineTune, Learner, PretrainedNearestMean, ProtoNet
from metabook.nets import MLP, Conv4

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """Settings that make a learner work on a kind of data.

    Parameters
    ----------
    build : callable
        ``build(ways, classes, first_order)`` to the untrained learner: ``ways`` of a task,
        ``classes`` in the training pool.
    ways, shots, queries : int
        Of the training tasks (regression: ``ways`` is 1).
    tasks : int
        Tasks a step.
    fit : dict
        Further arguments of :func:`metabook.fit`.
    within_group : float
        Share of the tasks whose classes all come from one alphabet.
    distort, rotate : bool
        Distort every drawn image; take rotations as new classes.
    """

    build: Callable[[int, int, bool], Learner]
    ways: int
    shots: int
    queries: int
    tasks: int
    fit: dict[str, Any] = field(default_factory=dict)
    within_group: float = 0.0
    distort: bool = False
    rotate: bool = False


def _embedding() -> nn.Module:
    return Conv4(channels=(32, 64, 128, 128), norm="running")


def _maml(ways: int, _: int, first_order: bool) -> Learner:
    return MAML(Conv4(ways, downsample="stride"), inner_lr=0.4, steps=1, first_order=first_order, eval_steps=3)


_FEW_ALPHABETS = dict(within_group=0.5, distort=True, rotate=True)
_ANNEALED = dict(lr=3e-3, cosine=True, weight_decay=1e-2, average=0.99)

RECIPES: dict[str, dict[str, Recipe]] = {
    "characters": {
        "ProtoNet": Recipe(lambda *_: ProtoNet(_embedding()), 20, 1, 5, 2, _ANNEALED, **_FEW_ALPHABETS),
        "MAML": Recipe(_maml, 5, 1, 3, 16, dict(lr=2e-3, cosine=True, average=0.99), **_FEW_ALPHABETS),
        "PretrainedNearestMean": Recipe(
            lambda ways, classes, _: PretrainedNearestMean(_embedding(), classes),
            20,
            1,
            5,
            2,
            _ANNEALED,
            **_FEW_ALPHABETS,
        ),
    },
    "sinusoids": {
        "MAML": Recipe(lambda *a: MAML(MLP(), inner_lr=0.01, steps=1, first_order=a[2], eval_steps=10), 1, 10, 10, 25),
        "FineTune": Recipe(lambda *_: FineTune(MLP(), inner_lr=0.01, steps=10), 1, 10, 10, 25),
    },
}


def recipe(learner: str, data: str) -> Recipe:
    """The recipe for a learner on a data set, both by name.

    Raises
    ------
    ValueError
        If there is none; the message says which learners there are.
    """
    kind = RECIPES["sinusoids" if data == "sinusoids" else "characters"]
    if learner in kind:
        return kind[learner]
    if learner in {name for recipes in RECIPES.values() for name in recipes}:
        raise ValueError(f"{learner} cannot be trained on {data}: choose one of {', '.join(kind)}")
    raise ValueError(f"there is no learner called {learner!r}: choose one of {', '.join(kind)}")
