"""Bayesian learners and their calibration: sinusoids with and without noise, and glyphs.

Writes ``results/bayesian.json``. Learning rates, fixed kernels and temperatures are chosen on validation tasks.

    python benchmarks/bayesian.py --jobs 2
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, data, fit, presets, results, seed_everything
from metabook.calibration import (
    by_points,
    class_nll,
    expected_calibration_error,
    fit_temperature,
    regression_scores,
)
from metabook.data import Sinusoids
from metabook.episodes import generator_for
from metabook.learners import (
    MAML,
    ALPaCA,
    DeepKernelTransfer,
    GaussianPrototypes,
    Learner,
    NeuralProcess,
    ProtoNet,
    StudentALPaCA,
    TaskGP,
)
from metabook.nets import MLP, Conv4
from metabook.training import ci95

NOISE, POINTS, QUERIES = 0.3, tuple(range(11)), 20
FEATURES = 16
VALIDATION, TEST = 2_000_000, 1_000_000  # seeds of the tasks
TASKS, RATES, SEARCH_STEPS = 16, (3e-3, 1e-2), presets.sized(400, 4)
CLASS_STEPS, CLASS_TASKS, WAYS = presets.sized(200, 2), 4, 5
CLASS_TEST_TASKS = 200
LIMIT = 10.0  # of a point prediction: from few points MAML can diverge, and no curve is larger than 5


class AnyNumber:
    """Tasks whose support set is cut to a random number of points, the same for all tasks of a step."""

    def __init__(self, source: Sinusoids) -> None:
        self.source = source

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        episodes = self.source.sample(tasks, step)
        generator = generator_for("number of points", self.source.seed, step)
        n = int(torch.randint(1, self.source.shots + 1, (), generator=generator))
        return replace(episodes, support_x=episodes.support_x[:, :n], support_y=episodes.support_y[:, :n])


def body() -> MLP:
    return MLP(1, (40, 40), FEATURES)


def untrained(precision: float = 0.1, noise: float = NOISE) -> ALPaCA:
    """Bayesian linear regression on the features of a random net."""
    learner = ALPaCA(body(), FEATURES, noise=noise).requires_grad_(False)
    learner.log_diagonal.fill_(0.5 * np.log(precision))
    return learner


# What it is called, how it is made, what it trains on (points of a task to condition on and to be judged by).
LEARNERS: dict[str, tuple[str, Callable[[], Learner], tuple[int, int]]] = {
    "ALPaCA": ("ALPaCA", lambda: ALPaCA(body(), FEATURES, noise=0.3), (10, 10)),
    "StudentALPaCA": ("ALPaCA, unknown noise", lambda: StudentALPaCA(body(), FEATURES, noise=0.3), (10, 10)),
    # All points of a task count in the marginal likelihood: ten, so that it is trained for no more than are tested.
    "DKTLinear": ("Deep kernel transfer, linear", lambda: DeepKernelTransfer(body(), 0.3, "linear"), (5, 5)),
    "DKTRBF": ("Deep kernel transfer, RBF", lambda: DeepKernelTransfer(body(), 0.3, "rbf"), (5, 5)),
    "NeuralProcess": ("Neural process", lambda: NeuralProcess(), (10, 10)),
    "NeuralProcess10": ("Neural process, always 10 points", lambda: NeuralProcess(), (10, 10)),
    "MAML": ("MAML", lambda: MAML(MLP(), 0.01, 1, eval_steps=10), (10, 10)),
}
NOISE_FREE = ("ALPaCA", "StudentALPaCA", "DKTLinear", "DKTRBF", "NeuralProcess")


class Beyond(Sinusoids):
    """The queries lie where no training point was."""

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        episodes, (amplitude, phase) = super().sample(tasks, step), self.function(tasks, step)
        x = 5 + 0.3 * (episodes.query_x + 5)  # from [-5, 5] to [5, 8]
        clean = amplitude.view(-1, 1, 1) * torch.sin(episodes.query_x - phase.view(-1, 1, 1))
        y = episodes.query_y - clean + amplitude.view(-1, 1, 1) * torch.sin(x - phase.view(-1, 1, 1))
        return replace(episodes, query_x=x, query_y=y)


def train(name: str, seed: int, noise: float, steps: int, lr: float) -> Learner:
    seed_everything(seed)
    _, build, (shots, queries) = LEARNERS[name]
    source: Any = Sinusoids(shots, queries, seed=seed, noise=noise)
    learner = build()
    fit(
        learner,
        AnyNumber(source) if name == "NeuralProcess" else source,
        steps=steps,
        tasks=TASKS,
        lr=lr,
        anneal="cosine",
        progress=False,
    )
    return learner


def tasks_of(noise: float, tasks: int, seed: int = TEST, kind: type[Sinusoids] = Sinusoids) -> Episodes:
    return kind(max(POINTS), QUERIES, seed=seed, noise=noise).sample(tasks)


def points_of(learner: Learner) -> tuple[int, ...]:
    return POINTS[1:] if isinstance(learner, NeuralProcess) else POINTS


def judge(learner: Learner, noise: float, tasks: int) -> dict[str, Any]:
    """Scores of each test task after each number of points; with all of them, also where something is different."""
    episodes = tasks_of(noise, tasks)
    found = {
        "points": {
            str(n): regression_scores(d, episodes.query_y)
            for n, d in by_points(learner, episodes, points_of(learner)).items()
        }
    }
    if noise:
        shifted = {
            "beyond": tasks_of(noise, tasks, kind=Beyond),
            "little_noise": tasks_of(noise / 3, tasks),
            "much_noise": tasks_of(2 * noise, tasks),
        }
        for name, other in shifted.items():
            found[name] = regression_scores(by_points(learner, other, [max(POINTS)])[max(POINTS)], other.query_y)
    return found


def maml_predictions(learner: Learner, episodes: Episodes) -> Tensor:
    """After 0, 1, ..., all points and ten steps, within the limit: [points + 1, tasks, queries, 1]."""
    assert isinstance(learner, MAML)
    answers = [learner.trajectory(episodes, 0)[0]]
    for n in POINTS[1:]:
        fewer = replace(episodes, support_x=episodes.support_x[:, :n], support_y=episodes.support_y[:, :n])
        answers.append(learner.predict(fewer).detach())
    return torch.stack(answers).nan_to_num(LIMIT, LIMIT, -LIMIT).clamp(-LIMIT, LIMIT)


def search(name: str) -> dict[str, Any]:
    """The learning rate, on validation tasks, by the mean negative log-likelihood (MAML: the squared error)."""
    torch.set_num_threads(1)
    episodes, scores = tasks_of(NOISE, 100, VALIDATION), {}
    for lr in RATES:
        learner = train(name, 100, NOISE, SEARCH_STEPS, lr)
        if name == "MAML":
            scores[lr] = float((maml_predictions(learner, episodes) - episodes.query_y).square().mean())
        else:
            found = by_points(learner, episodes, points_of(learner)).values()
            scores[lr] = float(np.mean([regression_scores(d, episodes.query_y)["nll"].mean() for d in found]))
    return {"name": name, "scores": scores, "best": min(scores, key=scores.__getitem__)}


def search_fixed() -> dict[str, Any]:
    """Of the baselines without meta-training: the kernel, and the prior, that are best on validation tasks."""
    torch.set_num_threads(1)
    episodes = tasks_of(NOISE, 100, VALIDATION)
    seed_everything(100)
    grids: dict[str, dict[tuple[float, ...], Learner]] = {
        "FixedGP": {
            each: TaskGP(*each) for each in itertools.product((1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0), (0.2, 0.3, 0.5))
        },
        "RandomFeatures": {
            each: untrained(*each) for each in itertools.product((1e-5, 1e-4, 1e-3, 1e-2), (0.3, 0.5, 0.8, 1.2))
        },
    }
    chosen = {}
    for name, grid in grids.items():
        scores = {}
        for each, learner in grid.items():
            found = by_points(learner, episodes, (1, 3, 6, 10)).values()
            scores[each] = float(np.mean([regression_scores(d, episodes.query_y)["nll"].mean() for d in found]))
        chosen[name] = list(min(scores, key=scores.__getitem__))
    return chosen


def measure(name: str, seed: int, noise: float, steps: int, lr: float, tasks: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    started = time.process_time()
    learner = train(name, seed, noise, steps, lr)
    run = {"name": name, "seed": seed, "noise": noise, "cpu_seconds": time.process_time() - started}
    if name == "MAML":
        return run | {"predictions": maml_predictions(learner, tasks_of(noise, tasks)).numpy()}
    return run | {"scores": judge(learner, noise, tasks)}


def measure_fixed(name: str, seed: int, setting: list[float], tasks: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    seed_everything(seed)
    learner = {"FixedGP": TaskGP, "RandomFeatures": untrained, "TaskGP": lambda: TaskGP(steps=60)}[name](*setting)
    return {"name": name, "seed": seed, "noise": NOISE, "cpu_seconds": 0.0, "scores": judge(learner, NOISE, tasks)}


def measure_classes(name: str, shots: int, seed: int, tasks: int) -> dict[str, Any]:
    """Train on glyphs with so many shots; accuracy, likelihood and calibration with one and five."""
    torch.set_num_threads(1)
    seed_everything(seed)
    net = Conv4(channels=FEATURES, norm="running")
    learner = GaussianPrototypes(net, FEATURES) if name == "GaussianPrototypes" else ProtoNet(net)
    source = EpisodeSampler(data.load("glyphs", "train"), WAYS, shots, 5, seed=seed)
    started = time.process_time()
    fit(learner, source, steps=CLASS_STEPS, tasks=CLASS_TASKS, lr=3e-3, anneal="cosine", progress=False)
    run = {"name": name, "shots": shots, "seed": seed, "cpu_seconds": time.process_time() - started, "scores": {}}
    for tested in (1, 5):
        logits, labels = zip(
            *(answers(learner, split, tested, n) for split, n in (("validation", 100), ("test", tasks)))
        )
        temperature = fit_temperature(logits[0], labels[0])
        scores = {"accuracy": (logits[1].argmax(-1) == labels[1]).double().mean(1).numpy(), "temperature": temperature}
        for kind, scaled in (("", logits[1]), ("_scaled", logits[1] / temperature)):
            scores[f"nll{kind}"] = class_nll(scaled, labels[1]).double().mean(1).numpy()
            scores[f"ece{kind}"] = expected_calibration_error(scaled.softmax(-1), labels[1]).ece
        run["scores"][str(tested)] = scores
    return run


@torch.no_grad()
def answers(learner: Learner, split: str, shots: int, tasks: int) -> tuple[Tensor, Tensor]:
    episodes = EpisodeSampler(data.load("glyphs", split), WAYS, shots, 10, seed=TEST).sample(tasks)
    return torch.cat([learner.predict(part) for part in episodes.split(20)]), episodes.query_y


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Mean of ``scores [seeds, tasks]`` or ``[seeds]``, and the larger of the intervals over tasks and over seeds."""
    means = scores if scores.ndim == 1 else scores.mean(1)
    widths = [ci95(means)] if scores.ndim == 1 or np.ptp(means) else []
    widths += [ci95(scores.mean(0))] if scores.ndim == 2 else []
    return {"mean": float(means.mean()), "ci95": float(max(widths)), "seed_means": means.tolist()}


def gather(parts: list[Any]) -> Any:
    """The same tree with the arrays, or numbers, of all seeds summarised."""
    if isinstance(parts[0], dict):
        return {key: gather([part[key] for part in parts]) for key in parts[0]}
    return summary(np.array(parts))


def finite(tree: Any) -> Any:
    """The same tree with None for every number that JSON cannot hold: one bad score must not cost the whole run."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def point_rows(runs: list[dict[str, Any]], tasks: int) -> list[dict[str, Any]]:
    """MAML's squared error; and the normal distribution that its seeds and the true noise make together."""
    y, predictions = tasks_of(NOISE, tasks).query_y, torch.stack([torch.as_tensor(run["predictions"]) for run in runs])
    errors = (predictions - y).square().flatten(3).mean(3)  # [seeds, points + 1, tasks]
    single = {str(n): {"mse": summary(errors[:, n].double().numpy())} for n in POINTS}
    spread = (predictions.var(0) + NOISE**2).sqrt()
    together = {str(n): gather([regression_scores(Normal(predictions.mean(0)[n], spread[n]), y)]) for n in POINTS}
    return [{"points": single}, {"points": together}]


def main(
    steps: int = 1200,
    seeds: int = 3,
    tasks: int = 300,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
) -> None:
    """Search, train and evaluate, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    fixed = {"TaskGP": "GP, kernel fitted to each task", "FixedGP": "GP, one kernel chosen by hand"}
    fixed["RandomFeatures"] = "Bayesian regression, random features"
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        by_hand = pool.submit(search_fixed)
        searched = {each["name"]: each for each in pool.map(search, LEARNERS)}
        chosen = {"TaskGP": [], **by_hand.result()}
        typer.echo(f"{chosen} {[(name, each['best']) for name, each in searched.items()]}")
        futures = [
            pool.submit(measure, name, seed, noise, steps, searched[name]["best"], tasks)
            for seed in range(seeds)
            for noise in (NOISE, 0.0)
            for name in (LEARNERS if noise else NOISE_FREE)
        ]
        futures += [
            pool.submit(measure_fixed, name, seed, chosen[name], tasks)
            for name in fixed
            for seed in (range(seeds) if name == "RandomFeatures" else [0])
        ]
        futures += [
            pool.submit(measure_classes, name, shots, seed, min(tasks, CLASS_TEST_TASKS))
            for name in ("ProtoNet", "GaussianPrototypes")
            for shots in (1, 5)
            for seed in range(seeds)
        ]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            future.result()
        runs = [future.result() for future in futures]
    rows, classes = [], []
    for noise, names in ((NOISE, [*LEARNERS, *fixed]), (0.0, NOISE_FREE)):
        for name in names:
            mine = [run for run in runs if run["name"] == name and run.get("noise") == noise]
            row = {
                "learner": name,
                "label": fixed.get(name) or LEARNERS[name][0],
                "noise": noise,
                "meta": name in LEARNERS,
            }
            row |= {"cpu_seconds": float(np.mean([run["cpu_seconds"] for run in mine])), "seeds": len(mine)}
            if name == "MAML":
                alone, together = point_rows(mine, tasks)
                rows.append(row | alone)
                rows.append(row | {"learner": "MAMLEnsemble", "label": f"MAML, ensemble of {seeds}"} | together)
            else:
                rows.append(row | gather([run["scores"] for run in mine]))
    for name, shots in itertools.product(("ProtoNet", "GaussianPrototypes"), (1, 5)):
        mine = [run for run in runs if run["name"] == name and run.get("shots") == shots]
        row = {"learner": name, "trained_shots": shots, "cpu_seconds": float(np.mean([r["cpu_seconds"] for r in mine]))}
        classes.append(row | {"tested": gather([run["scores"] for run in mine])})
    settings_used = {
        "steps": steps,
        "tasks": TASKS,
        "features": FEATURES,
        "noise": NOISE,
        "anneal": "cosine",
        "rates": list(RATES),
        "search_steps": SEARCH_STEPS,
        "test_tasks": tasks,
        "queries": QUERIES,
        "limit": LIMIT,
        "threads": 1,
        "class_steps": CLASS_STEPS,
        "class_tasks": CLASS_TASKS,
        "class_test_tasks": CLASS_TEST_TASKS,
        "ways": WAYS,
    }
    rates = {name: {"lr": each["best"], "validation": list(each["scores"].values())} for name, each in searched.items()}
    record = {
        "measured": measured,
        "settings": settings_used,
        "seeds": list(range(seeds)),
        "searched": {**rates, **chosen},
        "rows": rows,
        "classes": classes,
    }
    typer.echo(results.write("bayesian", finite(record)))


if __name__ == "__main__":
    presets.run(main, steps=4, seeds=2, tasks=8)
