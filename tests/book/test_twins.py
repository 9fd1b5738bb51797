"""The notebooks beside the chapters."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable

import nbformat
import pytest
from _press import twins
from _press.cli import app
from _press.flatten import Index
from _press.layout import Book
from typer.testing import CliRunner

CHAPTER = """\
# Title

:::{measured}
:::

```{code-cell} ipython3
:tags: [hide-input]
x = 1
```

Value {glue:text}`value`, twice {glue:text}`value:.1f`.

```{code-cell} ipython3
x = 1
```
"""


def build(book: Book) -> dict:
    index = Index(book)
    return twins.build(index, index.pages["page"])


def sources(notebook: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_a_twin_is_a_valid_notebook_without_outputs(write_book: Callable[..., Book]) -> None:
    notebook = build(write_book({"page": CHAPTER}))
    nbformat.validate(nbformat.reads(twins.serialise(notebook).decode(), as_version=4))
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in notebook["cells"][::2] if "outputs" in cell
    )


def test_the_same_source_gives_the_same_bytes_whatever_the_machine(
    write_book: Callable[..., Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = twins.serialise(build(write_book({"page": CHAPTER})))
    monkeypatch.setenv("GITHUB_REPOSITORY", "somebody/else")
    monkeypatch.setenv("BOOK_REPOSITORY_URL", "https://example.org/another/place")
    assert twins.serialise(build(write_book({"page": CHAPTER}))) == first


def test_cells_that_do_not_change_keep_their_id_and_equal_cells_differ(write_book: Callable[..., Book]) -> None:
    before = build(write_book({"page": CHAPTER}))
    after = build(write_book({"page": CHAPTER.replace("# Title", "# Another title")}))
    ids = [[cell["id"] for cell in notebook["cells"]] for notebook in (before, after)]
    assert [a == b for a, b in zip(*ids)] == [True, False, True, True, True]
    assert len(set(ids[0])) == len(ids[0])
    assert ids[0][4] == f"{ids[0][2]}-2"


def test_hidden_input_is_folded_in_jupyter_and_in_colab(write_book: Callable[..., Book]) -> None:
    cells = build(write_book({"page": CHAPTER}))["cells"]
    assert cells[2]["metadata"] == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    assert cells[4]["metadata"] == {}


def test_the_first_cell_installs_on_colab_only_and_only_from_a_known_address(write_book: Callable[..., Book]) -> None:
    unknown = sources(build(write_book({"page": CHAPTER})), "code")[0]
    assert "git+ADDRESS" in unknown
    assert "http" not in unknown
    exec(compile(ast.parse(unknown), "cell", "exec"), {})  # and does nothing elsewhere
    config = "repository: {url: 'https://github.com/some/body', path_to_book: book, branch: main}\n"
    known = build(write_book({"page": CHAPTER}, config=config))
    install = sources(known, "code")[0]
    assert '    %pip install -q "metabook-tutorial @ git+https://github.com/some/body"' in install
    assert 'if "google.colab" in sys.modules:' in install
    assert "torch" not in install.lower()
    model = CHAPTER.replace("x = 1\n", "from metabook import data, llm\n")
    extra = sources(build(write_book({"page": model}, config=config)), "code")[0]
    assert '"metabook-tutorial[llm] @ git+https://github.com/some/body"' in extra
    link = "https://colab.research.google.com/github/some/body/blob/main/book/page.ipynb"
    assert sources(known, "markdown")[0] == f"[Open this chapter in Colab]({link})"


def test_no_link_to_colab_for_other_hosts(write_book: Callable[..., Book]) -> None:
    config = "repository: {url: 'https://example.org/some/body'}\n"
    assert "colab.research" not in json.dumps(build(write_book({"page": CHAPTER}, config=config)))


def test_measurements_and_values_come_from_the_record(write_book: Callable[..., Book]) -> None:
    book = write_book({"page": CHAPTER})
    text = "\n".join(sources(build(book), "markdown"))
    assert "have not been recorded yet" in text
    assert "Value `value`, twice `value`." in text
    cost = {"seconds": 41.23, "cpu_seconds": 130.0, "memory_mib": 1536.0, "device": "CPU", "date": "2000-01-01"}
    record = {"chapters": {"page": {"presets": {"book": cost}, "glue": {"value": "2.52"}}}}
    book.records.mkdir()
    (book.records / "chapters.json").write_text(json.dumps(record))
    text = "\n".join(sources(build(Book.at(book.folder)), "markdown"))
    assert "| `book` | 41 s | 2 min | 1.5 GiB | CPU, 2000-01-01 |" in text
    assert "`smoke`" not in text
    assert "Value 2.52, twice 2.5." in text


def test_check_lists_what_is_stale_and_changes_nothing(write_book: Callable[..., Book]) -> None:
    book = write_book({"page": CHAPTER, "text": "# No code\n"})
    command = ["notebooks", "--book", str(book.folder)]
    first = CliRunner().invoke(app, [*command, "--check"])
    assert first.exit_code == 1
    assert "page.ipynb" in first.output
    assert not (book.folder / "page.ipynb").exists()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, [*command, "--check"]).exit_code == 0
    assert [path.name for path in book.folder.rglob("*.ipynb")] == ["page.ipynb"]
    (book.folder / "page.ipynb").write_text("{}")
    assert CliRunner().invoke(app, [*command, "--check"]).exit_code == 1


def test_a_missing_page_is_reported_in_a_line(write_book: Callable[..., Book]) -> None:
    book = write_book({"page": CHAPTER})
    (book.folder / "page.md").unlink()
    done = CliRunner().invoke(app, ["notebooks", "--book", str(book.folder)])
    assert done.exit_code == 1
    assert "_toc.yml lists pages that do not exist: page" in done.output
