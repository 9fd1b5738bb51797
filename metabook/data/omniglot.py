"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
induction", Science 350 (2015). The images come from the authors' repository, under the MIT licence.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metabook.data import store
from metabook.data.images import shrunk
from metabook.data.store import Arrays, DataError
from metabook.episodes import LabelledData

__all__ = ["ARCHIVES", "BACKGROUNDS", "SPLITS", "VALIDATION_ALPHABETS", "fetch", "omniglot"]

COMMIT = "057f034baf2ecb8530bc5710e5a23584d2a519cc"
URLS = (
    f"https://github.com/brendenlake/omniglot/raw/{COMMIT}/python/",
    f"https://raw.githubusercontent.com/brendenlake/omniglot/{COMMIT}/python/",
)
#: File and hash of each archive.
ARCHIVES = {
    "background": ("images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718"),
    "small1": (
        "images_background_small1.zip",
        "sha256:f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    ),
    "small2": (
        "images_background_small2.zip",
        "sha256:3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
    ),
    "evaluation": ("images_evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811"),
}
BACKGROUNDS = ("background", "small1", "small2")
SPLITS = ("train", "validation", "test")
#: The background alphabets that are kept for validation (140 of the 964 characters). Chosen once, by
#: hand: five of different kinds, such that each small background set has one of them, and the same
#: alphabet is never on both sides whatever the background set.
VALIDATION_ALPHABETS = ("Anglo-Saxon_Futhorc", "Bengali", "Early_Aramaic", "Futurama", "Tagalog")
#: The 20 alphabets of the evaluation set.
EVALUATION_ALPHABETS = frozenset(
    (
        *("Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi"),
        *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"),
        *("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
    )
)
_DRAWING = re.compile(r"(?:.*/)?([^/]+)/(character\d+)/([^/.][^/]*\.png)", re.IGNORECASE)
_FORMAT = 1  # of the cache: raise it when decoding changes


def omniglot(split: str = "train", *, background: str = "background", size: int = 28) -> LabelledData:
    """Omniglot's characters as few-shot classes.

    Parameters
    ----------
    split : str
        ``"train"`` and ``"validation"`` divide the background set by alphabet
        (:data:`VALIDATION_ALPHABETS`), ``"test"`` is the evaluation set of 659 characters; joined by a
        plus sign, ``"train+validation"`` is the whole background set.
    background : str
        ``"background"`` (964 characters of 30 alphabets), ``"small1"`` (136 of 5), ``"small2"``
        (156 of 5), or several joined by plus signs; an alphabet that is in more than one is taken once.
    size : int
        Height and width in pixels; the drawings are 105 x 105.

    Returns
    -------
    LabelledData
        ``x`` uint8 [20 * classes, 1, size, size], ink 255 on 0; names such as
        ``"Greek/character03"``; groups are alphabets.

    Raises
    ------
    ValueError
        For a split, a background set or a size that there is not.
    DataError
        If the archive cannot be had, or is damaged.
    """
    splits, sets = _parts(split, SPLITS, "split"), _parts(background, BACKGROUNDS, "background")
    if not 8 <= size <= 105:
        raise ValueError(f"size must be between 8 and 105 pixels, not {size}")
    pools = []
    if set(splits) & {"train", "validation"}:
        pool = _union([_archive(name, size) for name in sets])
        held_out = [g for g in dict.fromkeys(pool.groups) if g in VALIDATION_ALPHABETS]
        kept = [g for g in dict.fromkeys(pool.groups) if g not in VALIDATION_ALPHABETS]
        pools = [pool.in_groups(kept if part == "train" else held_out) for part in splits if part != "test"]
    if "test" in splits:
        pools.insert(splits.index("test"), _archive("evaluation", size))
    return _sum(pools)


def fetch(background: str = "background") -> list[Path]:
    """Find or download the archives of a background set and the evaluation set; their paths."""
    return [_path(name) for name in (*_parts(background, BACKGROUNDS, "background"), "evaluation")]


def _parts(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(text.split("+")))
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(f"Omniglot has no {what} {unknown[0]!r}: take {', '.join(known)}, or several joined by +")
    return parts


def _path(archive: str) -> Path:
    file, known_hash = ARCHIVES[archive]
    return store.find_or_fetch(
        f"omniglot/{file}",
        [url + file for url in URLS],
        known_hash,
        otherwise="or use the glyphs, which need no download (--data glyphs)",
        folder=True,
    )


def _archive(archive: str, size: int) -> LabelledData:
    path = _path(archive)
    key = f"{_FORMAT}:{size}:{_identity(path)}"
    arrays = store.cached_arrays(f"omniglot-{archive}-{size}", key, lambda: _decode(path, size))
    data = LabelledData(
        x=torch.from_numpy(arrays["x"]),
        y=torch.from_numpy(arrays["y"]),
        names=tuple(arrays["names"].tolist()),
        groups=tuple(arrays["groups"].tolist()),
    )
    # A set under the other's name would be a test on training characters.
    misplaced = sorted(
        group for group in set(data.groups) if (group in EVALUATION_ALPHABETS) != (archive == "evaluation")
    )
    if misplaced:
        raise DataError(
            f"{path}: the alphabet {misplaced[0]} is not one of the {archive} set: put the right file there"
        )
    return data


def _identity(path: Path) -> str:
    """Changes when the archive's content does; for a folder, when a file's size or time does."""
    if path.is_file():
        try:
            return store.file_hash(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    stats = ((file, file.stat()) for file in sorted(path.rglob("*.png")))
    return repr([(file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in stats])


def _decode(path: Path, size: int) -> Arrays:
    """Read every drawing of an archive (or extracted folder), sorted by alphabet, character and file name."""
    drawings: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    for name, content in _files(path):
        match = _DRAWING.fullmatch(name)
        if match is None:
            continue
        try:
            image = _image(content, size)
        # Pillow raises SyntaxError for some broken PNG files.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise DataError(f"{path}: {name} is not a readable image: fetch or copy the file again") from None
        drawings.setdefault((match[1], match[2]), []).append((match[3], image))
    if not drawings:
        raise DataError(f"{path}: holds no Alphabet/characterNN/NNNN_NN.png: not an Omniglot archive?")
    classes = sorted(drawings)
    images = [[image for _, image in sorted(drawings[c], key=lambda drawing: drawing[0])] for c in classes]
    return {
        "x": np.stack([image for drawn in images for image in drawn])[:, None],
        "y": np.repeat(np.arange(len(classes), dtype=np.int64), [len(drawn) for drawn in images]),
        "names": np.array(["/".join(c) for c in classes]),
        "groups": np.array([alphabet for alphabet, _ in classes]),
    }


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the PNG files. A zip is read in place: nothing is extracted to the disk."""
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.png")):
                yield os.path.relpath(file, path.parent).replace(os.sep, "/"), file.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.lower().endswith(".png") and not name.startswith("__MACOSX"):
                    yield name, archive.read(name)
    # The last two: an unknown compression, a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError(f"{path}: damaged or cut off (not a whole zip): fetch or copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _image(content: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        ink = 255 - np.asarray(image.convert("L"))
    return shrunk(ink, size)


def _union(pools: list[LabelledData]) -> LabelledData:
    """The pools one after the other, leaving out alphabets that an earlier one has."""
    kept: list[LabelledData] = []
    seen: set[str] = set()
    for pool in pools:
        kept.append(pool.in_groups([group for group in dict.fromkeys(pool.groups) if group not in seen]))
        seen |= set(pool.groups)
    return _sum(kept)


def _sum(pools: list[LabelledData]) -> LabelledData:
    total = pools[0]
    for pool in pools[1:]:
        total = total + pool
    return total
