"""The questions: enough of them, answered briefly, each with a link to what proves the answer."""

from __future__ import annotations

import re

from _press.layout import Book

LINK = re.compile(r"\{(?:ref|doc)\}`[^`]+`")


def test_every_answer_is_short_and_leads_to_a_proof(real_book: Book) -> None:
    text = (real_book.folder / "faq.md").read_text(encoding="utf-8")
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    answers = dict(re.split(r"\n+", re.split(r"^## ", entry, flags=re.MULTILINE)[0], maxsplit=1) for entry in entries)
    assert len(answers) == len(entries) >= 30
    for question, answer in answers.items():
        assert question.endswith(("?", ".")), question
        assert 5 <= len(LINK.sub("", answer).split()) <= 90, question
        assert LINK.search(answer), question
