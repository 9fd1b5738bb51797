"""A small Omniglot of our own making, so that no test needs the real one."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DRAWERS = 20
SMALL1 = {"Greek": 6, "Latin": 5, "Early_Aramaic": 4}
SMALL2 = {"Greek": 6, "Latin": 5, "Tagalog": 3, "Sanskrit": 4}
EVALUATION = {"Angelic": 3, "Keble": 4}


def drawing(alphabet: str, character: int, drawer: int) -> bytes:
    """A PNG like Omniglot's: 105 x 105, one bit, dark strokes on white; of one character, all by another hand."""
    seed = [*alphabet.encode(), character]
    ends = np.random.default_rng(seed).integers(15, 90, (4, 2)) + np.random.default_rng([*seed, drawer]).integers(
        -4, 5, (4, 2)
    )
    page = np.full((105, 105), 255, np.uint8)
    for (y0, x0), (y1, x1) in itertools.pairwise(ends):
        t = np.linspace(0, 1, 200)
        y, x = np.round(y0 + t * (y1 - y0)).astype(int), np.round(x0 + t * (x1 - x0)).astype(int)
        for shift in (0, 1):
            page[y + shift, x] = page[y, x + shift] = 0
    file = io.BytesIO()
    Image.fromarray(page).convert("1").save(file, format="PNG")
    return file.getvalue()


def archive(path: Path, alphabets: dict[str, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for drawer in range(1, DRAWERS + 1):
                    name = f"{path.stem}/{alphabet}/character{character:02}/{character:04}_{drawer:02}.png"
                    file.writestr(name, drawing(alphabet, character, drawer))
    return path


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The archives of the small Omniglot, by file name."""
    folder = tmp_path_factory.mktemp("archives")
    made = {"background_small1": SMALL1, "background_small2": SMALL2, "background": SMALL1, "evaluation": EVALUATION}
    return {
        f"images_{name}.zip": archive(folder / f"images_{name}.zip", held).read_bytes() for name, held in made.items()
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder of the user's own data."""
    monkeypatch.setenv("METABOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METABOOK_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(cache: Path, archives: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own copy of the small Omniglot."""
    own = tmp_path / "own"
    (own / "omniglot").mkdir(parents=True)
    for name, content in archives.items():
        (own / "omniglot" / name).write_bytes(content)
    monkeypatch.setenv("METABOOK_DATA", str(own))
    return own / "omniglot"
