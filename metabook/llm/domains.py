"""Small kinds of tasks whose answers can be checked: what a self-evolving model practises on.

A :class:`Domain` turns text that a model wrote into a task, or refuses it. Text is matched against a regular expression
and read as letters and digits; nothing of it is ever evaluated, run, or used as a pattern, a path or a format.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

__all__ = ["DOMAINS", "LONGEST", "Domain"]

#: A question of more characters is not looked at.
LONGEST = 80
_NUMBER = "[1-9][0-9]?"


@dataclass(frozen=True)
class Domain:
    """One kind of task: how it is written, what its answer is, and how a new one is drawn.

    Parameters
    ----------
    name : str
    given, asked : str
        What a prompt calls a question and an answer.
    pattern : str
        Regular expression that a question matches as a whole.
    answer : callable
        The exact answer of a question that matches, or None if it has none.
    draw : callable
        A new question, from a torch generator; it need not have an answer.
    key : callable
        Questions with the same key count as one and the same task.

    Examples
    --------
    >>> DOMAINS["maximum"].parse(" 7 41 5 80 12 "), DOMAINS["maximum"].answer("7 41 5 80 12")
    ('7 41 5 80 12', '80')
    >>> DOMAINS["maximum"].parse("__import__('os').system('ls')") is None
    True
    """

    name: str
    given: str
    asked: str
    pattern: str
    answer: Callable[[str], str | None]
    draw: Callable[[torch.Generator], str]
    key: Callable[[str], Hashable] = field(default=str)

    def parse(self, text: str) -> str | None:
        """The question that a text is, without the space around it; None if it is anything else."""
        if len(text) > LONGEST or not text.isascii():
            return None
        question = text.strip(" ")
        if re.fullmatch(self.pattern, question) is None or self.answer(question) is None:
            return None
        return question

    def prompt(self, question: str, demonstrations: tuple[tuple[str, str], ...] = ()) -> str:
        """Text after which the answer is to come: solved examples, if any, and the question."""
        solved = [f"{self.given}: {q}\n{self.asked}: {a}\n\n" for q, a in demonstrations]
        return "".join([*solved, f"{self.given}: {question}\n{self.asked}:"])

    def proposal_prompt(self, questions: tuple[str, ...]) -> str:
        """Text after which another question is to come."""
        return "".join([*(f"{self.given}: {question}\n" for question in questions), f"{self.given}:"])

    def tasks(self, number: int, generator: torch.Generator, without: frozenset[Hashable] = frozenset()) -> list[str]:
        """So many new questions, all different, and none whose key is in ``without``."""
        found: dict[Hashable, str] = {}
        while len(found) < number:
            question = self.draw(generator)
            if (key := self.key(question)) not in without and self.answer(question) is not None:
                found.setdefault(key, question)
        return list(found.values())


def _integers(low: int, high: int, number: int, generator: torch.Generator) -> list[int]:
    return torch.randint(low, high + 1, (number,), generator=generator).tolist()


def _numbers(number: int) -> Callable[[torch.Generator], str]:
    return lambda generator: " ".join(map(str, _integers(1, 99, number, generator)))


def _letters(number: int, of: str = string.ascii_lowercase) -> Callable[[torch.Generator], str]:
    return lambda generator: " ".join(of[i] for i in _integers(0, len(of) - 1, number, generator))


def _read(question: str) -> list[int]:
    return [int(word) for word in question.split(" ")]


def _as_set(question: str) -> Hashable:
    return tuple(sorted(question.split(" ")))


def _only_twin(question: str) -> str | None:
    letters = question.split(" ")
    twins = {letter for letter in letters if letters.count(letter) > 1}
    return twins.pop() if len(twins) == 1 and len(set(letters)) == len(letters) - 1 else None


def _sum(question: str) -> str:
    first, second = question.split(" + ")
    return str(int(first) + int(second))


def _with_a_twin(generator: torch.Generator) -> str:
    order = torch.randperm(26, generator=generator)[:4].tolist()
    places = torch.randperm(5, generator=generator).tolist()
    five = [string.ascii_lowercase[i] for i in [*order, order[0]]]
    return " ".join(five[place] for place in places)


def _many(pattern: str, number: int) -> str:
    return f"{pattern}( {pattern}){{{number - 1}}}"


_ALL = (
    Domain("maximum", "Numbers", "Largest", _many(_NUMBER, 5), lambda q: str(max(_read(q))), _numbers(5), _as_set),
    Domain("minimum", "Numbers", "Smallest", _many(_NUMBER, 5), lambda q: str(min(_read(q))), _numbers(5), _as_set),
    Domain("upper", "Letters", "Capitals", _many("[a-z]", 5), str.upper, _letters(5)),
    Domain(
        "addition",
        "Sum",
        "Result",
        r"[1-9][0-9] \+ [1-9][0-9]",
        _sum,
        lambda generator: " + ".join(map(str, _integers(10, 99, 2, generator))),
        lambda q: tuple(sorted(q.split(" + "))),
    ),
    Domain(
        "sorting",
        "Numbers",
        "In order",
        _many(_NUMBER, 3),
        lambda q: " ".join(map(str, sorted(_read(q)))),
        _numbers(3),
    ),
    Domain("twin", "Letters", "Twice", _many("[a-z]", 5), _only_twin, _with_a_twin),
    Domain("reversal", "Letters", "Backwards", _many("[a-z]", 4), lambda q: q[::-1], _letters(4)),
    Domain(
        "parity",
        "Number",
        "Kind",
        "[1-9][0-9]{2}",
        lambda q: "odd" if int(q) % 2 else "even",
        lambda generator: str(_integers(100, 999, 1, generator)[0]),
    ),
    Domain(
        "successor",
        "Number",
        "Next",
        "[1-9][0-9]{2}",
        lambda q: str(int(q) + 1),
        lambda generator: str(_integers(100, 999, 1, generator)[0]),
    ),
)
#: The domains of the book by name.
DOMAINS = {domain.name: domain for domain in _ALL}
