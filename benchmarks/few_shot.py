r"""Every learner on the same few-shot tasks with the same budget of CPU time.

Writes ``results/few_shot_<data>.json``, or the record that ``--name`` names. Each training run is kept under
``_build/benchmarks``, so that an interrupted benchmark goes on where it was; ``--fresh`` starts anew.

    python benchmarks/few_shot.py --data glyphs --budget 100 --jobs 2
    METABOOK_DATA=~/data python benchmarks/few_shot.py --data omniglot --background small1+small2 \
        --only NearestNeighbour --only PretrainedNearestMean --only ProtoNet --only MAML
    METABOOK_DATA=~/data python benchmarks/few_shot.py --data omniglot --background small1+small2 --budget 600 \
        --name gradient_family_omniglot --only NearestNeighbour --only PretrainedNearestMean --only MAML \
        --only FOMAML --only MAML++ --only MetaSGD --only ANIL --only Reptile
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import EpisodeSampler, Evaluation, data, evaluate, fit, presets, results, seed_everything
from metabook.learners import FineTune, Learner, NearestNeighbour
from metabook.nets import Conv4
from metabook.recipes import recipe, task_source
from metabook.storage import load, save, write_bytes
from metabook.training import seconds_per_step

WORK = presets.work()
KINDS = {"5w1s": (5, 1), "5w5s": (5, 5), "20w1s": (20, 1)}
LEARNERS = {
    "NearestNeighbour": "Nearest neighbour on pixels",
    "FineTune": "Fine-tuning from scratch",
    "PretrainedNearestMean": "Pre-trained, nearest mean",
    "SimpleShot": "Pre-trained, centred nearest mean",
    "PretrainedLinearProbe": "Pre-trained, linear probe",
    "MatchingNet": "Matching Network",
    "ProtoNet": "Prototypical Network",
    "RelationNet": "Relation Network",
    "MAML": "MAML",
    "FOMAML": "First-order MAML",
    "MAML++": "MAML++ (learned rates, multi-step loss)",
    "MetaSGD": "Meta-SGD",
    "ANIL": "ANIL",
    "Reptile": "Reptile",
}
UNTRAINED = ("NearestNeighbour", "FineTune")
BASELINES = ("NearestNeighbour", "FineTune", "PretrainedNearestMean", "SimpleShot", "PretrainedLinearProbe")
TEST_TASKS = presets.sized(600, 10)
SCRATCH_TASKS = 200  # of each seed: fine-tuning from scratch trains a network a task


def untrained(name: str, ways: int, factor: float = 1.0) -> Learner:
    """A learner that does not meta-train, for tasks of so many ways."""
    if name == "NearestNeighbour":
        return NearestNeighbour()
    return FineTune(Conv4(ways, channels=32, downsample="stride"), inner_lr=0.1 * factor, steps=30)


def trained(
    name: str,
    seed: int,
    dataset: str,
    options: dict[str, str],
    budget: float,
    folder: Path,
    split: str = "train+validation",
    factor: float = 1.0,
) -> tuple[Learner, int, float]:
    """The learner after ``budget`` CPU seconds of meta-training, the steps that these were, and their CPU time.

    ``factor`` multiplies the outer learning rate of its recipe.
    """
    stem = f"{name}-{seed}" if factor == 1.0 else f"{name}-{seed}-{factor:g}"
    file, note = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    if file.exists() and note.exists():
        return load(file), *json.loads(note.read_text())
    seed_everything(seed)
    chosen = recipe("MAML" if name == "FOMAML" else name, dataset)
    settings = {"background": options.get("background"), **chosen.tasks_settings(), "seed": seed}
    source = task_source(dataset, split, **settings, device="cpu")
    classes = len(source.data) if isinstance(source, EpisodeSampler) else 0
    learner = chosen.build(chosen.ways, classes, name == "FOMAML")
    arguments = {**chosen.fit, "tasks": chosen.tasks, "seed": seed}
    arguments["lr"] = factor * arguments.get("lr", 1e-3)
    steps = max(1, round(budget / seconds_per_step(learner, source, **arguments)))
    started = time.process_time()
    fit(learner, source, steps=steps, **arguments, progress=False)
    seconds = time.process_time() - started
    save(learner, file)
    write_bytes(note, json.dumps([steps, seconds]).encode())
    return learner, steps, seconds


def measure(name: str, seed: int, dataset: str, options: dict[str, str], budget: float, folder: Path) -> dict[str, Any]:
    """Train one learner with one seed and score it on every kind of task that it can solve."""
    torch.set_num_threads(1)
    learner, steps, seconds = (
        (None, 0, 0.0) if name in UNTRAINED else trained(name, seed, dataset, options, budget, folder)
    )
    pool, scores = data.load(dataset, "test"), {}
    for kind, (ways, shots) in KINDS.items():
        source = EpisodeSampler(pool, ways, shots, 15, seed=1)
        seed_everything(seed)
        judged = learner or untrained(name, ways)
        if getattr(getattr(judged, "net", None), "outputs", None) not in (None, ways):
            continue  # a head of another number of ways
        result = evaluate(judged, source, tasks=SCRATCH_TASKS if name == "FineTune" else TEST_TASKS)
        scores[kind] = (result.scores[0].tolist(), result.transductive)
    return {"name": name, "seed": seed, "steps": steps, "cpu_seconds": seconds, "scores": scores}


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the record: a learner over its seeds."""
    test: dict[str, Any] = {}
    for kind in KINDS:
        scores = [run["scores"][kind] for run in runs if kind in run["scores"]]
        test[kind] = Evaluation(np.array([s for s, _ in scores]), "accuracy", scores[0][1]).record() if scores else None
    return {
        "learner": name,
        "label": LEARNERS[name],
        "meta": name not in BASELINES,
        "transductive": test["5w1s"]["transductive"],
        "steps": [run["steps"] for run in runs],
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
        "test": test,
    }


def main(
    dataset: Annotated[str, typer.Option("--data")] = "glyphs",
    name: Annotated[str | None, typer.Option(help="Of the record. [default: few_shot_DATA]")] = None,
    background: Annotated[str | None, typer.Option(help="Omniglot's training alphabets.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A learner to measure; give it once for each.")] = None,
    budget: Annotated[float, typer.Option(help="CPU seconds of meta-training a run.")] = 100.0,
    seeds: int = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Train and evaluate every learner, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    options = {} if background is None else {"background": background}
    folder = WORK / f"few_shot_{dataset}_{background}_{budget:g}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    data.load(dataset, "test")  # made once, before the processes need it
    if unknown := set(only or ()) - set(LEARNERS):
        raise typer.BadParameter(f"{', '.join(unknown)}: take some of {', '.join(LEARNERS)}")
    runs: dict[str, list[dict[str, Any]]] = {each: [] for each in LEARNERS if not only or each in only}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        todo = [
            (each, seed) for seed in range(seeds) for each in reversed(runs) if each != "NearestNeighbour" or not seed
        ]
        futures = [pool.submit(measure, each, seed, dataset, options, budget, folder) for each, seed in todo]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            run = future.result()
            runs[run["name"]].append(run)
    settings = {"data": dataset, **options, "test_split": "test", "queries": 15, "threads": 1}
    record = {"measured": measured, "settings": settings, "budget_cpu_seconds": budget, "seeds": list(range(seeds))}
    rows = [row(each, sorted(found, key=lambda run: run["seed"])) for each, found in runs.items()]
    typer.echo(results.write(name or f"few_shot_{dataset}", {**record, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, only=["NearestNeighbour", "ProtoNet", "MAML"], budget=1.0)
