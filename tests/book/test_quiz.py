"""The questions: one right answer each, every answer explained, and nothing in the way of a reader without scripts."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from _press.blocks import Directive, Text, parse
from _press.cells import cells
from _press.layout import Book, Page

PROJECT = Path(__file__).resolve().parents[2]
QUESTION = re.compile(r"^\*\*(\d+)\. (.+)\*\*$", re.DOTALL)
RIGHT = re.compile(r"^(Yes|Right)\b")


@dataclass
class Question:
    """A question of a quiz: its section, its number, and its answers, each with what is said of it."""

    section: str
    number: int
    words: str
    answers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def right(self) -> str:
        return "".join(answer[0] for answer, said in self.answers if RIGHT.match(said))


def questions(page: Page) -> list[Question]:
    found: list[Question] = []
    section = ""
    for cell in cells(page):
        for block in parse(cell.lines, page.source.name, cell.line) if cell.kind == "markdown" else ():
            if isinstance(block, Text):
                for paragraph in re.split(r"\n\s*\n", "\n".join(block.lines)):
                    if paragraph.startswith("## "):
                        section = paragraph.splitlines()[0].removeprefix("## ")
                    if match := QUESTION.match(paragraph.strip()):
                        found.append(Question(section, int(match[1]), match[2]))
            elif isinstance(block, Directive) and block.name == "dropdown" and re.match(r"[A-Z]\. ", block.argument):
                found[-1].answers.append((block.argument, "\n".join(block.body).strip()))
    return found


def chapters() -> list[Page]:
    return [page for page in Book.at(PROJECT / "book").notebooks if page.name != "index"]


def name(page: Page) -> str:
    return page.name


@pytest.fixture(scope="module")
def quiz(real_book: Book) -> Page:
    return next(page for page in real_book.pages if page.name == "quiz")


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_every_question_has_one_right_answer_and_every_answer_an_explanation(page: Page) -> None:
    asked = questions(page)
    assert len(asked) >= 2
    for question in asked:
        where = f"{question.section}, {question.number}: {question.words}"
        assert [answer[:3] for answer, _ in question.answers] == [f"{c}. " for c in "ABCD"[: len(question.answers)]], (
            where
        )
        assert len(question.answers) >= 2, where
        assert len(question.right) == 1, where
        assert all(len(said.split()) >= 4 for _, said in question.answers), where


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_questions_are_numbered_from_one(page: Page) -> None:
    numbers: dict[str, list[int]] = {}
    for question in questions(page):
        numbers.setdefault(question.section, []).append(question.number)
    for found in numbers.values():
        assert found == list(range(1, len(found) + 1))


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_answers_unfold_in_the_notebook_without_a_script(page: Page) -> None:
    notebook = json.loads(page.twin.read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    folded = re.findall(r"<summary>\s*(?:<[^>]+>)?([A-Z])\. ", text)
    assert len(folded) == sum(len(question.answers) for question in questions(page))
    assert "<script" not in text


def test_each_part_has_its_questions_and_its_key(quiz: Page, real_book: Book) -> None:
    toc = yaml.safe_load((real_book.folder / "_toc.yml").read_text(encoding="utf-8"))
    parts = [part["caption"].split(" and ")[0] for part in toc["parts"] if part.get("numbered")]
    keys: dict[str, str] = {}
    for question in questions(quiz):
        keys[question.section] = keys.get(question.section, "") + question.right
        assert len(question.answers) == 3
        assert all(said.startswith(("Yes. ", "No. ")) for _, said in question.answers), question.words
        right = next(said for _, said in question.answers if RIGHT.match(said))
        assert re.search(r"\{(ref|eq)\}`", right), f"{question.words}: the right answer leads to no proof"
    assert list(keys) == parts
    assert all(5 <= len(key) <= 8 for key in keys.values())
    code = "\n".join(cell.source for cell in cells(quiz) if cell.kind == "code")
    assigned = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assign)]
    assert ast.literal_eval(next(node for node in assigned if isinstance(node, ast.Dict))) == keys


def test_the_right_answer_is_not_always_the_same_letter(quiz: Page) -> None:
    letters = "".join(question.right for question in questions(quiz))
    assert all(0.2 < letters.count(letter) / len(letters) < 0.5 for letter in "ABC")
