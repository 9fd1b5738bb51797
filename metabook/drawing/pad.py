"""The drawing pad: a piece of a page that learns five characters from one drawing each, with no server behind it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from metabook.drawing.ink import BOX, RADIUS, SIDE, SMALLEST
from metabook.figures import Rendered
from metabook.learners import ProtoNet
from metabook.nets import Conv4, folded
from metabook.storage import StorageError, load, read_tensors, save

__all__ = ["EMBEDDING", "SAMPLES", "export", "pad", "published"]

_HERE = Path(__file__).parent
#: The trained embedding that comes with the package (``benchmarks/drawing.py`` made it, from Omniglot, MIT licence).
EMBEDDING = _HERE / "embedding.safetensors"

#: Strokes of five made-up characters, on a paper of side 1: what the button "Use five examples" draws.
SAMPLES = (
    (((0.20, 0.82), (0.48, 0.15), (0.80, 0.80)), ((0.32, 0.55), (0.70, 0.53))),
    (((0.75, 0.20), (0.35, 0.18), (0.22, 0.40), (0.40, 0.52), (0.68, 0.58), (0.70, 0.80), (0.25, 0.84)),),
    (((0.50, 0.12), (0.52, 0.88)), ((0.15, 0.35), (0.84, 0.33)), ((0.30, 0.62), (0.72, 0.61))),
    (((0.20, 0.20), (0.22, 0.80), (0.80, 0.81)), ((0.55, 0.30), (0.56, 0.32))),
    (((0.50, 0.20), (0.25, 0.32), (0.22, 0.62), (0.48, 0.80), (0.76, 0.64), (0.74, 0.34), (0.50, 0.20), (0.47, 0.80)),),
)


def export(learner: ProtoNet, path: Path | str = EMBEDDING) -> None:
    """Write a trained learner for the pad: norms folded into the weights, numbers of 16 bits.

    :func:`metabook.load` reads the file as any other learner's.

    Parameters
    ----------
    learner : ProtoNet
        On a :class:`~metabook.nets.Conv4` with pooling and running statistics, for pictures of ``SIDE`` pixels.
    path : path

    Raises
    ------
    ValueError
        If the net is another one.
    StorageError
        If the file cannot be written.
    """
    net = learner.net
    if not isinstance(net, Conv4) or (net.downsample, net.in_channels, net.size) != ("pool", 1, SIDE):
        raise ValueError(f"the pad runs a Conv4 with pooling on one channel of {SIDE} pixels")
    save(ProtoNet(folded(net)).half(), path)


def published() -> ProtoNet:
    """The embedding that comes with the package, as a learner in evaluation mode."""
    learner = load(EMBEDDING)
    assert isinstance(learner, ProtoNet)
    return learner


def pad(path: Path | str = EMBEDDING) -> Rendered:
    """The drawing pad, as the last line of a cell: it works in a static page and in a notebook, without a network.

    Parameters
    ----------
    path : path
        What :func:`export` wrote.

    Returns
    -------
    Rendered

    Raises
    ------
    StorageError
        If there is no such file, or it holds no learner of the pad.
    """
    tensors, _ = read_tensors(path)
    if "net.blocks.0.weight" not in tensors or any(str(each.dtype) != "torch.float16" for each in tensors.values()):
        raise StorageError(f"{path} is no embedding for the pad: write one with metabook.drawing.export")
    weights = base64.b64encode(Path(path).read_bytes()).decode()
    settings = {"side": SIDE, "box": BOX, "radius": RADIUS, "smallest": SMALLEST, "samples": SAMPLES}
    slots = "".join(_SLOT.format(number=number, side=SIDE) for number in range(1, len(SAMPLES) + 1))
    script, style = ((_HERE / f"pad.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    # In a notebook, scripts of outputs have no document.currentScript: the element is found by its name.
    mount = f'document.getElementById("drawing-pad"), "{weights}", {json.dumps(settings)}'
    return Rendered(
        f'<figure class="metabook-figure" style="margin:1em 0"><style>{style}</style>'
        f'<div class="drawing-pad" id="drawing-pad">{_PAPER}<div>{slots}</div></div></figure>'
        f"<script>({script.strip()}).mount({mount})</script>",
        "A pad to draw on. It shows in a browser: five characters are learnt from one drawing each.",
    )


_SLOT = (
    '<button type="button" class="slot" data-part="slot" disabled>{number}'
    '<canvas width="{side}" height="{side}"></canvas><span><i></i></span><output></output></button>'
)
_PAPER = """<div>
<canvas data-part="paper" width="600" height="600" tabindex="0" role="application" aria-label="Paper to draw on, with a
mouse, a pen or a finger. With the keyboard: arrows move the pen, space puts it down and lifts it, Enter keeps the
drawing, Backspace takes back a stroke, Escape clears."></canvas>
<p data-part="says" role="status">This pad is a script, and scripts do not run here.</p>
<div class="pad-buttons"><button type="button" data-part="keep" disabled>Keep</button>
<button type="button" data-part="undo" disabled>Undo</button>
<button type="button" data-part="clear" disabled>Clear</button></div>
<div class="pad-buttons"><button type="button" data-part="fill">Use five examples</button>
<button type="button" data-part="restart" disabled>Start over</button></div>
</div>"""
