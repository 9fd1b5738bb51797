"""``python book/_press COMMAND``: twins, execution, pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import PressError
from .flatten import Index
from .layout import PROJECT, Book

app = typer.Typer(
    help="Make the book: notebooks, executed notebooks, pages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--book", help="Folder with _toc.yml.")]
Output = Annotated[Path | None, typer.Option(help="Where _build goes; beside the book's folder by default.")]
Preset = Annotated[str, typer.Option(help="smoke, book or full; METABOOK_PRESET otherwise.")]
Only = Annotated[list[str] | None, typer.Option(help="Only this chapter; may be given several times.")]
Jobs = Annotated[int, typer.Option(min=1, help="Chapters at a time.")]
Force = Annotated[bool, typer.Option(help="Also chapters whose outputs are current.")]

BOOK = PROJECT / "book"
PRESET = os.environ.get("METABOOK_PRESET", "book")


def _plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Report what is wrong with the book in a line, not in a traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PressError as error:
            sys.exit(f"error: {error}")

    return wrapped


@app.command()
@_plainly
def notebooks(
    book: Folder = BOOK,
    check: Annotated[
        bool, typer.Option(help="Change nothing; fail if a notebook is not what its chapter says.")
    ] = False,
) -> None:
    """Make chapter.ipynb beside each chapter.md."""
    from . import twins

    the_book = Book.at(book)
    index = Index(the_book)
    stale = []
    for page in the_book.notebooks:
        content = twins.serialise(twins.build(index, page))
        if page.twin.exists() and page.twin.read_bytes() == content:
            continue
        stale.append(page.twin.relative_to(the_book.folder).as_posix())
        if not check:
            temporary = page.twin.with_suffix(".ipynb.part")
            temporary.write_bytes(content)
            os.replace(temporary, page.twin)
    if check and stale:
        raise PressError(f"not what the chapters say: {', '.join(stale)}; run `make notebooks`")
    print(f"{len(the_book.notebooks)} notebooks, {len(stale)} written" if not check else "all notebooks are in sync")


@app.command()
@_plainly
def execute(
    book: Folder = BOOK,
    preset: Preset = PRESET,
    only: Only = None,
    force: Force = False,
    jobs: Jobs = 2,
    output: Output = None,
) -> None:
    """Execute the chapters whose outputs may have changed."""
    _execute(Book.at(book, output), preset, only, force, jobs)


def _execute(book: Book, preset: str, only: list[str] | None, force: bool, jobs: int) -> list:
    from . import execute as execution
    from .measured import PRESETS

    if preset not in PRESETS:
        raise PressError(f"the preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    outcomes = execution.run(book, preset, only=only or (), force=force, jobs=jobs)
    if only and not outcomes:
        raise PressError(f"no chapter is called {', '.join(only)}")
    for outcome in outcomes:
        for warning in outcome.warnings:
            print(f"{outcome.page.name} writes to its error stream: {warning.splitlines()[-1]}")
    if failed := execution.failures(outcomes):
        raise PressError(f"{len(failed)} of {len(outcomes)} chapters failed:\n  " + "\n  ".join(failed))
    fresh = sum(outcome.fresh for outcome in outcomes)
    print(f"{fresh} chapters executed, {len(outcomes) - fresh} unchanged")
    return outcomes


@app.command()
@_plainly
def build(book: Folder = BOOK, preset: Preset = PRESET, jobs: Jobs = 2, output: Output = None) -> None:
    """Execute, and make the pages."""
    from . import pages, weave

    the_book = Book.at(book, output)
    _execute(the_book, preset, None, False, jobs)
    print(pages.build(the_book, weave.sources(the_book, preset)))


@app.command()
@_plainly
def serve(
    book: Folder = BOOK,
    output: Output = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve the pages on this machine."""
    from . import pages

    pages.serve(Book.at(book, output), port)


@app.command()
@_plainly
def record(
    book: Folder = BOOK,
    preset: Annotated[
        list[str] | None, typer.Option(help="smoke and book by default; may be given several times.")
    ] = None,
    only: Only = None,
    output: Output = None,
) -> None:
    """Measure the chapters, one at a time, into results/chapters.json, and renew the notebooks that show it."""
    sys.path.insert(0, str(PROJECT))  # the package of this checkout, installed or not
    from metabook import results

    from . import execute as execution

    the_book = Book.at(book, output)
    for each in preset or ["smoke", "book"]:
        outcomes = _execute(the_book, each, only, True, 1)
        chapters = the_book.record
        where = {name: results.circumstances()[name] for name in ("device", "date", "python", "torch", "commit")}
        for outcome in outcomes:
            entry = chapters.setdefault(outcome.page.name, {"presets": {}, "glue": {}})
            entry["presets"][each] = {**outcome.measured, **where}
            if each == "book":
                entry["glue"] = execution.glued(the_book, outcome.page, each)
                # Not of the record that this is written into: a chapter that shows the costs would never be up to date.
                read = set(execution.records_read(the_book, outcome.page, each)) - {"chapters"}
                entry["records"] = {name: results.read(name)["digest"] for name in sorted(read)}
        known = {page.name for page in the_book.notebooks}
        kept = {name: chapters[name] for name in sorted(chapters) if name in known}
        results.write("chapters", {"chapters": kept}, folder=the_book.records)
        vars(the_book).pop("record")  # the cached reading of the file
    notebooks(book=book)
