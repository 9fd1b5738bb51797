"""From strokes, or from a scanned drawing, to the picture that the embedding sees.

Whoever draws on a screen draws larger, elsewhere and with another pen than whoever made the training data. All of that
is taken away before the network looks: a drawing is moved and scaled so that its ink fills the same box, and is drawn
anew with the same pen. ``pad.js`` does the same in the browser.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from metabook.data.images import thinned
from metabook.episodes import LabelledData

__all__ = ["BOX", "RADIUS", "SIDE", "SMALLEST", "drawn", "redrawn"]

SIDE = 28  #: of the picture, in pixels
BOX = 22.0  #: the longer side of the ink's box, from the middle of one line to the middle of another, in pixels
RADIUS = 0.75  #: of the pen, in pixels
#: No box is taken to be smaller than this part of the paper's side: a dot stays a dot.
SMALLEST = 1 / 8
ENOUGH = 80  # pixels of a scan, whose lines can be thinned as it is


def drawn(strokes: Sequence[Sequence[Sequence[float]]], paper: float = 1.0) -> Tensor:
    """The picture of some strokes.

    Parameters
    ----------
    strokes : sequence of sequences of (x, y)
        Each a line from point to point, x to the right and y downwards; a single point is a dot.
    paper : float
        Side of the square on which they are drawn, in the units of the points.

    Returns
    -------
    Tensor [1, SIDE, SIDE]
        Floats in [0, 1], ink 1.

    Raises
    ------
    ValueError
        If there is no point.
    """
    lines = [np.asarray(stroke, dtype=float).reshape(-1, 2) for stroke in strokes if len(stroke)]
    if not lines:
        raise ValueError("there is no stroke to draw")
    starts = np.concatenate([line[: max(len(line) - 1, 1)] for line in lines])
    ends = np.concatenate([line[min(1, len(line) - 1) :] for line in lines])
    starts, ends = np.split(_fitted(np.concatenate([starts, ends]), paper), 2)
    along, pixels = ends - starts, _pixels()
    length = np.maximum((along**2).sum(1), 1e-12)
    part = (((pixels[:, None] - starts) * along).sum(2) / length).clip(0, 1)  # of the way, where a pixel is nearest
    distance = np.linalg.norm(pixels[:, None] - starts - part[..., None] * along, axis=2).min(1)
    return torch.from_numpy(_ink(distance).reshape(1, SIDE, SIDE)).float()


def redrawn(data: LabelledData) -> LabelledData:
    """Scanned drawings as if the middles of their lines had been drawn with the pen of :func:`drawn`.

    Parameters
    ----------
    data : LabelledData
        ``uint8 [n, 1, size, size]``, ink 255 on 0; 128 or more counts as ink. Small ones are enlarged first, so that
        the middle of a line can lie between two pixels.

    Returns
    -------
    LabelledData
        ``uint8 [n, 1, SIDE, SIDE]``; a picture without ink stays empty.
    """
    out, pixels = np.zeros((len(data.x), 1, SIDE, SIDE), np.uint8), _pixels()
    for start in range(0, len(out), 256):
        grey = data.x[start : start + 256].float()
        if grey.shape[-1] < ENOUGH:
            grey = F.interpolate(grey, scale_factor=ENOUGH // grey.shape[-1] + 1, mode="bilinear")
        scans = np.pad(grey[:, 0].numpy() >= 128, ((0, 0), (1, 1), (1, 1)))
        for picture, line in zip(out[start:], thinned(scans)):
            rows, columns = np.nonzero(line)
            if len(rows):
                points = _fitted(np.stack([columns, rows], 1).astype(float), grey.shape[-1])
                distance, _ = cKDTree(points).query(pixels, distance_upper_bound=RADIUS + 0.5)  # beyond: infinite
                picture[:] = np.rint(255 * _ink(distance)).reshape(SIDE, SIDE)
    return LabelledData(torch.from_numpy(out), data.y, data.names, data.groups)


def _fitted(points: np.ndarray, paper: float) -> np.ndarray:
    """Points ``[n, 2]`` moved and scaled: their box has its middle in the picture's and the longer side ``BOX``."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (BOX / max((high - low).max(), SMALLEST * paper)) + SIDE / 2


def _pixels() -> np.ndarray:
    """The middles of all pixels as (x, y), row by row, ``[SIDE * SIDE, 2]``."""
    middles = np.arange(SIDE) + 0.5
    return np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)


def _ink(distance: np.ndarray) -> np.ndarray:
    """Ink by the distance to the middle of the nearest line: full under the pen, none a pixel further."""
    return np.clip(RADIUS + 0.5 - distance, 0, 1)
