"""The words and the letters of the chapters lead to the pages that explain them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from _press import glossary, notation
from _press.layout import Book, Page

PROJECT = Path(__file__).resolve().parents[2]
HEAD = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"

# --- The book -----------------------------------------------------------------------------------------------------


def chapters() -> list[Page]:
    return Book.at(PROJECT / "book").notebooks


def name(page: Page) -> str:
    return page.name


def page_of(book: Book, name: str = glossary.PAGE) -> Page:
    return next(page for page in book.pages if page.name == name)


@pytest.fixture(scope="module")
def terms(real_book: Book) -> list[str]:
    return glossary.terms(page_of(real_book))


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_the_first_use_of_every_term_leads_to_the_glossary(page: Page, terms: list[str]) -> None:
    assert glossary.unlinked(page, terms) == [], "write {term}`words <term>` there"


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_a_chapter_uses_terms_of_the_glossary(page: Page, terms: list[str]) -> None:
    assert len([use for use in glossary.uses(page, terms) if use.linked]) >= 3


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_a_chapter_with_formulas_leads_to_the_notation(page: Page) -> None:
    before = re.split(r"^## (?!What you will)", page.text, maxsplit=1, flags=re.MULTILINE)[0]
    if page.name != "index" and any(notation.mathematics(page)):
        assert re.search(r"\{doc\}`(\.\./)?notation`", before)


def test_terms_are_explained_once_and_used_somewhere(real_book: Book, terms: list[str]) -> None:
    assert len({term.lower() for term in terms}) == len(terms)
    assert set(glossary.EVERYDAY) <= set(terms)
    used = {use.term for page in real_book.notebooks for use in glossary.uses(page, terms)}
    assert set(terms) - used == set()


# --- What counts as a use -----------------------------------------------------------------------------------------

GLOSSARY = """
# Glossary

:::{glossary}
query set
    What is asked.

policy
    What an agent does.

    It has a second paragraph.
way
    A class.
:::
"""


@pytest.fixture
def found(write_book: Callable[..., Book]) -> Callable[[str], list[str]]:
    """First uses that are not linked, in a chapter of one text: ``line: term``."""

    def look(text: str) -> list[str]:
        book = write_book({"page": f"{HEAD}# Title\n\n{text}\n", "glossary": GLOSSARY})
        known = glossary.terms(page_of(book))
        first = HEAD.count("\n") + 2
        lines = glossary.unlinked(page_of(book, "page"), known)
        unlinked = [each.removeprefix("page.md:").split(":") for each in lines]
        return [f"{int(line) - first}:{term}" for line, term in unlinked]  # the first line of the text is 1

    return look


def test_terms_are_read(write_book: Callable[..., Book]) -> None:
    assert glossary.terms(page_of(write_book({"glossary": GLOSSARY}))) == ["query set", "policy", "way"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A query set.", ["1: query set"]),
        ("Two Query\nsets.", ["1: query set"]),
        ("First,\nthe policies.", ["2: policy"]),
        ("A policy\nand a query set.", ["1: policy", "2: query set"]),
        ("A {term}`policy`, then a policy.", []),
        ("A policy, then a {term}`policy`.", ["1: policy"]),
        ("Two {term}`policies <policy>`; {term}`query\nsets <query set>`.", []),
        ("A **policy** is what an agent does; a policy.", []),  # defined on the spot
        ("**A *good* policy**; a policy.", []),
        ("**Note.** A policy is not bold here.", ["1: policy"]),
        ("A *policy* is not a definition.", ["1: policy"]),
        ("Policyholders, a subquery set, a query-set.", []),
        ("In this way.", []),  # an everyday word
        ("`policy`, {doc}`policy <glossary>`, [a policy](glossary.md), $policy$", []),
        ("## A policy\n\n| policy |\n| --- |\n| query set |", []),
        ("```python\npolicy\n```\n\n```{code-cell} ipython3\npolicy\n```", []),
        (":::{note}\nA policy.\n:::", ["2: policy"]),
        (":::{dropdown} A policy\npolicy\n:::", []),
        ("Nothing.\n\n## Exercises\n\nA policy.\n\n## Quiz\n\nA query set.", []),
        ("```{code-cell} ipython3\n1\n```\n\n## Exercises\n\n```{code-cell} ipython3\n1\n```\n\nA policy.", []),
    ],
)
def test_first_uses(found: Callable[[str], list[str]], text: str, expected: list[str]) -> None:
    assert found(text) == expected
