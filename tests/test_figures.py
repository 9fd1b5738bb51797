"""Figures: what the page receives, and the colours that it must be able to show."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import font_manager

from metabook import figures
from metabook.episodes import Episodes


def svg(rendered: figures.Rendered) -> ET.Element:
    figure = ET.fromstring(rendered.html)
    found = next(element for element in figure.iter() if element.tag.endswith("svg"))
    return found


def line_plot() -> plt.Figure:
    fig, axes = plt.subplots()
    axes.plot([1, 2], [1, 3], "o-", label="$x_1$ and more")
    axes.plot([1, 2], [2, 2], color="0.5")
    axes.legend()
    return fig


def linear(colour: str) -> np.ndarray:
    channel = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    light = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (light[0] + 0.05) / (light[1] + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#121212"])
@pytest.mark.parametrize("colour", figures.COLOURS)
def test_colours_have_three_to_one_contrast_in_light_and_dark(colour: str, background: str) -> None:
    assert contrast(colour, background) >= 3


# Linear-RGB matrices for the complete lack of one kind of cone: Machado, Oliveira, Fernandes 2009, table 1.
DEFICIENCIES = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("sight", DEFICIENCIES)
def test_colours_are_told_apart_without_full_colour_vision(sight: str) -> None:
    def lab(colour: str) -> np.ndarray:
        seen = np.clip(np.array(DEFICIENCIES[sight]) @ linear(colour), 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        f = np.cbrt(to_xyz @ seen / [0.9505, 1, 1.089])
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    pairs = itertools.combinations([lab(colour) for colour in figures.COLOURS], 2)
    assert min(float(np.linalg.norm(a - b)) for a, b in pairs) > 12  # about 2 is just noticeable


def test_figure_carries_its_description_and_caption_escaped() -> None:
    shown = figures.show(line_plot(), alt='Two lines, "a" < b', caption="a < b")
    assert svg(shown).get("aria-label") == 'Two lines, "a" < b'
    assert svg(shown).get("role") == "img"
    assert "<figcaption>a &lt; b</figcaption>" in shown.html
    assert repr(shown) == 'Two lines, "a" < b'
    assert shown._repr_html_() == shown.html


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_figure_without_description_is_refused(alt: str) -> None:
    with pytest.raises(ValueError, match="alt must say"):
        figures.show(line_plot(), alt=alt)
    plt.close("all")


def test_same_drawing_gives_the_same_bytes() -> None:
    assert figures.show(line_plot(), alt="lines").html == figures.show(line_plot(), alt="lines").html


def test_neutral_paint_is_the_text_colour_and_colours_stay() -> None:
    shown = figures.show(line_plot(), alt="lines").html
    for neutral in ("#000000", "#808080", "#ffffff"):
        assert neutral not in shown
    assert "stroke: currentColor" in shown
    assert 'fill="currentColor"' in shown
    assert figures.COLOURS[0] in shown


def test_grey_becomes_the_opacity_that_gives_it_on_white() -> None:
    fig, axes = plt.subplots()
    axes.axis("off")
    axes.plot([0, 1], [0, 1], color="0.75", alpha=0.5)
    shown = figures.show(fig, alt="a line").html
    assert f"stroke-opacity: {0.5 * (1 - 191 / 255):.3g}" in shown


def test_drawing_fits_the_page_and_brings_no_font_and_no_style_sheet() -> None:
    shown = figures.show(line_plot(), alt="lines")
    style = svg(shown).get("style") or ""
    assert "max-width:100%" in style
    assert "height:auto" in style
    assert svg(shown).get("viewBox")
    assert "DejaVu" not in shown.html
    assert "<style" not in shown.html
    assert "<metadata" not in shown.html


def test_ids_differ_between_figures_and_all_references_resolve() -> None:
    shown = [figures.show(line_plot(), alt="one"), figures.show(line_plot(), alt="two")]
    ids = [{e.get("id") for e in svg(one).iter() if e.get("id")} for one in shown]
    assert ids[0]
    assert not ids[0] & ids[1]
    for one, own in zip(shown, ids):
        targets = {e.get("href", "")[1:] for e in svg(one).iter() if e.get("href", "").startswith("#")}
        assert targets
        assert targets <= own


@pytest.mark.parametrize("damaged", [False, True], ids=["whole list", "list without matplotlib's fonts"])
def test_letters_of_a_formula_follow_each_other_in_the_pages_font(damaged, monkeypatch) -> None:
    if damaged:
        manager = font_manager.fontManager
        monkeypatch.setattr(manager, "ttflist", [each for each in manager.ttflist if "mpl-data" not in each.fname])
        manager._findfont_cached.cache_clear()
        figures._own_fonts()
    spans = [e for e in svg(figures.show(line_plot(), alt="lines")).iter() if e.tag.endswith("tspan")]
    assert [span.get("x") is not None for span in spans] == [True] + [False] * (len(spans) - 1)
    assert any(float(span.get("dy", "0")) > 0 for span in spans)  # the subscript


def test_figure_is_closed_and_a_picture_lies_on_paper_without_grid() -> None:
    fig, axes = plt.subplots()
    axes.imshow(np.zeros((2, 2, 4)))
    shown = figures.show(fig, alt="nothing")
    assert not plt.fignum_exists(fig.number)
    children = next(list(e) for e in svg(shown).iter() if any(c.tag.endswith("image") for c in e))
    kinds = [child.tag.rpartition("}")[2] for child in children]
    assert kinds == ["rect", "image"]
    assert children[0].get("fill") == "#ffffff"
    assert children[0].get("transform") == children[1].get("transform")
    assert not axes.xaxis.get_gridlines()[0].get_visible()


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 8, 8), (3, 3, 8, 8)])
def test_images_draws_each_image_under_its_title(shape: tuple[int, ...]) -> None:
    fig = figures.images(torch.rand(shape), titles=["a", "b", "c"], columns=2)
    axes = fig.axes[0]
    assert len(axes.images) == 3
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert axes.images[2].get_extent()[0] == axes.images[0].get_extent()[0]  # the third begins a new row
    plt.close(fig)


def test_images_reads_bytes_as_0_to_255() -> None:
    fig = figures.images(torch.full((1, 2, 2), 51, dtype=torch.uint8))
    assert np.allclose(fig.axes[0].images[0].get_array(), 0.2)
    plt.close(fig)


@pytest.mark.parametrize(
    ("x", "titles", "message"),
    [
        (torch.rand(2, 2), None, "images must be"),
        (torch.rand(1, 2, 4, 4), None, "images must be"),
        (torch.rand(0, 4, 4), None, "no image"),
        (torch.rand(2, 4, 4), ["a"], "1 titles for 2 images"),
    ],
)
def test_images_refuses_what_it_cannot_draw(x: torch.Tensor, titles: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.images(x, titles=titles)


def test_episode_draws_support_and_queries_of_the_class_in_its_row() -> None:
    ways, shots, queries = 3, 2, 4
    label = torch.arange(ways)
    support_y, query_y = (label.repeat(2, n) for n in (shots, queries))

    def pictures(y: torch.Tensor, shift: float) -> torch.Tensor:
        return ((y + 1) / 10 + shift).view(*y.shape, 1, 1, 1).expand(*y.shape, 1, 4, 4)

    drawn = Episodes(pictures(support_y, 0), support_y, pictures(query_y, 0.5), query_y)
    fig = figures.episode(drawn, task=1, queries=3)
    shown = [(round(float(i.get_array().max()), 3), round(i.get_extent()[3], 2)) for i in fig.axes[0].images]
    assert len(shown) == ways * (shots + 3)
    rows = sorted({top for _, top in shown})
    for value, top in shown:
        assert value in (round((rows.index(top) + 1) / 10, 3), round((rows.index(top) + 1) / 10 + 0.5, 3))
    plt.close(fig)


def test_episode_of_regression_draws_points() -> None:
    drawn = Episodes(torch.rand(1, 3, 1), torch.rand(1, 3, 1), torch.rand(1, 7, 1), torch.rand(1, 7, 1))
    fig = figures.episode(drawn)
    assert {line.get_label(): len(line.get_xdata()) for line in fig.axes[0].lines} == {"support": 3, "query": 7}
    plt.close(fig)
    wide = Episodes(torch.rand(1, 3, 2), torch.rand(1, 3, 1), torch.rand(1, 7, 2), torch.rand(1, 7, 1))
    with pytest.raises(ValueError, match="one number"):
        figures.episode(wide)


def test_bars_write_accuracies_in_percent_with_their_interval() -> None:
    results = {
        "first": SimpleNamespace(mean=0.974, ci95=0.003, metric="accuracy"),
        "second": SimpleNamespace(mean=0.5, ci95=0.02, metric="accuracy"),
    }
    fig = figures.bars(results, chance=0.2)
    axes = fig.axes[0]
    assert [text.get_text() for text in axes.texts] == ["97.4 ± 0.3 %", "50.0 ± 2.0 %", "chance"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([97.4, 50])
    assert max(axes.get_xticks()) <= 100
    plt.close(fig)


def test_bars_refuse_nothing_and_a_mixture() -> None:
    with pytest.raises(ValueError, match="no result"):
        figures.bars({})
    mixture = {m: SimpleNamespace(mean=1.0, ci95=0.1, metric=m) for m in ("accuracy", "mse")}
    with pytest.raises(ValueError, match="different metrics: accuracy, mse"):
        figures.bars(mixture)


def test_curves_draw_bands_and_smooth_over_the_past_alone() -> None:
    mean, half = np.array([0.0, 2.0, 4.0, 6.0]), np.ones(4)
    fig = figures.curves({"band": (mean, half), "line": torch.ones(4)}, smooth=2)
    axes = fig.axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0, 1, 3, 5]
    assert len(axes.collections) == 1
    assert len({line.get_linestyle() for line in axes.lines}) == 2
    plt.close(fig)


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        ({}, {}, "no line"),
        ({"a": [1, 2]}, {"x": [1, 2, 3]}, "a: 2 points for 3"),
        ({"a": [[1, 2]]}, {}, "one value a point"),
        ({"a": [1]}, {"smooth": 0}, "at least 1"),
    ],
)
def test_curves_refuse_what_they_cannot_draw(series: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.curves(series, **options)
    plt.close("all")


def test_a_table_escapes_its_cells_and_has_a_plain_form():
    shown = figures.table(["learner", "a < b"], [["x", 1], ["y & z", 2]], caption="c > d")
    assert "<th>a &lt; b</th>" in shown.html
    assert "<td>y &amp; z</td><td>2</td>" in shown.html
    assert "<caption>c &gt; d</caption>" in shown.html
    assert repr(shown).splitlines() == ["learner  a < b", "x  1", "y & z  2"]
    with pytest.raises(ValueError, match="a row has 1 cells, but the head has 2"):
        figures.table(["a", "b"], [["x"]])


# --- Dots that walk ------------------------------------------------------------------------------------------------


def walks() -> plt.Figure:
    fig, axes = plt.subplots()
    axes.plot([0, 1, 2, 3], [0, 1, 2, 3], gid=f"{figures.WALK}-a")  # a straight line keeps its points in between
    axes.plot([0, 3], [3, 0], gid=f"{figures.WALK}-b", color=figures.COLOURS[1])
    axes.plot([0, 3], [1, 1])
    return fig


def test_a_dot_walks_along_each_line_that_is_to_have_one_and_rests_at_its_end() -> None:
    shown = figures.play(walks(), alt="Two walks", caption="below", seconds=5)
    dots = [element for element in svg(shown).iter() if element.tag.endswith("circle")]
    style = next(element for element in ET.fromstring(shown.html).iter() if element.tag == "style").text or ""
    rules = re.findall(r"@keyframes (\S+?)\{((?:[^{}]*\{[^{}]*\})*)\}", style)
    assert len(dots) == len(rules) == 2
    places = [re.findall(r"translate\((\S+?)px,(\S+?)px\)", rule) for _, rule in rules]
    assert [len(each) for each in places] == [4, 2]
    np.testing.assert_allclose(np.diff(np.array(places[0], float), axis=0).std(0), 0, atol=0.1)
    for dot, (name, _), each in zip(dots, rules, places):
        assert dot.get("transform") == f"translate({' '.join(each[-1])})"
        assert f"animation-name: {name}" in dot.get("style", "")
    assert figures.COLOURS[1] in dots[1].get("style", "")
    assert "animation-duration:5s" in style


def test_walking_dots_can_be_stopped_and_respect_the_wish_for_less_motion() -> None:
    shown = figures.play(walks(), alt="Two walks").html
    (stop,) = re.findall(r'<input type="checkbox" id="(\S+)"/>', shown)
    assert f"figure:has(#{stop}:checked)" in shown
    assert "@media (prefers-reduced-motion:reduce)" in shown
    assert "<script" not in shown
    other = figures.play(walks(), alt="Two other walks").html
    assert stop not in other  # several can stand on a page
    assert figures.play(walks(), alt="Two walks").html == shown


def test_dots_without_a_line_are_an_error() -> None:
    with pytest.raises(ValueError, match="no line has a gid"):
        figures.play(line_plot(), alt="Two lines")
    with pytest.raises(ValueError, match="alt must say"):
        figures.play(walks(), alt=" ")
