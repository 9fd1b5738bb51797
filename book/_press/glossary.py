"""Which terms of the glossary a chapter uses, and whether the first use of each leads there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .blocks import Block, Directive, Target, Text, parse
from .cells import cells
from .inline import code_span, link_at, math_end
from .layout import Page

PAGE = "glossary"

# Terms that are everyday words as well, or have another sense in some chapter ("in this way", "it returns", contextual
# calibration): no rule can tell which is meant.
EVERYDAY = {"way", "trial", "return", "belief", "calibration", "coverage", "sharpness"}

_RUNNING = {"note", "warning", "tip", "important", "hint", "admonition"}  # their text belongs to the chapter's
_END = re.compile(r"^##\s+Exercises\s*$")
_ROLE = re.compile(r"\{(?P<name>[a-z:]+)\}$")
_NAMED = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>\s*", re.DOTALL)
_BOLD = re.compile(r"(?<![*\\])\*\*(?!\s)((?:(?!\*\*|\n\n).)+)\*\*", re.DOTALL)


@dataclass(frozen=True)
class Use:
    """The first use of a term in a chapter."""

    term: str
    line: int
    linked: bool


def terms(page: Page) -> list[str]:
    """The terms that a glossary explains, in its order."""
    found: list[str] = []
    for block in _blocks(page):
        if isinstance(block, Directive) and block.name == "glossary":
            found += [line.strip() for line in block.body if line.strip() and not line[0].isspace()]
    return found


def uses(page: Page, known: Iterable[str]) -> list[Use]:
    """The terms that the running text of a chapter uses, each at its first use.

    Headings, tables, code, mathematics and whatever comes after the heading *Exercises* do not count. A use is linked
    if it is in the role ``term``, or if the term is defined on the spot, in bold.
    """
    found: dict[str, Use] = {}
    patterns = {term: pattern(term) for term in known}
    for text, line in _running(_blocks(page)):
        plain, links = _plain(text)
        bold = [(each.start(), each.end()) for each in _BOLD.finditer(plain)]
        for term, words in patterns.items():
            if term not in found and (places := _places(term, words, plain, links, bold)):
                at, linked = min(places)
                found[term] = Use(term, line + text.count("\n", 0, at), linked)
    return sorted(found.values(), key=lambda use: use.line)


def unlinked(page: Page, known: Iterable[str]) -> list[str]:
    """First uses that lead nowhere: ``name.md:line: term``."""
    wanted = [term for term in known if term not in EVERYDAY]
    return [f"{page.name}.md:{use.line}: {use.term}" for use in uses(page, wanted) if not use.linked]


def pattern(term: str) -> re.Pattern[str]:
    r"""A term in the singular or the plural, over the end of a line as well, and not as a part of a longer word.

    >>> [bool(pattern("query set").search(each)) for each in ("Query\nsets", "a query", "subquery set", "query-set")]
    [True, False, False, False]
    """
    *first, last = map(re.escape, term.split())
    last = f"(?:{last}s?|{last[:-1]}ies)" if last.endswith("y") else f"{last}(?:s|es)?"
    words = r"\s+".join([*first, last])
    return re.compile(rf"(?<![\w-]){words}(?![\w-])", re.IGNORECASE)


def _places(
    term: str, words: re.Pattern[str], plain: str, links: list[tuple[int, str]], bold: list[tuple[int, int]]
) -> list[tuple[int, bool]]:
    """Where a term stands, and whether it is linked or defined there: its links, and its first other use."""
    places = [(at, True) for at, target in links if target.lower() == term.lower() or words.fullmatch(target)]
    if found := words.search(plain):
        places.append((found.start(), any(start < found.start() < end for start, end in bold)))
    return places


def _plain(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text with everything but words blanked out, places kept, and the links to the glossary in it."""
    plain, links, at = list(text), [], 0
    while at < len(text):
        end = at
        if text[at] == "\\":
            at += 2
            continue
        if text[at] == "`":
            end, content = code_span(text, at)
            role = _ROLE.search(text, max(0, at - 20), at)
            if role and content and role["name"] == "term":
                named = _NAMED.fullmatch(content)
                links.append((role.start(), " ".join((named["target"] if named else content).split())))
            start = role.start() if role else at
            plain[start:end] = [c if c == "\n" else "\0" for c in text[start:end]]
        elif text[at] == "$":
            end = math_end(text, at)
            plain[at:end] = [c if c == "\n" else "\0" for c in text[at:end]] if end > at + 1 else [text[at]]
        elif text[at] == "[" and (link := link_at(text, at)):
            end = link[2]
            plain[at:end] = [c if c == "\n" else "\0" for c in text[at:end]]
        at = max(end, at + 1)
    return "".join(plain), links


def _blocks(page: Page) -> Iterator[Block]:
    for cell in cells(page):
        if cell.kind == "markdown":
            yield from parse(cell.lines, page.source.name, cell.line)


def _running(blocks: Iterable[Block]) -> Iterator[tuple[str, int]]:
    """Paragraphs and lists before the exercises, with their lines; headings and tables are blanked."""
    for block in blocks:
        match block:
            case Text():
                lines = ["" if re.match(r"\s*(#|\||\s{4}\S)", line) else line for line in block.lines]
                end = next((i for i, line in enumerate(block.lines) if _END.match(line)), None)
                yield "\n".join(lines[:end]), block.line
                if end is not None:
                    return
            case Directive() if block.name in _RUNNING:
                yield from _running(parse(block.body, "", block.body_line))
            case Target() | Directive() | _:
                pass
