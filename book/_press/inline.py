"""What stands in a line of MyST: where code spans, mathematics and links end."""

from __future__ import annotations

import re


def code_span(text: str, at: int) -> tuple[int, str | None]:
    """End and content of the code span that begins at ``at``; no content if the backticks are never closed."""
    run = len(text[at:]) - len(text[at:].lstrip("`"))
    for closing in re.finditer(r"`+", text[at + run :]):
        if len(closing[0]) == run:
            content = text[at + run : at + run + closing.start()]
            return at + run + closing.end(), content
    return at + run, None


def math_end(text: str, at: int) -> int:
    """End of the mathematics that begins at ``at``; one character on if it is a plain dollar."""
    if text.startswith("$$", at):
        end = text.find("$$", at + 2)
        return end + 2 if end >= 0 else at + 2
    found = re.compile(r"\$(?=\S)(?:\\.|[^$\\])*?(?<=\S)\$(?!\d)", re.DOTALL).match(text, at)
    paragraph_ends = found and "\n\n" in found[0]
    return found.end() if found and not paragraph_ends else at + 1


def link_at(text: str, at: int) -> tuple[str, str, int] | None:
    """Words, target and end of the link ``[words](target)`` at ``at``."""
    depth = 0
    for i in range(at, len(text)):
        if text[i] == "\\":
            continue
        depth += (text[i] == "[") - (text[i] == "]")
        if depth == 0:
            found = re.compile(r"\(<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?\)").match(text, i + 1)
            return (text[at + 1 : i], found[1], found.end()) if found else None
    return None
