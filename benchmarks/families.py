r"""Every learner of the book on the same tasks with the same CPU time: how good, how sure and how expensive it is.

Writes ``results/families_<data>.json``: scores on every kind of task (or why a learner refuses it), likelihood and
calibration, time and memory of adaptation, and how much adaptation changes each layer. The outer learning rate of every
learner is the best of four on validation tasks. Finished parts are kept under ``_build/benchmarks``, so that an
interrupted benchmark goes on where it was; ``--fresh`` starts anew.

    python benchmarks/families.py --data sinusoids --budget 15 --jobs 2
    python benchmarks/families.py --data glyphs --budget 20 --jobs 2
    METABOOK_DATA=~/data python benchmarks/families.py --data omniglot --background small1+small2 --budget 60 --jobs 2
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import few_shot
import numpy as np
import torch
import typer
from few_shot import WORK, trained
from torch import Tensor, nn
from torch.distributions import Normal
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, Evaluation, batched, data, presets, results, seed_everything
from metabook.calibration import (
    by_points,
    class_nll,
    expected_calibration_error,
    fit_temperature,
    regression_scores,
)
from metabook.learners import ANIL, MAML, FineTune, Learner, NeuralProcess, ProtoNet, TaskGP
from metabook.learners.gradient import GradientLearner
from metabook.memory import peak_bytes
from metabook.nets import MLP
from metabook.recipes import RECIPES, recipe, task_source
from metabook.similarity import layer_similarity
from metabook.storage import write_bytes
from metabook.training import ci95

# What it is called, and its family.
LEARNERS = {
    "NearestNeighbour": ("Nearest neighbour on pixels", "none"),
    "FromScratch": ("Fine-tuning from scratch", "none"),
    "TaskGP": ("GP, kernel fitted to each task", "none"),
    "FixedGP": ("GP, one kernel for all tasks", "none"),
    "FineTune": ("Joint training, then fine-tuning", "none"),
    "PretrainedNearestMean": ("Pre-trained, nearest mean", "none"),
    "SimpleShot": ("Pre-trained, centred nearest mean", "none"),
    "PretrainedLinearProbe": ("Pre-trained, linear probe", "none"),
    "MAML": ("MAML", "gradient"),
    "FOMAML": ("First-order MAML", "gradient"),
    "MAML++": ("MAML++", "gradient"),
    "MetaSGD": ("Meta-SGD", "gradient"),
    "ANIL": ("ANIL", "gradient"),
    "Reptile": ("Reptile", "gradient"),
    "MatchingNet": ("Matching Network", "metric"),
    "ProtoNet": ("Prototypical Network", "metric"),
    "RelationNet": ("Relation Network", "metric"),
    "NeuralProcess": ("Neural process with attention", "black box"),
    "LearnedOptimiser": ("Learned optimiser and start", "black box"),
    "GaussianPrototypes": ("Gaussian prototypes", "Bayesian"),
    "ALPaCA": ("ALPaCA", "Bayesian"),
    "StudentALPaCA": ("ALPaCA, unknown noise", "Bayesian"),
    "DKTLinear": ("Deep kernel transfer, linear", "Bayesian"),
    "DKTRBF": ("Deep kernel transfer, RBF", "Bayesian"),
}
CHARACTERS = {"5w1s": (5, 1), "5w5s": (5, 5), "20w1s": (20, 1), "20w5s": (20, 5)}
CURVES = {"10s": (1, 10), "5s": (1, 5), "20s": (1, 20)}
UNTRAINED = {"sinusoids": ("FromScratch", "TaskGP", "FixedGP"), "glyphs": ("NearestNeighbour", "FromScratch")}
FACTORS = (1 / 3, 1.0, 3.0, 10.0)  # of the recipe's learning rate
KERNELS = tuple(itertools.product((1.0, 1.5, 2.0, 3.0), (2.0, 4.0), (0.03, 0.1, 0.3)))
TEST, VALIDATION = 1, 2  # seeds of the tasks
QUERIES, TIMED = 5, 21
LIMIT = 10.0  # of a point prediction: no curve is larger than 5, and too large a step can end anywhere
SEARCH_SHARE = 1 / 3  # of the budget, for each candidate


def kinds_of(dataset: str) -> dict[str, tuple[int, int]]:
    return CURVES if dataset == "sinusoids" else CHARACTERS


def names_of(dataset: str) -> list[str]:
    known = set(RECIPES[dataset]) | {"FOMAML"} | set(UNTRAINED.get(dataset, UNTRAINED["glyphs"]))
    return [name for name in LEARNERS if name in known]


def untrained(name: str, ways: int, setting: Any = 1.0) -> Learner | None:
    """A learner that does not meta-train, for tasks of so many ways (sinusoids: one); None for the others."""
    if name == "FixedGP":
        return TaskGP(*setting)
    if name == "TaskGP":
        return TaskGP(steps=60)
    if name == "FromScratch" and ways == 1:
        return FineTune(MLP(), inner_lr=0.01 * setting, steps=100)
    known = {"FromScratch": "FineTune", "NearestNeighbour": "NearestNeighbour"}
    return few_shot.untrained(known[name], ways, setting) if name in known else None


def candidates(name: str) -> tuple[Any, ...]:
    """The settings between which validation tasks decide."""
    return {"FixedGP": KERNELS, "TaskGP": (1.0,), "NearestNeighbour": (1.0,)}.get(name, FACTORS)


def source_of(dataset: str, options: dict[str, str], split: str, ways: int, shots: int, queries: int = QUERIES) -> Any:
    if dataset == "sinusoids":
        return data.Sinusoids(shots, 4 * queries, seed=1_000_000 * {"test": TEST, "validation": VALIDATION}[split])
    background = options.get("background")
    drawn = dict(ways=ways, shots=shots, queries=queries, seed=TEST if split == "test" else VALIDATION)
    return task_source(dataset, split, background=background, **drawn, device="cpu")


def embedded(learner: Learner, source: Any) -> tuple[Learner, Any]:
    """With each picture embedded once, for a learner to which no other picture matters for that."""
    part = "embed" if isinstance(learner, NeuralProcess) else "net"
    if learner.transductive or not isinstance(learner, ProtoNet | NeuralProcess) or source.data.x.dim() < 4:
        return learner, source
    light, net = deepcopy(learner), getattr(learner, part)
    setattr(light, part, nn.Identity())
    features = torch.cat([net(x.float() / 255) for x in source.data.x.split(200)])
    pool = replace(source.data, x=features)
    return light, EpisodeSampler(pool, source.ways, source.shots, source.queries, seed=source.seed)


@torch.no_grad()
def answers(learner: Learner, source: Any, tasks: int) -> tuple[Tensor, Episodes]:
    """The learner's outputs for ``tasks`` tasks, and these."""
    episodes = source.sample(tasks)
    return torch.cat([learner.predict(part) for part in episodes.split(20)]).detach(), episodes


def class_scores(learner: Learner, dataset: str, options: dict[str, str], kind: str, tasks: int) -> dict[str, Any]:
    """Accuracy and negative log-likelihood of each test task, and calibration, as they are and with a temperature."""
    ways, shots = kinds_of(dataset)[kind]
    logits, labels = [], []
    for split, number in (("validation", max(20, tasks // 3)), ("test", tasks)):
        outputs, episodes = answers(*embedded(learner, source_of(dataset, options, split, ways, shots)), number)
        logits.append(outputs.double())
        labels.append(episodes.query_y)
    temperature = min(fit_temperature(logits[0], labels[0]), 1e6)
    found: dict[str, Any] = {"score": (logits[1].argmax(2) == labels[1]).double().mean(1).tolist()}
    for suffix, scaled in (("", logits[1]), ("_scaled", logits[1] / temperature)):
        found[f"nll{suffix}"] = class_nll(scaled, labels[1]).mean(1).clamp(max=1e6).tolist()
        found[f"ece{suffix}"] = expected_calibration_error(scaled.softmax(2), labels[1]).ece
    return found


def curve_scores(learner: Learner, kind: str, tasks: int) -> dict[str, Any]:
    """Squared error, likelihood and intervals of each test task.

    A learner that predicts values alone is given a normal distribution around them, as wide as its errors on
    validation tasks are.
    """
    _, shots = CURVES[kind]
    episodes = source_of("sinusoids", {}, "test", 1, shots).sample(tasks)
    knows = hasattr(learner, "distribution") or hasattr(learner, "predictive")
    if knows:
        distribution = by_points(learner, episodes, [shots])[shots]
    else:
        other, known = answers(learner, source_of("sinusoids", {}, "validation", 1, shots), max(20, tasks // 3))
        mean = torch.cat([answers(learner, _Given(part), len(part))[0] for part in episodes.split(20)])
        other, mean = (each.nan_to_num(LIMIT, LIMIT, -LIMIT).clamp(-LIMIT, LIMIT) for each in (other, mean))
        error = (other - known.query_y).square().mean().sqrt().clamp_min(1e-3)
        distribution = Normal(mean, error.expand_as(mean))
    found = {name: each.tolist() for name, each in regression_scores(distribution, episodes.query_y).items()}
    return {"score": found.pop("mse"), **found, "own_distribution": knows}


class _Given:
    """A source of these very tasks."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        return self.episodes


def scores(learner: Learner, dataset: str, options: dict[str, str], kind: str, tasks: int) -> dict[str, Any]:
    tasks = tasks // 2 if kind.startswith("20w") else tasks
    if dataset == "sinusoids":
        return curve_scores(learner, kind, tasks)
    return class_scores(learner, dataset, options, kind, tasks)


def cost(learner: Learner, name: str, dataset: str, options: dict[str, str]) -> dict[str, float]:
    """Of adapting to one task and answering one query a class, and of a meta-training update: CPU time and memory."""
    ways, shots = next(iter(kinds_of(dataset).values()))
    source = source_of(dataset, options, "test", ways, shots, queries=1)
    source = data.Sinusoids(shots, 1) if dataset == "sinusoids" else source
    times = []
    with torch.no_grad():
        for step in range(TIMED + 2):
            task = source.sample(1, step)
            started = time.process_time()
            learner.predict(task)
            times.append(1000 * (time.process_time() - started))
        memory = peak_bytes(lambda: learner.predict(task)) / 2**20
    found = {"adapt_ms": statistics.median(times[2:]), "adapt_mib": memory}
    found["parameters"] = float(sum(p.numel() for p in learner.parameters()))
    if untrained(name, ways, candidates(name)[0]) is None:
        chosen = recipe("MAML" if name == "FOMAML" else name, dataset)
        settings = {"background": options.get("background"), **chosen.tasks_settings(), "seed": 0}
        batch = task_source(dataset, "train", **settings, device="cpu").sample(chosen.tasks)
        copy = deepcopy(learner).train()
        found["update_mib"] = peak_bytes(lambda: copy.accumulate_gradients(batch)) / 2**20
    return found


def inside(learner: Learner, dataset: str, options: dict[str, str]) -> dict[str, Any]:
    """How alike each layer's features are before and after adaptation, and those of unrelated weights; per task.

    For plain MAML also the score of its weights when only the head adapts.
    """
    if not isinstance(learner, GradientLearner):
        return {}
    ways, shots = next(iter(kinds_of(dataset).values()))
    episodes = source_of(dataset, options, "test", ways, shots, queries=15).sample(10, 10_000)
    before = batched.expand(learner.net, len(episodes))
    with torch.no_grad():
        after = learner.adapt(episodes, getattr(learner, "eval_steps", None) or learner.steps)
        random = batched.initialise(learner.net, len(episodes))
    found: dict[str, Any] = {}
    for what, other in (("similarity", after), ("unrelated", random)):
        each = layer_similarity(learner.net, before, other, episodes.query_x)
        found[what] = {name: value.nan_to_num(1.0).tolist() for name, value in each.items()}
    if type(learner) is MAML and not learner.learn_rates:
        frozen = ANIL(learner.net, learner.inner_lr, learner.steps, eval_steps=learner.eval_steps).eval()
        found["head_only"] = scores(frozen, dataset, options, next(iter(kinds_of(dataset))), 100)["score"]
    return found


def search(name: str, dataset: str, options: dict[str, str], budget: float, folder: Path) -> dict[str, Any]:
    """The candidates, best first, by their score on validation tasks of the first kind after a part of the budget."""
    torch.set_num_threads(1)
    file = folder / f"{name}-search.json"
    if file.exists():
        return json.loads(file.read_text())
    ways, shots = next(iter(kinds_of(dataset).values()))
    found = []
    for setting in candidates(name) if len(candidates(name)) > 1 else ():
        seed_everything(100)
        learner = untrained(name, ways, setting)
        if learner is None:
            share = SEARCH_SHARE * budget
            try:
                learner, _, _ = trained(name, 100, dataset, options, share, folder / "search", "train", setting)
            except FloatingPointError:  # the rate is too large
                found.append(float("inf"))
                continue
        source = source_of(dataset, options, "validation", ways, shots)
        outputs, episodes = answers(*embedded(learner, source) if ways > 1 else (learner, source), 60)
        if ways > 1:
            found.append(1 - float((outputs.argmax(2) == episodes.query_y).double().mean()))
        else:
            outputs = outputs.nan_to_num(LIMIT, LIMIT, -LIMIT).clamp(-LIMIT, LIMIT)
            found.append(float((outputs - episodes.query_y).square().mean()))
    order = [candidates(name)[place] for place in np.argsort(found, kind="stable")] if found else list(candidates(name))
    chosen = {"order": order, "validation": [None if error == float("inf") else error for error in found]}
    write_bytes(file, json.dumps(chosen).encode())
    return chosen


def survived(
    name: str, seed: int, dataset: str, options: dict[str, str], budget: float, order: list[Any], folder: Path
) -> tuple[Any, Learner, int, float]:
    """The learner trained with the best setting, before it that setting; where it diverges, with the next best."""
    for setting in order:
        try:
            return setting, *trained(name, seed, dataset, options, budget, folder, "train", setting)
        except FloatingPointError:  # the search was too short to see it
            continue
    raise FloatingPointError(f"{name}, seed {seed}, diverges with every setting")


def measure(
    name: str,
    seed: int,
    dataset: str,
    options: dict[str, str],
    budget: float,
    tasks: int,
    order: list[Any],
    folder: Path,
) -> dict[str, Any]:
    """Train one learner with one seed, and measure everything."""
    torch.set_num_threads(1)
    file = folder / f"{name}-{seed}-measured.json"
    if file.exists():
        return json.loads(file.read_text())
    kinds = kinds_of(dataset)
    run: dict[str, Any] = {"name": name, "seed": seed, "steps": 0, "cpu_seconds": 0.0, "kinds": {}, "refused": {}}
    meta, setting = untrained(name, 5, order[0]) is None, order[0]
    if meta:
        setting, learner, run["steps"], run["cpu_seconds"] = survived(
            name, seed, dataset, options, budget, order, folder
        )
    run["setting"] = setting
    for kind, (ways, _) in kinds.items():
        seed_everything(seed)
        judged = (learner if meta else untrained(name, ways, setting)).eval()
        try:
            run["kinds"][kind] = scores(judged, dataset, options, kind, tasks)
        except ValueError as why:  # a head of another number of ways: the learner says so
            run["refused"][kind] = str(why)
    seed_everything(seed)
    judged = (learner if meta else untrained(name, next(iter(kinds.values()))[0], setting)).eval()
    run |= {"cost": cost(judged, name, dataset, options), "transductive": judged.transductive}
    run["inside"] = inside(judged, dataset, options)
    write_bytes(file, json.dumps(run).encode())
    return run


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean of ``values [seeds, tasks]`` or ``[seeds]``, and the larger of the intervals over tasks and over seeds."""
    means = values if values.ndim == 1 else values.mean(1)
    halves = [ci95(means)] if len(means) > 1 else []
    halves += [ci95(values.mean(0))] if values.ndim == 2 else []
    return {"mean": float(means.mean()), "ci95": float(max(halves)) if halves else None}


def row(name: str, runs: list[dict[str, Any]], dataset: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """One row of the record: a learner over its seeds."""
    label, family = LEARNERS[name]
    test: dict[str, Any] = {}
    for kind in kinds_of(dataset):
        found = [run["kinds"][kind] for run in runs if kind in run["kinds"]]
        test[kind] = None
        if found:
            metric = "mse" if dataset == "sinusoids" else "accuracy"
            score = Evaluation(np.array([each["score"] for each in found]), metric, runs[0]["transductive"]).record()
            score |= {"ci95_larger": max(score["ci95"], score["seeds_ci95"] or 0.0)}
            others = [key for key in found[0] if key not in ("score", "own_distribution")]
            test[kind] = score | {key: summary(np.array([each[key] for each in found])) for key in others}
            test[kind] |= {key: found[0][key] for key in found[0] if key == "own_distribution"}
    within = {
        what: {layer: summary(np.array([run["inside"][what][layer] for run in runs])) for layer in values}
        for what, values in runs[0]["inside"].items()
        if what != "head_only"
    }
    if "head_only" in runs[0]["inside"]:
        within["head_only"] = summary(np.array([run["inside"]["head_only"] for run in runs]))
    return {
        "learner": name,
        "label": label,
        "family": family,
        "transductive": runs[0]["transductive"],
        "setting": [run["setting"] for run in runs],
        "diverged": sum(run["setting"] != chosen["order"][0] for run in runs),
        "validation": chosen["validation"],
        "steps": [run["steps"] for run in runs],
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
        "cost": {key: float(np.median([run["cost"][key] for run in runs])) for key in runs[0]["cost"]},
        "test": test,
        "refused": runs[0]["refused"],
        "inside": within,
    }


def compare(rows: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]], dataset: str) -> None:
    """Add to each score how far it is behind the best of its kind, on the same tasks: positive is worse."""
    worse = 1 if dataset == "sinusoids" else -1
    for kind in kinds_of(dataset):
        able = [each for each in rows if each["test"][kind]]
        best = min(able, key=lambda each: worse * each["test"][kind]["mean"])
        top = np.array([run["kinds"][kind]["score"] for run in runs[best["learner"]]])
        for each in able:
            mine = np.array([run["kinds"][kind]["score"] for run in runs[each["learner"]]])
            gap = worse * (mine - top)  # a single run is compared with all seeds of the other
            each["test"][kind]["behind"] = {"best": best["learner"], **summary(gap)}


def main(
    dataset: Annotated[str, typer.Option("--data", help="sinusoids, glyphs or omniglot.")] = "glyphs",
    background: Annotated[str | None, typer.Option(help="Omniglot's training alphabets.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A learner to measure; give it once for each.")] = None,
    budget: Annotated[float, typer.Option(help="CPU seconds of meta-training a run.")] = 30.0,
    seeds: int = 3,
    tasks: Annotated[int, typer.Option(min=40, help="Test tasks of each kind; half as many with 20 ways.")] = 200,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    name: Annotated[str | None, typer.Option(help="Of the record. [default: families_DATA]")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Search, train and measure, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    if dataset not in RECIPES:
        raise typer.BadParameter(f"{dataset}: take {', '.join(RECIPES)}")
    options = {} if background is None else {"background": background}
    folder = WORK / f"families_{dataset}_{background}_{budget:g}_{tasks}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if dataset != "sinusoids":
        data.load(dataset, "test")  # made once, before the processes need it
    if unknown := set(only or ()) - set(names_of(dataset)):
        raise typer.BadParameter(f"{', '.join(unknown)}: take some of {', '.join(names_of(dataset))}")
    names = [each for each in names_of(dataset) if not only or each in only]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        searches = {each: pool.submit(search, each, dataset, options, budget, folder) for each in names}
        bar = tqdm(as_completed(searches.values()), total=len(names), unit="search")
        for future in bar:
            future.result()
        chosen = {each: future.result() for each, future in searches.items()}
        once = {"NearestNeighbour", "TaskGP", "FixedGP"}  # nothing in them is random
        futures = [
            pool.submit(measure, each, seed, dataset, options, budget, tasks, chosen[each]["order"], folder)
            for seed in range(seeds)
            for each in names
            if not seed or each not in once
        ]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            future.result()
    runs: dict[str, list[dict[str, Any]]] = {each: [] for each in names}
    for future in futures:
        runs[future.result()["name"]].append(future.result())
    rows = [row(each, runs[each], dataset, chosen[each]) for each in names]
    compare(rows, runs, dataset)
    drawn = dict(test_tasks=tasks, queries=4 * QUERIES if dataset == "sinusoids" else QUERIES, threads=1)
    settings = {"data": dataset, **options, "train_split": "train", "factors": FACTORS, **drawn}
    record = {"measured": measured, "settings": settings, "budget_cpu_seconds": budget, "seeds": list(range(seeds))}
    typer.echo(results.write(name or f"families_{dataset}", {**record, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, dataset="sinusoids", only=["FromScratch", "MAML", "ALPaCA"], budget=0.3, tasks=40)
