"""The sheet of formulas, and the rule behind it: no equation of the Mathematics part without a check that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from _press import execute, formulas, pages, weave
from _press.errors import PressError
from _press.layout import Book, Page
from bs4 import BeautifulSoup

PROJECT = Path(__file__).resolve().parents[2]
HEAD = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"
ASSERTS = "```{code-cell} ipython3\nassert 1 < 2\n```\n"


def name(page: Page) -> str:
    return page.name


@pytest.mark.parametrize("page", formulas.chapters(Book.at(PROJECT / "book")), ids=name)
def test_every_equation_of_the_mathematics_has_one_check(page: Page) -> None:
    assert formulas.problems(page) == []


def test_the_sheet_of_the_book_can_be_made(real_book: Book) -> None:
    sheet = formulas.markdown(real_book)
    for page in formulas.chapters(real_book):
        assert all(equation.latex in sheet for equation in formulas.equations(page))


# --- A small book -------------------------------------------------------------------------------------------------

ONE = rf"""{HEAD}
(one)=
# Gradients by $\theta$

$$
a = b
$$ (eq-one-first)

$$ c $$

:::{{note}}
```{{math}}
:label: eq-one-second

d \\
e
```
:::

```{{code-cell}} ipython3
1
```

(check-one-second)=
(check-one-first)=
**Check.** By {{eq}}`eq-one-first`, $a$ is
`b`.

{ASSERTS}
"""

PLAIN = f"# Plain\n\n$$ x $$ (eq-plain)\n\n{ASSERTS}"


@pytest.fixture
def small(write_book: Callable[..., Book]) -> Book:
    config = (PROJECT / "_config.yml").read_text(encoding="utf-8")
    notation = "# Notation\n\n## Only in `30-mathematics/one`\n\n| symbol | meaning |\n| --- | --- |\n| $a$ | b |\n"
    chapters = {"10-concepts/plain": PLAIN, "30-mathematics/one": ONE}
    return write_book(
        {**chapters, "formulas": "# Formulas\n\n:::{formulas}\n:::\n", "notation": notation}, config=config
    )


def test_equations_and_checks_are_found(small: Book) -> None:
    (page,) = formulas.chapters(small)
    assert [(each.label, each.latex) for each in formulas.equations(page)] == [
        ("eq-one-first", "a = b"),
        ("eq-one-second", "d \\\\\ne"),
    ]
    sentence = "By {eq}`eq-one-first`, $a$ is\n`b`."
    assert [(each.label, each.sentence) for each in formulas.checks(page)] == [
        ("check-one-second", sentence),
        ("check-one-first", sentence),
    ]
    assert formulas.problems(page) == []


def test_the_sheet_takes_formulas_from_the_chapters(small: Book) -> None:
    sheet = formulas.markdown(small)
    assert sheet.startswith("## [2. Gradients by $\\theta$](/30-mathematics/one.ipynb)\n")
    assert "```{math}\na = b\n```\n\n{eq}`eq-one-first`\n\n{ref}`Check <check-one-first>`: By {eq}" in sheet
    assert "```{math}\nd \\\\\ne\n```\n\n{eq}`eq-one-second`\n\n{ref}`Check <check-one-second>`: By {eq}" in sheet
    assert "eq-plain" not in sheet


def test_a_book_without_mathematics_has_an_empty_sheet(write_book: Callable[..., Book]) -> None:
    book = write_book({"10-concepts/plain": HEAD + PLAIN})
    assert formulas.chapters(book) == []
    assert formulas.markdown(book) == "There is no chapter on mathematics yet.\n"


@pytest.mark.html
@pytest.mark.slow
def test_the_page_of_formulas_leads_to_equations_and_checks(small: Book) -> None:
    assert execute.failures(execute.run(small, "smoke")) == []
    site = pages.build(small, weave.sources(small, "smoke")).parent
    sheet = BeautifulSoup((site / "formulas.html").read_text(encoding="utf-8"), "html.parser")
    assert sheet.select_one("h2 a")["href"] == "30-mathematics/one.html"
    boxes = sheet.select("div.formula")
    assert len(boxes) == 2
    first = "30-mathematics/one.html#equation-eq-one-first"
    assert [a["href"] for a in boxes[0].select("a")] == [first, "30-mathematics/one.html#check-one-first", first]
    assert boxes[0].select_one("p").get_text() == "(2.1)"
    chapter = BeautifulSoup((site / "30-mathematics" / "one.html").read_text(encoding="utf-8"), "html.parser")
    for link in sheet.select("div.formula a"):
        assert chapter.find(id=str(link["href"]).partition("#")[2]), link

    # The headings of the page of notation are the chapters' titles.
    notation = BeautifulSoup((site / "notation.html").read_text(encoding="utf-8"), "html.parser")
    heading = notation.select_one("article h2")
    assert heading.get_text().startswith("Only in Gradients by")
    assert heading.a["href"] == "30-mathematics/one.html"
    assert "30-mathematics" not in notation.select_one("nav.page-toc").get_text()


# --- What is wrong ------------------------------------------------------------------------------------------------

EQUATION = "$$ a $$ (eq-a)\n\n"
HELPER = "```{code-cell} ipython3\ndef same(a, b):\n    assert a == b\n```\n\n"
CHECK = "(check-a)=\n**Check.** It is.\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EQUATION + CHECK + ASSERTS, ""),
        (EQUATION + ASSERTS, "eq-a has 0 checks, not one"),
        (EQUATION + CHECK + ASSERTS + CHECK + ASSERTS, "eq-a has 2 checks, not one"),
        ("$$ a $$ (first)\n\n", "the label first does not begin with eq-"),
        (CHECK + ASSERTS, "check-a checks no equation of this chapter"),
        (EQUATION + "(check-a)=\nIt is.\n\n" + ASSERTS, "check-a is not followed by a paragraph that begins with"),
        (EQUATION + "(check-a)=\n" + ASSERTS, "check-a is not followed by a paragraph that begins with"),
        (EQUATION + CHECK, "check-a is not followed by one paragraph and then a code cell"),
        (EQUATION + CHECK + "More.\n\n" + ASSERTS, "check-a is not followed by one paragraph and then a code cell"),
        (EQUATION + CHECK + "$$ b $$\n\n" + ASSERTS, "check-a is not followed by one paragraph and then a code cell"),
        (EQUATION + CHECK + ASSERTS.replace("assert", "") + "More.\n\n" + ASSERTS, "code that asserts nothing"),
        (EQUATION + CHECK + "```python\nassert 1\n```\n", "check-a is not followed by one paragraph and then a code"),
        (EQUATION + CHECK + ASSERTS.replace("assert", ""), "followed by code that asserts nothing"),
        (EQUATION + HELPER + CHECK + ASSERTS.replace("assert 1 < 2", "x = [same(1, 1)]"), ""),
        (EQUATION + CHECK + "```{code-cell} ipython3\n%time\n```\n\n" + ASSERTS, ""),
        (EQUATION + HELPER + CHECK + ASSERTS.replace("assert 1 < 2", "same"), "followed by code that asserts nothing"),
        (EQUATION + CHECK.replace("It", "{glue:text}`it`") + ASSERTS, "holds a role that means nothing .*: glue:text"),
    ],
)
def test_what_keeps_an_equation_from_the_sheet_is_named(
    write_book: Callable[..., Book], text: str, expected: str
) -> None:
    book = write_book({"30-mathematics/wrong": f"{HEAD}# Wrong\n\n{text}\nEnd.\n\n```{{code-cell}} ipython3\n1\n```\n"})
    (page,) = formulas.chapters(book)
    found = formulas.problems(page)
    assert len(found) == bool(expected)
    if expected:
        with pytest.raises(PressError, match=rf"30-mathematics/wrong.md:\d+: .*{expected}"):
            formulas.markdown(book)


def test_a_problem_is_reported_with_its_line(write_book: Callable[..., Book]) -> None:
    book = write_book({"30-mathematics/wrong": f"{HEAD}# Wrong\n\nText.\n\n{EQUATION}{ASSERTS}"})
    assert formulas.problems(formulas.chapters(book)[0]) == ["30-mathematics/wrong.md:8: eq-a has 0 checks, not one"]
