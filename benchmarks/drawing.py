r"""The embedding of the drawing pad: its training, its export, and what it is worth.

Trains the recipe ``few-alphabets`` with a small network on Omniglot's two small background sets, on the drawings as the
pad redraws them; with ``--scans`` a second time on the scans scaled down, as everywhere else in the book. Writes the
first network, norms folded in, in 16 bits, to ``metabook/drawing/embedding.safetensors``, and ``results/drawing.json``:
the accuracy on the evaluation characters, and what is left of it when the queries are moved, scaled, or drawn with
another pen or hand. No setting was chosen by results: the network is the largest of three of which 1,800 steps take no
more than five CPU minutes. An interrupted training goes on where it was; with ``--as-is`` its averaged weights are
taken where it is, and the record says after how many steps.

    METABOOK_DATA=~/data python benchmarks/drawing.py --scans
    METABOOK_DATA=~/data python benchmarks/drawing.py --steps 20 --tasks 60 --characters 40 --name try_drawing \
        --no-export
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from metabook import (
    Episodes,
    EpisodeSampler,
    Evaluation,
    LabelledData,
    data,
    evaluate,
    fit,
    presets,
    results,
    seed_everything,
)
from metabook.data.images import resized
from metabook.drawing import EMBEDDING, export, redrawn
from metabook.episodes import TaskSource, generator_for
from metabook.learners import Learner, NearestNeighbour, ProtoNet
from metabook.nets import Conv4
from metabook.recipes import few_alphabets
from metabook.storage import load, read_tensors, save

WORK = presets.work("drawing")
CHANNELS = (32, 32, 64, 64)
KINDS = {"5w1s": (5, 1), "5w5s": (5, 5), "20w1s": (20, 1)}
SCAN = 105  # pixels
Pictures = Callable[[LabelledData], LabelledData]


def scaled(scans: LabelledData) -> LabelledData:
    """The scans at 28 pixels, where and as large as they were drawn."""
    small = resized(scans.x.float() / 255, 28).mul(255).round().byte()
    return LabelledData(small, scans.y, scans.names, scans.groups)


PICTURES: dict[str, Pictures] = {"redrawn": redrawn, "scaled": scaled}


def net() -> Conv4:
    """A network of 65,000 weights."""
    return Conv4(channels=CHANNELS, norm="running")


def trained(kind: str, steps: int, as_is: bool) -> tuple[ProtoNet, int]:
    """The learner for one kind of pictures, and how many steps of its training are done."""
    file, checkpoint = (WORK / f"{kind}-{steps}.{suffix}" for suffix in ("safetensors", "checkpoint"))
    chosen = few_alphabets(net, views=1)  # the page computes one view
    if not file.exists() and not (as_is and checkpoint.exists()):
        settings = chosen.tasks_settings()
        scans = data.load("omniglot", "train+validation", background="small1+small2", size=SCAN)
        seed_everything(0)
        source = EpisodeSampler(
            data.rotations(PICTURES[kind](scans)),
            *(settings[name] for name in ("ways", "shots", "queries")),
            within_group=settings["within_group"],
            transform=data.distort,
        )
        learner = chosen.build(chosen.ways, len(source.data), False)
        fit(learner, source, steps=steps, tasks=chosen.tasks, **chosen.fit, checkpoint=checkpoint)
        save(learner, file)
    if file.exists():
        return load(file), steps
    tensors, _ = read_tensors(checkpoint)
    learner, prefix = chosen.build(chosen.ways, 0, False), "averaged.module."
    learner.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return learner.eval(), len(tensors["losses"])


@torch.no_grad()
def embedded(embed: nn.Module, pool: LabelledData) -> LabelledData:
    """The pool with features in place of pictures."""
    z = torch.cat([embed(part.float() / 255) for part in pool.x.split(256)])
    return LabelledData(z, pool.y, pool.names, pool.groups)


class Changed:
    """Tasks whose support is drawn from one pool and whose queries from another of the same classes."""

    def __init__(self, support: LabelledData, query: LabelledData, ways: int, seed: int) -> None:
        self.support, self.query = (each.x.unflatten(0, (len(each), -1)) for each in (support, query))
        self.ways, self.seed = ways, seed

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` 1-shot tasks; every query drawing of a class is asked."""
        generator = generator_for("changed", self.seed, step)
        classes = torch.rand(tasks, len(self.support), generator=generator).topk(self.ways).indices
        which = torch.randint(self.support.shape[1], (tasks, self.ways), generator=generator)
        y = torch.arange(self.ways).expand(tasks, -1)
        query = self.query[classes].transpose(1, 2).flatten(1, 2)
        return Episodes(self.support[classes, which], y, query, y.repeat(1, self.query.shape[1]), classes)


def moved(x: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Drawings made smaller, and moved by ``shift`` pixels each in a direction of its own."""
    angle = 2 * math.pi * torch.rand(len(x), generator=generator_for("moved"))
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = torch.stack([angle.cos(), angle.sin()], 1) * 2 * shift / x.shape[-1]
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), False), align_corners=False)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as drawn": lambda x: x,
    "moved by 10 of 105 pixels": lambda x: moved(x, shift=10),
    "moved by 20 pixels": lambda x: moved(x, shift=20),
    "three quarters of the size": lambda x: moved(x, scale=0.75),
    "half the size": lambda x: moved(x, scale=0.5),
    "lines 2 pixels wider": lambda x: F.max_pool2d(x, 3, 1, 1),
    "lines 6 pixels wider": lambda x: F.max_pool2d(x, 7, 1, 3),
    "an unsteady hand": lambda x: data.distort(x, generator_for("unsteady"), 1.5, ("elastic",)),
}


def judged(rule: Learner, sources: Sequence[TaskSource], tasks: int) -> dict[str, Any]:
    """Accuracy over the tasks of all sources, one a seed."""
    scores = [evaluate(rule, source, tasks=tasks).scores for source in sources]
    together = Evaluation(np.concatenate(scores, 1), "accuracy", False)
    return {"mean": together.mean, "ci95": together.ci95, "seed_means": [float(each.mean()) for each in scores]}


def line(name: str, row: dict[str, dict[str, Any]]) -> str:
    return f"{name:26} " + "   ".join(f"{key}: {100 * v['mean']:.1f} ± {100 * v['ci95']:.1f}" for key, v in row.items())


def main(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 1800,
    tasks: Annotated[int, typer.Option(help="Test tasks of each seed.")] = 400,
    seeds: Annotated[int, typer.Option(help="Of the test tasks.")] = 3,
    characters: Annotated[int | None, typer.Option(help="So many evaluation characters only.")] = None,
    scans_too: Annotated[bool, typer.Option("--scans", help="Train a second network, on the scans.")] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="Take unfinished trainings as they are.")] = False,
    name: str = "drawing",
    export_: Annotated[bool, typer.Option("--export/--no-export", help="Write the pad's embedding.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Train, export, measure and write the record."""
    measured = results.circumstances()
    torch.set_num_threads(1)
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    own, done = trained("redrawn", steps, as_is)
    file = EMBEDDING if export_ else WORK / "embedding.safetensors"
    export(own, file)
    seed_everything(0)
    # Each row: what embeds, of which pictures, and the rule on top.
    flat, pixels, means = nn.Flatten(), NearestNeighbour(), ProtoNet(nn.Identity())
    rows: dict[str, tuple[nn.Module, str, Learner]] = {
        "nearest neighbour, scans": (flat, "scaled", pixels),
        "nearest neighbour, redrawn": (flat, "redrawn", pixels),
        "untrained net, redrawn": (net().eval(), "redrawn", means),
        "trained net, scans": (own.net, "scaled", means),
        "trained net, redrawn": (own.net, "redrawn", means),
        "exported net, redrawn": (load(file).net, "redrawn", means),
    }
    finished = {"redrawn": done}
    if scans_too:
        other, finished["scaled"] = trained("scaled", steps, as_is)
        rows["net trained on scans, scans"] = (other.net, "scaled", means)

    pool = data.load("omniglot", "test", size=SCAN)
    if characters:
        pool = pool.select(range(0, len(pool), -(-len(pool) // characters)))
    half = LabelledData(pool.x[::2], pool.y[::2], pool.names, pool.groups)  # 10 of 20 drawings of each
    shown = {kind: make(half) for kind, make in PICTURES.items()}
    accuracy: dict[str, dict[str, Any]] = {}
    for row, (embed, kind, rule) in rows.items():
        z = embedded(embed, shown[kind])
        accuracy[row] = {
            task: judged(rule, [EpisodeSampler(z, ways, shots, 5, seed=seed) for seed in range(seeds)], tasks)
            for task, (ways, shots) in KINDS.items()
        }
        typer.echo(line(row, accuracy[row]))

    some = half.select(range(0, len(half), 2))
    x, y = (each.unflatten(0, (len(some), -1)) for each in (some.x, some.y))
    support, query = (
        LabelledData(x[:, part].flatten(0, 1), y[:, part].flatten(), some.names, some.groups)
        for part in (slice(0, 4), slice(4, 7))
    )
    fixed = {kind: make(support) for kind, make in PICTURES.items()}
    robust: dict[str, dict[str, Any]] = {}
    for change, apply in CHANGES.items():
        changed = LabelledData(apply(query.x.float() / 255).mul(255).round().byte(), query.y, query.names, query.groups)
        asked = {kind: make(changed) for kind, make in PICTURES.items()}
        robust[change] = {}
        for row, (embed, kind, rule) in rows.items():
            if row not in ("untrained net, redrawn", "exported net, redrawn"):
                before, after = embedded(embed, fixed[kind]), embedded(embed, asked[kind])
                robust[change][row] = judged(rule, [Changed(before, after, 5, seed) for seed in range(seeds)], tasks)
        typer.echo(line(change, robust[change]))

    record = {
        "measured": measured,
        "settings": {
            "data": "omniglot",
            "background": "small1+small2",
            "recipe": "few-alphabets",
            "channels": list(CHANNELS),
            "steps_planned": steps,
            "steps_done": finished,
            "training_seed": 0,
            "characters": {"accuracy": len(half), "robust": len(some)},
            "drawings": 10,
            "tasks": tasks,
            "threads": 1,
        },
        "licence": "trained on Omniglot (MIT licence)",
        "bytes": file.stat().st_size,
        "seeds": list(range(seeds)),
        "accuracy": accuracy,
        "robust_5w1s": robust,
    }
    typer.echo(results.write(name, record))


if __name__ == "__main__":
    presets.run(main, steps=2, tasks=4, characters=20, export_=False)
