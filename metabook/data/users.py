"""Made-up users who rate an assistant's replies: every user is a task.

A reply answers a message of the generated intents in one of many styles. Each user has a taste, a weight for every
trait of a style, and gives stars by it. So the tasks have something in common, and no two of them are the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metabook.data.intents import intents
from metabook.episodes import Episodes, generator_for

__all__ = ["KINDS", "MIDDLE", "TRAITS", "Replies", "Users", "replies"]

TRAITS = ("detailed", "formal", "warm", "playful", "asks back", "repeats")
MIDDLE = 3  # stars: what zero stands for in the targets

WARM = ("Hello! ", "Hi there! ", "Good to hear from you! ", "How nice that you ask! ", "A good day to you! ")
FORMAL = (
    "I have completed your request.",
    "Your request has been dealt with.",
    "This has been arranged as requested.",
    "The matter has been settled on your behalf.",
)
CASUAL = ("All sorted.", "Yep, that's done.", "Okay, did it.", "Done and dusted, got that for you.")
REPEATS = ("You wrote: {}. ", "So you said: {}. ", "What I understood: {}. ", "It was about this: {}. ")
DETAILS = (
    " First I looked up what is possible, then I compared the choices, and I kept a note of each step in your history.",
    " There were three ways to do this; I took the one that costs least, and the other two are listed in your history.",
    " It took four steps: find the entry, check the rules, make the change, and write a line about it in your history.",
)
PLAYFUL = (" Easy as pie :-)", " High five!", " Woohoo!", " Was that quick or what? ;-)")
ASKS = (
    " Shall I do anything else?",
    " Is there more that I can do for you?",
    " Would you like to change something?",
    " Do you want me to go on?",
)

#: Kinds of people: what the taste of one of them is near to, a weight for each trait, in stars.
KINDS = {
    "hurried": (-0.8, 0.0, -0.1, -0.3, -0.6, -0.5),
    "official": (0.2, 0.9, 0.3, -0.8, -0.2, 0.1),
    "chatty": (0.0, -0.7, 0.8, 0.8, 0.2, -0.2),
    "careful": (0.9, 0.2, 0.3, -0.2, 0.0, 0.8),
}
SPREAD = 0.25  # of a weight among people of one kind, in stars
STRICT = 0.4  # of how strict people are: a number of stars added to all that they give


@dataclass(frozen=True)
class Replies:
    """Replies to messages, several to each, in different styles.

    Parameters
    ----------
    requests : tuple of str
        The messages.
    texts : tuple of str
        The replies, ``choices`` to the first message, then as many to the second, and so on.
    styles : Tensor [replies, traits]
        1 where a reply has a trait, -1 where not. The order is that of :data:`TRAITS`. Learners must not read it.
    choices : int
    """

    requests: tuple[str, ...]
    texts: tuple[str, ...]
    styles: Tensor
    choices: int


def replies(split: str = "train", requests: int = 200, choices: int = 4, seed: int = 0) -> Replies:
    """Make replies to messages of the generated intents.

    The phrases are the assistant's own, so that they are the same in all splits; the messages are not.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        Of the intents (:func:`~metabook.data.intents.intents`): no domain is in two of them.
    requests : int
        Messages that are answered.
    choices : int
        Replies to each, no two of the same style.
    seed : int

    Returns
    -------
    Replies

    Raises
    ------
    ValueError
        If there are not so many messages or styles, or no such split.
    """
    messages, styles = intents(split).texts, 2 ** len(TRAITS)
    if not 1 <= requests <= len(messages):
        raise ValueError(f"requests must be between 1 and {len(messages)}, not {requests}")
    if not 1 <= choices <= styles:
        raise ValueError(f"choices must be between 1 and {styles}, not {choices}")
    rng = random.Random(f"replies/{split}/{seed}")
    asked = rng.sample(messages, requests)
    texts, bits = [], []
    for message in asked:
        for number in rng.sample(range(styles), choices):
            bits.append([number >> place & 1 for place in range(len(TRAITS))])
            texts.append(_worded(message, bits[-1], rng))
    return Replies(tuple(asked), tuple(texts), 2.0 * torch.tensor(bits) - 1, choices)


def _worded(message: str, traits: Sequence[int], rng: random.Random) -> str:
    """A reply to the message that has the traits which are 1."""
    detailed, formal, warm, playful, asks, repeats = traits
    repeated = rng.choice(REPEATS).format(message.rstrip(".?! "))
    parts = [
        rng.choice(WARM) * warm,
        repeated * repeats,
        rng.choice(FORMAL if formal else CASUAL),
        rng.choice(DETAILS) * detailed,
        rng.choice(PLAYFUL) * playful,
        rng.choice(ASKS) * asks,
    ]
    return "".join(parts)


class Users:
    r"""People who give stars to replies, from a fixed population: tasks for a few-shot learner.

    Person :math:`u` has a taste :math:`w_u` near that of a kind of people, is more or less strict (:math:`b_u`), and
    gives to a reply of the style :math:`s`

    .. math:: \operatorname{stars} = \operatorname{clip}\bigl(\operatorname{round}(3 + b_u + w_u^\top s
              + \varepsilon), 1, 5\bigr) , \qquad \varepsilon \sim \mathcal N(0, \sigma^2) .

    The ratings are a table: who is asked twice about the same reply answers the same.

    Parameters
    ----------
    pool : Replies
    inputs : Tensor [replies, features]
        What a learner sees of each reply.
    people : int
    shots, queries : int
        Rated replies of the support, each to another message; messages of the queries, *all* of whose replies are
        rated, and whose messages are not in the support.
    noise : float
        The standard deviation sigma, in stars.
    seed : int
        Fixes the people, their ratings, and with the step number what :meth:`sample` draws.

    Attributes
    ----------
    tastes : Tensor [people, 1 + traits]
        How strict each is, and the weights.
    kinds : Tensor [people]
        Which of :data:`KINDS` each is near to.
    stars : Tensor [people, replies]
        1 to 5.

    Raises
    ------
    ValueError
        If a number is not positive, the inputs are not those of the pool, or it has too few messages.
    """

    def __init__(
        self,
        pool: Replies,
        inputs: Tensor,
        people: int = 200,
        *,
        shots: int = 10,
        queries: int = 5,
        noise: float = 0.4,
        seed: int = 0,
    ) -> None:
        for name, value in (("people", people), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if len(inputs) != len(pool.texts):
            raise ValueError(f"{len(inputs)} inputs for {len(pool.texts)} replies")
        if shots + queries > len(pool.requests):
            raise ValueError(
                f"{shots} shots and {queries} queries need so many messages; there are {len(pool.requests)}"
            )
        self.pool, self.inputs, self.people = pool, inputs, people
        self.shots, self.queries, self.noise, self.seed, self.vary = shots, queries, noise, seed, False
        generator = generator_for("people", seed)
        self.kinds = torch.randint(len(KINDS), (people,), generator=generator)
        weights = torch.tensor(list(KINDS.values()))[self.kinds]
        weights = weights + SPREAD * torch.randn(weights.shape, generator=generator)
        self.tastes = torch.cat([STRICT * torch.randn(people, 1, generator=generator), weights], 1)
        error = noise * torch.randn(people, len(pool.texts), generator=generator)
        felt = MIDDLE + self.tastes[:, :1] + self.tastes[:, 1:] @ pool.styles.T + error
        self.stars = felt.round().clamp(1, 5)
        self._gone = torch.zeros(people, dtype=torch.bool)

    def without(self, *persons: int) -> Users:
        """The same population without some people; what is drawn stays the same but for the tasks that were theirs."""
        other = Users.__new__(Users)
        other.__dict__.update(self.__dict__)
        other._gone = self._gone.clone()
        other._gone[list(persons)] = True
        return other

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` different people: a pure function of the settings, the seed and ``step``.

        Returns
        -------
        Episodes
            ``support_x [tasks, shots, features]``; ``query_x [tasks, queries * choices, features]``, the replies to
            one message one after the other; targets ``[tasks, ..., 1]`` are stars minus 3.

        Raises
        ------
        ValueError
            If there are fewer people.
        """
        persons, support, query = self.rows(tasks, step)
        return Episodes(*self.rated(persons, support), *self.rated(persons, query))

    def rows(self, tasks: int, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`sample` draws: persons ``[tasks]`` and the rows of their replies, ``[tasks, n]`` each."""
        if tasks > (there := int((~self._gone).sum())):
            raise ValueError(f"there are only {there} people, not {tasks}")
        generator = generator_for("ratings", self.seed, step)
        shots = int(torch.randint(1, self.shots + 1, (), generator=generator)) if self.vary else self.shots
        # Keys for all people, so that what one is asked does not depend on who else is there.
        persons = torch.rand(self.people, generator=generator).masked_fill(self._gone, -1.0).topk(tasks).indices
        order = torch.rand(self.people, len(self.pool.requests), generator=generator)
        which = torch.randint(self.pool.choices, (self.people, self.shots), generator=generator)
        asked = self.pool.choices * order[persons].topk(self.shots + self.queries).indices
        support = asked[:, :shots] + which[persons, :shots]
        query = asked[:, self.shots :].unsqueeze(2) + torch.arange(self.pool.choices)
        return persons, support, query.flatten(1)

    def rated(self, persons: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``[tasks, n, features]`` and targets ``[tasks, n, 1]`` of some people's replies ``[tasks, n]``."""
        return self.inputs[rows], (self.stars[persons.unsqueeze(1), rows] - MIDDLE).unsqueeze(2)

    def seen_as(self, inputs: Tensor) -> Users:
        """The same people and ratings with other inputs, such as the true styles."""
        other = self.without()
        other.inputs = inputs
        return other

    def varied(self) -> Users:
        """The same people and ratings, with from one to ``shots`` rated replies in the support, drawn at each step."""
        other = self.without()
        other.vary = True
        return other
