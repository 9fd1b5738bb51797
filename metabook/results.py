"""Measured records: what the book's tables and claims are read from, and whether these still stand.

A record holds a digest of its contents, so that a number changed by hand is noticed, and names the script that made it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metabook.storage import StorageError, write_bytes

__all__ = [
    "chapters_reading",
    "check",
    "circumstances",
    "digest",
    "glue",
    "means",
    "names",
    "read",
    "write",
    "write_to",
]

_CHECKOUT = Path(__file__).parents[1] / "results"
_INSTALLED = Path(__file__).parent / "_results"
#: What the rows of records are called by.
_TITLES = ("label", "learner", "name", "case", "agent")
#: Where :func:`write` writes to, if not into the checkout's ``results/``.
_elsewhere: Path | None = None
#: The chapters of the checkout, if this is one.
BOOK = _CHECKOUT.parent / "book"
#: Days that the script of a record may have changed after the measurement.
TOLERANCE = 30


def write_to(folder: Path | None) -> None:
    """Let this process write its records into another folder, and read them from there; None: as usual again."""
    global _elsewhere
    _elsewhere = folder


def write(name: str, data: dict[str, Any], folder: Path | None = None) -> Path:
    """Write the record ``name`` with the circumstances of its measurement.

    Parameters
    ----------
    name : str
        File name without ``.json``.
    data : dict
        JSON-ready, every number finite; say the seeds and the settings in it. A long run puts the
        :func:`circumstances` of its start under ``measured``; otherwise those of now are added.
    folder : path
        Default: the one of :func:`write_to`, or the checkout's ``results/``.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ValueError
        If a number is not finite: JSON has no word for it.
    StorageError
        If the file cannot be written.
    """
    record = {"measured": circumstances(), **data}
    record["digest"] = digest(record)
    path = Path(folder or _elsewhere or _CHECKOUT) / f"{name}.json"
    write_bytes(path, (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def digest(record: dict[str, Any]) -> str:
    """SHA-256 of a record's contents, whatever its layout as a file."""
    contents = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def names() -> list[str]:
    """The records of the checkout, or of the installed package."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.json")})


def _folders() -> tuple[Path, ...]:
    return (_CHECKOUT, _INSTALLED) if _elsewhere is None else (_elsewhere,)


def read(name: str) -> dict[str, Any]:
    """Read the record ``name`` from the checkout, or from the installed package.

    Raises
    ------
    StorageError
        If there is no such record (the message lists those there are), or it is not what was written.
    """
    for folder in _folders():
        if (path := folder / f"{name}.json").exists():
            return _intact(path)
    raise StorageError(f"there is no record {name!r}; there are: {', '.join(names()) or 'none'}")


def _intact(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(f"{path.name} is not JSON ({error}): put it back from git, or measure anew") from None
    if record.get("digest") != digest(record):
        raise StorageError(f"{path.name} was changed after it was written: put it back from git, or measure anew")
    return record


def means(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Every mean with a confidence interval in a record: its place, and both as text.

    The interval is the larger of those over tasks and over seeds.
    """
    found = []

    def look(place: str, value: Any) -> None:
        if isinstance(value, dict):
            if "ci95" in value and isinstance(value.get("mean"), int | float):  # a curve has a list of them
                half = max(value["ci95"] or 0.0, value.get("seeds_ci95") or 0.0)
                found.append((place, f"{value.get('metric', 'mean')} {value['mean']:.4g} ± {half:.2g}"))
            for key, part in value.items():
                look(f"{place}.{key}" if place else key, part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                titles = [part[key] for key in _TITLES if key in part] if isinstance(part, dict) else []
                look(f"{place}[{titles[0] if titles else number}]", part)

    look("", record)
    return found


def chapters_reading(book: Path) -> dict[str, list[str]]:
    """For each record that a chapter reads by its name, the chapters that do.

    Parameters
    ----------
    book : path
        Folder of the chapters' sources.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(book.glob("[0-9]*/*.md")):
        for name in sorted(set(re.findall(r"results\.read\(\"([^\"{}]+)\"\)", path.read_text(encoding="utf-8")))):
            found.setdefault(name, []).append(path.relative_to(book).with_suffix("").as_posix())
    return found


def check(book: Path = BOOK, tolerance: int = TOLERANCE) -> list[str]:
    """What is wrong with the records, and with the chapters that quote them; empty if nothing is.

    Every record must be as it was written, and its script must not have changed more than ``tolerance`` days after the
    measurement, or after that of its oldest part. A chapter must find the records that it reads; and the numbers that
    its notebook shows (``results/chapters.json``) must come from the records as they are now.

    Parameters
    ----------
    book : path
        Folder of the chapters' sources; without chapters only the records are checked.
    tolerance : int
        Days. Needs the history in git: a script without one is not dated.

    Returns
    -------
    list of str
        A line for each fault, which says what to do.
    """
    records, faults = {}, []
    for name in names():
        try:
            records[name] = read(name)
        except StorageError as error:
            faults.append(str(error))
    for name, record in records.items():
        faults += _out_of_date(name, record, tolerance)
    for name, chapters in chapters_reading(book).items():
        if name not in names():
            faults.append(f"{', '.join(chapters)}: there is no record {name}: correct the name, or measure it")
    return [*faults, *_quoted_otherwise(records)]


def _out_of_date(name: str, record: dict[str, Any], tolerance: int) -> Iterator[str]:
    script, oldest = record["measured"].get("script"), min(_dates(record))
    if script is None or not (_CHECKOUT.parent / script).exists():
        yield f"{name}.json does not name a script that makes it: measure it anew with one of benchmarks/"
    elif changed := _git("log", "-1", "--format=%cs", "--", script):
        days = (date.fromisoformat(changed) - date.fromisoformat(oldest)).days
        if days > tolerance:
            yield f"{name}.json is {days} days older than {script}: run that again"


def _dates(tree: Any) -> Iterator[str]:
    """The days on which a record and the parts of it that were measured by themselves were."""
    if isinstance(tree, dict):
        if isinstance(measured := tree.get("measured"), dict) and "date" in measured:
            yield measured["date"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _dates(part)


def _quoted_otherwise(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    for chapter, entry in records.get("chapters", {}).get("chapters", {}).items():
        again = f"python book/_press record --only {Path(chapter).name}"
        for name, quoted in entry.get("records", {}).items():
            if name not in names():
                yield f"{chapter} read {name}.json, which is gone: {again}"
            elif name in records and records[name]["digest"] != quoted:
                yield f"{chapter} shows numbers of an earlier {name}.json: {again}"


def circumstances() -> dict[str, Any]:
    """Date, commit, script, versions and device of a measurement."""
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve()
    inside = main.is_file() and main.is_relative_to(_CHECKOUT.parent)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("describe", "--always", "--dirty", "--exclude=*"),
        "script": main.relative_to(_CHECKOUT.parent).as_posix() if inside else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; None where there is neither git nor a checkout."""
    command = ["git", "-C", str(_CHECKOUT.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def glue(name: str, value: Any) -> None:
    """Make an executed value available to the prose of a chapter as ``{glue:text}`name```.

    Emits what ``myst_nb.glue`` would, so that a reader's notebook server needs no Sphinx.
    """
    from IPython.display import display  # wanted in notebooks only

    content = {"application/papermill.record/text/plain": str(value)}
    display(content, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}})
