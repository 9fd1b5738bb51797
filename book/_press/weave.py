"""Put the outputs of the executed chapters into the sources, for Sphinx to make pages of."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from . import formulas
from .cells import cells
from .errors import PressError
from .execute import is_progress
from .layout import Book, Page

MEASURED = "_measured.json"
_GLUED = "application/papermill.record/text/plain"  # what metabook.results.glue emits
_LEFT_OUT = {"_press", "__pycache__", ".ipynb_checkpoints"}


def weave(page: Page, executed: NotebookNode) -> NotebookNode:
    """A notebook of the chapter's own Markdown and code, with the outputs of its executed twin.

    Raises
    ------
    PressError
        If the code cells of the two are not the same ones.
    """
    code = [cell for cell in executed.cells if cell.cell_type == "code"][1:]  # the first one installs on Colab
    source = cells(page)
    if [cell.source for cell in code] != [cell.source for cell in source if cell.kind == "code"]:
        raise PressError(f"{page.name}: the executed notebook has other code cells than the source; execute it again")
    remaining = iter(code)
    made = []
    for number, cell in enumerate(source):
        if cell.kind == "markdown":
            made.append(nbformat.v4.new_markdown_cell(cell.source, id=f"text-{number}"))
            continue
        ran = next(remaining)
        outputs = [
            _quoted(o)
            for o in ran.outputs
            if not (o.output_type == "stream" and o.name == "stderr" and is_progress(o.text))
        ]
        new = nbformat.v4.new_code_cell(cell.source, id=f"code-{number}", outputs=outputs, execution_count=number + 1)
        if cell.tags:
            new.metadata["tags"] = cell.tags
        made.append(new)
    return nbformat.v4.new_notebook(cells=made, metadata=executed.metadata)


def _quoted(output: NotebookNode) -> NotebookNode:
    """Values for the prose as string literals.

    MyST-NB takes what is glued as text for a literal of Python: of 1,800 it would make (1, 800), and of 7.00 make 7.0.
    """
    output = copy.deepcopy(output)
    if _GLUED in output.get("data", {}):
        output.data[_GLUED] = repr(output.data[_GLUED])
    return output


def sources(book: Book, preset: str) -> Path:
    """Make the folder that Sphinx reads; files that do not change keep their date.

    Returns
    -------
    Path
        ``_build/source``.
    """
    target = book.build / "source"
    target.mkdir(parents=True, exist_ok=True)
    wanted: set[Path] = set()
    notebooks = {page.source: page for page in book.notebooks}
    for path in _files(book.folder):
        place = target / path.relative_to(book.folder)
        if page := notebooks.get(path):
            executed = nbformat.read(book.executed(preset) / f"{page.name}.ipynb", as_version=4)
            content = (nbformat.writes(weave(page, executed)) + "\n").encode()
            place = place.with_suffix(".ipynb")
        elif path.suffix == ".ipynb" and path.with_suffix(".md") in notebooks:
            continue
        else:
            content = path.read_bytes()
        _update(place, content)
        wanted.add(place)
    for name, text in ((MEASURED, json.dumps(book.record, sort_keys=True)), (formulas.SHEET, formulas.markdown(book))):
        _update(target / name, text.encode())
        wanted.add(target / name)
    for path in _files(target):
        if path not in wanted:
            path.unlink()
    return target


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _LEFT_OUT & set(path.relative_to(folder).parts):
            yield path


def _update(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
