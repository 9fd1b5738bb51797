"""The notebooks beside the chapters: what Colab and Jupyter open. Same source, same bytes, on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

from . import repository
from .cells import Cell, cells
from .flatten import Flattener, Index
from .layout import Book, Page

_FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def build(index: Index, page: Page) -> dict[str, Any]:
    """The twin of a chapter as a notebook without outputs.

    Raises
    ------
    PressError
        If the chapter holds what a notebook has no form for.
    """
    flattener = Flattener(index, page)
    ids: Counter[str] = Counter()
    url = repository.configured(index.book.config)
    made = [_cell("code", install(url, uses_language_model(page)), ids, tags=["remove-cell"])]
    if hint := open_in_colab(url, index.book, page):
        made.append(_cell("markdown", hint, ids))
    for cell in cells(page):
        if cell.kind == "code":
            made.append(_cell("code", cell.source, ids, cell.tags, folded=_is_folded(cell, flattener)))
        elif text := flattener.cell(cell):
            made.append(_cell("markdown", text, ids))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _is_folded(cell: Cell, flattener: Flattener) -> bool:
    return bool(_FOLDED & set(cell.tags)) or flattener.solution is not None


def serialise(notebook: dict[str, Any]) -> bytes:
    """The bytes of a notebook file."""
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _cell(
    kind: str, source: str, ids: Counter[str], tags: list[str] | None = None, folded: bool = False
) -> dict[str, Any]:
    digest = hashlib.sha256(f"{kind}\n{source}".encode()).hexdigest()[:12]
    ids[digest] += 1
    repeated = f"-{ids[digest]}" if ids[digest] > 1 else ""
    cell: dict[str, Any] = {
        "cell_type": kind,
        "id": digest + repeated,
        "metadata": {},
        "source": source.splitlines(True),
    }
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    if tags:
        cell["metadata"]["tags"] = tags
    if folded:  # Jupyter reads the first, Colab the second
        cell["metadata"] |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
    return cell


def install(url: str, language_model: bool = False) -> str:
    """The first cell: on Colab, install the package; torch is there and stays as it is."""
    package = f"metabook-tutorial{'[llm]' if language_model else ''}"
    head = "# On Google Colab this installs the book's package; anywhere else it does nothing.\nimport sys\n\n"
    if url:
        return f'{head}if "google.colab" in sys.modules:\n    %pip install -q "{package} @ git+{url}"'
    return (
        f'{head}if "google.colab" in sys.modules:\n'
        f"    print(\"First run: %pip install -q '{package} @ git+ADDRESS'\")\n"
        '    print("ADDRESS is that of the repository from which you opened this notebook.")'
    )


def uses_language_model(page: Page) -> bool:
    """Whether a cell imports what the package's extra ``llm`` is for."""
    return re.search(r"^(from|import) metabook(\.llm| import .*\bllm\b)", page.text, re.MULTILINE) is not None


def open_in_colab(url: str, book: Book, page: Page) -> str:
    """A link that opens the twin in Colab, if the book is known to be on GitHub."""
    if not url.startswith("https://github.com/"):
        return ""
    settings = book.config.get("repository") or {}
    path = "/".join(part for part in (settings.get("path_to_book", ""), f"{page.name}.ipynb") if part)
    place = f"{url.removeprefix('https://github.com/')}/blob/{settings.get('branch', 'main')}/{path}"
    return f"[Open this chapter in Colab](https://colab.research.google.com/github/{place})"
