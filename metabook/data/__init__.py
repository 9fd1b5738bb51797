"""Where tasks come from: pools of labelled examples, by name, and generated regression tasks.

>>> from metabook import data
>>> pool = data.load("glyphs", "train")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# From here on metabook.data.glyphs, .omniglot and .distort are the functions, not the modules of that name.
from metabook.data.distort import distort
from metabook.data.glyphs import fetch as _fetch_glyphs
from metabook.data.glyphs import glyphs
from metabook.data.images import rotations
from metabook.data.omniglot import fetch as _fetch_omniglot
from metabook.data.omniglot import omniglot
from metabook.data.sinusoids import Sinusoids
from metabook.data.store import DataError
from metabook.episodes import LabelledData

__all__ = [
    "NAMES",
    "REGISTRY",
    "DataError",
    "DataSet",
    "Sinusoids",
    "distort",
    "fetch",
    "glyphs",
    "load",
    "omniglot",
    "rotations",
]


@dataclass(frozen=True)
class DataSet:
    """An entry of the registry.

    Parameters
    ----------
    description, source, licence : str
        One line each, for people.
    load : callable
        ``load(split, **options) -> LabelledData``.
    options : sequence of str
        The options that ``load`` takes.
    fetch : callable
        ``fetch(**options) -> list of paths``: make or download the files.
    fetch_options : sequence of str
        The options on which the files depend.
    """

    description: str
    source: str
    licence: str
    load: Callable[..., LabelledData]
    options: tuple[str, ...]
    fetch: Callable[..., list[Path]]
    fetch_options: tuple[str, ...]


REGISTRY = {
    "glyphs": DataSet(
        description="characters of 15 scripts from fonts, 20 distorted drawings each; nothing to download",
        source="generated from the DejaVu fonts that matplotlib ships",
        licence="DejaVu fonts: Bitstream Vera licence, changes in the public domain",
        load=glyphs,
        options=("size",),
        fetch=_fetch_glyphs,
        fetch_options=("size",),
    ),
    "omniglot": DataSet(
        description="1,623 handwritten characters of 50 alphabets, 20 drawings each (about 20 MB to download)",
        source="https://github.com/brendenlake/omniglot (Lake, Salakhutdinov and Tenenbaum, Science 2015)",
        licence="MIT",
        load=omniglot,
        options=("background", "size"),
        fetch=_fetch_omniglot,
        fetch_options=("background",),
    ),
}
NAMES = tuple(REGISTRY)


def load(name: str, split: str = "train", **options: Any) -> LabelledData:
    """Labelled data by name.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    split : str
        ``"train"``, ``"validation"``, ``"test"``, or several joined by plus signs.
    **options
        What the data set's function takes: ``size``; for Omniglot also ``background``.

    Raises
    ------
    ValueError
        If there is no such data set, split or option; the message lists those that there are.
    DataError
        If the files cannot be had or are damaged.
    """
    entry = _entry(name)
    _check(name, options, entry.options)
    return entry.load(split, **options)


def fetch(name: str, **options: Any) -> list[Path]:
    """Download or make the files of a data set, unless they are there, and return their paths.

    Raises
    ------
    ValueError
        If there is no such data set or option.
    DataError
        If the files cannot be had or stored.
    """
    entry = _entry(name)
    _check(name, options, entry.fetch_options)
    return entry.fetch(**options)


def _entry(name: str) -> DataSet:
    if name not in REGISTRY:
        raise ValueError(f"there is no data set {name!r}: take {', '.join(NAMES)}")
    return REGISTRY[name]


def _check(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {unknown[0]!r} here: take {', '.join(known)}")
