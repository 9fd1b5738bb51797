from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from metabook import data
from metabook.data.glyphs import DRAWINGS, SCRIPTS
from metabook.episodes import LabelledData

module = sys.modules["metabook.data.glyphs"]


@pytest.fixture(scope="module")
def pools() -> dict[str, LabelledData]:
    """All splits; made at most once, then from the cache."""
    return {split: data.glyphs(split) for split in SCRIPTS}


def test_shape_type_and_polarity(pools: dict[str, LabelledData]) -> None:
    for pool in pools.values():
        assert pool.x.shape == (DRAWINGS * len(pool), 1, 28, 28)
        assert pool.x.dtype == torch.uint8
        assert bool((pool.counts == DRAWINGS).all())
        ink = pool.x.float().mean((1, 2, 3)) / 255
        assert 0.05 < ink.mean() < 0.2  # ink is the smaller part
        assert bool((pool.x.amax((1, 2, 3)) > 100).all())  # no drawing is blank


def test_there_is_enough_of_it(pools: dict[str, LabelledData]) -> None:
    assert sum(len(pool) for pool in pools.values()) > 1000
    assert len(pools["train"]) > 800
    assert len(pools["validation"]) > 50
    for script in SCRIPTS["test"].values():
        assert pools["test"].groups.count(script) >= 20


def test_no_script_and_no_class_is_in_two_splits(pools: dict[str, LabelledData]) -> None:
    names = [name for pool in pools.values() for name in pool.names]
    assert len(names) == len(set(names))
    groups = [set(pool.groups) for pool in pools.values()]
    assert sum(len(part) for part in groups) == len(set().union(*groups))
    assert groups == [set(scripts.values()) for scripts in SCRIPTS.values()]


def test_shapes_that_scripts_share_are_kept_once(pools: dict[str, LabelledData]) -> None:
    names = {name for pool in pools.values() for name in pool.names}
    assert "Latin/capital letter a" in names
    for twin in ("Greek/capital letter alpha", "Cyrillic/capital letter a", "Latin/small letter o", "Lisu/letter a"):
        assert twin not in names


def test_of_characters_that_look_alike_the_first_is_kept() -> None:
    lines = np.zeros((7, 56, 56), bool)
    lines[0, 10:46, 28] = True  # a: a bar, in two styles
    lines[1, 10:46, 27] = True
    lines[2, 28, 10:46] = True  # b: a bar across, in one
    lines[3, 10:46, 28] = True  # c: a's bar again, in two
    lines[4, 10:46, 20] = True
    lines[5, 28, 28] = True  # d: a dot
    lines[6] = lines[0] | lines[2]  # e: a cross
    kept, left, styles = module._distinct(list("abcde"), lines, np.array([2, 1, 2, 1, 1]))
    assert kept == ["a", "b", "e"]
    assert styles.tolist() == [2, 1, 1]
    assert np.array_equal(left, lines[[0, 1, 2, 6]])


def test_drawings_of_a_class_differ_but_belong_together(pools: dict[str, LabelledData]) -> None:
    pool = pools["test"]
    x = pool.x.view(len(pool), DRAWINGS, -1).float() / 255
    assert torch.pdist(x[0]).min() > 1
    centre = x[:, : DRAWINGS // 2].mean(1)
    nearest = torch.cdist(x[:, DRAWINGS // 2 :].flatten(0, 1), centre).argmin(1)
    truth = torch.arange(len(pool)).repeat_interleave(DRAWINGS // 2)
    # Comparing pixels is a poor classifier, but chance is 1 in 211.
    assert (nearest == truth).float().mean() > 0.15


def test_splits_can_be_joined(pools: dict[str, LabelledData]) -> None:
    joined = data.glyphs("validation+test")
    assert sorted(joined.names) == sorted(pools["validation"].names + pools["test"].names)


def test_loading_again_gives_the_same(pools: dict[str, LabelledData]) -> None:
    assert torch.equal(data.glyphs("test").x, pools["test"].x)


def test_making_again_gives_the_same(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PREFIXES", {"OGHAM": "Ogham", "HEBREW": "Hebrew"})
    first, second = (module._draw_all(28) for _ in range(2))
    assert len(first["names"]) > 30
    assert (first["names"] == second["names"]).all()
    assert (first["x"] == second["x"]).all()


def test_another_size(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PREFIXES", {"NKO": "N'Ko"})
    assert module._draw_all(14)["x"].shape[1:] == (1, 14, 14)


@pytest.mark.parametrize("arguments", [{"split": "tests"}, {"size": 2}, {"size": 500}])
def test_what_there_is_not(arguments: dict) -> None:
    with pytest.raises(ValueError):
        data.glyphs(**arguments)


def test_fetch_gives_the_cached_file(pools: dict[str, LabelledData]) -> None:
    (path,) = data.fetch("glyphs")
    assert path.suffix == ".npz"
    assert path.stat().st_size < 8e6
