"""Where tasks come from: pools of labelled examples, by name, and generated regression tasks.

>>> from metabook import data
>>> pool = data.load("glyphs", "train")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# From here on metabook.data.glyphs, .omniglot, .distort and .intents are the functions, not the modules of that name.
from metabook.data.distort import affine_views, distort
from metabook.data.glyphs import fetch as _fetch_glyphs
from metabook.data.glyphs import glyphs
from metabook.data.images import rotations
from metabook.data.intents import banking77, clinc150, fetch_banking77, fetch_clinc150, intents
from metabook.data.intents import fetch as _fetch_intents
from metabook.data.linear import LinearFunctions
from metabook.data.mini_imagenet import fetch as _fetch_mini_imagenet
from metabook.data.mini_imagenet import mini_imagenet
from metabook.data.omniglot import fetch as _fetch_omniglot
from metabook.data.omniglot import omniglot
from metabook.data.quadratics import Quadratics
from metabook.data.sinusoids import Sinusoids
from metabook.data.store import DataError
from metabook.data.texts import TextData, read_texts
from metabook.episodes import LabelledData

__all__ = [
    "NAMES",
    "REGISTRY",
    "DataError",
    "DataSet",
    "LinearFunctions",
    "Quadratics",
    "Sinusoids",
    "TextData",
    "affine_views",
    "banking77",
    "clinc150",
    "distort",
    "fetch",
    "glyphs",
    "intents",
    "load",
    "mini_imagenet",
    "omniglot",
    "read_texts",
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
    "mini_imagenet": DataSet(
        description="photographs of 100 classes, 600 each; your own files, in METABOOK_DATA/mini_imagenet",
        source="Vinyals et al., NeurIPS 2016, from ImageNet; split of Ravi and Larochelle, ICLR 2017",
        licence="ImageNet's terms: no redistribution, so it cannot be downloaded from here",
        load=mini_imagenet,
        options=("size", "pictures"),
        fetch=_fetch_mini_imagenet,
        fetch_options=(),
    ),
    "intents": DataSet(
        description="texts: messages to an assistant, 72 intents in 9 domains; nothing to download",
        source="generated from templates in the package",
        licence="MIT",
        load=intents,
        options=("messages", "seed"),
        fetch=_fetch_intents,
        fetch_options=(),
    ),
    "clinc150": DataSet(
        description="texts: messages to an assistant, 150 intents in 10 domains (about 2 MB to download)",
        source="https://github.com/clinc/oos-eval (Larson et al., EMNLP 2019)",
        licence="CC BY 3.0; class splits Apache 2.0",
        load=clinc150,
        options=("split_number",),
        fetch=fetch_clinc150,
        fetch_options=(),
    ),
    "banking77": DataSet(
        description="texts: messages of a bank's customers, 77 intents (about 1 MB to download)",
        source="https://github.com/PolyAI-LDN/task-specific-datasets (Casanueva et al., NLP4ConvAI 2020)",
        licence="CC BY 4.0; class splits Apache 2.0",
        load=banking77,
        options=("split_number",),
        fetch=fetch_banking77,
        fetch_options=(),
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
        What the data set's function takes: for images ``size``; for Omniglot also ``background``, for
        miniImageNet ``pictures``; for the generated intents ``messages`` and ``seed``; for CLINC150 and BANKING77
        ``split_number``.

    Returns
    -------
    LabelledData
        For texts a :class:`TextData`, whose examples are rows of its table of texts.

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
        raise ValueError(f"{name} has no option {unknown[0]!r} here: take {', '.join(known) or 'none'}")
