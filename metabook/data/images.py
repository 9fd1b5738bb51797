"""What can be done with any pool of images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metabook.episodes import LabelledData

__all__ = ["resized", "rotations", "shrunk", "thinned"]


def shrunk(ink: np.ndarray, size: int) -> np.ndarray:
    """A drawing ``uint8 [height, width]``, ink bright, at ``[size, size]``.

    With an antialiasing filter: Omniglot's strokes are about two of 105 pixels wide, and picking pixels would break
    them.
    """
    return np.asarray(Image.fromarray(ink).resize((size, size), Image.Resampling.LANCZOS))


def resized(images: Tensor, size: int) -> Tensor:
    """Pictures at another size, as the data sets scale theirs: each by :func:`shrunk`, in 256 levels.

    Parameters
    ----------
    images : Tensor [..., height, width]
        Floats in [0, 1], ink 1 on paper 0.
    size : int

    Returns
    -------
    Tensor [..., size, size]
        Of the same type and on the same device. No gradient passes.
    """
    ink = (images.detach().cpu().float() * 255).round().clamp(0, 255).to(torch.uint8).flatten(0, -3).numpy()
    small = np.stack([shrunk(each, size) for each in ink])
    return torch.from_numpy(small).to(images).div_(255).view(*images.shape[:-2], size, size)


def rotations(data: LabelledData) -> LabelledData:
    """Add every class turned by 90, 180 and 270 degrees as a class of its own.

    All images of a class are turned by the same angle: an image that is turned by itself would be
    augmentation and no new class. (Santoro et al., "Meta-learning with memory-augmented neural
    networks", ICML 2016, introduced it for Omniglot.)

    Parameters
    ----------
    data : LabelledData
        Square images ``[n, channels, size, size]``.

    Returns
    -------
    LabelledData
        Four times the classes, unturned ones first; class ``"Greek/character03"`` of group ``"Greek"``
        gives ``"Greek/character03@90"`` of group ``"Greek@90"``, and so on, anticlockwise.

    Raises
    ------
    ValueError
        If the inputs are not square images.
    """
    if data.x.dim() != 4 or data.x.shape[-1] != data.x.shape[-2]:
        raise ValueError(f"rotations needs square images [n, channels, size, size], not {list(data.x.shape)}")
    turned = data
    for quarter in (1, 2, 3):
        angle = f"@{90 * quarter}"
        turned = turned + LabelledData(
            x=torch.rot90(data.x, quarter, dims=(-2, -1)),
            y=data.y,
            names=tuple(name + angle for name in data.names),
            groups=tuple(group + angle for group in data.groups),
        )
    return turned


def thinned(images: np.ndarray) -> np.ndarray:
    """Centre lines of binary images, one pixel wide and connected as the shapes are.

    Zhang and Suen, "A fast parallel algorithm for thinning digital patterns", Communications of the
    ACM 27 (1984).

    Parameters
    ----------
    images : ndarray bool [n, height, width]
        The border must be background.

    Returns
    -------
    ndarray bool [n, height, width]
    """
    ink = images.astype(np.uint8)
    active = np.arange(len(ink))
    while len(active):
        work = ink[active]
        before = work.copy()
        for first in (True, False):
            # Neighbours clockwise from the north.
            ring = [
                np.roll(work, shift, axis=(1, 2))
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            n, e, s, w = ring[::2]
            count = sum(ring[1:], ring[0])
            changes = sum((ring[i - 1] < ring[i]).view(np.uint8) for i in range(8))
            # The first pass takes from the south-east, the second from the north-west.
            needed = e & s & (n | w) if first else n & w & (e | s)
            removable = (count >= 2) & (count <= 6) & (changes == 1) & (needed == 0)
            work[removable] = 0
        ink[active] = work
        active = active[(work != before).any(axis=(1, 2))]
    return ink.astype(bool)
