"""Black-box meta-learning at length: learned optimisers, and neural processes.

Writes ``results/learned_optimiser.json``: the loss curves of learned optimisers and of tuned SGD and Adam, within the
horizon of training and beyond it; the error of neural processes and of what is not
meta-learnt against the number of points. Settings are chosen on validation tasks. Each run is kept
under ``_build/benchmarks``, so that an interrupted benchmark goes on where it was; ``--fresh`` starts anew.

    python benchmarks/learned_optimiser.py --jobs 2
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor, nn
from tqdm import tqdm

from metabook import Episodes, batched, data, fit, presets, results, seed_everything
from metabook.episodes import generator_for
from metabook.learners import LearnedOptimiser, NeuralProcess
from metabook.learners.bayes import gaussian_nll
from metabook.learners.black_box import loss_curves
from metabook.nets import MLP
from metabook.storage import write_bytes
from metabook.training import ci95

WORK = presets.work()
HORIZON, LONG = 20, 200  # steps that are unrolled in training, and the most that are taken in the test
VALIDATION, TEST = 2_000_000, 1_000_000  # seeds of the tasks; those of training are 0, 1, 2
VALIDATION_TASKS, TEST_TASKS = presets.sized((100, 200), (4, 8))
WORST = 1e4  # a loss counts at most so much: a diverged run would be all of a mean
RATES = [float(f"{10 ** (e / 4):.3g}") for e in range(-12, 3)]  # 0.001 to 3.16
HAND_DESIGNED: dict[str, list[tuple[dict[str, Any], Callable[..., Any]]]] = {
    "SGD": [(dict(lr=lr), torch.optim.SGD) for lr in RATES],
    "SGD with momentum": [(dict(lr=lr, momentum=m), torch.optim.SGD) for lr in RATES for m in (0.5, 0.9)],
    "Adam": [(dict(lr=lr, betas=(0.9, b)), torch.optim.Adam) for lr in RATES for b in (0.95, 0.999)],
}
CRITERIA = {
    "mean of 20": slice(1, HORIZON + 1),
    "after 20": slice(HORIZON, HORIZON + 1),
    "after 200": slice(LONG, LONG + 1),
}
LEARNED: dict[str, dict[str, Any]] = {
    "trained on 20 steps": {},
    "gradient alone": {"moments": False},
    "trained on 100 steps": {"steps": 100, "truncate": 20},
}
VARIANTS = {  # a long unroll costs five times as much
    "sinusoids": ("trained on 20 steps", "gradient alone"),
    "quadratics": tuple(LEARNED),
}
META_RATES, SEARCH_SEEDS = (3e-3, 1e-2, 3e-2), (10, 11)
TASKS = 16  # of a meta-batch
PROCESSES = {"mean": False, "attention": True}
POINTS = (1, 2, 3, 5, 10)


class SomePoints:
    """Sinusoids of which each meta-batch shows another number of points, 1 to 10."""

    def __init__(self, seed: int = 0) -> None:
        self.curves, self.seed = data.Sinusoids(max(POINTS), 20, seed=seed), seed

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        drawn = torch.randint(1, max(POINTS) + 1, (), generator=generator_for("points", self.seed, step))
        return first_points(self.curves.sample(tasks, step), int(drawn))


def first_points(episodes: Episodes, points: int) -> Episodes:
    x, y = episodes.support_x[:, :points], episodes.support_y[:, :points]
    return replace(episodes, support_x=x, support_y=y)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "sinusoids": (lambda: MLP(1, (20,), 1), lambda seed: data.Sinusoids(50, 50, seed=seed)),
    "quadratics": (lambda: nn.Linear(10, 1), lambda seed: data.Quadratics(seed=seed)),
}


def same_for_all(family: str, net: nn.Module, seed: int, tasks: int, start_seed: int) -> tuple[Any, Episodes]:
    """Starting weights and tasks, the same for every optimiser."""
    with torch.random.fork_rng():
        torch.manual_seed(seed + start_seed)
        start = batched.initialise(net, tasks)
    return start, FAMILIES[family][1](seed).sample(tasks)


def bounded(losses: Tensor) -> np.ndarray:
    return torch.nan_to_num(losses, nan=WORST).clamp(max=WORST).double().numpy()


def grid(family: str, net: nn.Module, steps: int = LONG) -> dict[str, Any]:
    """For each criterion and kind of hand-designed optimiser the setting that is best on the validation tasks."""
    start, episodes = same_for_all(family, net, VALIDATION, VALIDATION_TASKS, 0)
    best: dict[str, Any] = {}
    for kind, settings in HAND_DESIGNED.items():
        curves = [
            bounded(loss_curves(partial(make, **s), net, start, episodes, steps)[1]).mean(1) for s, make in settings
        ]
        for criterion, part in CRITERIA.items():
            if part.start <= steps:
                values = [float(curve[part].mean()) for curve in curves]
                number = int(np.argmin(values))
                best.setdefault(criterion, {})[kind] = {"setting": settings[number][0], "validation": values[number]}
    return best


def learned(family: str, name: str, lr: float, updates: int, seed: int, folder: Path) -> tuple[LearnedOptimiser, float]:
    net, source = FAMILIES[family][0](), FAMILIES[family][1](seed)
    seed_everything(seed)
    settings = {"steps": HORIZON, **LEARNED[name]}
    optimiser = LearnedOptimiser(net, **settings)
    updates = max(1, updates if settings["steps"] == HORIZON else updates // 3)  # long runs cost more
    started = time.process_time()
    checkpoint = folder / f"{family} {name} {lr:g} {updates} {seed}.safetensors"
    arguments = dict(steps=updates, tasks=TASKS, lr=lr, anneal="cosine", clip=1.0, seed=seed, progress=False)
    fit(optimiser, source, **arguments, checkpoint=checkpoint)
    return optimiser, time.process_time() - started


def search(family: str, lr: float, updates: int, seed: int, folder: Path) -> dict[str, Any]:
    """A learned optimiser's own setting, judged on the validation tasks."""
    optimiser, _ = learned(family, "trained on 20 steps", lr, updates, seed, folder)
    start, episodes = same_for_all(family, optimiser.net, VALIDATION, VALIDATION_TASKS, 0)
    curve = bounded(loss_curves(optimiser, optimiser.net, start, episodes, HORIZON)[1]).mean(1)
    return {"family": family, "lr": lr, "seed": seed, "validation": float(curve[1:].mean())}


def baselines(family: str, seeds: int) -> dict[str, Any]:
    """Tuned hand-designed optimisers on the test tasks, from each seed's weights."""
    started, net = time.process_time(), FAMILIES[family][0]()
    best, curves = grid(family, net), {}
    seconds = time.process_time() - started
    for criterion, kinds in best.items():
        for kind, entry in kinds.items():
            optimiser = partial(HAND_DESIGNED[kind][0][1], **entry["setting"])
            beds = (same_for_all(family, net, TEST, TEST_TASKS, seed) for seed in range(seeds))
            each = [torch.stack(loss_curves(optimiser, net, *bed, LONG)) for bed in beds]
            support, query = np.stack([bounded(run) for run in each], 1)  # [seeds, steps + 1, tasks]
            curves[f"{kind}, {criterion}"] = {
                "query": summary(query),
                "support after 20": interval(support[:, HORIZON]),
                "scores": query[:, CRITERIA[criterion]].mean(1).tolist(),
            }
    return {"family": family, "best": best, "cpu_seconds": seconds, "curves": curves}


def train_and_test(family: str, name: str, lr: float, updates: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train one learned optimiser; its curves on the test tasks."""
    optimiser, seconds = learned(family, name, lr, updates, seed, folder)
    net = optimiser.net
    support, query = loss_curves(optimiser, net, *same_for_all(family, net, TEST, TEST_TASKS, seed), LONG)
    run = {"family": family, "name": name, "seed": seed, "cpu_seconds": seconds}
    run |= {"query": bounded(query).tolist(), "support": bounded(support)[HORIZON].tolist()}
    return run


def process(name: str, updates: int, seed: int) -> dict[str, Any]:
    """Train one neural process; its error and likelihood after 1 to 10 points, there and at new points."""
    seed_everything(seed)
    learner = NeuralProcess(attention=PROCESSES[name])
    started = time.process_time()
    fit(learner, SomePoints(seed), steps=updates, tasks=32, lr=3e-3, anneal="cosine", seed=seed, progress=False)
    run: dict[str, Any] = {"name": name, "seed": seed, "cpu_seconds": time.process_time() - started}
    run |= {"parameters": sum(p.numel() for p in learner.parameters())}
    episodes = data.Sinusoids(max(POINTS), 50, seed=TEST).sample(600)
    for points in POINTS:
        shown = first_points(episodes, points)
        with torch.no_grad():
            mean, variance = learner.predictive(shown)
            back = learner.predictive(replace(shown, query_x=shown.support_x, query_y=shown.support_y))[0]
        run[str(points)] = {
            "mse": (mean - shown.query_y).square().mean((1, 2)).tolist(),
            "nll": gaussian_nll(mean, variance, shown.query_y).mean((1, 2)).tolist(),
            "at the points": (back - shown.support_y).square().mean((1, 2)).tolist(),
            "inside": ((mean - shown.query_y).abs() < 1.96 * variance.sqrt()).double().mean((1, 2)).tolist(),
        }
    return run


def scores_of(model: Any, episodes: Episodes) -> list[float]:
    x, y, new, truth = (np.asarray(part) for part in vars(episodes).values() if part is not None)
    return [float(np.mean((model.fit(a, b[:, 0]).predict(c) - d[:, 0]) ** 2)) for a, b, c, d in zip(x, y, new, truth)]


def from_scratch(episodes: Episodes, lr: float, steps: int) -> list[list[float]]:
    """An MLP of the usual size for each task, trained by Adam; losses after 0 to ``steps`` steps."""
    net = MLP()
    torch.manual_seed(0)
    start = batched.initialise(net, len(episodes))
    return bounded(loss_curves(partial(torch.optim.Adam, lr=lr), net, start, episodes, steps)[1])


def no_meta(points: int) -> dict[str, Any]:
    """Regression from the support points alone; the settings of each chosen on validation tasks."""
    judged, test = (
        first_points(data.Sinusoids(max(POINTS), 50, seed=s).sample(n), points)
        for s, n in ((VALIDATION, 60), (TEST, 200))
    )
    ridges = [KernelRidge(kernel="rbf", alpha=a, gamma=g) for a in (1e-3, 1e-2, 1e-1) for g in (0.1, 0.2, 0.5, 1.0)]
    ridge = min(ridges, key=lambda model: np.mean(scores_of(model, judged)))
    neighbours = [KNeighborsRegressor(k) for k in (1, 2, 3) if k <= points]
    neighbour = min(neighbours, key=lambda model: np.mean(scores_of(model, judged)))
    tried = [(lr, from_scratch(judged, lr, 100).mean(1)) for lr in (0.003, 0.01, 0.03)]
    lr, curve = min(tried, key=lambda each: each[1].min())
    stop = max(1, int(curve.argmin()))
    return {
        "points": points,
        "settings": {
            "kernel ridge": {"alpha": ridge.alpha, "gamma": ridge.gamma},
            "nearest neighbours": {"k": neighbour.n_neighbors},
            "from scratch": {"lr": lr, "steps": stop},
        },
        "mse": {
            "kernel ridge": scores_of(ridge, test),
            "nearest neighbours": scores_of(neighbour, test),
            "from scratch": from_scratch(test, lr, stop)[-1].tolist(),
        },
    }


def kept(folder: Path, name: str, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of an earlier run, or of ``work(*arguments)``, which is kept."""
    torch.set_num_threads(1)
    file = folder / f"{name}.json"
    if not file.exists():
        write_bytes(file, json.dumps(work(*arguments)).encode())
    return json.loads(file.read_text())


def interval(scores: Any, digits: int = 5) -> dict[str, float | None]:
    """Mean of ``[seeds, tasks]`` and its 95 % intervals over tasks and over seeds."""
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    over_seeds = ci95(scores.mean(1)) if len(scores) > 1 else None
    values = {"mean": scores.mean(), "ci95": ci95(scores.mean(0)), "seeds_ci95": over_seeds}
    return {name: None if value is None else round(float(value), digits) for name, value in values.items()}


def summary(curves: Any) -> dict[str, Any]:
    """Of loss curves ``[seeds, steps + 1, tasks]``: the figures of the tables, and the curve at some of the steps."""
    curves = np.asarray(curves)
    shown = [*range(HORIZON + 1), *range(HORIZON + 10, LONG + 1, 10)]
    points = [interval(curves[:, step]) for step in shown]
    return {
        **{name: interval(curves[:, part].mean(1)) for name, part in CRITERIA.items()},
        "after 100": interval(curves[:, 100]),
        "median after 200": float(np.median(curves[:, LONG])),
        "worse after 200 than after 20": float((curves[:, LONG] > curves[:, HORIZON]).mean()),
        "curve": {"steps": shown, **{key: [point[key] for point in points] for key in ("mean", "ci95", "seeds_ci95")}},
    }


def grouped(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups.setdefault(run["name"], []).append(run)
    return groups


def column(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """What learned optimisers reach, ``[seeds, tasks]``, by the criterion that ends a rival's ``name``."""
    part = next(part for criterion, part in CRITERIA.items() if name.endswith(criterion))
    return np.array([run["query"] for run in runs])[:, part].mean(1)


def seconds(runs: list[dict[str, Any]]) -> float:
    """CPU seconds of a training run: the most of the seeds, since one that was resumed counts only its last part."""
    return round(max(run["cpu_seconds"] for run in runs), 1)


def main(
    updates: Annotated[int, typer.Option(help="Meta-updates of a learned optimiser, a third for 100 steps.")] = 600,
    process_updates: Annotated[int, typer.Option(help="Updates of a neural process.")] = 1000,
    seeds: int = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Run what has not been run yet, and write the record."""
    measured = results.circumstances()
    folder = WORK / f"learned_optimiser_{updates}_{process_updates}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(jobs: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
            futures = [pool.submit(kept, folder, name, *job) for name, job in jobs.items()]
            return [f.result() for f in tqdm(as_completed(futures), total=len(futures), unit="run")]

        half = max(1, updates // 2)
        tried = run(
            {
                f"search {f} {lr:g} {seed}": (search, f, lr, half, seed, folder)
                for f in FAMILIES for lr in META_RATES for seed in SEARCH_SEEDS
            }
        )  # fmt: skip
        tried.sort(key=lambda row: (row["family"], row["lr"], row["seed"]))

        def judged(family: str, lr: float) -> float:
            return sum(row["validation"] for row in tried if (row["family"], row["lr"]) == (family, lr))

        rate = {f: min(META_RATES, key=partial(judged, f)) for f in FAMILIES}
        optimisers = run(
            {
                f"{f} {name} {rate[f]:g} {seed}": (train_and_test, f, name, rate[f], updates, seed, folder)
                for seed in range(seeds) for f in FAMILIES for name in VARIANTS[f]
            }
        )  # fmt: skip
        tuned = run({f"baselines {f}": (baselines, f, seeds) for f in FAMILIES})
        processes = run({f"process {n} {s}": (process, n, process_updates, s) for s in range(seeds) for n in PROCESSES})
        plain = run({f"no meta {points}": (no_meta, points) for points in POINTS})
    record: dict[str, Any] = {
        "measured": measured,
        "settings": {
            "updates": updates, "tasks": TASKS, "horizon": HORIZON, "steps": LONG, "test_tasks": TEST_TASKS,
            "validation_tasks": VALIDATION_TASKS, "settings_tried": {k: len(v) for k, v in HAND_DESIGNED.items()},
            "process_updates": process_updates, "points": POINTS, "threads": 1,
        },
        "seeds": list(range(seeds)),
        "search": tried,
        "optimisers": {},
    }  # fmt: skip
    for row in sorted(tuned, key=lambda row: list(FAMILIES).index(row["family"])):
        family = row["family"]
        groups = grouped([run for run in optimisers if run["family"] == family])
        record["optimisers"][family] = {
            "meta_rate": rate[family],
            "best": row["best"],
            "grid_cpu_seconds": row["cpu_seconds"],
            "hand-designed": row["curves"],
            "learned minus hand-designed": {
                name: interval(column(groups["trained on 20 steps"], name) - np.array(run.pop("scores")))
                for name, run in row["curves"].items()
            },
            "learned": {
                name: {
                    "cpu_seconds": seconds(each),
                    "query": summary([run["query"] for run in each]),
                    "support after 20": interval([run["support"] for run in each]),
                }
                for name, each in groups.items()
            },
        }
    record["processes"] = {
        name: {
            "cpu_seconds": seconds(each), "parameters": each[0]["parameters"],
            **{what: [interval([run[str(points)][what] for run in each]) for points in POINTS]
               for what in ("mse", "nll", "at the points", "inside")},
        }
        for name, each in grouped(processes).items()
    }  # fmt: skip
    plain.sort(key=lambda row: row["points"])
    record["no_meta"] = {
        name: {
            "mse": [interval(row["mse"][name]) for row in plain],
            "settings": [row["settings"][name] for row in plain],
        }
        for name in plain[0]["mse"]
    }
    typer.echo(results.write("learned_optimiser", record))


if __name__ == "__main__":
    presets.run(main, updates=6, process_updates=6)
