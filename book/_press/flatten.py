"""From MyST Markdown to the Markdown that every notebook viewer knows: for the twins that Colab and Jupyter open.

:class:`Index` reads the whole book once: what is labelled where, and under which number. :class:`Flattener` rewrites
one page. Whatever it does not know stops the press with its name, file and line.
"""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from markdown_it import MarkdownIt

from . import measured
from .bibliography import Bibliography
from .blocks import Block, Directive, Math, Target, Text, Verbatim, parse
from .cells import Cell, cells
from .errors import PressError
from .inline import code_span, link_at, math_end
from .layout import Book, Page

ADMONITIONS = ("note", "tip", "important", "warning", "caution", "attention", "danger", "error", "hint", "seealso")
PROOFS = (
    *("theorem", "definition", "lemma", "proposition", "corollary", "remark", "example", "algorithm", "assumption"),
    *("axiom", "conjecture", "criterion", "observation", "property", "proof"),
)
_LITERAL = {"math", "code-block", "code", "sourcecode", "raw", "image", "toctree", "tableofcontents", "bibliography"}
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
_ROLE = re.compile(r"\{([A-Za-z][\w:.+-]*)\}$")
_NAMED = re.compile(r"^(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)
_FOOTNOTE = re.compile(r"\[\^([^\]\s]+)\](:[ \t]+)?")


@dataclass(frozen=True)
class Label:
    """What a label stands for: ``Exercise 2.1``, an equation's number, a section's title."""

    page: Page
    kind: str
    text: str


class Index:
    """Every label and every number of the book."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.bibliography = Bibliography(book.folder / "references.bib")
        self.pages = {page.name: page for page in book.pages}
        self.labels: dict[str, Label] = {}
        self.numbers: dict[tuple[str, int], str] = {}
        self.titles: dict[str, str] = {}
        for page in book.pages:
            counter: Counter[str] = Counter()
            self.titles[page.name] = page.name
            for cell in cells(page):
                if cell.kind == "markdown":
                    if self.titles[page.name] == page.name and (title := _first_heading(cell.lines)):
                        self.titles[page.name] = title
                    self._read(page, parse(cell.lines, page.source.name, cell.line), counter)

    def _read(self, page: Page, blocks: Iterable[Block], counter: Counter[str]) -> None:
        waiting: list[Target] = []
        for block in blocks:
            match block:
                case Target():
                    waiting.append(block)
                    continue
                case Math(label=str(label)):
                    self._number(page, "eq", label, block.line, counter)
                case Directive(name="math") if label := block.options.get("label"):
                    self._number(page, "eq", label, block.line, counter)
                case Directive() if kind := _counted(block):
                    label = block.options.get("label") or block.options.get("name")
                    self._number(page, kind, label, block.line, counter)
                case _:
                    pass
            for target in waiting:
                text = block.lines[0] if isinstance(block, Text) else ""
                heading = _HEADING.match(text)
                self._add(target.label, Label(page, "section", heading[2] if heading else target.label), target.line)
            waiting = []
            if isinstance(block, Directive) and block.name not in _LITERAL:
                self._read(page, parse(block.body, page.source.name, block.body_line), counter)

    def _number(self, page: Page, kind: str, label: str | None, line: int, counter: Counter[str]) -> None:
        counter[kind] += 1
        number = f"{page.number}.{counter[kind]}" if page.number else str(counter[kind])
        self.numbers[page.name, line] = number
        if label:
            text = number if kind == "eq" else f"{kind.capitalize()} {number}"
            self._add(label, Label(page, "eq" if kind == "eq" else "numbered", text), line)

    def _add(self, label: str, meaning: Label, line: int) -> None:
        if label in self.labels:
            raise PressError(
                f"{meaning.page.source.name}:{line}: the label {label!r} is already in {self.labels[label].page.name}"
            )
        self.labels[label] = meaning


def _counted(block: Directive) -> str | None:
    """The kind of a directive that Sphinx numbers."""
    if block.name in ("exercise", "exercise-start") and "nonumber" not in block.options:
        return "exercise"
    if block.name == "figure":
        return "figure"
    kind = block.name.removeprefix("prf:")
    numbered = block.name.startswith("prf:") and kind != "proof" and "nonumber" not in block.options
    return kind if numbered else None


def _first_heading(lines: Iterable[str]) -> str | None:
    return next((found[2] for line in lines if (found := _HEADING.match(line))), None)


class Flattener:
    """Rewrites the Markdown cells of one page, in order.

    Parameters
    ----------
    index : Index
    page : Page
    """

    def __init__(self, index: Index, page: Page) -> None:
        self.index, self.page = index, page
        self.record = index.book.record.get(page.name, {})
        self.cited: set[str] = set()
        self.footnotes: dict[str, int] = {}
        self.solution: str | None = None  # the title of the solution that we are in

    def cell(self, cell: Cell) -> str:
        """One Markdown cell, flattened.

        Raises
        ------
        PressError
            If it holds a directive or a role that is not known; the message names it, the file and the line.
        """
        parts: list[str] = []
        inside: list[str] = []  # of an open solution
        for block in parse(cell.lines, self.page.source.name, cell.line):
            match block:
                case Directive(name="solution-start"):
                    self.solution = self._solution_title(block)
                case Directive(name="solution-end"):
                    parts += self._folded(inside)
                    inside, self.solution = [], None
                case _:
                    (inside if self.solution else parts).append(self.block(block))
        text = "\n\n".join(part for part in [*parts, *self._folded(inside)] if part)
        self._verify(text, cell)
        return text

    def _folded(self, parts: list[str]) -> list[str]:
        return [_details(self.solution or "Solution", "\n\n".join(parts))] if any(parts) else []

    # --- Blocks ---------------------------------------------------------------------------------------------------

    def blocks(self, lines: list[str], first: int) -> str:
        found = (self.block(block) for block in parse(lines, self.page.source.name, first))
        return "\n\n".join(part for part in found if part)

    def block(self, block: Block) -> str:
        match block:
            case Text():
                return self.inline("\n".join(block.lines).strip("\n"), block.line)
            case Verbatim():
                return "\n".join(block.lines)
            case Target():
                return f'<a id="{html.escape(block.label)}"></a>'
            case Math():
                return self._math(block.body, block.label, block.line)
            case Directive():
                return _indented(self._directive(block), block.indent)

    def _directive(self, block: Directive) -> str:
        name = block.name
        if name in ADMONITIONS:
            title = {"seealso": "See also"}.get(name, name.capitalize())
            return self._quoted(title, block, [block.argument] if block.argument else [])
        if name.startswith("prf:") and name.removeprefix("prf:") in PROOFS:
            return self._proof(block)
        methods: dict[str, Callable[[Directive], str]] = {
            **dict.fromkeys(("admonition", "sidebar", "margin", "topic"), lambda b: self._quoted(b.argument, b)),
            **dict.fromkeys(("epigraph", "pull-quote", "highlights"), lambda b: _quote(self._body(b))),
            **dict.fromkeys(("exercise", "exercise-start"), self._exercise),
            **dict.fromkeys(("exercise-end", "toctree", "tableofcontents", "contents"), lambda b: ""),
            **dict.fromkeys(("code-block", "code", "sourcecode"), _code),
            **dict.fromkeys(("image", "figure"), self._picture),
            **dict.fromkeys(("tab-set", "grid", "div", "container"), self._body),
            **dict.fromkeys(("tab-item", "grid-item", "grid-item-card", "card"), self._titled),
            "bibliography": lambda b: self._bibliography(),
            "dropdown": self._dropdown,
            "glossary": self._glossary,
            "math": lambda b: self._math("\n".join(b.body).strip("\n"), b.options.get("label"), b.line),
            "measured": lambda b: measured.markdown(self.record),
            "raw": lambda b: "\n".join(b.body) if b.argument == "html" else "",
            "solution": lambda b: _details(self._solution_title(b), self._body(b)),
            "table": self._table,
        }
        if name not in methods:
            raise PressError(f"{self._at(block.line)}: the notebook has no form for the directive {{{name}}}")
        return methods[name](block)

    def _body(self, block: Directive) -> str:
        return self.blocks(block.body, block.body_line)

    def _quoted(self, title: str, block: Directive, first: list[str] | None = None) -> str:
        heading = f"**{self.inline(title, block.line)}**" if title else ""
        start = [self.inline(text, block.line) for text in first or []]
        return _quote("\n\n".join(part for part in [heading, *start, self._body(block)] if part))

    def _titled(self, block: Directive) -> str:
        title = f"**{self.inline(block.argument, block.line)}**\n\n" if block.argument else ""
        link = f"\n\n{self._link('Read it', block.options['link'])}" if "link" in block.options else ""
        return title + self._body(block) + link

    def _proof(self, block: Directive) -> str:
        number = self.index.numbers.get((self.page.name, block.line))
        kind = block.name.removeprefix("prf:").capitalize()
        title = f"{kind} {number}" if number else kind
        extra = f" ({self.inline(block.argument, block.line)})" if block.argument else ""
        return self._anchor(block) + _quote(f"**{title}**{extra}\n\n{self._body(block)}")

    def _exercise(self, block: Directive) -> str:
        number = self.index.numbers.get((self.page.name, block.line), "")
        title = f"Exercise {number}".strip()
        extra = f": {self.inline(block.argument, block.line)}" if block.argument else ""
        return "\n\n".join(part for part in (f"{self._anchor(block)}**{title}{extra}**", self._body(block)) if part)

    def _anchor(self, block: Directive) -> str:
        label = block.options.get("label") or block.options.get("name")
        return f'<a id="{html.escape(label)}"></a>\n\n' if label else ""

    def _solution_title(self, block: Directive) -> str:
        known = self.index.labels.get(block.argument)
        if known is None:
            raise PressError(f"{self._at(block.line)}: the solution of an unknown exercise {block.argument!r}")
        return f"Solution to {known.text}"

    def _dropdown(self, block: Directive) -> str:
        return _details(self.inline(block.argument, block.line) or "More", self._body(block), "open" in block.options)

    def _math(self, body: str, label: str | None, line: int) -> str:
        if not label:
            return f"$$\n{body}\n$$"
        number = self.index.numbers[self.page.name, line]
        return f'<a id="{html.escape(label)}"></a>\n\n$$\n{body}\n\\tag{{{number}}}\n$$'

    def _picture(self, block: Directive) -> str:
        alt = block.options.get("alt", "")
        if not alt:
            raise PressError(
                f"{self._at(block.line)}: {{{block.name}}} {block.argument} needs :alt:, for readers who do not see it"
            )
        picture = f"![{alt}]({block.argument})"
        caption = self._body(block) if block.name == "figure" else ""
        number = self.index.numbers.get((self.page.name, block.line))
        below = f"**Figure {number}.** {caption}" if caption else ""
        return "\n\n".join(part for part in (f"{self._anchor(block)}{picture}", below) if part)

    def _table(self, block: Directive) -> str:
        caption = f"**{self.inline(block.argument, block.line)}**\n\n" if block.argument else ""
        return f"{self._anchor(block)}{caption}{self._body(block)}"

    def _glossary(self, block: Directive) -> str:
        items: list[str] = []
        for line in block.body:
            if line.strip():
                items.append(f"**{line.strip()}**\n" if not line[0].isspace() else line.strip())
        return "\n".join("\n" + item.strip() + "\n" if item.startswith("**") else item for item in items).strip()

    def _bibliography(self) -> str:
        if not self.cited:
            return "*This chapter cites nothing.*"
        entries = self.index.bibliography
        keys = sorted(self.cited, key=lambda key: (entries.names(key), entries.year(key), key))
        return "\n".join(f"- {entries.full(key)}" for key in keys)

    # --- Inline ---------------------------------------------------------------------------------------------------

    def inline(self, text: str, line: int) -> str:
        """Rewrite roles, links and footnotes; copy code spans and mathematics as they are."""
        out = ""
        at = 0
        while at < len(text):
            char = text[at]
            here = line + text.count("\n", 0, at)
            if char == "\\" and at + 1 < len(text):
                out, at = out + text[at : at + 2], at + 2
            elif char == "`":
                end, content = code_span(text, at)
                role = _ROLE.search(out) if content is not None else None
                if role and content is not None:
                    out = out[: role.start()] + self._role(role[1], content, here)
                else:
                    out += text[at:end]
                at = end
            elif char == "$":
                end = math_end(text, at)
                out, at = out + text[at:end], end
            elif found := _FOOTNOTE.match(text, at):
                out, at = out + self._footnote(found), found.end()
            elif char == "[" and (link := link_at(text, at)):
                words, target, end = link
                picture = out.endswith("!")
                out += f"[{words}]({target})" if picture else self._link(self.inline(words, here), target, here)
                at = end
            elif text.startswith("{{", at):
                raise PressError(f"{self._at(here)}: the notebook has no form for substitutions {{{{...}}}}")
            else:
                out, at = out + char, at + 1
        return out

    def _footnote(self, found: re.Match[str]) -> str:
        number = self.footnotes.setdefault(found[1], len(self.footnotes) + 1)
        return f"<sup>{number}</sup>" + (" " if found[2] else "")

    def _link(self, words: str, target: str, line: int = 0) -> str:
        """A link to another page or a label of the book, or to the world."""
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", path) or path.startswith("/"):
            return f"[{words}]({target})"
        if not path:
            known = self.index.labels.get(anchor)
            return (
                f"[{words or (known.text if known else anchor)}]({self._address(known.page) if known else ''}#{anchor})"
            )
        if path.endswith((".md", ".ipynb")) or not PurePosixPath(path).suffix:
            page = self._page(path, line)
            return f"[{words or self._title(page)}]({self._address(page)}{'#' * bool(anchor)}{anchor})"
        return f"[{words}]({target})"

    def _page(self, path: str, line: int) -> Page:
        here = PurePosixPath(self.page.name).parent
        name = path.removeprefix("/") if path.startswith("/") else os.path.normpath(here / path)
        name = re.sub(r"\.(md|ipynb)$", "", str(name).replace(os.sep, "/"))
        if name not in self.index.pages:
            raise PressError(f"{self._at(line)}: there is no page {path!r} in the table of contents")
        return self.index.pages[name]

    def _address(self, page: Page) -> str:
        """Relative path from this page: empty for this page, the twin of a notebook, the source of another page."""
        if page.name == self.page.name:
            return ""
        suffix = ".ipynb" if page.is_notebook else ".md"
        return os.path.relpath(page.name, PurePosixPath(self.page.name).parent).replace(os.sep, "/") + suffix

    def _title(self, page: Page) -> str:
        return self.inline(self.index.titles[page.name], 0)

    def _role(self, name: str, content: str, line: int) -> str:
        named = _NAMED.match(content)
        text, target = (named["text"], named["target"]) if named else ("", content.strip())
        match name:
            case "cite:t" | "cite:alt":
                return ", ".join(self._cite(key, line) for key in _keys(content))
            case "cite" | "cite:p":
                keys = _keys(content)
                for key in keys:
                    self._cite(key, line)
                return self.index.bibliography.parenthetical(keys)
            case "eq":
                known = self._label(target, line)
                return self._to(known, target, f"({known.text})")
            case "ref" | "numref" | "prf:ref":
                known = self._label(target, line)
                return self._to(known, target, self.inline(text or known.text, line))
            case "doc":
                return self._link(self.inline(text, line), target, line)
            case "term":
                return f"*{text or target}*"
            case "glue:text" | "glue:" | "glue" | "glue:any":
                return self._glued(content, line)
            case "math":
                return f"${content}$"
            case "sub" | "sup" | "kbd":
                return f"<{name}>{html.escape(content)}</{name}>"
            case "abbr":
                short, _, meaning = content.partition("(")
                return f'<abbr title="{html.escape(meaning.rstrip(") "))}">{html.escape(short.strip())}</abbr>'
            case "download":
                return f"[{text or target}]({target})"
            case _:
                raise PressError(f"{self._at(line)}: the notebook has no form for the role {{{name}}}")

    def _cite(self, key: str, line: int) -> str:
        try:
            self.cited.add(key)
            return self.index.bibliography.textual(key)
        except PressError as error:
            raise PressError(f"{self._at(line)}: {error}") from error

    def _label(self, label: str, line: int) -> Label:
        if label not in self.index.labels:
            raise PressError(f"{self._at(line)}: nothing has the label {label!r}")
        return self.index.labels[label]

    def _to(self, known: Label, label: str, text: str) -> str:
        return f"[{text}]({self._address(known.page)}#{label})"

    def _glued(self, content: str, line: int) -> str:
        """The value of the last recorded run; without one, the name under which the notebook will compute it."""
        name, _, form = content.partition(":")
        value = self.record.get("glue", {}).get(name)
        if value is None:
            return f"`{name}`"
        try:
            return format(float(value), form) if form else value
        except ValueError as error:
            raise PressError(f"{self._at(line)}: {value!r} cannot be written as {form!r}") from error

    # --- Checks ---------------------------------------------------------------------------------------------------

    def _at(self, line: int) -> str:
        return f"{self.page.name}.md:{line}"

    def _verify(self, text: str, cell: Cell) -> None:
        if found := leftovers(text):
            raise PressError(f"{self._at(cell.line)}: could not flatten {found[0]!r} in the cell that begins here")


def leftovers(text: str) -> list[str]:
    """Directives, roles and targets that a Markdown viewer would show as they are."""
    found: list[str] = []
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence" and token.info.lstrip().startswith("{"):
            found.append(token.info.strip())
        for before, after in pairwise(token.children or []):
            if before.type == "text" and (role := _ROLE.search(before.content)) and after.type == "code_inline":
                found.append(role[0])
        for child in token.children or []:
            if child.type == "text" and re.match(r":{3,}\s*(\{|$)|\([\w-]+\)=$", child.content):
                found.append(child.content)
    return found


def _keys(content: str) -> list[str]:
    return [key.strip() for key in content.split(",") if key.strip()]


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line if line else line for line in text.split("\n")) if indent else text


def _details(title: str, body: str, open_: bool = False) -> str:
    # Inside <summary> Markdown is not read: make it HTML here. Mathematics stays, for MathJax to find.
    summary = MarkdownIt("commonmark").renderInline(title)
    return f"<details{' open' * open_}>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _code(block: Directive) -> str:
    return "\n".join([f"```{block.argument}", *block.body, "```"])
