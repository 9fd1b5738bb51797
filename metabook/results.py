"""Measured records: what the book's tables and claims are read from."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metabook.storage import StorageError, write_bytes

__all__ = ["circumstances", "glue", "read", "write"]

_CHECKOUT = Path(__file__).parents[1] / "results"
_INSTALLED = Path(__file__).parent / "_results"


def write(name: str, data: dict[str, Any], folder: Path = _CHECKOUT) -> Path:
    """Write the record ``name`` with the circumstances of its measurement.

    Parameters
    ----------
    name : str
        File name without ``.json``.
    data : dict
        JSON-ready, every number finite; say the seeds and the settings in it. A long run puts the
        :func:`circumstances` of its start under ``measured``; otherwise those of now are added.
    folder : path
        Default: the checkout's ``results/``.

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
    path = Path(folder) / f"{name}.json"
    write_bytes(path, (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read(name: str) -> dict[str, Any]:
    """Read the record ``name`` from the checkout, or from the installed package.

    Raises
    ------
    StorageError
        If there is no such record; the message lists those there are.
    """
    for folder in (_CHECKOUT, _INSTALLED):
        if (path := folder / f"{name}.json").exists():
            return json.loads(path.read_text(encoding="utf-8"))
    known = sorted({path.stem for folder in (_CHECKOUT, _INSTALLED) for path in folder.glob("*.json")})
    raise StorageError(f"there is no record {name!r}; there are: {', '.join(known) or 'none'}")


def circumstances() -> dict[str, Any]:
    """Date, commit, versions and device of a measurement."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    command = ["git", "-C", str(_CHECKOUT.parent), "describe", "--always", "--dirty", "--exclude=*"]
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
