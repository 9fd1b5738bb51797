"""How much a benchmark measures: ``--preset smoke``, ``book`` or ``full``, alike for every script in ``benchmarks/``.

- ``smoke``: does it run? A minute of CPU time at most; the numbers mean nothing.
- ``book``: the settings of ``full`` with one seed (two where a script cannot do with one): what a reader can check.
- ``full``: what the committed records hold, and the default.

Only ``full`` writes into ``results/``. The others keep their runs and their record in a folder of their own below
``_build/benchmarks``, so that neither a record nor an interrupted run is touched.

A script calls :func:`run` in the place of ``typer.run`` and says what is smaller at ``smoke``; constants of the module,
which its processes must agree on, are :func:`sized`.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from metabook import results
from metabook.storage import write_bytes

__all__ = ["PRESETS", "chosen", "kept", "run", "sized", "work"]

PRESETS = ("smoke", "book", "full")
BUILD = Path(__file__).parents[1] / "_build" / "benchmarks"
T = TypeVar("T")


def chosen() -> str:
    """The preset on the command line; ``full`` without one.

    The processes that a benchmark starts have the same command line, so that they choose alike.
    """
    words = sys.argv[1:]
    given = [after for word, after in pairwise(words) if word == "--preset"]
    given += [word.partition("=")[2] for word in words if word.startswith("--preset=")]
    return given[-1] if given and given[-1] in PRESETS else "full"


def sized(full: T, smoke: T) -> T:
    """A constant of a script that is smaller at ``smoke``."""
    return smoke if chosen() == "smoke" else full


def work(name: str = "") -> Path:
    """Folder in which a script keeps its runs, of the preset's own: ``_build/benchmarks/<preset>/<name>``.

    For ``full`` without the preset: a run of days must go on where it was.
    """
    return (BUILD if chosen() == "full" else BUILD / chosen()) / name


def kept(folder: Path, job: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of an earlier run of a script, or of ``measure(*arguments)`` with its CPU seconds, which is kept.

    Parameters
    ----------
    folder : Path
        Of the script: :func:`work`.
    job : str
        Says what is measured, and with what; the name of the file.
    measure : callable
        Returns what JSON can hold.
    *arguments
    """
    file = folder / f"{job.replace('/', ' ')}.json"
    if not file.exists():
        started = time.process_time()
        found = measure(*arguments)
        write_bytes(file, json.dumps(found | {"cpu_seconds": time.process_time() - started}).encode())
    return json.loads(file.read_text(encoding="utf-8"))


def run(main: Callable[..., None], **smoke: Any) -> None:
    """Run the script's ``main`` as a command with the option ``--preset`` beside its own.

    Parameters
    ----------
    main : callable
        As for ``typer.run``.
    **smoke
        Values of its parameters at ``smoke``, ``seeds=1`` if it is not among them. An option that is given on the
        command line wins.

    Raises
    ------
    TypeError
        If ``main`` has no such parameter.
    """
    signature = inspect.signature(main, eval_str=True)
    if unknown := smoke.keys() - signature.parameters.keys():
        raise TypeError(f"main has no parameter {', '.join(sorted(unknown))}")
    few = {"seeds": smoke.get("seeds", 1)} if "seeds" in signature.parameters else {}
    smaller = {"smoke": {**few, **smoke}, "book": few, "full": {}}[chosen()]
    own = [p.replace(default=smaller.get(name, p.default)) for name, p in signature.parameters.items()]
    option = typer.Option(help="smoke: does it run; book: one seed; full: the record. Only full writes into results/.")
    annotation = Annotated[Literal["smoke", "book", "full"], option]
    extra = inspect.Parameter("preset", inspect.Parameter.KEYWORD_ONLY, default="full", annotation=annotation)

    def command(preset: str, **arguments: Any) -> None:
        if preset != "full":
            results.write_to(work("records"))
        main(**arguments)

    command.__doc__ = main.__doc__
    command.__signature__ = signature.replace(parameters=[*own, extra])  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()} | {"preset": annotation}
    typer.run(command)
