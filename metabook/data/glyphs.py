"""Glyphs: characters of many scripts "drawn by hand", with nothing to download.

The characters are rendered from the DejaVu fonts that matplotlib ships, scaled to one size, thinned
to their centre lines and drawn again with one pen, so that neither the size nor the weight of the type tells classes
apart; each of the 20 drawings starts from one of the font's styles and is distorted at random.
The fonts are free to use and to redistribute (Bitstream Vera licence, public domain changes).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metabook.data import store
from metabook.data.distort import distort
from metabook.data.images import thinned
from metabook.data.store import Arrays
from metabook.episodes import LabelledData, generator_for

__all__ = ["DRAWINGS", "SCRIPTS", "fetch", "glyphs"]

DRAWINGS = 20
#: The scripts of each split, by how their characters' Unicode names begin. Of characters that
#: look the same, in whichever scripts, only the first in this order is kept: no test character is a
#: training character under another name.
SCRIPTS = {
    "train": {
        "LATIN": "Latin",
        "GREEK": "Greek",
        "CYRILLIC": "Cyrillic",
        "ARABIC": "Arabic",
        "CANADIAN SYLLABICS": "Canadian Aboriginal",
        "OGHAM": "Ogham",
    },
    "validation": {"LAO": "Lao", "COPTIC": "Coptic", "OLD ITALIC": "Old Italic", "LISU": "Lisu"},
    "test": {
        "GEORGIAN": "Georgian",
        "ARMENIAN": "Armenian",
        "TIFINAGH": "Tifinagh",
        "NKO": "N'Ko",
        "HEBREW": "Hebrew",
    },
}
#: Font files, the plainest first: a character's first drawing, and its comparison with others, use its first font.
STYLES = (
    "Sans", "Serif", "Sans-Oblique", "SansMono", "Serif-Italic", "Sans-Bold",
    "SansMono-Oblique", "Serif-Bold", "Sans-BoldOblique", "Serif-BoldItalic",
)  # fmt: skip
CANVAS = 56  # pixels of the square in which the drawings are made before they are scaled down
BODY = 38  # longer side of a character on it: as in Omniglot, about two thirds
EM = 96  # pixels of the rendering
ALIKE = 0.85  # correlation of two characters at 28 x 28 from which they count as the same
_PREFIXES = {start: script for scripts in SCRIPTS.values() for start, script in scripts.items()}
_FORMAT = 1  # of the cache: raise it when drawings change


def glyphs(split: str = "train", *, size: int = 28) -> LabelledData:
    """Characters of many scripts as few-shot classes, split by script.

    They are made once (some ten seconds) and then read from the cache.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"`` (Georgian, Armenian, Tifinagh, N'Ko, Hebrew), or
        several joined by plus signs. No script, and no shape, is in two of them.
    size : int
        Height and width in pixels.

    Returns
    -------
    LabelledData
        ``x`` uint8 [20 * classes, 1, size, size], ink 255 on 0; names such as
        ``"Greek/small letter alpha"``; groups are scripts. The same on every machine but for rounding
        (the fonts come with matplotlib, whose version is part of the cache's key).

    Raises
    ------
    ValueError
        For a split or a size that there is not.
    """
    parts = tuple(dict.fromkeys(split.split("+")))
    if unknown := [part for part in parts if part not in SCRIPTS]:
        raise ValueError(f"glyphs has no split {unknown[0]!r}: take {', '.join(SCRIPTS)}, or several joined by +")
    if not 8 <= size <= CANVAS:
        raise ValueError(f"size must be between 8 and {CANVAS} pixels, not {size}")
    arrays = store.cached_arrays(f"glyphs-{size}", _key(size), lambda: _draw_all(size))
    data = LabelledData(
        x=torch.from_numpy(arrays["x"]),
        y=torch.arange(len(arrays["names"])).repeat_interleave(DRAWINGS),
        names=tuple(arrays["names"].tolist()),
        groups=tuple(arrays["groups"].tolist()),
    )
    return data.in_groups([group for part in parts for group in SCRIPTS[part].values()])


def fetch(size: int = 28) -> list[Path]:
    """Make the drawings if the cache does not have them; the path of the cached file."""
    glyphs(size=size)
    return [store.cached_path(f"glyphs-{size}", _key(size))]


def _key(size: int) -> str:
    return f"{_FORMAT}:{size}:{matplotlib.__version__}"


def _draw_all(size: int) -> Arrays:
    characters, lines, styles = _distinct(*_centre_lines())
    starts = np.cumsum(styles) - styles
    # Drawing i is made from style i, starting over when the character has no more styles.
    rows = (starts[:, None] + np.arange(DRAWINGS) % styles[:, None]).reshape(-1)
    generator = generator_for("glyphs", _FORMAT)
    drawn = np.empty((len(rows), 1, size, size), np.uint8)
    for start in range(0, len(rows), 1024):
        pen = _pen(torch.from_numpy(lines[rows[start : start + 1024]]))
        image = F.interpolate(distort(pen, generator), (size, size), mode="bilinear", antialias=True)
        # Scaling down spreads a line's ink; the gain makes its middle black again.
        drawn[start : start + 1024] = (image * (255 * 1.1)).round().clamp(0, 255).byte().numpy()
    groups = [_script(c) for c in characters]
    names = [f"{group}/{_letter(c)}" for c, group in zip(characters, groups)]
    return {"x": drawn, "names": np.array(names), "groups": np.array(groups)}


def _script(character: str) -> str:
    """The script of a letter; empty for what is no letter of our scripts, or only another letter's variant."""
    # Letters with a decomposition are others with an accent, in a ligature or in a position of the word.
    if unicodedata.category(character) not in {"Ll", "Lu", "Lo"} or unicodedata.decomposition(character):
        return ""
    name = unicodedata.name(character, "")
    return next((script for start, script in _PREFIXES.items() if name.startswith(start + " ")), "")


def _letter(character: str) -> str:
    """The character's Unicode name without that of its script."""
    start = next(start for start, script in _PREFIXES.items() if script == _script(character))
    return unicodedata.name(character).removeprefix(start).strip().lower()


def _centre_lines() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Characters in the order of SCRIPTS; centre lines ``bool [images, CANVAS, CANVAS]``; number of styles of each."""
    from fontTools.ttLib import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = []
    for style in STYLES:
        with TTFont(folder / f"DejaVu{style}.ttf", lazy=True) as font:
            held = frozenset(font.getBestCmap())
        # The basic layout: the other one depends on what the machine has installed.
        path = str(folder / f"DejaVu{style}.ttf")
        fonts.append((ImageFont.truetype(path, EM, layout_engine=ImageFont.Layout.BASIC), held))
    order = list(_PREFIXES.values())
    points = sorted(frozenset().union(*(held for _, held in fonts)))
    script = {chr(point): _script(chr(point)) for point in points}
    characters = sorted((c for c in script if script[c]), key=lambda c: (order.index(script[c]), c))
    shapes, styles = [], []
    for character in characters:
        drawn = list(_renderings(character, fonts))
        shapes += drawn
        styles.append(len(drawn))
    images = np.stack(shapes)
    lines = np.concatenate([thinned(images[start : start + 256]) for start in range(0, len(images), 256)])
    return characters, lines, np.array(styles)


def _renderings(character: str, fonts: list[tuple[ImageFont.FreeTypeFont, frozenset[int]]]) -> Iterator[np.ndarray]:
    """The character in each font that has it, scaled to BODY and centred: ``bool [CANVAS, CANVAS]``."""
    for font, held in fonts:
        if ord(character) not in held:
            continue
        ink = Image.new("L", (3 * EM, 3 * EM))
        ImageDraw.Draw(ink).text((EM, EM), character, fill=255, font=font)
        ink = ink.crop(ink.getbbox())
        scale = BODY / max(ink.size)
        width, height = (max(1, round(side * scale)) for side in ink.size)
        canvas = np.zeros((CANVAS, CANVAS), bool)
        top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
        # A low threshold: hairlines of the serif fonts must not break.
        canvas[top : top + height, left : left + width] = (
            np.asarray(ink.resize((width, height), Image.Resampling.BOX)) > 90
        )
        yield canvas


def _pen(lines: Tensor) -> Tensor:
    """Centre lines ``bool [n, h, w]`` drawn three pixels wide: floats ``[n, 1, h, w]``."""
    return F.max_pool2d(lines.unsqueeze(1).float(), 3, stride=1, padding=1)


def _distinct(characters: list[str], lines: np.ndarray, styles: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Leave out characters that look like an earlier one, and those that are little more than a dot or a bar."""
    starts = np.cumsum(styles) - styles
    first = _pen(torch.from_numpy(lines[starts]))
    small = F.interpolate(first, (28, 28), mode="bilinear", antialias=True).flatten(1)
    small = F.normalize(small - small.mean(1, keepdim=True), dim=1)
    alike = (small @ small.T > ALIKE).numpy()
    kept: list[int] = []
    for i in range(len(characters)):
        if lines[starts[i]].sum() >= BODY // 2 and not alike[i, kept].any():
            kept.append(i)
    rows = np.concatenate([np.arange(starts[i], starts[i] + styles[i]) for i in kept])
    return [characters[i] for i in kept], lines[rows], styles[kept]
