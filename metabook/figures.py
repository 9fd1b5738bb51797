"""The book's figures: matplotlib drawings that read in light and in dark, and the plots that chapters share.

Importing this module applies :data:`STYLE`. A chapter draws with matplotlib as usual and ends its cell with
``figures.show(fig, alt="...")``: the figure becomes SVG inside the page, so its text is in the page's own font and can
be searched, and everything neutral (axes, text, grey) takes the page's text colour, whichever theme is on.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from metabook.episodes import Episodes

__all__ = ["COLOURS", "STYLE", "Rendered", "bars", "curves", "episode", "images", "play", "show", "table"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9a3df5", "#ca749f")
"""The colour cycle: at least 3:1 against white and against #121212, and told apart without full colour vision."""

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "black",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "none",
    "figure.figsize": (5.6, 3.2),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same layout on every machine
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": "black",
    "image.cmap": "viridis",
    "image.interpolation": "none",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "metabook",
}
"""Matplotlib settings of the book, applied when this module is imported."""

plt.style.use(STYLE)


def _own_fonts() -> None:
    """Make sure that matplotlib knows the fonts that ship with it.

    Its list of fonts is kept for the user, not for the installation, and has been seen to lack them: letters of a
    formula then come from a font of the system, upright and out of their order.
    """
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for font in sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf")):
        if str(font) not in known:
            font_manager.fontManager.addfont(font)


_own_fonts()

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_LINES = ("-", "--", "-.", ":")
_PAPER = "#ffffff"


class Result(Protocol):
    """What :func:`bars` draws: an ``Evaluation``, or anything with a mean and its confidence interval."""

    @property
    def mean(self) -> float: ...
    @property
    def ci95(self) -> float: ...


# --- From a matplotlib figure to SVG inside a page ----------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """A figure as the page shows it; Jupyter displays it.

    Parameters
    ----------
    html : str
        A ``<figure>`` element with the drawing as inline SVG.
    alt : str
        What the figure shows, for those who do not see it.
    """

    html: str
    alt: str

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        return self.html


def show(fig: Figure, alt: str, caption: str | None = None) -> Rendered:
    """Turn a figure into inline SVG that follows the theme of the page; closes the figure.

    Parameters
    ----------
    fig : Figure
    alt : str
        What the figure shows, in a sentence or two: read aloud by a screen reader, shown where there is no picture.
    caption : str, optional
        Text below the figure.

    Returns
    -------
    Rendered
        To be the last line of a cell, or to be passed to ``IPython.display.display``. The same drawing always gives
        the same bytes.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    if not alt or not alt.strip():
        raise ValueError("alt must say in words what the figure shows: a reader may not see it")
    return _figure(_inline(_svg(fig), alt.strip()), alt.strip(), caption)


WALK = "walk"
"""What the ``gid`` of a line begins with along which :func:`play` lets a dot walk."""


def play(fig: Figure, alt: str, caption: str | None = None, seconds: float = 8.0) -> Rendered:
    """Like :func:`show`, with a dot that walks along each line whose ``gid`` begins with :data:`WALK`, again and again.

    The dots go from point to point of the data in equal times and rest at the end; all walk at once. The reader can
    stop them, and where the system asks for reduced motion they stand at the end from the start. It is all SVG and CSS:
    the page runs no script.

    Parameters
    ----------
    fig : Figure
        At least one such line, wholly inside of its axes.
    alt, caption : str
        As for :func:`show`.
    seconds : float
        Of a round.

    Returns
    -------
    Rendered

    Raises
    ------
    ValueError
        If ``alt`` is empty, or there is no such line.
    """
    if not alt or not alt.strip():
        raise ValueError("alt must say in words what the figure shows: a reader may not see it")
    walks = [line for axes in fig.axes for line in axes.lines if str(line.get_gid() or "").startswith(WALK)]
    if not walks:
        raise ValueError(f"no line has a gid that begins with {WALK!r}")
    for line in walks:
        line.get_path().should_simplify = False  # every point of the data counts: it is a moment
    source = _svg(fig)
    drawing, style, prefix = _moving(source, alt.strip(), seconds)
    box = f'<input type="checkbox" id="{prefix}-stop"/> stop the dots'
    stop = f'<label style="display:block;font-size:small">{box}</label>'
    # The box stands before the drawing, so that a style can say what it does to it.
    return _figure(f"<style>{style}</style>{stop}{drawing}", alt.strip(), caption)


def _moving(source: str, alt: str, seconds: float) -> tuple[str, str, str]:
    """The drawing with its dots, the style that moves them, and the prefix of the names in both."""
    root, prefix = ET.fromstring(source), f"m{hashlib.sha256((source + alt).encode()).hexdigest()[:10]}"
    name = f"{prefix}-dot"
    rules = [
        f".{name}{{animation-duration:{seconds:g}s;animation-iteration-count:infinite;"
        "animation-timing-function:linear}",
        f"figure:has(#{prefix}-stop:checked) .{name}{{animation-play-state:paused}}",
        f"@media (prefers-reduced-motion:reduce){{.{name}{{animation:none}}}}",
    ]
    for number, group in enumerate(each for each in root.iter(f"{_SVG}g") if (each.get("id") or "").startswith(WALK)):
        path = next(each for each in group.iter(f"{_SVG}path") if "d" in each.attrib)
        places = [[float(x) for x in pair] for pair in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        stops = [
            f"{90 * i / max(len(places) - 1, 1):.3g}%{',100%' if i == len(places) - 1 else ''}"
            f"{{transform:translate({x:.1f}px,{y:.1f}px)}}"
            for i, (x, y) in enumerate(places)
        ]
        rules.append(f"@keyframes {prefix}-{number}{{{''.join(stops)}}}")
        colour = _declarations(path).get("stroke", "black")
        look = f"fill: {colour}; animation-name: {prefix}-{number}"
        end = f"translate({places[-1][0]:.1f} {places[-1][1]:.1f})"
        ET.SubElement(group, f"{_SVG}circle", {"r": "3.5", "class": name, "transform": end, "style": look})
    return _inline(ET.tostring(root, encoding="unicode"), alt), "".join(rules), prefix


def _svg(fig: Figure) -> str:
    """The figure as matplotlib writes it; closes the figure."""
    for axes in fig.axes:
        if axes.images:
            axes.grid(False)  # lines across a picture are not part of it
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(fig)
    return buffer.getvalue()


def _figure(inside: str, alt: str, caption: str | None) -> Rendered:
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return Rendered(f'<figure class="metabook-figure" style="margin:1em 0">{inside}{below}</figure>', alt)


def _inline(source: str, alt: str) -> str:
    """Rewrite matplotlib's SVG for use inside a page."""
    root = ET.fromstring(source)
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would apply to every SVG of the page; the metadata are noise.
            if child.tag == f"{_SVG}metadata" or (
                child.tag == f"{_SVG}defs" and child.find(f"{_SVG}style") is not None
            ):
                parent.remove(child)
    for element in list(root.iter()):
        _neutral(element)
        if element.tag == f"{_SVG}text":
            _flow(element)
        for index, child in reversed(list(enumerate(element))):
            if child.tag == f"{_SVG}image":
                element.insert(index, _pale_box(child))
    _own_ids(root, hashlib.sha256((source + alt).encode()).hexdigest()[:10])
    width, height = (float(root.get(side, "0").removesuffix("pt")) for side in ("width", "height"))
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": alt,
        "fill": "currentColor",  # matplotlib leaves out the fill of what is black, text above all
        "stroke-linejoin": "round",
        # A point of the drawing is 4/3 of a pixel. Styles stand here because notebooks have no style sheet of ours.
        "style": f"width:{width * 4 / 3:.0f}px;max-width:100%;height:auto;font-family:inherit;overflow:visible",
    }
    # Namespaces have no meaning inside HTML, and the prefixes that ElementTree makes up would be shown as tags.
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if (target := element.attrib.pop(f"{_XLINK}href", None)) is not None:
            element.set("href", re.sub(r"\s+", "", target))
    root.attrib.clear()
    root.attrib.update(attributes)
    for element in root.iter():
        if element.tag != "tspan" and element.text and not element.text.strip():
            element.text = None
        if element.tail and not element.tail.strip():
            element.tail = None
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _declarations(element: ET.Element) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in element.get("style", "").split(";") if ":" in part)
    return {name.strip(): value.strip() for name, value in pairs}


def _neutral(element: ET.Element) -> None:
    """Make what is black or grey take the text colour: grey as the opacity that gives it on white."""
    style = _declarations(element)
    if not style:
        return
    style.pop("font-family", None)
    if "font" in style:  # older matplotlib: "italic 700 10px 'DejaVu Sans', ..."
        style["font"] = re.sub(r"(?<=px) .*", " sans-serif", style["font"])
    for paint in ("fill", "stroke"):
        colour = style.get(paint, "")
        if not re.fullmatch(r"#[0-9a-f]{6}", colour):
            continue
        red, green, blue = to_rgb(colour)
        if red == green == blue < 1:
            style[paint] = "currentColor"
            opacity = float(style.get(f"{paint}-opacity", 1)) * (1 - red)
            if opacity < 1:
                style[f"{paint}-opacity"] = f"{opacity:.3g}"
    element.set("style", "; ".join(f"{name}: {value}" for name, value in style.items()))


def _flow(text: ET.Element) -> None:
    """Let the letters of a formula follow one another in the page's font.

    Matplotlib places each letter by the widths of its own font. Letters that follow on the line need no place of their
    own, only a shift up or down; what goes back to the left (a fraction) keeps its place.
    """
    spans = text.findall(f"{_SVG}tspan")
    places = [(float((span.get("x") or "0").split()[0]), float((span.get("y") or "0").split()[0])) for span in spans]
    if any(after[0] <= before[0] for before, after in pairwise(places)):
        return
    for span, (before, after) in zip(spans[1:], pairwise(places)):
        del span.attrib["x"], span.attrib["y"]
        span.set("dy", f"{after[1] - before[1]:g}")
    for span in spans:
        span.text = (span.text or "").replace(" ", "\u00a0")
    for span in spans[:1]:
        span.set("x", f"{places[0][0]:g}")


def _pale_box(image: ET.Element) -> ET.Element:
    """A white sheet under a raster image, whose own pixels may be transparent."""
    place: dict[str, str] = {
        name: image.attrib[name] for name in ("x", "y", "width", "height", "transform") if name in image.attrib
    }
    return ET.Element(f"{_SVG}rect", {**place, "fill": _PAPER})


def _own_ids(root: ET.Element, prefix: str) -> None:
    """Rename the ids that are referred to, drop the others: two figures on a page must not share one."""
    used: dict[str, str] = {}
    for element in root.iter():
        for name, value in element.attrib.items():
            if found := re.match(r"#(.+)" if name == f"{_XLINK}href" else r"url\(#(.+)\)", value):
                old = found.group(1)
                new = used.setdefault(old, f"f{prefix}-{len(used)}")
                element.set(name, value.replace(f"#{old}", f"#{new}"))
    for element in root.iter():
        if (old := element.attrib.pop("id", None)) in used:
            element.set("id", used[old])


# --- Plots that chapters share ------------------------------------------------------------------------------------


def _pictures(x: Tensor | np.ndarray) -> np.ndarray:
    """``[n, h, w]`` grey or ``[n, h, w, 3]`` colour, 0 to 1."""
    array = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        array = array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, -1)
    if array.ndim < 3 or (array.ndim == 4 and array.shape[-1] != 3) or array.ndim > 4:
        raise ValueError(f"images must be [n, h, w], [n, 1, h, w] or [n, 3, h, w], not {list(array.shape)}")
    return array / 255 if array.dtype == np.uint8 else np.clip(array, 0, 1)


def _sheet(width: float, height: float, scale: float) -> tuple[Figure, Axes]:
    """Axes without axes, in units of one image, y downwards."""
    fig, axes = plt.subplots(figsize=(width * scale, height * scale))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return fig, axes


def _put(axes: Axes, picture: np.ndarray, column: float, row: float) -> None:
    margin = 0.04
    box = (column + margin, column + 1 - margin, row + 1 - margin, row + margin)
    axes.imshow(picture, extent=box, cmap="gray_r", vmin=0, vmax=1, aspect="auto", interpolation="none")


def images(
    x: Tensor | np.ndarray, titles: Sequence[str] | None = None, columns: int = 10, scale: float = 0.55
) -> Figure:
    """Draw a grid of images, ink dark on pale paper.

    Parameters
    ----------
    x : Tensor or array ``[n, h, w]``, ``[n, 1, h, w]`` or ``[n, 3, h, w]``
        ``uint8`` 0 to 255 or floats 0 to 1; grey values are ink.
    titles : sequence of str, optional
        One title above each image.
    columns : int
        Images a row.
    scale : float
        Side of an image in inches.

    Raises
    ------
    ValueError
        If ``x`` has another shape or holds no image, or there are not as many titles as images.
    """
    pictures = _pictures(x)
    if not len(pictures):
        raise ValueError("there is no image to draw")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} images")
    columns = min(columns, len(pictures))
    head = 0.3 / scale if titles is not None else 0.0
    rows = -(-len(pictures) // columns)
    fig, axes = _sheet(columns, rows * (1 + head), scale)
    for index, picture in enumerate(pictures):
        column, row = index % columns, (index // columns) * (1 + head) + head
        _put(axes, picture, column, row)
        if titles is not None:
            axes.text(column + 0.5, row - 0.05, titles[index], ha="center", va="bottom", fontsize="small")
    axes.set(xlim=(0, columns), ylim=(rows * (1 + head), 0))
    return fig


def episode(episodes: Episodes, task: int = 0, queries: int = 5, scale: float = 0.55) -> Figure:
    """Draw one task: the support, and beside it the queries.

    Parameters
    ----------
    episodes : Episodes
        Images ``[tasks, n, 1 or 3, h, w]``: one row a class. Regression with one input and one output: points.
    task : int
        Which task.
    queries : int
        At most so many queries a class are drawn.
    scale : float
        Side of an image in inches.

    Raises
    ------
    ValueError
        If the inputs are neither images nor single numbers.
    """
    support_x, query_x = episodes.support_x[task], episodes.query_x[task]
    support_y, query_y = (np.asarray(y[task].cpu()) for y in (episodes.support_y, episodes.query_y))
    if episodes.regression:
        if support_x.shape[1:] != (1,):
            raise ValueError(f"only regression on one number can be drawn, not on inputs {list(support_x.shape[1:])}")
        fig, axes = plt.subplots()
        axes.plot(query_x.cpu(), query_y, "o", mfc="none", mew=1.5, label="query")
        axes.plot(support_x.cpu(), support_y, "s", label="support")
        axes.set(xlabel="x", ylabel="y")
        axes.legend()
        return fig
    support, query = _pictures(support_x), _pictures(query_x)
    rows = [(support[support_y == c], query[query_y == c][:queries]) for c in range(episodes.ways)]
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    gap, margin, head = 0.5, 0.6, 0.6
    fig, axes = _sheet(margin + left + gap + right, head + len(rows), scale)
    for c, (supports, questions) in enumerate(rows):
        axes.text(margin - 0.15, head + c + 0.5, f"{c}", ha="right", va="center")
        for i, picture in enumerate(supports):
            _put(axes, picture, margin + i, head + c)
        for i, picture in enumerate(questions):
            _put(axes, picture, margin + left + gap + i, head + c)
    axes.text(margin, head - 0.1, "support", va="bottom")
    axes.text(margin + left + gap, head - 0.1, "query", va="bottom")
    axes.plot([margin + left + gap / 2] * 2, [head, head + len(rows)], color="black", lw=1, alpha=0.4)
    axes.set(xlim=(0, margin + left + gap + right), ylim=(head + len(rows), 0))
    return fig


def bars(results: Mapping[str, Result], chance: float | None = None, label: str | None = None) -> Figure:
    """Draw results as horizontal bars with their 95 % confidence intervals and values.

    Parameters
    ----------
    results : mapping of str to Evaluation
        Anything with ``.mean`` and ``.ci95``; where ``.metric`` is ``"accuracy"`` the axis is in %.
    chance : float, optional
        Result of guessing, in the same unit as the means: drawn as a dashed line.
    label : str, optional
        Name of the axis, otherwise the metric.

    Raises
    ------
    ValueError
        If there is nothing to draw, or the results are of different metrics.
    """
    if not results:
        raise ValueError("there is no result to draw")
    metrics = {getattr(result, "metric", "") for result in results.values()}
    if len(metrics) > 1:
        raise ValueError(f"one axis cannot show different metrics: {', '.join(sorted(metrics))}")
    metric = metrics.pop()
    factor, unit, digits = (100, " %", 1) if metric == "accuracy" else (1, "", 3)
    fig, axes = plt.subplots(figsize=(5.6, 0.8 + 0.42 * len(results)))
    for row, result in enumerate(results.values()):
        mean, half = factor * float(result.mean), factor * float(result.ci95)
        colour = COLOURS[row % len(COLOURS)]
        axes.barh(row, mean, height=0.62, color=colour, alpha=0.55)
        axes.errorbar(mean, row, xerr=half, color="black", capsize=3, lw=1.2)
        axes.annotate(
            f"{mean:.{digits}f} ± {half:.{digits}f}{unit}",
            (mean + half, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    if chance is not None:
        axes.axvline(factor * chance, color="black", ls="--", lw=1)
        axes.annotate("chance", (factor * chance, -0.5), xytext=(3, 3), textcoords="offset points", fontsize="small")
    axes.set_yticks(range(len(results)), list(results))
    axes.set(
        xlabel=label or f"{metric}{' (%)' if unit else ''}",
        ylim=(len(results) - 0.5, -0.5 - 0.4 * (chance is not None)),
    )
    axes.set_xlim(0, 1.3 * max(factor * float(r.mean + r.ci95) for r in results.values()))
    if unit:
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])  # room for the values, but no 120 %
    axes.grid(axis="y", visible=False)
    return fig


def curves(
    series: Mapping[str, Any],
    x: Sequence[float] | np.ndarray | None = None,
    *,
    xlabel: str = "step",
    ylabel: str = "",
    smooth: int = 1,
    log: bool = False,
) -> Figure:
    """Draw lines, each told apart by its colour and its dashes, with confidence bands where they are known.

    Parameters
    ----------
    series : mapping of str to array ``[points]`` or pair ``(mean, ci95)`` of arrays ``[points]``
        A pair gets a band of ``mean ± ci95``.
    x : sequence of float, optional
        Where the points are, otherwise 0, 1, 2, ...
    xlabel, ylabel : str
    smooth : int
        Each point is the mean of the last so many (fewer at the start).
    log : bool
        A logarithmic y axis.

    Raises
    ------
    ValueError
        If there is nothing to draw, ``smooth`` is not positive, or a line is not as long as ``x``.
    """
    if not series:
        raise ValueError("there is no line to draw")
    if smooth < 1:
        raise ValueError(f"smooth must be at least 1, not {smooth}")
    fig, axes = plt.subplots()
    for index, (name, values) in enumerate(series.items()):
        mean, half = (_vector(part) for part in values) if isinstance(values, tuple) else (_vector(values), None)
        places = np.arange(len(mean)) if x is None else _vector(x)
        if len(places) != len(mean):
            raise ValueError(f"{name}: {len(mean)} points for {len(places)} places on the x axis")
        mean = _running_mean(mean, smooth)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(places, mean, ls=_LINES[index % len(_LINES)], color=colour, label=name)
        if half is not None:
            half = _running_mean(half, smooth)
            axes.fill_between(places, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if len(series) > 1:
        axes.legend()
    return fig


def _vector(values: Any) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"a line needs one value a point, not the shape {list(array.shape)}")
    return array


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str | None = None) -> Rendered:
    """A table for the page, in its theme's colours.

    Parameters
    ----------
    head : sequence
        Names of the columns.
    rows : sequence of sequences
        Anything with a text: an ``Evaluation`` shows as mean and confidence interval.
    caption : str, optional

    Returns
    -------
    Rendered

    Raises
    ------
    ValueError
        If a row has not as many cells as the head.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells, but the head has {len(head)}: {[str(cell) for cell in row]}")

    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    text = "\n".join("  ".join(str(cell) for cell in cells) for cells in [head, *rows])
    return Rendered(f'<table class="table">{above}<thead>{line(head, "th")}</thead><tbody>{body}</tbody></table>', text)
