"""A scripted user: talks with a bot, and corrects it when it is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from metabook.chat.bot import Chatbot, Example
from metabook.chat.scenario import TRAINING, classes_of

__all__ = ["Dialogue", "ScriptedUser", "talk"]


@dataclass(frozen=True)
class ScriptedUser:
    """What a user is going to say, with the intents that are meant.

    Parameters
    ----------
    known : sequence of Example
        What a bot should be started with.
    turns : sequence of Example
    heldout : sequence of Example
        Messages of the same intents that the user does not say, for checks in between.
    """

    known: tuple[Example, ...]
    turns: tuple[Example, ...]
    heldout: tuple[Example, ...]

    @classmethod
    def draw(
        cls,
        name: str = "intents",
        part: str = "test",
        *,
        turns: int = 300,
        seed: int = 0,
        old: int = 8,
        new: int = 16,
        known_shots: int = 20,
        heldout: int = 5,
        skew: float = 0.5,
    ) -> ScriptedUser:
        """A user who wants some things that the bot knows and some that it does not, the one more often than the other.

        Parameters
        ----------
        name : {"intents", "clinc150"}
        part : {"validation", "test"}
            Where the new intents are from. The old ones are training classes, in words that the bot was not given.
        turns : int
        seed : int
            Another seed is another user.
        old, new : int
            Number of intents.
        known_shots : int
            Examples of each old intent that the bot starts with.
        heldout : int
            Messages of each intent for the checks.
        skew : float
            The intent in place ``r`` of a random order is wanted with a probability in proportion to ``r ** -skew``.
        """
        rng = random.Random(f"user/{name}/{part}/{seed}")
        before, after = classes_of(name, "train"), classes_of(name, part)
        known, checks = [], []
        stock: dict[str, list[str]] = {}
        for intent in rng.sample(sorted(before), old):
            texts = before[intent]
            cut = int(TRAINING * len(texts))
            known += [Example(text, intent) for text in rng.sample(texts[:cut], known_shots)]
            stock[intent] = rng.sample(texts[cut:], len(texts) - cut)
        for intent in rng.sample(sorted(after), new):
            stock[intent] = rng.sample(after[intent], len(after[intent]))
        for intent, texts in stock.items():
            checks += [Example(texts.pop(), intent) for _ in range(heldout)]
        order = rng.sample(list(stock), len(stock))
        weights = [rank**-skew for rank in range(1, len(order) + 1)]
        said: list[Example] = []
        while len(said) < turns and any(stock.values()):
            intent = rng.choices(order, weights)[0]
            if stock[intent]:
                said.append(Example(stock[intent].pop(), intent))
        return cls(tuple(known), tuple(said), tuple(checks))


@dataclass
class Dialogue:
    """What came of it, turn by turn.

    Parameters
    ----------
    right, silent : list of bool
        Whether the answer was right; whether it was that the bot does not know.
    stored : list of int
        Number of examples that the user has taught.
    checks : dict of int to float
        Accuracy on the held-out messages before that turn.
    answer_seconds, learn_seconds : float
        In all turns together, CPU time.
    """

    right: list[bool] = field(default_factory=list)
    silent: list[bool] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    checks: dict[int, float] = field(default_factory=dict)
    answer_seconds: float = 0.0
    learn_seconds: float = 0.0

    def accuracy(self, first: int = 0, last: int | None = None) -> float:
        """Share of right answers from turn ``first`` to before turn ``last``."""
        return float(np.mean(self.right[first:last]))

    @property
    def wrong(self) -> int:
        """Number of turns with a wrong answer; to say that one does not know is not wrong."""
        return sum(not right and not silent for right, silent in zip(self.right, self.silent))


Feedback = Callable[[Chatbot, Example, bool], None]


def correct(bot: Chatbot, meant: Example, right: bool) -> None:
    """Say what was meant if the answer was not that."""
    if not right:
        bot.correct(meant.intent)


def nothing(bot: Chatbot, meant: Example, right: bool) -> None:
    """Say nothing."""


def talk(bot: Chatbot, user: ScriptedUser, feedback: Feedback = correct, checks: Sequence[int] = ()) -> Dialogue:
    """Let a user say everything, each message answered before its correction is learnt.

    Parameters
    ----------
    bot : Chatbot
        Learns in place.
    user : ScriptedUser
    feedback : callable
        ``feedback(bot, what was meant, whether the answer was right)``. Default: :func:`correct`.
    checks : sequence of int
        Numbers of turns before which the held-out messages are asked; the number of turns means at the end.

    Returns
    -------
    Dialogue
    """
    dialogue = Dialogue()
    begun = len(bot.memory.entries())
    for turn, meant in enumerate((*user.turns, None)):
        if turn in checks:
            dialogue.checks[turn] = _check(bot, user.heldout)
        if meant is None:
            break
        started = time.process_time()
        answer = bot.answer(meant.message)
        answered = time.process_time()
        feedback(bot, meant, answer.intent == meant.intent)
        dialogue.learn_seconds += time.process_time() - answered
        dialogue.answer_seconds += answered - started
        dialogue.right.append(answer.intent == meant.intent)
        dialogue.silent.append(answer.intent is None)
        dialogue.stored.append(len(bot.memory.entries()) - begun)
    return dialogue


def _check(bot: Chatbot, heldout: Sequence[Example]) -> float:
    answers = bot.answers([example.message for example in heldout])
    return float(np.mean([answer.intent == example.intent for answer, example in zip(answers, heldout)]))
