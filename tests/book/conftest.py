"""Small books to press, and the real one."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "book"))  # for the press, which is not part of the package

from _press.flatten import Flattener, Index  # noqa: E402
from _press.layout import Book  # noqa: E402

HEAD = """\
---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "html: reads the pages of the book, which are made first if they are not up to date"
    )


@pytest.fixture(scope="session")
def real_book() -> Book:
    return Book.at(PROJECT / "book")


@pytest.fixture
def write_book(tmp_path: Path) -> Callable[..., Book]:
    """Write ``{name: text}`` as a book; a page ``index`` is added where there is none."""

    def write(pages: dict[str, str], bib: str = "", config: str = "title: A book\n") -> Book:
        folder = tmp_path / "book"
        for name, text in {"index": "# A book\n", **pages}.items():
            path = folder / f"{name}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        chapters = "".join(f"  - file: {name}\n" for name in pages if name != "index")
        toc = f"format: jb-book\nroot: index\nparts:\n- caption: All\n  numbered: 1\n  chapters:\n{chapters}"
        (folder / "_toc.yml").write_text(toc, encoding="utf-8")
        (folder / "references.bib").write_text(bib, encoding="utf-8")
        (tmp_path / "_config.yml").write_text(config, encoding="utf-8")
        return Book.at(folder)

    return write


@pytest.fixture
def flatten(write_book: Callable[..., Book]) -> Callable[..., str]:
    """Flatten one page: its Markdown cells, joined."""
    from _press.cells import cells

    def flat(text: str, bib: str = "", **others: str) -> str:
        book = write_book({"page": text, **others}, bib)
        index = Index(book)
        flattener = Flattener(index, index.pages["page"])
        made = [
            flattener.cell(cell) if cell.kind == "markdown" else f"[{cell.source}]"
            for cell in cells(index.pages["page"])
        ]
        return "\n\n".join(made)

    return flat
