r"""The embedding of the drawing pad: its training, its export, and what it is worth.

Trains the recipe ``few-alphabets`` with a small network on Omniglot's two small background sets, twice: on the drawings
as the pad redraws them, and on the scans scaled down, as everywhere else in the book. Writes the first network, norms
folded in, in 16 bits, to ``metabook/drawing/embedding.safetensors``, and ``results/drawing.json``: the accuracy on the
evaluation characters, and what is left of it when the queries are moved, scaled, or drawn with another pen or hand.
No setting was chosen here: the network is the largest of three that trains 1,800 steps within five CPU minutes.

    METABOOK_DATA=~/data python benchmarks/drawing.py
    METABOOK_DATA=~/data python benchmarks/drawing.py --steps 20 --tasks 60 --characters 40 --name try_drawing \
        --no-export
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from metabook import Episodes, EpisodeSampler, Evaluation, LabelledData, data, evaluate, fit, results, seed_everything
from metabook.data.images import resized
from metabook.drawing import EMBEDDING, redrawn
from metabook.episodes import generator_for
from metabook.learners import Learner, NearestNeighbour, ProtoNet
from metabook.nets import Conv4, folded
from metabook.recipes import few_alphabets
from metabook.storage import load, save

WORK = Path(__file__).parents[1] / "_build" / "benchmarks" / "drawing"
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


def trained(kind: str, steps: int) -> tuple[Learner, float]:
    """The learner for one kind of pictures, and the CPU seconds of this call's training."""
    file = WORK / f"{kind}-{steps}.safetensors"
    started = time.process_time()
    if not file.exists():
        chosen = few_alphabets(net)
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
        checkpoint = WORK / f"{kind}-{steps}.checkpoint"
        fit(learner, source, steps=steps, tasks=chosen.tasks, **chosen.fit, checkpoint=checkpoint)
        save(learner, file)
    return load(file), time.process_time() - started


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


def judged(learner: Learner, sources: list[Any], tasks: int) -> dict[str, Any]:
    """Accuracy over the tasks of all sources, one a seed."""
    scores = [evaluate(learner, source, tasks=tasks).scores for source in sources]
    together = Evaluation(np.concatenate(scores, 1), "accuracy", learner.transductive)
    return {"mean": together.mean, "ci95": together.ci95, "seed_means": [float(each.mean()) for each in scores]}


def main(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 1800,
    tasks: Annotated[int, typer.Option(help="Test tasks of each seed.")] = 600,
    seeds: Annotated[int, typer.Option(help="Of the test tasks, and of untrained networks.")] = 3,
    characters: Annotated[int | None, typer.Option(help="So many evaluation characters only.")] = None,
    name: str = "drawing",
    export: bool = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Train, export, measure and write the record."""
    measured = results.circumstances()
    torch.set_num_threads(1)
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    own, own_seconds = trained("redrawn", steps)
    if export:
        save(ProtoNet(folded(own.net)).half(), EMBEDDING)
    plain, plain_seconds = trained("scaled", steps)
    short = ProtoNet(folded(own.net))
    short.load_state_dict({key: value.half().float() for key, value in short.state_dict().items()})

    scans = data.load("omniglot", "test", size=SCAN)
    if characters:
        scans = scans.select(range(0, len(scans), -(-len(scans) // characters)))
    half = LabelledData(scans.x[::2], scans.y[::2], scans.names, scans.groups)  # 10 of 20 drawings of each
    ours, theirs = redrawn(half), scaled(half)
    pixels, means = NearestNeighbour(), ProtoNet(nn.Identity())
    pools: dict[str, list[tuple[Learner, LabelledData]]] = {
        "nearest neighbour, scans": [(pixels, embedded(nn.Flatten(), theirs))] * seeds,
        "nearest neighbour, redrawn": [(pixels, embedded(nn.Flatten(), ours))] * seeds,
        "trained, scans": [(means, embedded(plain.net, theirs))] * seeds,
        "trained, redrawn": [(means, embedded(own.net, ours))] * seeds,
        "exported": [(means, embedded(short.net, ours))] * seeds,
        "untrained, redrawn": [],
    }
    for seed in range(seeds):
        seed_everything(seed)
        pools["untrained, redrawn"].append((means, embedded(net().eval(), ours)))
    accuracy: dict[str, dict[str, Any]] = {}
    for row, each in pools.items():
        accuracy[row] = {}
        for kind, (ways, shots) in KINDS.items():
            parts = [
                evaluate(rule, EpisodeSampler(pool, ways, shots, 5, seed=seed), tasks=tasks).scores
                for seed, (rule, pool) in enumerate(each)
            ]
            both = Evaluation(np.concatenate(parts, 1), "accuracy", False)
            means_ = [float(part.mean()) for part in parts]
            accuracy[row][kind] = {"mean": both.mean, "ci95": both.ci95, "seed_means": means_}
        typer.echo(
            f"{row:27} "
            + "  ".join(f"{k} {100 * v['mean']:.1f} ± {100 * v['ci95']:.1f}" for k, v in accuracy[row].items())
        )

    columns = half.x.unflatten(0, (len(half), -1))
    y = half.y.unflatten(0, (len(half), -1))
    part = {
        which: LabelledData(columns[:, rows].flatten(0, 1), y[:, rows].flatten(), half.names, half.groups)
        for which, rows in {"support": slice(0, 4), "query": slice(4, 7)}.items()
    }
    robust: dict[str, dict[str, Any]] = {}
    fixed = {kind: PICTURES[kind](part["support"]) for kind in PICTURES}
    for change, apply in CHANGES.items():
        x = apply(part["query"].x.float() / 255).mul(255).round().byte()
        query = LabelledData(x, part["query"].y, half.names, half.groups)
        robust[change] = {}
        for kind, learner in (("redrawn", own), ("scaled", plain)):
            shown = PICTURES[kind](query)
            for row, embed, rule in (
                (f"trained, {kind}", learner.net, means),
                (f"nearest neighbour, {kind}", nn.Flatten(), pixels),
            ):
                support, asked = embedded(embed, fixed[kind]), embedded(embed, shown)
                robust[change][row] = judged(rule, [Changed(support, asked, 5, seed) for seed in range(seeds)], tasks)
        typer.echo(f"{change:27} " + "  ".join(f"{100 * v['mean']:.1f}" for v in robust[change].values()))

    record = {
        "measured": measured,
        "settings": {
            "data": "omniglot",
            "background": "small1+small2",
            "recipe": "few-alphabets",
            "channels": list(CHANNELS),
            "steps": steps,
            "training_seed": 0,
            "characters": len(half),
            "drawings": 10,
            "queries": 5,
            "threads": 1,
        },
        "licence": "trained on Omniglot (MIT licence, Brenden Lake)",
        "seeds": list(range(seeds)),
        "tasks": tasks,
        "cpu_seconds": {"redrawn": own_seconds, "scaled": plain_seconds},
        "accuracy": accuracy,
        "robust_5w1s": robust,
    }
    typer.echo(results.write(name, record))


if __name__ == "__main__":
    typer.run(main)
