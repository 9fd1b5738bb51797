"""A MyST page as a sequence of blocks: text, verbatim fences, display mathematics, targets and (nested) directives.

Only the block structure is parsed here, by MyST's own rules for fences: a fence ends at the first line with at least as
many of its characters and nothing else. The body of a directive is parsed when somebody asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import PressError

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
_DIRECTIVE = re.compile(r"^\s*\{(?P<name>[^}\s]+)\}\s*(?P<argument>.*?)\s*$")
_TARGET = re.compile(r"^\((?P<label>[^()\s]+)\)=\s*$")
_OPTION = re.compile(r"^:(?P<key>[\w-]+):(?:\s+(?P<value>.*?))?\s*$")
_LABEL_AFTER_MATH = re.compile(r"^\s*(?:\((?P<label>[^()\s]+)\))?\s*$")


@dataclass
class Text:
    """Paragraphs, headings, lists, tables: whatever is not one of the others."""

    lines: list[str]
    line: int


@dataclass
class Verbatim:
    """An ordinary fenced code block, with its fences."""

    lines: list[str]
    line: int


@dataclass
class Math:
    """Display mathematics between double dollars."""

    body: str
    label: str | None
    line: int


@dataclass
class Target:
    """``(label)=``."""

    label: str
    line: int


@dataclass
class Directive:
    """A fence whose info string is ``{name} argument``."""

    name: str
    argument: str
    options: dict[str, str]
    body: list[str]
    line: int
    body_line: int
    indent: str = ""


Block = Text | Verbatim | Math | Target | Directive


@dataclass
class _Reader:
    lines: Sequence[str]
    first: int
    where: str
    blocks: list[Block] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    text_line: int = 0

    def flush(self) -> None:
        if self.text:
            self.blocks.append(Text(self.text, self.text_line))
        self.text = []

    def add(self, block: Block) -> None:
        self.flush()
        self.blocks.append(block)

    def read(self) -> list[Block]:
        at = 0
        while at < len(self.lines):
            line, number = self.lines[at], self.first + at
            opened = _FENCE.match(line)
            # A backtick fence cannot have backticks in its info string: that is inline code.
            if opened and not (opened["fence"][0] == "`" and "`" in opened["info"]):
                at = self.fence(at, opened)
            elif found := _TARGET.match(line):
                self.add(Target(found["label"], number))
                at += 1
            elif line.lstrip().startswith("$$"):
                at = self.math(at)
            elif line.startswith("%"):  # a comment
                at += 1
            else:
                if line.strip() and not self.text:
                    self.text_line = number
                if line.strip() or self.text:
                    self.text.append(line)
                at += 1
        self.flush()
        return self.blocks

    def fence(self, at: int, opened: re.Match[str]) -> int:
        fence, indent, number = opened["fence"], opened["indent"], self.first + at
        closing = re.compile(rf"^\s*{re.escape(fence[0])}{{{len(fence)},}}\s*$")
        end = next((i for i in range(at + 1, len(self.lines)) if closing.match(self.lines[i])), None)
        if end is None:
            raise PressError(f"{self.where}:{number}: the fence {fence}{opened['info']} is never closed")
        found = _DIRECTIVE.match(opened["info"])
        if not found:
            if fence[0] == ":":
                raise PressError(
                    f"{self.where}:{number}: a colon fence without a {{directive}}: {fence}{opened['info']}"
                )
            self.add(Verbatim(list(self.lines[at : end + 1]), number))
            return end + 1
        inside = [line.removeprefix(indent) for line in self.lines[at + 1 : end]]
        options, used = _options(inside)
        body = inside[used:]
        self.add(Directive(found["name"], found["argument"], options, body, number, number + 1 + used, indent))
        return end + 1

    def math(self, at: int) -> int:
        number, rest, body = self.first + at, self.lines[at].lstrip()[2:], []
        while "$$" not in rest:
            body.append(rest)
            at += 1
            if at == len(self.lines):
                raise PressError(f"{self.where}:{number}: display mathematics is never closed with $$")
            rest = self.lines[at]
        last, _, after = rest.partition("$$")
        found = _LABEL_AFTER_MATH.match(after)
        if not found:
            raise PressError(
                f"{self.where}:{self.first + at}: only a (label) may follow the closing $$, not {after.strip()!r}"
            )
        self.add(Math("\n".join([*body, last]).strip("\n"), found["label"], number))
        return at + 1


def _options(lines: Sequence[str]) -> tuple[dict[str, str], int]:
    """Options at the head of a directive, and how many lines they take."""
    options: dict[str, str] = {}
    used = 0
    while used < len(lines) and (found := _OPTION.match(lines[used])):
        options[found["key"]] = found["value"] or ""
        used += 1
    return options, used


def parse(source: str | Sequence[str], where: str, first: int = 1) -> list[Block]:
    """Cut MyST Markdown into blocks.

    Parameters
    ----------
    source : str or sequence of str
    where : str
        File, for messages.
    first : int
        Line number of the first line.

    Raises
    ------
    PressError
        If a fence or display mathematics is not closed; the message names the file and the line.
    """
    lines = source.split("\n") if isinstance(source, str) else source
    return _Reader(lines, first, where).read()
