"""Characters drawn by hand on a page: the picture of some strokes, and the pad that recognises them in a browser."""

from metabook.drawing.ink import BOX, RADIUS, SIDE, SMALLEST, drawn, redrawn
from metabook.drawing.pad import EMBEDDING, SAMPLES, export, pad, published

__all__ = [
    "BOX",
    "EMBEDDING",
    "RADIUS",
    "SAMPLES",
    "SIDE",
    "SMALLEST",
    "drawn",
    "export",
    "pad",
    "published",
    "redrawn",
]
