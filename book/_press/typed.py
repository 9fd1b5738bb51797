"""Figures that somebody typed into a chapter, where a measured one must come from a cell or a record.

What counts as such a figure: a percentage, a number after ±, a time or a size in decimals, CPU-seconds, decimal points
of a percentage; in the texts of pictures and tables (``alt=``, ``caption=``) also a decimal number after *about* and
the like; in other strings of the code a decimal number before ± or %. Not looked at are mathematics, code, roles
(``glue`` among them), and, in exercises, solutions and the quiz, which are about cases that are made up, whole
percentages, strings of the code and the quiz's answers. A figure with a citation in the same sentence, list item or row
of a table is a quoted one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .cells import cells
from .layout import Page

#: Percentages that say how an interval was made, in a sentence that speaks of one.
_LEVEL = re.compile(r"(?:95|97\.5|99|99\.9)\s*(?:%|percent|per cent)")
_OF_INTERVALS = re.compile(r"interval|confidence|quantile|\bbands?\b|cover|promise", re.IGNORECASE)
_DECIMAL = r"\d+\.\d+"
_PERCENT = r"(?:%|per cent\b|percent\b)"
_PLUS = rf"±\s*(?!95 %)\d[\d.]*(?:\s*(?:{_PERCENT}|points))?"
_FIGURE = re.compile(
    rf"{_PLUS}|\d[\d,.]*\s*CPU[- ](?:s|seconds?|minutes?|min|hours?)(?!\w)"
    rf"|{_DECIMAL}\s*(?:{_PERCENT}|(?:points|times|seconds|minutes|hours|ms|s|MiB|GiB|MB|GB)(?!\w))"
)
_WHOLE = re.compile(rf"(?<![\d.,])\d+\s*{_PERCENT}")
_LABEL = re.compile(
    rf"{_PLUS}|(?<![\d.,])[\d.]+\s*{_PERCENT}|(?:about|nearly|near|around|roughly|almost|some)\s+{_DECIMAL}"
)
_CODE = re.compile(rf"{_DECIMAL}\s*(?:±|%)")
_FENCE = re.compile(r"^\s*(:{3,}|`{3,})(?:\{([\w:-]+)\})?")
_MADE_UP = ("exercise", "solution")


@dataclass(frozen=True)
class Typed:
    """A figure that stands in the source.

    Parameters
    ----------
    line : int
        In the source, from 1.
    figure : str
    sentence : str
        The sentence, list item, row or string that it stands in.
    """

    line: int
    figure: str
    sentence: str


def typed(page: Page) -> list[Typed]:
    """All of a page, in its order, without those that are quoted with their source."""
    return sorted([*_in_prose(page.text), *_in_code(page)], key=lambda found: found.line)


def _in_prose(text: str) -> Iterator[Typed]:
    for line, paragraph, made_up in _paragraphs(text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[^a-z])", _bare(paragraph)):
            if "CITATION" not in sentence:
                yield from _found(line, sentence, _FIGURE, *([] if made_up else [_WHOLE]))


def _found(line: int, text: str, *patterns: re.Pattern[str]) -> Iterator[Typed]:
    for match in (match for pattern in patterns for match in pattern.finditer(text)):
        if not (_LEVEL.fullmatch(match[0]) and _OF_INTERVALS.search(text)):
            yield Typed(line, match[0], " ".join(text.split()))


def _paragraphs(text: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text, and whether it is about a made-up case, of every paragraph, list item, row and heading."""
    lines, start, made_up, quiz, verbatim = [], 1, 0, False, ""
    fences: list[tuple[str, bool]] = []
    source = text.split("\n")
    first = source.index("---", 1) + 1 if source[0] == "---" else 0
    for number, line in enumerate(source[first:], first + 1):
        fence = _FENCE.match(line)
        if verbatim:
            verbatim = "" if line.strip() == verbatim else verbatim
            continue
        if lines and (fence or not line.strip() or re.match(r"\s*([|#>-]|\d+\.\s|\$\$)", line)):
            yield start, "\n".join(lines), made_up > 0 or quiz
            lines = []
        if fence:
            marks, name, title = fence[1], fence[2] or "", line[fence.end() :].strip()
            if title and not quiz and name not in ("code-cell", "math", "code-block"):  # in the quiz: an answer
                yield number, title, made_up > 0 or name.startswith(_MADE_UP)
            if name.endswith(("-start", "-end")):
                made_up += 1 if name.endswith("-start") else -1
            if marks[0] == "`" or name == "math":
                verbatim = marks
            elif name:
                fences.append((marks, name in _MADE_UP))
                made_up += name in _MADE_UP
            elif fences and fences[-1][0] == marks:
                made_up -= fences.pop()[1]
        elif line.strip().startswith("$$") and line.count("$$") == 1:
            verbatim = "$$" if not line.strip().endswith("$$") or line.strip() == "$$" else ""
        elif re.match(r":\w+:", line) or not line.strip():
            pass
        else:
            if line.startswith("## "):
                quiz = line.strip() == "## Quiz"
            start = start if lines else number
            lines.append(line)
    if lines:
        yield start, "\n".join(lines), made_up > 0 or quiz


def _bare(paragraph: str) -> str:
    """Prose without mathematics, code and roles; a citation leaves its mark."""

    def role(match: re.Match[str]) -> str:
        return "CITATION" if match[1].startswith("cite") else "REF"

    paragraph = re.sub(r"\{([\w:+-]+)\}`[^`]*`", role, paragraph)
    return re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", paragraph)


def _exercises(text: str) -> set[int]:
    """The lines, from 1, of exercises and solutions that hold code."""
    inside, lines = False, set()
    for number, line in enumerate(text.split("\n"), 1):
        if match := re.match(r"\s*:{3,}\{(?:exercise|solution)-(start|end)\}", line):
            inside = match[1] == "start"
        if inside:
            lines.add(number)
    return lines


def _in_code(page: Page) -> Iterator[Typed]:
    made_up = _exercises(page.text)
    for cell in cells(page):
        if cell.kind == "code":
            try:
                tree = ast.parse(cell.source)
            except SyntaxError:  # a stub to be filled in
                continue
            labels = {id(part) for word in _labels(tree) for part in ast.walk(word)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    line = cell.line + node.lineno - 1
                    if id(node) in labels:
                        yield from _found(line, node.value, _LABEL)
                    elif line not in made_up:
                        yield from _found(line, node.value, _CODE)


def _labels(tree: ast.Module) -> Iterator[ast.expr]:
    """The texts of pictures and tables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (word.value for word in node.keywords if word.arg in ("alt", "caption"))
