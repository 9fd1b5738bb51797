"""Execution: what is run again, what is not, and what is said when a chapter fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from _press import execute, weave
from _press.cli import app
from _press.errors import PressError
from _press.layout import Book
from myst_nb.core.variables import format_plain_text
from typer.testing import CliRunner

from metabook import results

PARAMETERS = """\
```{code-cell} ipython3
:tags: [parameters]
import os

preset = os.environ["METABOOK_PRESET"]
```
"""
PACKAGE = {
    "__init__.py": "",
    "learners/__init__.py": "from metabook.learners.one import one\nfrom metabook.learners.two import Two\n",
    "learners/one.py": "def one():\n    '''Doc.'''\n    return 1\n",
    "learners/two.py": "SIZE = 2\n\n\nclass Two:\n    @property\n    def value(self):\n        return SIZE\n",
    "results.py": (
        "from pathlib import Path\n\n\ndef read(name):\n"
        "    return (Path(__file__).parents[1] / 'results' / name).read_text()\n"
    ),
}


def chapter(code: str, title: str = "Title") -> str:
    return f"# {title}\n\n{PARAMETERS}\nText.\n\n```{{code-cell}} ipython3\n{code}\n```\n"


ONE = chapter("from metabook.learners import one\n\nprint(one(), preset)")
TWO = chapter("from metabook.learners import Two\n\nprint(Two().value)")
READS = chapter("from metabook.results import read\n\nprint(read('a.json'))")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a package of that name, of a few lines."""
    for name, text in PACKAGE.items():
        path = tmp_path / "metabook" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}")
    return tmp_path


Run = Callable[..., dict[str, execute.Outcome]]


@pytest.fixture
def run(project: Path) -> Run:
    def run_book(book: Book, **options: object) -> dict[str, execute.Outcome]:
        outcomes = execute.run(Book.at(book.folder), "smoke", project=project, **options)  # type: ignore[arg-type]
        return {outcome.page.name: outcome for outcome in outcomes}

    return run_book


def fresh(outcomes: dict[str, execute.Outcome]) -> set[str]:
    assert not execute.failures(outcomes.values())
    return {name for name, outcome in outcomes.items() if outcome.fresh}


def output(book: Book, name: str) -> str:
    node = nbformat.read(book.executed("smoke") / f"{name}.ipynb", as_version=4)
    return "".join(o.text for cell in node.cells for o in cell.get("outputs", []) if o.output_type == "stream")


def test_a_chapter_is_run_again_only_when_its_outputs_can_change(
    write_book: Callable[..., Book], project: Path, run: Run
) -> None:
    pages = {"one": ONE, "two": TWO, "reads": READS}
    book = write_book(pages)
    assert fresh(run(book)) == {"one", "two", "reads"}
    assert output(book, "one") == "1 smoke\n"
    assert fresh(run(book)) == set()

    # Prose is not executed, code of one chapter concerns that one alone.
    write_book({**pages, "one": ONE.replace("Text.", "Other text.")})
    assert fresh(run(book)) == set()
    write_book({**pages, "two": TWO.replace("print(", "print('now', ")})
    assert fresh(run(book)) == {"two"}
    assert output(book, "two") == "now 2\n"

    # The body of a function concerns the chapters in which a function of that file ran ...
    two = project / "metabook" / "learners" / "two.py"
    two.write_text(two.read_text().replace("return SIZE", "return SIZE + 1"))
    assert fresh(run(book)) == {"two"}
    assert output(book, "two") == "now 3\n"
    # ... what runs on import concerns all that import it, comments concern nobody who only does.
    two.write_text("# A comment.\n" + two.read_text())
    assert fresh(run(book)) == {"two"}
    two.write_text(two.read_text().replace("SIZE = 2", "SIZE = 5"))
    assert fresh(run(book)) == {"one", "two"}

    # A file that was read counts, too.
    (project / "results" / "a.json").write_text("[]")
    assert fresh(run(book)) == {"reads"}
    assert output(book, "reads") == "[]\n"


def test_presets_lock_and_settings_are_part_of_the_key(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = {"cells": [{"cell_type": "code", "source": ["x"], "metadata": {}}]}
    keys = [execute.base_key(notebook, "smoke", project), execute.base_key(notebook, "book", project)]
    (project / "requirements").mkdir()
    (project / "requirements" / "lock.txt").write_text("torch==1\n")
    keys.append(execute.base_key(notebook, "smoke", project))
    monkeypatch.setenv("METABOOK_DATA", "somewhere")
    keys.append(execute.base_key(notebook, "smoke", project))
    assert len(set(keys)) == 4
    monkeypatch.setenv("METABOOK_PRESET", "full")  # the option counts, not the variable
    assert execute.base_key(notebook, "smoke", project) == keys[-1]


def test_a_chapter_that_starts_processes_depends_on_the_whole_package(
    write_book: Callable[..., Book], project: Path, run: Run
) -> None:
    book = write_book({"page": chapter("import subprocess, sys\n\nsubprocess.run([sys.executable, '-c', ''])")})
    assert fresh(run(book)) == {"page"}
    (project / "metabook" / "learners" / "one.py").write_text("def one():\n    return 3\n")
    assert fresh(run(book)) == {"page"}


def test_a_failing_chapter_is_reported_and_hides_no_other(write_book: Callable[..., Book], run: Run) -> None:
    failing = chapter("x = 1\nraise ValueError('first line\\nlast line')")
    silent = chapter("1 + 1").replace("ipython3\n1 + 1", "ipython3\n:tags: [raises-exception]\n1 + 1")
    book = write_book({"fails": failing, "silent": silent, "works": chapter("print(preset)")})
    outcomes = run(book)
    assert execute.failures(outcomes.values()) == [
        "fails: code cell 2 (x = 1): ValueError: last line",
        "silent: a cell tagged raises-exception raised nothing: 1 + 1",
    ]
    assert output(book, "works") == "smoke\n"
    kept = nbformat.read(book.executed("smoke") / "fails.failed.ipynb", as_version=4)
    assert kept.cells[-1].outputs[-1].ename == "ValueError"
    # What failed is tried again, what worked is not.
    assert {name for name, outcome in run(book).items() if outcome.fresh} == {"fails", "silent"}


def test_a_cell_that_has_to_fail_does_not_fail_the_chapter(write_book: Callable[..., Book], run: Run) -> None:
    code = ":tags: [raises-exception]\nraise NotImplementedError('your turn')"
    book = write_book({"page": chapter(code) + "\n```{code-cell} ipython3\nprint('on')\n```\n"})
    assert fresh(run(book)) == {"page"}
    assert output(book, "page") == "on\n"


def test_a_kernel_that_dies_is_a_failure_of_its_chapter(write_book: Callable[..., Book], run: Run) -> None:
    book = write_book({"page": chapter("import os\n\nos._exit(1)")})
    assert "page: code cell 2" in execute.failures(run(book).values())[0]


def test_costs_are_measured_in_the_kernel(write_book: Callable[..., Book], run: Run) -> None:
    book = write_book({"page": chapter("block = bytearray(b'x' * 300 * 2**20)\ntotal = sum(range(10**7))")})
    measured = run(book)["page"].measured
    assert measured is not None
    assert 300 < measured["memory_mib"] < 900
    assert measured["cpu_seconds"] > 0.1
    assert 0.1 < measured["seconds"] < 120


def test_chapters_run_on_the_python_of_the_press_and_leave_nothing_behind(
    write_book: Callable[..., Book], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    code = f"import sys\n\nopen('left.txt', 'w').close()\nprint(sys.executable == {sys.executable!r})"
    book = write_book({"page": chapter(code)})
    assert fresh(run(book)) == {"page"}
    assert output(book, "page") == "True\n"
    assert not list(tmp_path.rglob("left.txt"))


def test_outputs_do_not_name_places_of_this_machine(write_book: Callable[..., Book], project: Path, run: Run) -> None:
    code = (
        ":tags: [raises-exception]\nimport warnings\nfrom metabook.results import read\n\n"
        "warnings.warn('careful')\nread('absent.json')"
    )
    book = write_book({"page": chapter(code)})
    outcome = run(book)["page"]
    text = (book.executed("smoke") / "page.ipynb").read_text()
    assert "metabook/results.py" in text
    assert str(project) not in text
    assert "ipykernel_" not in text
    assert "careful" in outcome.warnings[0]


def glue(name: str, expression: str) -> str:
    """Code that hands a value to the prose, as ``metabook.results.glue`` does."""
    return (
        "from IPython.display import display\n\nprefix = 'application/papermill.record/'\n"
        f"scrap = {{'name': {name!r}, 'mime_prefix': prefix}}\n"
        f"display({{prefix + 'text/plain': {expression}}}, raw=True, metadata={{'scrapbook': scrap}})"
    )


def test_recording_fills_the_table_and_the_values_of_the_notebooks(write_book: Callable[..., Book]) -> None:
    reading = "\nfrom metabook.results import read\n\nread('sinusoids');"
    page = chapter(glue("preset", "preset") + reading) + "\nAt {glue:text}`preset`.\n\n:::{measured}\n:::\n"
    book = write_book({"page": page})
    done = CliRunner().invoke(app, ["record", "--book", str(book.folder)])
    assert done.exit_code == 0, done.output
    record = json.loads((book.records / "chapters.json").read_text())["chapters"]["page"]
    assert set(record["presets"]) == {"smoke", "book"}
    assert record["records"] == {"sinusoids": results.read("sinusoids")["digest"]}
    twin = (book.folder / "page.ipynb").read_text()
    assert "At book." in twin
    assert "| `smoke` |" in twin
    assert "| `book` |" in twin


def test_weaving_puts_outputs_into_the_source(write_book: Callable[..., Book], run: Run) -> None:
    source = chapter("import sys\nprint(preset)\nprint('\\r 1it/s]', file=sys.stderr)")
    book = write_book({"page": source.replace("Text.", "{doc}`index` stays.")})
    run(book)
    page = next(page for page in book.pages if page.name == "page")
    executed = nbformat.read(book.executed("smoke") / "page.ipynb", as_version=4)
    woven = weave.weave(page, executed)
    nbformat.validate(woven)
    assert [cell.cell_type for cell in woven.cells] == ["markdown", "code", "markdown", "code"]
    assert woven.cells[1].metadata.tags == ["parameters"]
    assert woven.cells[2].source == "{doc}`index` stays."
    assert [o.text for o in woven.cells[3].outputs] == ["smoke\n"]  # and no progress bar
    assert "google.colab" not in nbformat.writes(woven)

    executed.cells[-1].source += "\nmore()"
    with pytest.raises(PressError, match="other code cells"):
        weave.weave(page, executed)


@pytest.mark.parametrize("value", ["1,800", "7.00", "6.63, 6.49", "+0.10 ± 0.04", "it's", "None"])
def test_glued_values_are_shown_as_they_are(value: str, write_book: Callable[..., Book], run: Run) -> None:
    """MyST-NB evaluates what is glued: without quotes, 1,800 becomes the tuple (1, 800), and 7.00 the number 7.0."""
    book = write_book({"page": chapter(glue("value", repr(value)))})
    run(book)
    page = next(page for page in book.pages if page.name == "page")
    executed = nbformat.read(book.executed("smoke") / "page.ipynb", as_version=4)
    (output,) = weave.weave(page, executed).cells[-1].outputs
    (text,) = output.data.values()
    assert format_plain_text(text, "") == value


def test_the_source_folder_follows_the_book_and_leaves_what_is_unchanged(
    write_book: Callable[..., Book], run: Run
) -> None:
    book = write_book({"page": ONE, "plain": "# Plain\n"})
    run(book)
    folder = weave.sources(book, "smoke")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"page.ipynb", "plain.md", "index.md", "_toc.yml", "references.bib"} <= names
    assert "page.md" not in names
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    (book.folder / "plain.md").write_text("# Changed\n")
    (folder / "old.md").write_text("gone")
    weave.sources(book, "smoke")
    changed = {p.name for p in folder.rglob("*") if p.is_file() and stamps.get(p) != p.stat().st_mtime_ns}
    assert changed == {"plain.md"}
    assert not (folder / "old.md").exists()


def test_values_for_the_prose_are_collected(write_book: Callable[..., Book], run: Run) -> None:
    code = (
        "from IPython.display import display\n\n"
        "prefix = 'application/papermill.record/'\n"
        "scrap = {'name': 'acc', 'mime_prefix': prefix}\n"
        "display({prefix + 'text/plain': '97.4'}, raw=True, metadata={'scrapbook': scrap})"
    )
    book = write_book({"page": chapter(code)})
    run(book)
    assert execute.glued(book, book.notebooks[0], "smoke") == {"acc": "97.4"}


def test_making_the_pages_says_what_each_chapter_cost(write_book: Callable[..., Book], monkeypatch) -> None:
    monkeypatch.setattr("_press.pages.build", lambda *_: "made")
    book = write_book({"cheap": chapter("pass"), "dear": chapter("sum(range(3 * 10**7))")})
    build = ["build", "--book", str(book.folder), "--preset", "smoke"]
    done = CliRunner().invoke(app, build)
    assert done.exit_code == 0, done.output
    kept = (book.build / "costs-smoke.md").read_text()
    rows = [line for line in kept.splitlines() if line.startswith("| ")][2:]
    assert [row.split()[1] for row in rows] == ["dear", "cheap", "all"]
    assert all(row in done.output for row in rows)
    assert "measured earlier" not in kept
    assert CliRunner().invoke(app, build).exit_code == 0
    assert (book.build / "costs-smoke.md").read_text().count("measured earlier") == 2


def test_a_chapter_that_shows_the_costs_does_not_quote_an_earlier_record_of_them(
    write_book: Callable[..., Book],
) -> None:
    reading = "from metabook.results import read\n\nlen(read('chapters')['chapters']), read('sinusoids');"
    book = write_book({"page": chapter(reading)})
    done = CliRunner().invoke(app, ["record", "--book", str(book.folder), "--preset", "book"])
    assert done.exit_code == 0, done.output
    record = json.loads((book.records / "chapters.json").read_text())["chapters"]["page"]
    assert list(record["records"]) == ["sinusoids"]
