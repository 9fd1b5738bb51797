"""Random distortions of character images: one drawing becomes another drawer's.

An affine map (the page held at an angle), a smooth displacement field (an unsteady hand) and a
change of stroke width (another pen), for all images at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PARTS", "affine_views", "distort"]

#: What a distortion consists of.
PARTS = ("affine", "elastic", "stroke")

# Standard deviations, except where noted, at strength 1.
ROTATION = math.radians(8)  # bounded at about twice this
SHEAR = 0.10
LOG_SCALE = 0.09  # each axis by itself
SHIFT = 0.05  # of the longer side
ELASTIC = 0.075  # of the longer side, at a control point; the spline smooths it to about half
KNOTS = 5  # control points a side
THICKER, THINNER = 0.7, 0.3  # largest weights of the dilated and the eroded image: thin strokes do not survive more
CHUNK = 256  # images at a time on a CPU: the temporaries stay in its cache


def distort(
    images: Tensor, generator: torch.Generator, strength: float = 1.0, parts: Collection[str] = PARTS
) -> Tensor:
    """Distort each image by its own random affine map, elastic field and stroke width.

    Usable as ``EpisodeSampler(transform=distort)``.

    Parameters
    ----------
    images : Tensor [n, channels, height, width]
        Floats in [0, 1], ink 1 on background 0, on any device.
    generator : torch.Generator
        A CPU generator: it fixes the distortions, whatever the device of the images.
    strength : float
        0 leaves the images as they are; 1 is about what people's drawings of a character differ by.
    parts : collection of {"affine", "elastic", "stroke"}
        Which of the three distortions are applied; the generator advances as if all were.

    Returns
    -------
    Tensor [n, channels, height, width]
        Floats in [0, 1]; what is moved in from outside is background. The generator advances by the
        same amount for each image, whatever the size of the images.

    Raises
    ------
    ValueError
        If the images are not floats of four dimensions, ``strength`` is negative, or a part has another name.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"distort needs float images [n, channels, height, width], not {images.dtype} {list(images.shape)}"
        )
    if strength < 0:
        raise ValueError(f"strength must not be negative, not {strength}")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"distort has no part {unknown[0]!r}: take some of {', '.join(PARTS)}")
    if strength == 0 or not len(images):
        return images.clone()
    height, width = images.shape[-2:]
    coefficients, stroke = _draw(len(images), generator, strength)
    if "affine" not in parts:
        coefficients[:, :, :3] = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    if "elastic" not in parts:
        coefficients[:, :, 3:] = 0
    if "stroke" not in parts:
        stroke = torch.zeros_like(stroke)
    # The drawn numbers are in units of half the longer side; grid_sample counts each axis in its own half side.
    longer = max(height, width)
    coefficients = coefficients * torch.tensor([longer / width, longer / height]).view(1, 2, 1)
    coefficients, stroke = coefficients.to(images), stroke.to(images)
    basis = _basis(height, width).to(images)
    if images.device.type != "cpu":
        return _apply(images, coefficients, stroke, basis)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        out[rows] = _apply(images[rows], coefficients[rows], stroke[rows], basis)
    return out


def affine_views(images: Tensor, count: int) -> Iterator[Tensor]:
    """The images, and the images under ``count - 1`` fixed affine maps: the same maps for every image, at every call.

    The mean of a network's features over such views changes less from one drawing of a character to another than the
    features of the drawing as it is.

    Parameters
    ----------
    images : Tensor [n, channels, height, width]
        Floats in [0, 1], ink 1 on background 0, on any device.
    count : int
        Number of views, at least 1.

    Yields
    ------
    Tensor [n, channels, height, width]
        One view of all images after another.
    """
    yield images
    height, width = images.shape[-2:]
    longer = max(height, width)
    coefficients = _draw(count - 1, torch.Generator().manual_seed(0), 1.0)[0][:, :, :3]
    coefficients = coefficients * torch.tensor([longer / width, longer / height]).view(1, 2, 1)
    for affine in coefficients.to(images):
        grid = (affine @ _basis(height, width)[:3].to(images)).view(1, 2, height, width).permute(0, 2, 3, 1)
        yield F.grid_sample(images, grid.expand(len(images), -1, -1, -1), padding_mode="zeros", align_corners=False)


def _draw(n: int, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    """Random numbers of ``n`` distortions.

    The grid's coefficients ``[n, 2, 3 + KNOTS**2]`` (rows x and y) and the stroke's change ``[n, 1, 1, 1]`` in [-1, 1].
    """
    normal = torch.randn(n, 6 + 2 * KNOTS**2, generator=generator).clamp_(-2, 2)
    stroke = torch.rand(n, generator=generator).mul_(2).sub_(1).mul_(strength).clamp_(-1, 1)
    angle, shear, scale_x, scale_y, shift_x, shift_y = (strength * normal[:, :6]).unbind(1)
    cos, sin, shear = torch.cos(ROTATION * angle), torch.sin(ROTATION * angle), SHEAR * shear
    a, b = torch.exp(LOG_SCALE * scale_x), torch.exp(LOG_SCALE * scale_y)
    affine = torch.stack(
        [a * cos, a * (shear * cos - sin), 2 * SHIFT * shift_x, b * sin, b * (shear * sin + cos), 2 * SHIFT * shift_y],
        dim=1,
    )
    elastic = (2 * ELASTIC * strength) * normal[:, 6:]
    return torch.cat([affine.view(n, 2, 3), elastic.view(n, 2, KNOTS**2)], dim=2), stroke.view(n, 1, 1, 1)


@lru_cache(maxsize=8)
def _basis(height: int, width: int) -> Tensor:
    """Functions on the pixels whose weighted sum is the sampling grid.

    x, y, 1 and cubic B-splines: ``[3 + KNOTS**2, height * width]``.
    """
    longer = max(height, width)
    y = (2 * torch.arange(height, dtype=torch.float64) + 1 - height) / longer
    x = (2 * torch.arange(width, dtype=torch.float64) + 1 - width) / longer
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    splines = torch.einsum("ih,jw->ijhw", _splines(y), _splines(x)).reshape(KNOTS**2, -1)
    return torch.cat([torch.stack([xx.reshape(-1), yy.reshape(-1), torch.ones(height * width).double()]), splines])


def _splines(position: Tensor) -> Tensor:
    """Uniform cubic B-splines centred on ``KNOTS`` points of [-1, 1], at the positions, ``[KNOTS, positions]``."""
    centres = torch.linspace(-1, 1, KNOTS, dtype=position.dtype)
    t = (position - centres.unsqueeze(1)).abs() * (KNOTS - 1) / 2
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


def _apply(images: Tensor, coefficients: Tensor, stroke: Tensor, basis: Tensor) -> Tensor:
    n, _, height, width = images.shape
    grid = (coefficients @ basis).view(n, 2, height, width).permute(0, 2, 3, 1)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # A blend with the dilated (eroded) image is a change of width by less than one pixel. The square keeps
    # the faint rim of a line from becoming a halo.
    thick, thin = stroke.clamp(min=0) * THICKER, stroke.clamp(max=0) * -THINNER
    out = moved + thick * (_spread(moved, torch.maximum).square_() - moved).clamp_(min=0)
    return (out + thin * (_spread(moved, torch.minimum) - moved)).clamp_(0, 1)


def _spread(images: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest (``torch.maximum``) or smallest (``torch.minimum``) value of each pixel's 3 x 3 neighbourhood."""
    # Maxima of shifted views are several times faster on a CPU than max_pool2d.
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = pick(pick(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
    return pick(pick(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
