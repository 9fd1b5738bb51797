"""The sheet of formulas: each labelled equation of the Mathematics part, and the check that its chapter makes of it.

An equation ``eq-name`` is checked by the code under the paragraph ``**Check.** One sentence.``, above which stands the
target ``(check-name)=``. The code, up to the next text, asserts or calls a function of an earlier cell that asserts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile, takewhile

from .blocks import Block, Directive, Math, Target, Text, parse
from .cells import cells
from .errors import PressError
from .flatten import Index
from .layout import Book, Page

PART = "30-mathematics"
SHEET = "_formulas.txt"  # of Markdown, but not a page
_MARK = "**Check.**"
_ROLES = {"eq", "math", "ref", "term"}  # what means the same on another page
_NONE = "There is no chapter on mathematics yet."


@dataclass(frozen=True)
class Equation:
    """An equation with a label: ``eq-name``."""

    label: str
    latex: str
    line: int


@dataclass(frozen=True)
class Check:
    """What is said to be checked under ``check-name``; a problem if it is not a check as the sheet wants it."""

    label: str
    sentence: str
    line: int
    problem: str = ""


def chapters(book: Book) -> list[Page]:
    """The chapters of the Mathematics part, in reading order."""
    return [page for page in book.pages if page.name.startswith(f"{PART}/")]


def equations(page: Page) -> list[Equation]:
    """The labelled equations of a page, in order."""
    texts = (cell for cell in cells(page) if cell.kind == "markdown")
    where = page.source.name
    return [equation for cell in texts for equation in _equations(parse(cell.lines, where, cell.line), where)]


def _equations(blocks: Iterable[Block], where: str) -> Iterator[Equation]:
    for block in blocks:
        match block:
            case Math(label=str(label)):
                yield Equation(label, block.body.strip(), block.line)
            case Directive(name="math") if label := block.options.get("label"):
                yield Equation(label, "\n".join([block.argument, *block.body]).strip(), block.line)
            case Directive():
                yield from _equations(parse(block.body, where, block.body_line), where)


def checks(page: Page) -> list[Check]:
    """The checks of a page, in order; several may share a paragraph and a code cell."""
    found = []
    helpers: set[str] = set()  # functions of the chapter that assert something
    sequence = cells(page)
    for number, cell in enumerate(sequence, 1):
        if cell.kind == "code":
            helpers |= _asserting_functions(cell.source)
        code = "\n".join(each.source for each in takewhile(lambda each: each.kind == "code", sequence[number:]))
        blocks = parse(cell.lines, page.source.name, cell.line) if cell.kind == "markdown" else []
        for at, block in enumerate(blocks):
            if isinstance(block, Target) and block.label.startswith("check-"):
                rest = list(dropwhile(lambda each: isinstance(each, Target), blocks[at:]))
                found.append(_check(block, rest, code, helpers))
    return found


def _check(target: Target, rest: list[Block], code: str, helpers: set[str]) -> Check:
    """A check, from what follows its target in the same Markdown cell and from the code right after that."""
    text = "\n".join(rest[0].lines).strip() if rest and isinstance(rest[0], Text) else ""
    paragraph, _, more = text.partition("\n\n")
    problem = ""
    if not paragraph.startswith(_MARK):
        problem = f"is not followed by a paragraph that begins with {_MARK}"
    elif more or len(rest) > 1 or not code:
        problem = "is not followed by one paragraph and then a code cell"
    elif "assert" not in code and not helpers & _called(code):
        problem = "is followed by code that asserts nothing"
    elif strange := set(re.findall(r"\{([\w:]+)\}`", paragraph)) - _ROLES:
        problem = f"holds a role that means nothing on the sheet of formulas: {', '.join(sorted(strange))}"
    return Check(target.label, paragraph.removeprefix(_MARK).strip(), target.line, problem)


def _asserting_functions(source: str) -> set[str]:
    functions = (node for node in _nodes(source) if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if "assert" in ast.unparse(function)}


def _called(source: str) -> set[str]:
    calls = (node.func for node in _nodes(source) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _nodes(source: str) -> Iterator[ast.AST]:
    """Of the code, if it is plain Python: IPython's magics are not."""
    try:
        yield from ast.walk(ast.parse(source))
    except SyntaxError:
        return


def problems(page: Page) -> list[str]:
    """What keeps the equations of a page from the sheet: ``name.md:line: what is wrong``."""
    found = [(check.line, f"{check.label} {check.problem}") for check in checks(page) if check.problem]
    labels = [equation.label for equation in equations(page)]
    checked = [check.label for check in checks(page)]
    for equation in equations(page):
        count = checked.count(_check_of(equation))
        if not equation.label.startswith("eq-"):
            found.append((equation.line, f"the label {equation.label} does not begin with eq-"))
        elif count != 1:
            found.append((equation.line, f"{equation.label} has {count} checks, not one"))
    for check in checks(page):
        if f"eq-{check.label.removeprefix('check-')}" not in labels:
            found.append((check.line, f"{check.label} checks no equation of this chapter"))
    return [f"{page.name}.md:{line}: {what}" for line, what in sorted(found)]


def _check_of(equation: Equation) -> str:
    return f"check-{equation.label.removeprefix('eq-')}"


def markdown(book: Book) -> str:
    """The sheet, for the directive ``{formulas}``.

    Raises
    ------
    PressError
        If an equation of the part has not exactly one check; the message lists all of them.
    """
    pages = chapters(book)
    if wrong := [problem for page in pages for problem in problems(page)]:
        raise PressError("the sheet of formulas cannot be made:\n  " + "\n  ".join(wrong))
    titles = Index(book).titles
    parts = []
    for page in pages:
        sentences = {check.label: check.sentence for check in checks(page)}
        title = f"{page.number}. {titles[page.name]}" if page.number else titles[page.name]
        parts.append(f"## [{title}](/{page.name}{'.ipynb' if page.is_notebook else '.md'})")
        parts += [_entry(equation, sentences[_check_of(equation)]) for equation in equations(page)]
    return "\n\n".join(parts or [_NONE]) + "\n"


def _entry(equation: Equation, sentence: str) -> str:
    """The equation in a box, its number linked to it, the check linked to the check."""
    return (
        f":::{{container}} formula\n```{{math}}\n{equation.latex}\n```\n\n{{eq}}`{equation.label}`\n\n"
        f"{{ref}}`Check <{_check_of(equation)}>`: {sentence}\n:::"
    )
