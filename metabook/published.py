"""Published figures: typed once, here, each with its source and with where it was read.

``source`` is a key of ``book/references.bib``. ``read`` says whether the figure was read in the method's own paper, in
its authors' code, or in another paper's table. Figures that we could not check are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "BANDITS",
    "INTENTS",
    "NAVIGATION",
    "OMNIGLOT",
    "SINUSOIDS",
    "TRAINING_CHARACTERS",
    "Published",
    "on_omniglot",
]


@dataclass(frozen=True)
class Published:
    """Figures of one method on one benchmark.

    Parameters
    ----------
    learner : str
        As the records call it.
    label : str
        As a table shows it.
    values : dict of str to str
        What was measured, and the figure as it was published, with its interval if it has one.
    source, place : str
        Key of the reference, and the place in it.
    read : str
        "own paper", "its code" or "another paper".
    transductive : bool, optional
        Whether the queries of a task were answered together; None where the source does not say.
    remark : str
        What else sets the figure apart.
    """

    learner: str
    label: str
    values: dict[str, str]
    source: str
    place: str
    read: str
    transductive: bool | None = None
    remark: str = ""

    def mean(self, what: str) -> float:
        """The figure as a number, in the unit in which it was published."""
        return float(self.values[what].split()[0])

    @property
    def origin(self) -> str:
        """First author, year and place, for a table: the reference itself is under ``source``."""
        author, year = re.match(r"([a-z]+)(\d{4})", self.source).groups()  # type: ignore[union-attr]
        return f"{author.title()} {year}" + (f", {self.place}" if self.place else "")


#: Characters that the figures of :data:`OMNIGLOT` were trained on, about, and those of our training sets.
TRAINING_CHARACTERS = {"published": 1200, "small1": 136, "small2": 156, "small1+small2": 242}

#: Accuracy on Omniglot in %. They were trained on characters drawn at random from all alphabets.
OMNIGLOT = (
    Published(
        "MAML",
        "MAML",
        {"5w1s": "98.7 ± 0.4", "5w5s": "99.9 ± 0.1", "20w1s": "95.8 ± 0.3", "20w5s": "98.9 ± 0.2"},
        *("finn2017maml", "table 1", "own paper", True),
        remark="60,000 iterations",
    ),
    Published(
        "FOMAML",
        "First-order MAML",
        {"5w1s": "98.3 ± 0.5", "5w5s": "99.2 ± 0.2", "20w1s": "89.4 ± 0.5", "20w5s": "97.9 ± 0.1"},
        *("nichol2018reptile", "table 2", "another paper", True),
    ),
    Published(
        "Reptile",
        "Reptile",
        {"5w1s": "97.68 ± 0.04", "5w5s": "99.48 ± 0.06", "20w1s": "89.43 ± 0.14", "20w5s": "97.12 ± 0.32"},
        *("nichol2018reptile", "", "another paper", True),
        remark="100,000 iterations",
    ),
    Published(
        "Reptile",
        "Reptile",
        {"5w1s": "95.39 ± 0.09", "5w5s": "98.90 ± 0.10", "20w1s": "88.14 ± 0.15", "20w5s": "96.65 ± 0.33"},
        *("nichol2018reptile", "", "another paper", False),
        remark="100,000 iterations",
    ),
    Published(
        "MetaSGD",
        "Meta-SGD",
        {"5w1s": "99.53 ± 0.26", "5w5s": "99.93 ± 0.09"},
        *("li2017metasgd", "", "another paper"),
    ),
    Published(
        "MAML++",
        "MAML++",
        {"5w1s": "99.47", "5w5s": "99.93", "20w1s": "97.65", "20w5s": "99.33"},
        *("antoniou2019maml", "", "another paper"),
        remark="five checkpoints together",
    ),
    Published("ANIL", "ANIL", {"20w1s": "96.2 ± 0.5", "20w5s": "98.0 ± 0.3"}, "raghu2020anil", "table 2", "own paper"),
    Published(
        "ProtoNet",
        "Prototypical Network",
        {"5w1s": "98.8", "5w5s": "99.7", "20w1s": "96.0", "20w5s": "98.9"},
        *("snell2017prototypical", "table 1", "own paper", False),
        remark="60-way training",
    ),
    Published(
        "RelationNet",
        "Relation Network",
        {"5w1s": "99.6 ± 0.2", "5w5s": "99.8 ± 0.1", "20w1s": "97.6 ± 0.2", "20w5s": "99.1 ± 0.1"},
        *("sung2018relation", "", "another paper", True),
        remark="checkpoint chosen on the test classes",
    ),
)

#: Squared error on sinusoids from 5 points, after 1, 5 and 10 steps; trained with 10 points and one step.
SINUSOIDS = (
    Published(
        "MAML",
        "MAML",
        {"1": "0.67", "5": "0.38", "10": "0.35"},
        *("finn2017maml", "table 2", "own paper"),
        remark="70,000 iterations",
    ),
    Published(
        "FineTune",
        "pre-training",
        {"1": "2.41", "5": "2.23", "10": "2.19"},
        *("finn2017maml", "table 2", "own paper"),
        remark="70,000 iterations",
    ),
)

#: Return on 2-D navigation before the first and after each of three updates.
NAVIGATION = (
    Published(
        "low variance",
        "MAML",
        {"0": "-40.41", "1": "-11.68", "2": "-3.33", "3": "-3.23"},
        *("finn2017maml", "table 4", "own paper"),
        remark="another trainer (TRPO), 500 iterations",
    ),
)

#: Total reward of ten pulls of five Bernoulli arms.
BANDITS = (
    Published(
        "RL2",
        "RL²",
        {"total": "6.6 to 6.7"},
        *("duan2016rl2", "", "its code"),
        remark="another trainer (trust regions), a larger network",
    ),
)

#: Accuracy in % on 5-way tasks of BANKING77, from 2 and from 10 examples of each intent.
INTENTS = (
    Published(
        "banking77",
        "frozen BERT",
        {"2": "57.1", "10": "84.3"},
        *("zhang2022isotropization", "", "own paper"),
    ),
    Published(
        "banking77",
        "IntentBERT, trained on other intents, with isotropisation",
        {"2": "85.21", "10": "94.68"},
        *("zhang2022isotropization", "", "own paper"),
    ),
)


def on_omniglot(learner: str, transductive: bool) -> Published | None:
    """The published figures to set beside a learner's: of the same kind of queries where there are both kinds.

    Examples
    --------
    >>> on_omniglot("Reptile", transductive=False).values["5w1s"]
    '95.39 ± 0.09'
    """
    mine = [each for each in OMNIGLOT if each.learner == learner]
    return next((each for each in mine if each.transductive == transductive), mine[0] if mine else None)
