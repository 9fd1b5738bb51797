"""Strokes and scans become the same picture, wherever, however large and with whatever pen they were drawn."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from metabook.drawing import BOX, RADIUS, SAMPLES, SIDE, drawn, redrawn
from metabook.episodes import LabelledData


def scan(strokes, size=105, width=3, scale=0.7, shift=(10, 20)) -> LabelledData:
    """The strokes on a scanned sheet."""
    sheet = Image.new("L", (size, size))
    for stroke in strokes:
        ImageDraw.Draw(sheet).line(
            [(scale * size * x + shift[0], scale * size * y + shift[1]) for x, y in stroke], 255, width
        )
    return LabelledData(torch.from_numpy(np.array(sheet))[None, None], torch.zeros(1).long(), ("a",), ("a",))


def test_a_line_fills_the_box_and_is_as_wide_as_the_pen():
    picture = drawn([[(0.1, 0.3), (0.9, 0.3)]])[0]
    assert picture.shape == (SIDE, SIDE)
    assert 0.7 < picture.max() <= 1
    # Across: the area of a cross-section; along: the line and its two round ends.
    assert picture[:, SIDE // 2].sum().item() == pytest.approx(2 * RADIUS, abs=0.3)
    assert (picture.amax(0) > 0.5).sum().item() == pytest.approx(BOX + 2 * RADIUS, abs=1)
    assert torch.allclose(picture, picture.flip(0)), "centred"
    assert torch.allclose(picture, picture.flip(1))


@pytest.mark.parametrize("strokes", SAMPLES)
def test_place_and_size_do_not_matter(strokes):
    moved = [[(0.3 * x + 0.5, 0.3 * y + 0.1) for x, y in stroke] for stroke in strokes]
    larger = [[(400 * x, 400 * y) for x, y in stroke] for stroke in strokes]
    assert torch.allclose(drawn(strokes), drawn(moved), atol=1e-5)
    assert torch.allclose(drawn(strokes), drawn(larger, paper=400), atol=1e-5)


def test_more_points_on_a_line_change_nothing():
    few, many = [[(0, 0), (1, 1)]], [[(t, t) for t in np.linspace(0, 1, 50)]]
    assert torch.allclose(drawn(few), drawn(many), atol=1e-5)


def test_a_dot_stays_a_dot_and_nothing_is_refused():
    assert 0 < drawn([[(0.2, 0.9)]]).sum() < 7
    assert drawn([[(0.2, 0.9), (0.203, 0.9)]]).sum() < 8, "a trembling dot is not blown up"
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="no stroke"):
            drawn(nothing)


@pytest.mark.parametrize("strokes", SAMPLES)
@pytest.mark.parametrize("width", [2, 4, 7])
def test_a_scan_becomes_what_its_strokes_become(strokes, width):
    ours, theirs = redrawn(scan(strokes, width=width)).x[0].float() / 255, drawn(strokes)
    # Thinning shortens thick lines by half their width, and the box is then filled by a little less.
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert cosine > (0.65 if width < 7 else 0.35)
    others = [torch.nn.functional.cosine_similarity(ours.flatten(), drawn(each).flatten(), dim=0) for each in SAMPLES]
    assert cosine == max(others)


def test_an_empty_scan_stays_empty():
    blank = LabelledData(torch.zeros(2, 1, 50, 50, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), ("g", "g"))
    out = redrawn(blank)
    assert out.x.shape == (2, 1, SIDE, SIDE)
    assert not out.x.any()
    assert out.names == blank.names
    assert torch.equal(out.y, blank.y)
