"""A MyST notebook as cells, each with its place in the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from .blocks import Directive, parse
from .errors import PressError
from .layout import Page


@dataclass
class Cell:
    """A cell of a chapter.

    Parameters
    ----------
    kind : {"markdown", "code"}
    lines : list of str
    line : int
        Line of the source at which ``lines`` begin.
    tags : list of str
    """

    kind: str
    lines: list[str]
    line: int
    tags: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        return "\n".join(self.lines)


def cells(page: Page) -> list[Cell]:
    """The cells of a page, front matter left out.

    Raises
    ------
    PressError
        If a fence is not closed or the options of a code cell are not YAML.
    """
    lines = page.text.split("\n")
    start = 0
    if lines and lines[0] == "---":
        start = lines.index("---", 1) + 1
    where = page.source.name
    found: list[Cell] = []
    done = start
    for block in parse(lines[start:], where, start + 1):
        if isinstance(block, Directive) and block.name == "code-cell":
            found += _markdown(lines[done : block.line - 1], done + 1)
            body, at = _trimmed(block.body, block.body_line)
            found.append(Cell("code", body, at, _tags(block, where)))
            done = block.body_line - 1 + len(block.body) + 1
    return [*found, *_markdown(lines[done:], done + 1)]


def _markdown(lines: list[str], first: int) -> Iterator[Cell]:
    """Cells between two code cells: ``+++`` begins a new one."""
    start = 0
    for at in [i for i, line in enumerate(lines) if line.startswith("+++")] + [len(lines)]:
        part, begin = _trimmed(lines[start:at], first + start)
        if part:
            yield Cell("markdown", part, begin)
        start = at + 1


def _trimmed(lines: list[str], first: int) -> tuple[list[str], int]:
    """Without blank lines at the ends."""
    start, end = 0, len(lines)
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return [line.rstrip() for line in lines[start:end]], first + start


def _tags(block: Directive, where: str) -> list[str]:
    try:
        tags = yaml.safe_load(block.options.get("tags", "[]"))
    except yaml.YAMLError as error:
        raise PressError(f"{where}:{block.line}: the tags of a code cell must be a list: {error}") from error
    return [tags] if isinstance(tags, str) else list(tags or [])
