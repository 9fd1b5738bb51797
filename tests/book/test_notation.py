"""The letters of the chapters' mathematics are those that the page of notation explains."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from _press import notation
from _press.errors import PressError
from _press.layout import Book, Page

PROJECT = Path(__file__).resolve().parents[2]
HEAD = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"

# --- The book -----------------------------------------------------------------------------------------------------


def chapters() -> list[Page]:
    return Book.at(PROJECT / "book").notebooks


def name(page: Page) -> str:
    return page.name


def page_of(book: Book, name: str = notation.PAGE) -> Page:
    return next(page for page in book.pages if page.name == name)


@pytest.fixture(scope="module")
def explained(real_book: Book) -> notation.Notation:
    return notation.read(page_of(real_book))


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_every_symbol_of_a_chapter_is_explained(page: Page, explained: notation.Notation) -> None:
    assert explained.unexplained(page) == [], f"add rows to the section of {page.name} in book/notation.md"


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_what_is_explained_for_a_chapter_only_is_used_there(page: Page, explained: notation.Notation) -> None:
    assert explained.unused(page) == []


def test_sections_are_of_chapters_that_exist_and_are_not_empty(real_book: Book, explained: notation.Notation) -> None:
    assert list(explained.own) == [page.name for page in real_book.notebooks if page.name in explained.own]
    assert [chapter for chapter, rows in explained.own.items() if not rows] == []


def test_names_of_the_package_exist(explained: notation.Notation) -> None:
    rows = [*explained.general, *(row for rows in explained.own.values() for row in rows)]
    for name in (name for row in rows for name in row.code if re.fullmatch(r"metabook(\.\w+)+", name)):
        assert pkgutil.resolve_name(name) is not None


# --- Symbols of a formula -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("", ""),
        ("2x + Nq - x", "x N q"),
        (r"\theta' - \alpha\nabla\mathcal L_{\mathcal S}(\theta)", r"\theta \alpha \nabla \mathcal{L} \mathcal{S}"),
        (r"\mathcal{T} \sim p(\mathcal T)", r"\mathcal{T} p"),
        (r"\hat a \bar{z} \tilde\mu x^*_j \widehat{R}", r"a z \mu x j R"),  # accents are nobody's
        (r"\mathbb{E}_{x \sim p} \mathbb R^{d \times n} \mathbb 1[k]", r"\mathbb{E} x p \mathbb{R} d n \mathbb{1} k"),
        (r"\mathbf{x} \boldsymbol{\mu} \bm\Sigma", r"\mathbf{x} \boldsymbol{\mu} \bm{\Sigma}"),
        (r"\mathbf{\hat W}^\top \mathbfx", r"\mathbf{W}"),  # \mathbfx is no alphabet
        (r"\log \exp \sum_{i=1}^n \max \infty \lVert w \rVert", "i n w"),
        (r"\operatorname{Var}(A) \operatorname*{arg\,min}_w \operatorname{tr} \Sigma", r"A w \Sigma"),
        (r"g_{\mathrm{FO}} \mathrm{KL}(p \,\|\, q) \mathrm{d}x \mathrm s", r"g p q \mathrm{d} x \mathrm{s}"),
        (r"\theta_{\text{MAML}} \text{if $k$ and \emph{so} on} \textstyle v", r"\theta v"),
        (r"\begin{aligned} a &= b \\[2pt] c &\end{aligned} \begin{array}{cc} u & v\end{array}", "a b c u v"),
        (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix} \\ [x]", "a b c d x"),
        (r"\bigl(\tfrac12 \ell_t\bigr) \frac{\partial f}{\partial w_1} \varphi", r"\ell t \partial f w \varphi"),
        ("a % not b\n c \\% d", "a c d"),
        (r"\color{red} x \textcolor{blue}{y} \hspace{1em} \label{eq}\tag{A}", "x y"),
        ("θ'", "θ"),
    ],
)  # fmt: skip
def test_symbols(latex: str, expected: str) -> None:
    assert notation.symbols(latex) == expected.split()


# --- Formulas of a chapter ----------------------------------------------------------------------------------------

CHAPTER = (
    HEAD
    + r"""
# Of $a$

Inline $b$ and {math}`c`, `$code$`, \$5, `` $`$ ``, {ref}`d <e>`,
then $f
g$; and [a link for $h$](x.md#i).

$$
j
$$ (eq-k)

```{math}
:label: eq-l

m
```

```{code-cell} ipython3
print("$n$")
```

```python
"$o$"
```

::::{exercise} About $p$
:label: ex-q
Text $r$.

:::{note}
- $$ s $$
:::
::::

| $t$ | x |
| --- | --- |
| $u_1, v$ | $w$ |

\begin{align*}
x &= y
\end{align*}
"""
)


def test_all_mathematics_is_found_with_its_line(write_book: Callable[..., Book]) -> None:
    book = write_book({"page": CHAPTER})
    found = list(notation.mathematics(page_of(book, "page")))
    assert [latex.strip() for latex, _ in found] == [
        *("a", "b", "c", "f\ng", "h", "j", "m", "p", "r", "s", "t", "u_1, v", "w"),
        "\\begin{align*}\nx &= y\n\\end{align*}",
    ]
    source = page_of(book, "page").text.split("\n")
    for latex, line in found:  # a display begins a line below its fence
        assert latex.strip().split("\n")[0] in "\n".join(source[line - 1 : line + 2])
    assert dict(notation.uses(page_of(book, "page")))["u"] == source.index("| $u_1, v$ | $w$ |") + 1


# --- The page of notation -----------------------------------------------------------------------------------------

PAGE = r"""
# Notation

Words with $unknown$ symbols explain nothing.

## Tasks

| symbol | meaning | in code |
| :-- | --- | --- |
| $\mathcal{T} \sim p(\mathcal{T})$ | a task | `Episodes` |
| $x_i$, $y$ | an $input$ | |

## Only in `one`

| symbol | meaning | in code |
| --- | --- | --- |
| $w$, $a \mid b$ | weights \| and | `metabook.fit`, `w` |

## Indices

| symbol | meaning |
| --- | --- |
| $k$ | classes |
"""


def test_tables_are_read(write_book: Callable[..., Book]) -> None:
    found = notation.read(page_of(write_book({"notation": PAGE})))
    assert [row.symbols for row in found.general] == [(r"\mathcal{T}", "p"), ("x", "i", "y"), ("k",)]
    assert [row.code for row in found.general] == [("Episodes",), (), ()]
    assert list(found.own) == ["one"]
    assert found.own["one"][0].symbols == ("w", "a", "b")
    assert found.own["one"][0].code == ("metabook.fit", "w")
    assert found.explains("one") - found.explains("two") == {"w", "a", "b"}


def test_what_is_not_explained_and_what_is_not_used_is_named(write_book: Callable[..., Book]) -> None:
    text = HEAD + "# T\n\n$x_k = w$\n\n$$\n\\mathcal L + a + w\n$$\n\n```{code-cell} ipython3\n1\n```\n"
    book = write_book({"one": text, "two": text, "notation": PAGE})
    found = notation.read(page_of(book))
    assert found.unexplained(page_of(book, "one")) == [r"one.md:8: \mathcal{L}"]
    assert found.unexplained(page_of(book, "two")) == ["two.md:6: w", r"two.md:8: \mathcal{L}", "two.md:8: a"]
    line = PAGE.split("\n").index(r"| $w$, $a \mid b$ | weights \| and | `metabook.fit`, `w` |") + 1
    assert found.unused(page_of(book, "one")) == [f"notation.md:{line}: b"]
    assert found.unused(page_of(book, "two")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("## Only in two", r"notation.md:1: the heading must be: ## Only in `NN-part/name`"),
        ("## Only in `one`\n## Only in `one`", "notation.md:2: a second section for one"),
        ("| symbol | meaning |\n| --- | --- |\n| w | weights |", "notation.md:3: no formula"),
    ],
)
def test_what_cannot_be_read_is_an_error(write_book: Callable[..., Book], text: str, message: str) -> None:
    with pytest.raises(PressError, match=message):
        notation.read(page_of(write_book({"notation": text})))
