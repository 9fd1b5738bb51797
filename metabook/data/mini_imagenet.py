"""miniImageNet: photographs of 100 ImageNet classes, 600 each, from the user's own files.

Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016, made it; everybody uses the split into 64, 16
and 20 classes of Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017. ImageNet's terms
allow no redistribution, so nothing is downloaded here; and the pickles in which it goes round are not opened, because
opening a pickle runs whatever is in it. Two layouts are read, in the folder ``mini_imagenet`` of ``METABOOK_DATA``:

1. ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename,label``, and the pictures in ``images/``;
2. ``mini_imagenet.npz`` with the arrays ``train_x`` (uint8 [n, height, width, 3]), ``train_y`` (labels: numbers or
   text), and likewise ``validation_*`` and ``test_*``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metabook.data import store
from metabook.data.store import Arrays, DataError
from metabook.episodes import LabelledData

__all__ = ["SPLITS", "fetch", "mini_imagenet"]

#: Our names of the splits, and those of the files.
SPLITS = {"train": "train", "validation": "val", "test": "test"}
FOLDER, ARRAYS = "mini_imagenet", "mini_imagenet.npz"
_FORMAT = 1  # of the cache: raise it when decoding changes


def mini_imagenet(split: str = "train", *, size: int = 84, pictures: int = 600) -> LabelledData:
    """The photographs of miniImageNet as few-shot classes.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"``, ``"test"``, or several joined by plus signs.
    size : int
        Height and width in pixels; other pictures are scaled, without keeping their proportions.
    pictures : int
        At most so many of a class, the first ones: all 64 training classes at 84 pixels take 0.8 GB.

    Returns
    -------
    LabelledData
        ``x`` uint8 [n, 3, size, size]; names are the labels of the files; all classes are of one group.

    Raises
    ------
    ValueError
        For a split, a size or a number of pictures that there is not.
    DataError
        If the files are not there or cannot be read.
    """
    parts = tuple(dict.fromkeys(split.split("+")))
    if unknown := [part for part in parts if part not in SPLITS]:
        raise ValueError(f"miniImageNet has no split {unknown[0]!r}: take {', '.join(SPLITS)}, or several joined by +")
    if not 8 <= size <= 256 or pictures < 1:
        raise ValueError(f"size must be between 8 and 256 pixels and pictures positive, not {size} and {pictures}")
    pools = [_pool(part, size, pictures) for part in parts]
    total = pools[0]
    for pool in pools[1:]:
        total = total + pool
    return total


def fetch() -> list[Path]:
    """The paths of the user's files; nothing can be downloaded."""
    folder = _folder()
    return [folder / ARRAYS] if (folder / ARRAYS).exists() else [folder / f"{name}.csv" for name in SPLITS.values()]


def _folder() -> Path:
    own = store.data_folder()
    folder = own / FOLDER if own else None
    if folder is not None and ((folder / ARRAYS).is_file() or (folder / "train.csv").is_file()):
        return folder
    raise DataError(
        f"miniImageNet is not here and has no download: put {ARRAYS}, or train.csv, val.csv, test.csv and images/, "
        f"into {folder or f'the folder {FOLDER} of a folder that METABOOK_DATA names'}; or use the glyphs or Omniglot"
    )


def _pool(split: str, size: int, pictures: int) -> LabelledData:
    folder = _folder()
    file = folder / ARRAYS if (folder / ARRAYS).is_file() else folder / f"{SPLITS[split]}.csv"
    try:
        key = f"{_FORMAT}:{split}:{size}:{pictures}:{store.file_hash(file)}"
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    read = _from_arrays if file.suffix == ".npz" else _from_csv
    arrays = store.cached_arrays(f"mini_imagenet-{split}-{size}", key, lambda: read(file, split, size, pictures))
    names = tuple(arrays["names"].tolist())
    y = torch.from_numpy(arrays["y"])
    return LabelledData(torch.from_numpy(arrays["x"]), y, names, ("photographs",) * len(names))


def _from_csv(file: Path, split: str, size: int, pictures: int) -> Arrays:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [(row["filename"], row["label"]) for row in csv.DictReader(lines)]
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise DataError(f"{file}: needs the columns filename and label") from None

    def content() -> Iterator[tuple[str, np.ndarray]]:
        seen: dict[str, int] = {}
        for name, label in rows:
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= pictures:
                # The name alone: a file may not lead out of the folder.
                yield label, _picture(file.parent / "images" / Path(name).name, size)

    return _sorted(file, content())


def _from_arrays(file: Path, split: str, size: int, pictures: int) -> Arrays:
    arrays = store.load_npz(file)
    x, y = ((arrays or {}).get(f"{split}_{part}") for part in "xy")
    if x is None or y is None or x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) != len(y):
        raise DataError(f"{file}: needs {split}_x, uint8 [n, height, width, 3], and as many labels in {split}_y")

    def content() -> Iterator[tuple[str, np.ndarray]]:
        for label in np.unique(y):
            for picture in x[y == label][:pictures]:
                yield str(label), _scaled(Image.fromarray(picture), size)

    return _sorted(file, content())


def _picture(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return _scaled(image.convert("RGB"), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path}: is missing or no readable image: copy it again") from None


def _scaled(image: Image.Image, size: int) -> np.ndarray:
    small = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)
    return np.moveaxis(np.asarray(small), 2, 0)


def _sorted(file: Path, content: Iterator[tuple[str, np.ndarray]]) -> Arrays:
    classes: dict[str, list[np.ndarray]] = {}
    for label, picture in content:
        classes.setdefault(label, []).append(picture)
    if not classes:
        raise DataError(f"{file}: names no picture")
    names = sorted(classes)
    return {
        "x": np.stack([picture for name in names for picture in classes[name]]),
        "y": np.repeat(np.arange(len(names), dtype=np.int64), [len(classes[name]) for name in names]),
        "names": np.array(names),
    }
