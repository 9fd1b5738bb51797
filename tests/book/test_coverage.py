"""What the book promises: every promise has a chapter, a place in it, and a test, and all three exist."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from _press.flatten import Index
from _press.layout import Book

PROJECT = Path(__file__).resolve().parents[2]

# What has to be on the page, in the order of the book: words that a row of the section has in its first cell. A row may
# be split or worded anew; a promise that is dropped is noticed here.
PROMISED = {
    "Background": [
        *("dated history", "rule-based, a retrieval and a language-model bot", "needs labels", "never been told about"),
        *("nothing between conversations", "no goal and does not interact", "Why meta-learning"),
    ],
    "Concepts": [
        *("episode, support and query set", "split by class", "Leakage", "Base-learner and meta-learner"),
        *("families in one table", "on the same tasks", "Agent and chatbot", "In-context learning as meta-learning"),
        *("real language model, shot by shot", "masked-token objective", "improves itself", "Three decisions"),
    ],
    "Algorithms": [
        *("MAML with second derivatives", "First-order MAML", "Reptile", "ANIL", "Meta-SGD", "implicit gradient"),
        *("gradient methods fail", "Prototypical Networks", "Matching Networks", "Relation Networks"),
        *("metric methods fail", "learned optimiser", "neural process", "black boxes fail", "RL² on bandits"),
        *("policies on 2-D navigation", "task changes", "hierarchical Bayes", "calibrated uncertainty", "one budget"),
        *("in context, with calibration", "Prototypes over a language model", "meta-learned start", "Self-evolution"),
    ],
    "Mathematics": [
        *("Hessian term", "cost in time and memory", "error of the first order", "mean over tasks, not the sum"),
        *("Taylor expansion", "estimated from samples", "as a linear model", "Bregman", "relation score"),
        *("Meta-SGD's step", "conditional neural process", "plus a self-supervised loss", "weighted mean against sum"),
        *("must not index", "dynamical system", "curve of the real loop", "more tasks beat more shots", "bound"),
    ],
    "Code": [
        *("MAML from scratch", "real Omniglot", "agrees with learn2learn", "experiment in learn2learn", "Speed"),
        *("language model's adapter", "with Transformers", "errors of popular listings", "no gradient flows"),
        *("Support reused", "weights overwritten", "Reptile with a sum", "softmax before", "batch normalisation"),
        "Coming from TensorFlow",
    ],
    "Applications": [
        *("New intents for a chatbot", "BANKING77", "without forgetting", "after each correction", "survives a crash"),
        *("Omniglot", "miniImageNet", "bandits", "2-D navigation", "grid world"),
        *("Personalisation", "Forgetting a user", "larger world", "new tools"),
    ],
    "Tools, outlook and questions": [
        *("Libraries", "Data sets", "papers", "Choosing a strategy", "Interpretability", "Reliability", "Safety"),
        *("Privacy", "collapses", "Questions"),
        *("Trends, dated", "What it cost", "poisoned support set", "own labels", "who was in the support set"),
        *("what moved", "in one place"),
    ],
    "What popular texts get wrong": [
        *("inner updates overwrite", "Reptile is written with a sum", "is transfer learning", "not on inputs"),
        *("Self-supervision", "not of tasks", "loops over the entries of a batch"),
    ],
}


@dataclass(frozen=True)
class Row:
    """A row of the page: a promise, its chapter, the place in it, and a test."""

    section: str
    cells: tuple[str, ...]

    @property
    def promise(self) -> str:
        return self.cells[0]

    @property
    def chapter(self) -> str:
        return only("doc", self.cells[1])


def rows() -> list[Row]:
    found, section = [], ""
    for line in (PROJECT / "book" / "coverage.md").read_text(encoding="utf-8").split("\n"):
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line.startswith("|") and not line.startswith(("| ---", "| promised |", "| what they say")):
            found.append(Row(section, tuple(cell.strip() for cell in line.strip("|").split("|"))))
    return found


def only(role: str, cell: str) -> str:
    """What stands in a cell that holds one role, or one piece of code, and nothing else."""
    found = re.fullmatch(r"(?:\{(?P<role>\w+)\})?`(?P<content>[^`<>]+)`", cell)
    assert found, cell
    assert (found["role"] or "") == role, cell
    return found["content"]


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def index(real_book: Book) -> Index:
    return Index(real_book)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.section}: {row.promise[:40]}")
def test_chapter_place_and_test_exist(row: Row, index: Index) -> None:
    promise, chapter, place, test = row.cells
    assert promise
    assert row.chapter in index.pages, chapter
    label = only("ref", place)
    assert label in index.labels, f"no label {label}"
    assert index.labels[label].page.name == row.chapter, f"{label} is in another chapter"
    file, _, name = only("", test).partition("::")
    assert re.fullmatch(r"tests/([a-z]+/)?test_\w+\.py", file), file
    assert (PROJECT / file).is_file(), file
    assert name.startswith("test_"), name
    assert name in functions(file), f"{file} has no {name}"


def test_every_chapter_keeps_a_promise(real_book: Book) -> None:
    chapters = {page.name for page in real_book.notebooks if "/" in page.name}
    assert chapters - {row.chapter for row in rows()} == set()


def test_no_promise_is_dropped() -> None:
    on_the_page: dict[str, list[str]] = {}
    for row in rows():
        on_the_page.setdefault(row.section, []).append(row.promise)
    assert list(on_the_page) == list(PROMISED)
    for section, promises in PROMISED.items():
        missing = [words for words in promises if not any(words in promise for promise in on_the_page[section])]
        assert missing == [], section


def test_no_promise_is_made_twice() -> None:
    made = [(row.section, row.promise) for row in rows()]
    assert len(set(made)) == len(made)
