"""Personalisation: a few rated replies of each user, and who learns most from them.

For each seed: 200 made-up users to meta-train on, 200 others to be judged by, who rate replies to messages of other
domains. All methods see the same features and, where they train, the same users for the same number of steps, sixteen
users a step. Settings are chosen on a further population, with messages of the validation domains, in shorter runs with
a seed of its own, by the mean squared error after 1, 2, 5 and 10 messages. Writes ``results/personalisation.json``: the
squared error and the stars of the reply that is picked, after 0, 1, 2, 5 and 10 messages. A run that was interrupted
goes on where it was.

    OMP_NUM_THREADS=1 python benchmarks/personalisation.py
    OMP_NUM_THREADS=1 python benchmarks/personalisation.py --steps 20 --search-steps 10 --people 40 --name try
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from tqdm import tqdm

from metabook import fit, presets, results, seed_everything
from metabook.episodes import TaskSource
from metabook.learners import ANIL, MAML, ALPaCA, FineTune, Learner
from metabook.nets import MLP
from metabook.personal import Constant, Global, Remembered, Ridge, World, learning_curve, picked, world
from metabook.storage import write_bytes
from metabook.training import ci95

WORK = presets.work("personalisation")
MESSAGES = (0, 1, 2, 5, 10)
TASKS = 16
SIZES = (10, 40)  # smaller populations to train on
FEW = ("global", "memory", "finetune", "head", "maml", "alpaca")  # what is trained on them
SEARCH_SEED = 100
Setting = tuple[float, ...]
#: What is tried, setting by setting.
GRIDS: dict[str, list[Setting]] = {
    "global": [(1e-3,), (3e-3,)],
    "offset": list(itertools.product((0.0,), (1.0, 3.0, 10.0))),
    "memory": list(itertools.product((2.0, 5.0, 10.0), (0.1, 0.3, 1.0))),
    "scratch": list(itertools.product((0.001, 0.003, 0.01), (1, 5, 20))),
    "ridge": [(300.0,), (1000.0,), (3000.0,), (10000.0,)],
    "finetune": list(itertools.product((0.001, 0.003, 0.01), (1, 5, 20))),
    "head": [(10.0,), (100.0,), (300.0,), (1000.0,), (3000.0,)],
    "maml": list(itertools.product((1e-3, 3e-3), (0.003, 0.01, 0.03), (5,))),
    "fomaml": list(itertools.product((3e-3,), (0.003, 0.01, 0.03), (5,))),
    "anil": list(itertools.product((3e-3,), (0.003, 0.01, 0.03), (5,))),
    "alpaca": [(1e-3,), (3e-3,)],
    "known": [(1e-2,), (3e-2,)],
}
#: Label, and whether it is meta-learned.
LABELS = {
    "global": ("global model", False),
    "offset": ("global model + user's mean", False),
    "memory": ("memory: similar replies", False),
    "scratch": ("own model, gradient", False),
    "ridge": ("own model, ridge", False),
    "finetune": ("fine-tuned global model", False),
    "head": ("ridge head on global model", False),
    "maml": ("MAML", True),
    "fomaml": ("first-order MAML", True),
    "anil": ("ANIL", True),
    "alpaca": ("ALPaCA", True),
    "known": ("styles known", True),
}


def net(width: int) -> MLP:
    return MLP(width, (64, 32), 1)


def trained(learner: Learner, source: TaskSource, steps: int, lr: float, tasks: int = TASKS) -> Learner:
    fit(learner, source, steps=steps, tasks=tasks, lr=lr, anneal="cosine", progress=False)
    return learner


def build(name: str, setting: Setting, here: World, shared: MLP | None, seed: int, steps: int) -> Learner:
    """A learner of that name, trained if it has to be; ``shared`` is the network of the global model."""
    seed_everything(seed)
    width = here.train.inputs.shape[1]
    tasks = min(TASKS, here.train.people)
    if name in ("offset", "memory", "finetune", "head"):
        assert shared is not None
        return {
            "offset": lambda: Remembered(shared, *setting),
            "memory": lambda: Remembered(shared, *setting),
            "finetune": lambda: FineTune(shared, setting[0], int(setting[1])),
            "head": lambda: Ridge(setting[0], shared),
        }[name]()
    if name == "scratch":
        return FineTune(net(width), setting[0], int(setting[1]))
    if name == "ridge":
        return Ridge(setting[0])
    if name == "known":
        styles = here.train.seen_as(here.train.pool.styles)
        return trained(ALPaCA(Constant(), styles.inputs.shape[1] + 1, noise=0.5), styles, steps, setting[0], tasks)
    if name in ("maml", "fomaml", "anil"):
        lr, inner, inner_steps = setting
        kind: Callable[..., Learner] = ANIL if name == "anil" else MAML
        learner = kind(net(width), inner, int(inner_steps), first_order=name == "fomaml")
        return trained(learner, here.train.varied(), steps, lr, tasks)
    if name == "alpaca":
        body = nn.Sequential(MLP(width, (64,), 32), nn.ReLU(), Constant())  # all but the last layer of the others
        return trained(ALPaCA(body, 33, noise=0.5), here.train, steps, setting[0], tasks)
    return trained(Global(net(width)), here.train, steps, setting[0], tasks)


def judged(learner: Learner, here: World, styles: bool = False) -> dict[str, list[list[float]]]:
    """Squared error, and stars of what is picked, ``[numbers of messages][test users]``."""
    users = here.test.seen_as(here.test.pool.styles) if styles else here.test
    episodes = users.sample(users.people)
    predictions = learning_curve(learner, episodes, MESSAGES)
    return {
        "mse": (predictions - episodes.query_y).square().mean((2, 3)).tolist(),
        "picked": (3 + picked(predictions, episodes.query_y, users.pool.choices)).tolist(),
    }


def run(
    names: tuple[str, ...], here: World, chosen: dict[str, Setting], seed: int, steps: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train and judge the learners of those names, the global model first."""
    shared: MLP | None = None
    for name in names:
        started = time.process_time()
        learner = build(name, chosen[name], here, shared, seed, steps)
        if isinstance(learner, Global):
            assert isinstance(learner.net, MLP)
            shared = learner.net
        yield name, judged(learner, here, name == "known") | {"cpu_seconds": time.process_time() - started}


def search(here: World, steps: int) -> dict[str, Any]:
    """The setting of each method with the least error on validation users, and all errors."""
    found: dict[str, Any] = {}
    shared: MLP | None = None
    for name, grid in tqdm(GRIDS.items(), unit="method", desc="search"):
        errors, nets = [], []
        for setting in grid:
            learner = build(name, setting, here, shared, SEARCH_SEED, steps)
            nets.append(learner)
            errors.append(float(np.mean(judged(learner, here, name == "known")["mse"][1:])))
        best = int(np.argmin(errors))
        found[name] = {"settings": [list(each) for each in grid], "mse": errors, "chosen": list(grid[best])}
        if isinstance(nets[best], Global):
            shared = nets[best].net  # type: ignore[assignment]
    return found


def kept(name: str, make: Callable[[], Any]) -> Any:
    """The JSON of that name in the work folder, made now if it is not there."""
    path = WORK / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(make()).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Of ``scores [seeds, users]``: the mean, and the intervals over all users and over the seeds."""
    means = scores.mean(1)
    return {
        "mean": float(means.mean()),
        "ci95": ci95(scores.ravel()),
        "seeds_ci95": ci95(means) if len(means) > 1 else None,
        "seed_means": means.tolist(),
    }


def curve(runs: list[dict[str, Any]], key: str) -> dict[str, Any]:
    scores = np.array([each[key] for each in runs])  # [seeds, numbers, users]
    return {str(n): summary(scores[:, i]) for i, n in enumerate(MESSAGES)}


def differences(parts: list[dict[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Of the squared errors of two methods, user by user: below zero, the first is better."""
    scores = np.array([np.array(part[first]["mse"]) - np.array(part[second]["mse"]) for part in parts])
    return {str(n): summary(scores[:, i]) for i, n in enumerate(MESSAGES)}


PAIRS = (
    ("maml", "finetune"),
    ("maml", "alpaca"),
    ("alpaca", "head"),
    ("alpaca", "memory"),
    ("finetune", "global"),
    ("maml", "global"),
    ("alpaca", "global"),
)


def main(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 600,
    search_steps: Annotated[int, typer.Option(help="Of each training of the search.")] = 200,
    people: Annotated[int, typer.Option(help="Users of each population.")] = 200,
    seeds: int = 3,
    name: str = "personalisation",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Search, train and judge, and write the record."""
    measured = results.circumstances()
    torch.set_num_threads(1)
    if fresh:
        shutil.rmtree(WORK / name, ignore_errors=True)
    settings = {"steps": steps, "search_steps": search_steps, "people": people}
    if kept(f"{name}/settings", lambda: settings) != settings:
        raise typer.BadParameter("an earlier run had other settings: give them again, or --fresh")
    validation = world(SEARCH_SEED, people=people, test_people=people, split="validation")
    searched = kept(f"{name}/search", lambda: search(validation, search_steps))
    chosen = {key: tuple(each["chosen"]) for key, each in searched.items()}
    typer.echo(chosen)

    def measure(seed: int, size: int) -> dict[str, Any]:
        here = world(seed, people=size, test_people=people)
        return dict(run(tuple(LABELS) if size == people else FEW, here, chosen, seed, steps))

    each_size: dict[int, list[dict[str, Any]]] = {size: [] for size in (*SIZES, people)}
    for seed, size in tqdm(list(itertools.product(range(seeds), each_size)), unit="population"):
        each_size[size].append(kept(f"{name}/{seed}-{size}", partial(measure, seed, size)))
    parts = each_size[people]
    rows = [
        {
            "learner": key,
            "label": label,
            "meta": meta,
            "setting": searched[key]["chosen"],
            "cpu_seconds": float(np.mean([part[key]["cpu_seconds"] for part in parts])),
            "mse": curve([part[key] for part in parts], "mse"),
            "picked": curve([part[key] for part in parts], "picked"),
        }
        for key, (label, meta) in LABELS.items()
    ]
    record = {
        "measured": measured,
        "settings": settings
        | {
            "tasks": TASKS,
            "messages": list(MESSAGES),
            "dimensions": validation.train.inputs.shape[1],
            "noise": validation.train.noise,
            "threads": 1,
        },
        "seeds": list(range(seeds)),
        "searched": searched,
        "rows": rows,
        "differences": {f"{a} - {b}": differences(parts, a, b) for a, b in PAIRS},
        "training_users": {
            str(size): {key: curve([part[key] for part in group], "mse") for key in group[0]}
            for size, group in each_size.items()
        },
    }
    typer.echo(results.write(name, record))


if __name__ == "__main__":
    presets.run(main, steps=10, search_steps=2, people=40)
