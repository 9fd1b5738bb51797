"""A bot with old intents is given new ones: what it is told, and what it is then asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from metabook import data
from metabook.chat.bot import Chatbot, Example
from metabook.chat.scope import Threshold, auroc, choose_threshold
from metabook.data import TextData
from metabook.learners import Learner

__all__ = ["Outcome", "Scenario", "ask", "draw_scenario", "pooled_threshold", "training_part"]

TRAINING, VALIDATION = 2 / 3, 5 / 6  # where the messages of an old intent are cut; the last sixth is for the test
CLINC_OUTSIDE = 200  # the first messages of no intent, which CLINC150 means for training and validation


@dataclass(frozen=True)
class Scenario:
    """One drawing of a bot's life.

    Parameters
    ----------
    known : sequence of Example
        Many examples of each old intent.
    taught : sequence of Example
        The few of each new one.
    old, new : sequence of Example
        Other messages of the old and of the new intents, for the test.
    outside : sequence of str
        Messages of no intent that the bot knows.
    """

    known: tuple[Example, ...]
    taught: tuple[Example, ...]
    old: tuple[Example, ...]
    new: tuple[Example, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a bot did in a scenario: the largest score of each message, and whether it belongs to the right intent."""

    old_scores: np.ndarray
    old_right: np.ndarray
    new_scores: np.ndarray
    new_right: np.ndarray
    outside: np.ndarray

    @property
    def auroc(self) -> float:
        return auroc(np.concatenate([self.old_scores, self.new_scores]), self.outside)

    def shares(self, threshold: float = -np.inf) -> dict[str, float]:
        """Old and new messages that are answered rightly, messages outside that are refused, and their balance.

        The balance weighs old, new and outside 1 : 1 : 2, so that half of it is what the bot knows.
        """
        old = float((self.old_right & (self.old_scores >= threshold)).mean())
        new = float((self.new_right & (self.new_scores >= threshold)).mean())
        outside = float((self.outside < threshold).mean())
        return {"old": old, "new": new, "outside": outside, "balance": (old + new + 2 * outside) / 4}


def training_part(name: str = "intents", **options: Any) -> TextData:
    """The messages of the old intents that features may be fitted to: the first two thirds of each class.

    Parameters
    ----------
    name : str
        A data set of texts.
    **options
        As for :func:`metabook.data.load`.
    """
    pool = data.load(name, "train", **options)
    assert isinstance(pool, TextData)  # for the type checker
    classes, groups = by_class(pool), dict(zip(pool.names, pool.groups))
    pairs = [(text, intent) for intent, texts in classes.items() for text in texts[: int(TRAINING * len(texts))]]
    return TextData.of(pairs, groups)


def draw_scenario(
    name: str = "intents",
    part: str = "test",
    *,
    shots: int = 5,
    seed: int = 0,
    known_shots: int = 20,
    new: int = 5,
    old_queries: int = 5,
    new_queries: int = 10,
    outside: int = 200,
) -> Scenario:
    """Draw a scenario from a data set of intents.

    Old intents are all training classes, new ones are classes of the part. Outside are, for CLINC150, its messages of
    no intent, and for the generated intents those of the part's domain that no new intent comes from.

    Parameters
    ----------
    name : {"intents", "clinc150"}
    part : {"validation", "test"}
        No message of the one is in the other, and no new intent either.
    shots : int
        Examples of each new intent.
    seed : int
    known_shots : int
        Examples of each old intent.
    new : int
        Number of new intents.
    old_queries, new_queries : int
        Messages of each intent that are asked.
    outside : int
        Messages outside of the scope.

    Raises
    ------
    ValueError
        If there is no such part.
    """
    if part not in ("validation", "test"):
        raise ValueError(f"part must be validation or test, not {part!r}")
    rng = random.Random(f"{name}/{part}/{seed}")
    known, old = [], []
    for intent, texts in classes_of(name, "train").items():
        cuts = (int(TRAINING * len(texts)), int(VALIDATION * len(texts)), len(texts))
        kept = texts[cuts[0] : cuts[1]] if part == "validation" else texts[cuts[1] :]
        known += [Example(text, intent) for text in rng.sample(texts[: cuts[0]], known_shots)]
        old += [Example(text, intent) for text in rng.sample(kept, min(old_queries, len(kept)))]
    classes, strangers = _newcomers(name, part, rng)
    taught, asked = [], []
    for intent in rng.sample(sorted(classes), new):
        drawn = [Example(text, intent) for text in rng.sample(classes[intent], 20 + new_queries)]
        taught += drawn[:shots]  # fewer shots are the first of more
        asked += drawn[20:]
    far = rng.sample(strangers, min(outside, len(strangers)))
    return Scenario(tuple(known), tuple(taught), tuple(old), tuple(asked), tuple(far))


def _newcomers(name: str, part: str, rng: random.Random) -> tuple[dict[str, list[str]], list[str]]:
    """Classes that can be new, and messages outside."""
    pool, classes = _load(name, part), classes_of(name, part)
    if name == "clinc150":
        strangers = list(_load(name, "out_of_scope").texts)
        return classes, strangers[:CLINC_OUTSIDE] if part == "validation" else strangers[CLINC_OUTSIDE:]
    chosen = rng.choice(sorted(set(pool.groups)))
    inside = {intent for intent, group in zip(pool.names, pool.groups) if group == chosen}
    strangers = [text for intent, texts in classes.items() if intent not in inside for text in texts]
    return {intent: texts for intent, texts in classes.items() if intent in inside}, strangers


@lru_cache(maxsize=8)
def _load(name: str, split: str) -> TextData:
    pool = data.load(name, split)
    assert isinstance(pool, TextData)  # for the type checker
    return pool


def classes_of(name: str, split: str) -> dict[str, list[str]]:
    """The texts of each class of a data set."""
    return by_class(_load(name, split))


def by_class(pool: TextData) -> dict[str, list[str]]:
    """The texts of each class."""
    classes: dict[str, list[str]] = {intent: [] for intent in pool.names}
    for text, label in zip(pool.texts, pool.y.tolist()):
        classes[pool.names[label]].append(text)
    return classes


def ask(embed: Callable[[Sequence[str]], Tensor], learner: Learner, scenario: Scenario) -> Outcome:
    """Teach a bot what the scenario says, then ask it everything."""
    bot = Chatbot(embed, learner, starter=[*scenario.known, *scenario.taught])
    asked = [*scenario.old, *scenario.new]
    answers = bot.answers([*(example.message for example in asked), *scenario.outside])
    scores = np.array([next(iter(answer.scores.values()), -np.inf) for answer in answers])
    right = np.array([answer.intent == example.intent for answer, example in zip(answers, asked)])
    cut, end = len(scenario.old), len(asked)
    return Outcome(scores[:cut], right[:cut], scores[cut:end], right[cut:], scores[end:])


def pooled_threshold(outcomes: Sequence[Outcome]) -> Threshold:
    """The threshold that is best for the balance of all outcomes together; old and new messages count alike."""
    inside, right, weights = [], [], []
    for outcome in outcomes:
        for scores, correct in ((outcome.old_scores, outcome.old_right), (outcome.new_scores, outcome.new_right)):
            inside.append(scores)
            right.append(correct)
            weights.append(np.full(len(scores), 1 / len(scores)))
    outside = np.concatenate([outcome.outside for outcome in outcomes])
    return choose_threshold(np.concatenate(inside), np.concatenate(right), outside, np.concatenate(weights))
