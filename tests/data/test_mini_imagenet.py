"""miniImageNet in both layouts, from made-up files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metabook import data

COLOURS = {"n02": (255, 0, 0), "n01": (0, 255, 0), "n03": (0, 0, 255)}  # not in the order of the files
FILES = {"train": ("n02", "n01"), "val": ("n03",), "test": ("n01", "n03")}


@pytest.fixture
def own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own" / "mini_imagenet"
    folder.mkdir(parents=True)
    monkeypatch.setenv("METABOOK_DATA", str(tmp_path / "own"))
    return folder


@pytest.fixture
def as_csv(own: Path) -> Path:
    (own / "images").mkdir()
    for name, labels in FILES.items():
        lines = ["filename,label"]
        for i in range(4):
            for label in labels:
                file = f"{label}{name}{i}.jpg"
                Image.new("RGB", (100, 80), COLOURS[label]).save(own / "images" / file, quality=95)
                lines.append(f"{file},{label}")
        (own / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return own


@pytest.fixture
def as_npz(own: Path) -> Path:
    arrays = {}
    for name, labels in FILES.items():
        y = np.array(labels * 4)
        x = np.stack([np.full((84, 84, 3), COLOURS[label], np.uint8) for label in y])
        arrays |= {f"{'validation' if name == 'val' else name}_x": x, f"{'validation' if name == 'val' else name}_y": y}
    np.savez_compressed(own / "mini_imagenet.npz", **arrays)
    return own


@pytest.mark.parametrize("layout", ["as_csv", "as_npz"])
def test_both_layouts(layout: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(layout)
    for split, labels in (
        ("train", ["n01", "n02"]),
        ("validation", ["n03"]),
        ("test+validation", ["n01", "n03", "n03"]),
    ):
        pool = data.load("mini_imagenet", split, size=16)
        assert list(pool.names) == labels
        assert pool.x.shape == (4 * len(labels), 3, 16, 16)
        assert pool.x.dtype == torch.uint8
        assert pool.counts.tolist() == [4] * len(labels)
        for name, picture in zip(np.repeat(labels, 4), pool.x):
            expected = torch.tensor(COLOURS[name]).view(3, 1, 1)
            assert (picture.int() - expected).abs().max() < 12  # JPEG is not exact
    assert data.load("mini_imagenet", "train", size=16, pictures=3).counts.tolist() == [3, 3]
    assert all(path.exists() for path in data.fetch("mini_imagenet"))


def test_a_changed_list_is_read_again(as_csv: Path) -> None:
    assert len(data.load("mini_imagenet", "train", size=8)) == 2
    (as_csv / "train.csv").write_text("filename,label\nn02train0.jpg,n02\n")
    assert data.load("mini_imagenet", "train", size=8).counts.tolist() == [1]


@pytest.mark.parametrize("set_", [True, False])
def test_without_files_one_line_says_what_to_put_where(own: Path, set_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not set_:
        monkeypatch.delenv("METABOOK_DATA")
    with pytest.raises(data.DataError, match=r"train\.csv.*mini_imagenet") as error:
        data.load("mini_imagenet", "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [dict(split="tests"), dict(size=2), dict(pictures=0)])
def test_what_there_is_not(options: dict) -> None:
    with pytest.raises(ValueError):
        data.load("mini_imagenet", **options)


def test_damaged_files_are_named(as_csv: Path) -> None:
    (as_csv / "images" / "n02train1.jpg").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=r"n02train1\.jpg"):
        data.load("mini_imagenet", "train", size=8)
    (as_csv / "val.csv").write_text("picture\nx\n")
    with pytest.raises(data.DataError, match="columns filename and label"):
        data.load("mini_imagenet", "validation", size=8)
    (as_csv / "test.csv").unlink()
    with pytest.raises(data.DataError, match=r"test\.csv: cannot be read"):
        data.load("mini_imagenet", "test", size=8)


def test_a_list_cannot_lead_out_of_its_folder(as_csv: Path) -> None:
    Image.new("RGB", (9, 9)).save(as_csv.parent / "secret.jpg")
    (as_csv / "train.csv").write_text("filename,label\n../../secret.jpg,n02\n")
    with pytest.raises(data.DataError, match=r"images.secret\.jpg"):
        data.load("mini_imagenet", "train", size=8)


def test_pickles_are_not_opened(own: Path) -> None:
    np.savez(own / "mini_imagenet.npz", train_x=np.array([{}], dtype=object), train_y=np.array([0]), allow_pickle=True)
    with pytest.raises(data.DataError, match="train_x"):
        data.load("mini_imagenet", "train", size=8)
