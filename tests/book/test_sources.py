"""The book as it is committed: chapters, their twins, and the rules that all of them keep."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import jupytext
import pytest
from _press import twins
from _press.bibliography import Bibliography
from _press.cells import cells
from _press.flatten import Index, leftovers
from _press.layout import Book, Page

PROJECT = Path(__file__).resolve().parents[2]


def chapters() -> list[Page]:
    return Book.at(PROJECT / "book").notebooks


def name(page: Page) -> str:
    return page.name


@pytest.fixture(scope="module")
def index(real_book: Book) -> Index:
    return Index(real_book)


def twin(page: Page) -> dict:
    return json.loads(page.twin.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_the_twin_is_what_the_chapter_says(page: Page, index: Index) -> None:
    assert page.twin.read_bytes() == twins.serialise(twins.build(index, page)), "run `make notebooks`"


def test_there_is_no_notebook_without_a_chapter(real_book: Book) -> None:
    found = {path for path in real_book.folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert found == {page.twin for page in real_book.notebooks}


def test_every_page_is_in_the_table_of_contents(real_book: Book) -> None:
    pages = {path for path in real_book.folder.rglob("*.md") if not any(p.startswith("_") for p in path.parts)}
    assert pages == {page.source for page in real_book.pages}


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_a_twin_has_no_outputs_and_nothing_that_a_viewer_cannot_show(page: Page) -> None:
    for cell in twin(page)["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None
        else:
            assert leftovers("".join(cell["source"])) == []


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_jupytext_sees_the_same_code(page: Page) -> None:
    """What JupyterLab runs when it opens the source is what the press runs."""
    theirs = [cell.source for cell in jupytext.read(page.source, fmt="md:myst").cells if cell.cell_type == "code"]
    assert theirs == [cell.source for cell in cells(page) if cell.kind == "code"]


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_code_cells_are_short(page: Page) -> None:
    lengths = [len(cell.lines) for cell in cells(page) if cell.kind == "code"]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 30


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_a_chapter_has_its_parameters_first(page: Page) -> None:
    code = [cell for cell in cells(page) if cell.kind == "code"]
    assert [number for number, cell in enumerate(code) if "parameters" in cell.tags] == [0]
    assert code[0].source.splitlines()[-1] == (
        'preset, seed, device = os.environ.get("METABOOK_PRESET", "book"), 0, "auto"'
    )


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_a_chapter_shows_what_it_costs(page: Page) -> None:
    assert "{measured}" in page.text


@pytest.mark.parametrize("page", chapters(), ids=name)
def test_the_record_of_costs_holds_the_presets_that_were_run(page: Page, real_book: Book) -> None:
    presets = real_book.record[page.name]["presets"]
    assert {"smoke", "book"} <= set(presets)
    for cost in presets.values():
        assert cost["seconds"] > 0
        assert cost["memory_mib"] > 0
        assert cost["device"]


def test_references_are_complete(real_book: Book) -> None:
    works = Bibliography(real_book.folder / "references.bib")
    for key in works.entries:
        assert works.entry(key).fields["title"]
        assert works.year(key).isdigit()
        assert works.names(key)


def test_nothing_of_this_machine_is_in_the_book(real_book: Book) -> None:
    for path in [*real_book.folder.rglob("*.md"), *real_book.folder.rglob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert str(PROJECT) not in text
        assert str(Path.home()) + "/" not in text
