r"""Which symbols a chapter's mathematics uses, and which of them the page of notation explains.

A symbol is a letter with its alphabet: ``T``, ``\theta``, ``\mathcal{T}``, ``\mathbf{x}``. Indices are symbols too.
What stands around a letter (accents, primes, stars, brackets) belongs to no symbol: it means the same on every letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .blocks import Block, Directive, Math, Text, parse
from .cells import cells
from .errors import PressError
from .inline import code_span, math_end
from .layout import Page

PAGE = "notation"

_GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa"),
    *("varkappa", "lambda", "mu", "nu", "xi", "pi", "varpi", "rho", "varrho", "sigma", "varsigma", "tau", "upsilon"),
    *("phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon"),
    *("Phi", "Psi", "Omega"),
)
_LETTERS = {*_GREEK, "ell", "nabla", "partial"}
_ALPHABETS = r"mathcal|mathscr|mathbb|mathbf|mathfrak|boldsymbol|bm"
_UPRIGHT = r"mathrm|mathsf|mathtt|mathit"  # of several letters: a name, as in \mathrm{KL}
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_TOKEN = re.compile(
    rf"""
      %[^\n]*                                                                    # a comment
    | \\(?:begin|end)\s*{_GROUP}(?:\s*(?<=array\}})\s*{_GROUP})?                   # an environment, columns
    | \\(?:text[a-z]*|mbox|operatorname\*?|label|tag|color|hspace\*?)\s*{_GROUP}  # words
    | \\(?P<alphabet>{_ALPHABETS}|{_UPRIGHT})(?![A-Za-z])\s*(?P<inside>{_GROUP}|\\[A-Za-z]+|\w)
    | \\\\\s*\[-?[\d.]+\s*[a-z]+\]                                                # a line's end with its distance
    | \\(?P<command>[A-Za-z]+|.)
    | (?P<letter>[^\W\d_])
    """,
    re.VERBOSE | re.DOTALL,
)
_OWN = re.compile(r"^#+\s+Only in `(?P<chapter>[^`]+)`\s*$")
_ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
_NO_TEXT = {"code-cell", "code-block", "code", "sourcecode", "raw", "image", "bibliography", "toctree", "measured"}


# --- What a chapter uses --------------------------------------------------------------------------------------------


def symbols(latex: str) -> list[str]:
    r"""The symbols of a formula, each once, in order.

    >>> symbols(r"\hat p_k \sim \mathcal N(0, \sigma^2), \quad k \in \{1, \dots, N\}")
    ['p', 'k', '\\mathcal{N}', '\\sigma', 'N']
    """
    found: list[str] = []
    for token in _TOKEN.finditer(latex):
        if alphabet := token["alphabet"]:
            inside = re.findall(r"\\[A-Za-z]+|[^\W_]", token["inside"])
            if len(inside) == 1 or not re.fullmatch(_UPRIGHT, alphabet):
                found += [f"\\{alphabet}{{{each}}}" for each in inside if each[0] != "\\" or each[1:] in _LETTERS]
        elif token["command"] in _LETTERS:
            found.append(f"\\{token['command']}")
        elif token["letter"]:
            found.append(token["letter"])
    return list(dict.fromkeys(found))


def mathematics(page: Page) -> Iterator[tuple[str, int]]:
    """Every formula of a page, inline and displayed, with the line of the page on which it begins."""
    for cell in cells(page):
        if cell.kind == "markdown":
            yield from _of_blocks(parse(cell.lines, page.source.name, cell.line), page.source.name)


def _of_blocks(blocks: Iterable[Block], where: str) -> Iterator[tuple[str, int]]:
    for block in blocks:
        match block:
            case Text():
                yield from _of_text("\n".join(block.lines), block.line)
            case Math():
                yield block.body, block.line
            case Directive(name="math"):
                yield "\n".join([block.argument, *block.body]), block.line
            case Directive() if block.name not in _NO_TEXT:
                yield from _of_text(block.argument, block.line)
                yield from _of_blocks(parse(block.body, where, block.body_line), where)


def _of_text(text: str, line: int) -> Iterator[tuple[str, int]]:
    """Between dollars, in the role ``math``, and in environments that stand by themselves."""
    at = 0
    while at < len(text):
        end, latex = at + 1, None
        if environment := _ENVIRONMENT.match(text, at):
            end, latex = environment.end(), environment[0]
        elif text[at] == "\\":
            end = at + 2
        elif text[at] == "`":
            end, content = code_span(text, at)
            latex = content if text.endswith("{math}", 0, at) else None
        elif text[at] == "$":
            end = math_end(text, at)
            latex = text[at:end].strip("$")
        if latex:
            yield latex, line + text.count("\n", 0, at)
        at = end


def uses(page: Page) -> dict[str, int]:
    """The symbols of a page, each with the line on which the formula begins that uses it first."""
    found: dict[str, int] = {}
    for latex, line in mathematics(page):
        for symbol in symbols(latex):
            found.setdefault(symbol, line)
    return found


# --- What the page of notation explains -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a table: the symbols of its first cell (none, for an operator), and the backticks of its last."""

    symbols: tuple[str, ...]
    code: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Notation:
    """The rows for every chapter, and those for one chapter only: ``{"NN-part/name": rows}``."""

    general: list[Row]
    own: dict[str, list[Row]]

    def explains(self, chapter: str) -> set[str]:
        return {symbol for row in [*self.general, *self.own.get(chapter, [])] for symbol in row.symbols}

    def unexplained(self, page: Page) -> list[str]:
        """What a chapter uses and the page of notation does not explain: ``name.md:line: symbol``."""
        known = self.explains(page.name)
        return [f"{page.name}.md:{line}: {symbol}" for symbol, line in uses(page).items() if symbol not in known]

    def unused(self, page: Page) -> list[str]:
        """What the page of notation explains for this chapter only, and the chapter does not use."""
        used = uses(page)
        rows = self.own.get(page.name, [])
        return [f"{PAGE}.md:{row.line}: {each}" for row in rows for each in row.symbols if each not in used]


def read(page: Page) -> Notation:
    """The tables of the page of notation.

    Raises
    ------
    PressError
        If a heading names a chapter in another form, or twice, or a row has no formula in its first cell.
    """
    notation = Notation([], {})
    rows = notation.general
    lines = page.text.split("\n")
    for number, line in enumerate(lines, 1):
        where = f"{page.source.name}:{number}"
        if line.startswith("#"):
            heading = _OWN.match(line)
            if not heading and "only in" in line.lower():
                raise PressError(f"{where}: the heading must be: ## Only in `NN-part/name`")
            if heading and heading["chapter"] in notation.own:
                raise PressError(f"{where}: a second section for {heading['chapter']}")
            rows = notation.own.setdefault(heading["chapter"], []) if heading else notation.general
        elif line.startswith("|") and not _is_head(lines, number - 1):
            rows.append(_row(line, number, where))
    return notation


def _is_head(lines: list[str], at: int) -> bool:
    """Whether a line of a table is the rule under its head, or the head above it."""
    return any(re.fullmatch(r"\|[\s|:-]+\|\s*", line) for line in lines[at : at + 2])


def _row(line: str, number: int, where: str) -> Row:
    first, *_, last = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    latex = [formula for formula, _ in _of_text(first, number)]
    found = tuple(dict.fromkeys(symbol for formula in latex for symbol in symbols(formula)))
    if not latex:
        raise PressError(f"{where}: no formula between dollars in the first cell of the row")
    return Row(found, tuple(re.findall(r"`([^`]+)`", last)), number)
