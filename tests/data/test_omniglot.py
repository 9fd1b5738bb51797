from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metabook import data
from metabook.data import DataError, store
from metabook.data.omniglot import ARCHIVES, EVALUATION_ALPHABETS, VALIDATION_ALPHABETS


def test_shape_type_and_order(folder: Path) -> None:
    pool = data.omniglot("test")
    assert pool.x.shape == (7 * 20, 1, 28, 28)
    assert pool.x.dtype == torch.uint8
    assert pool.counts.tolist() == [20] * 7
    assert pool.names == (
        *(f"Angelic/character0{i}" for i in (1, 2, 3)),
        *(f"Keble/character0{i}" for i in (1, 2, 3, 4)),
    )
    assert pool.groups == ("Angelic",) * 3 + ("Keble",) * 4


def test_ink_is_bright_and_where_it_was_drawn(folder: Path, archives: dict[str, bytes]) -> None:
    pool = data.omniglot("test", size=105)
    with zipfile.ZipFile(io.BytesIO(archives["images_evaluation.zip"])) as file:
        content = file.read("images_evaluation/Keble/character02/0002_07.png")
    ink = np.asarray(Image.open(io.BytesIO(content)).convert("L")) == 0
    shown = pool.select([pool.names.index("Keble/character02")]).x[6, 0].numpy()
    assert np.array_equal(shown, np.where(ink, 255, 0))


def test_scaling_down_keeps_thin_strokes(folder: Path) -> None:
    small, large = (data.omniglot("test", size=size).x.float() / 255 for size in (28, 105))
    # The share of the page that is ink stays, and no drawing fades.
    torch.testing.assert_close(small.mean((1, 2, 3)), large.mean((1, 2, 3)), rtol=0.25, atol=0)
    assert bool((small.amax((1, 2, 3)) > 0.4).all())
    assert bool((small[:, :, 0].amax() < 0.1).all())


@pytest.mark.parametrize("background", ["background", "small1", "small2", "small1+small2"])
def test_no_alphabet_is_in_two_splits(folder: Path, background: str) -> None:
    groups = [set(data.omniglot(split, background=background).groups) for split in ("train", "validation", "test")]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert groups[1] <= set(VALIDATION_ALPHABETS)


def test_validation_is_the_same_whatever_the_background(folder: Path) -> None:
    held_out = set(data.omniglot("validation", background="small1+small2").groups)
    assert not held_out & set(data.omniglot("train", background="small1").groups)
    assert not held_out & set(data.omniglot("train", background="small2").groups)


def test_union_takes_a_shared_alphabet_once(folder: Path) -> None:
    pool = data.omniglot("train+validation", background="small1+small2")
    assert len(pool) == 6 + 5 + 4 + 3 + 4
    assert len(set(pool.names)) == len(pool)
    assert (
        data.omniglot("train+validation", background="small1+small1").names
        == (data.omniglot("train", background="small1") + data.omniglot("validation", background="small1")).names
    )


def test_splits_are_joined_in_the_order_given(folder: Path) -> None:
    pool = data.omniglot("test+train", background="small1")
    assert pool.names[:7] == data.omniglot("test").names
    assert pool.names[7:] == data.omniglot("train", background="small1").names
    assert torch.equal(pool.x[: 7 * 20], data.omniglot("test").x)


def test_the_cache_gives_the_same_without_reading_the_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.omniglot("test")

    def forbidden(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("metabook.data.store.np.savez_compressed", forbidden)
    second = data.omniglot("test")
    assert torch.equal(first.x, second.x)
    assert (first.names, first.groups) == (second.names, second.groups)


def test_another_archive_is_decoded_anew(folder: Path, archives: dict[str, bytes]) -> None:
    before = data.omniglot("test")
    file = folder / "images_evaluation.zip"
    with zipfile.ZipFile(io.BytesIO(archives["images_evaluation.zip"])) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            if "Keble" in name:
                new.writestr(name, old.read(name))
    after = data.omniglot("test")
    assert set(before.groups) == {"Angelic", "Keble"}
    assert set(after.groups) == {"Keble"}


def test_an_extracted_folder_does_as_well(folder: Path) -> None:
    expected = data.omniglot("test")
    file = folder / "images_evaluation.zip"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    file.unlink()
    pool = data.omniglot("test")
    assert torch.equal(pool.x, expected.x)
    assert pool.names == expected.names


def test_nothing_is_extracted_from_a_zip(folder: Path, tmp_path: Path) -> None:
    file = folder / "images_evaluation.zip"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../../escaped/Keble/character01/0001_01.png", b"not an image")
    with pytest.raises(DataError, match="not a readable image"):
        data.omniglot("test")
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.as_posix() or path.suffix == ".png"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 2000] = bytes(byte ^ 0x55 for byte in content[middle : middle + 2000])
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _without_images(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


def _other_layout(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Keble_01.png", b"")


def _broken_image(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images_evaluation/Keble/character01/9999_01.png", b"\x89PNG\r\n\x1a\nbroken")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _without_images, _other_layout, _broken_image])
def test_a_damaged_archive_is_an_error_of_one_line_that_names_it(folder: Path, cache: Path, damage) -> None:
    damage(folder / "images_evaluation.zip")
    with pytest.raises(DataError) as caught:
        data.omniglot("test")
    assert str(folder / "images_evaluation.zip") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.npz"))


def test_the_background_set_under_the_evaluation_sets_name(folder: Path) -> None:
    os.replace(folder / "images_background.zip", folder / "images_evaluation.zip")
    with pytest.raises(DataError, match="not one of the evaluation set"):
        data.omniglot("test")


def test_the_evaluation_set_under_the_background_sets_name(folder: Path) -> None:
    os.replace(folder / "images_evaluation.zip", folder / "images_background.zip")
    with pytest.raises(DataError, match="not one of the background set"):
        data.omniglot("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "no split 'training'"),
        ({"split": "train+"}, "no split ''"),
        ({"background": "small3"}, "no background 'small3'"),
        ({"size": 4}, "size"),
        ({"size": 200}, "size"),
    ],
)
def test_what_there_is_not(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.omniglot(**arguments)


def test_fetch_gives_the_paths(folder: Path) -> None:
    paths = data.fetch("omniglot", background="small1+small2")
    assert [path.name for path in paths] == [
        "images_background_small1.zip",
        "images_background_small2.zip",
        "images_evaluation.zip",
    ]
    assert all(path.parent == folder for path in paths)


real = pytest.mark.skipif(
    not (Path(os.environ.get("METABOOK_DATA", "")) / "omniglot" / "images_evaluation.zip").is_file(),
    reason="METABOOK_DATA names no folder with omniglot/images_evaluation.zip",
)


@real
def test_the_real_evaluation_set() -> None:
    pool = data.omniglot("test")
    assert len(pool) == 659
    assert pool.x.shape == (13180, 1, 28, 28)
    assert set(pool.groups) == EVALUATION_ALPHABETS
    assert bool((pool.x.amax((1, 2, 3)) > 150).all())
    assert 10 < pool.x.float().mean() < 40


@real
@pytest.mark.parametrize(
    ("background", "train", "validation"), [("small1", 114, 22), ("small2", 139, 17), ("small1+small2", 203, 39)]
)
def test_the_real_small_sets(background: str, train: int, validation: int) -> None:
    file = ARCHIVES["small1"][0]
    if not (store.data_folder() / "omniglot" / file).is_file():
        pytest.skip(f"METABOOK_DATA does not hold omniglot/{file}")
    assert len(data.omniglot("train", background=background)) == train
    assert len(data.omniglot("validation", background=background)) == validation
