r"""Every learner on the same few-shot tasks with the same budget of CPU time.

Writes ``results/few_shot_<data>.json``, or the record that ``--name`` names. Each training run and its scores are kept
under ``_build/benchmarks``, so that an interrupted benchmark goes on where it was; ``--fresh`` starts anew.

Where learners need different times, a record is made in parts: ``--add`` keeps those of its rows that are not measured
now. Each row says how long it had, with how many seeds, and when it was measured.

    python benchmarks/few_shot.py --data glyphs --budget 100 --jobs 2
    METABOOK_DATA=~/data python benchmarks/few_shot.py --data omniglot --background small1+small2 \
        --only NearestNeighbour --only PretrainedNearestMean --only ProtoNet --only MAML
    METABOOK_DATA=~/data python benchmarks/few_shot.py --data omniglot --background small1+small2 --budget 600 \
        --name gradient_family_omniglot --only NearestNeighbour --only PretrainedNearestMean --only MAML \
        --only FOMAML --only MAML++ --only MetaSGD --only ANIL --only Reptile
    METABOOK_DATA=~/data python benchmarks/few_shot.py --data omniglot --background small1+small2 --budget 720 \
        --name omniglot_long --add --alone 100 --only "MAML (long)"
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import EpisodeSampler, Evaluation, LabelledData, data, evaluate, fit, presets, results, seed_everything
from metabook.learners import FineTune, Learner, NearestNeighbour, PretrainedNearestMean, ProtoNet
from metabook.nets import Conv4
from metabook.recipes import recipe, task_source
from metabook.storage import load, save, write_bytes
from metabook.training import seconds_per_step

WORK = presets.work()
KINDS = {"5w1s": (5, 1), "5w5s": (5, 5), "20w1s": (20, 1), "20w5s": (20, 5)}
#: By name; in brackets the name of a recipe that is not the usual one (:data:`metabook.recipes.NAMED`).
LEARNERS = {
    "NearestNeighbour": "Nearest neighbour on pixels",
    "FineTune": "Fine-tuning from scratch",
    "PretrainedNearestMean": "Pre-trained, nearest mean",
    "SimpleShot": "Pre-trained, centred nearest mean",
    "PretrainedLinearProbe": "Pre-trained, linear probe",
    "MatchingNet": "Matching Network",
    "ProtoNet": "Prototypical Network",
    "ProtoNet (few-alphabets)": "Prototypical Network, few alphabets",
    "RelationNet": "Relation Network",
    "RelationNet (published)": "Relation Network, published protocol",
    "MAML": "MAML",
    "MAML (long)": "MAML, long",
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
PAIRED_TASKS = 60  # of 20 ways: a Relation Network looks at thousands of pairs a task


def named(name: str) -> tuple[str, str | None]:
    """The learner and the recipe that a name of :data:`LEARNERS` stands for; None is the usual recipe."""
    learner, _, chosen = name.removesuffix(")").partition(" (")
    return learner, chosen or None


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
    learner_name, recipe_name = named(name)
    chosen = recipe("MAML" if name == "FOMAML" else learner_name, dataset, recipe_name)
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


def embedded(learner: Learner, pool: LabelledData) -> tuple[Learner, LabelledData]:
    """The same answers from pictures that are embedded once, where no other picture matters for an embedding."""
    if type(learner) not in (ProtoNet, PretrainedNearestMean) or learner.transductive:
        return learner, pool
    with torch.no_grad():
        parts = [learner.eval().embed(x.unsqueeze(0).float() / 255)[0] for x in pool.x.split(500)]
    return ProtoNet(torch.nn.Identity()), replace(pool, x=torch.cat(parts))


def serves(learner: Learner, name: str, dataset: str, ways: int, shots: int) -> bool:
    """Whether a learner can, and a published protocol should, be judged by such tasks."""
    if getattr(getattr(learner, "net", None), "outputs", None) not in (None, ways):
        return False  # a head of another number of ways
    learner_name, recipe_name = named(name)
    if recipe_name != "published":
        return True
    protocol = recipe(learner_name, dataset, recipe_name)  # which trains a network for each kind of tasks
    return (protocol.ways, protocol.shots) == (ways, shots)


def measure(
    name: str, seed: int, dataset: str, options: dict[str, str], budget: float, folder: Path, alone: int = 0
) -> dict[str, Any]:
    """Train one learner with one seed and score it on every kind of task that it can solve."""
    torch.set_num_threads(1)
    learner, steps, seconds = (
        (None, 0, 0.0) if name in UNTRAINED else trained(name, seed, dataset, options, budget, folder)
    )
    whole = data.load(dataset, "test")
    light, pool = embedded(learner, whole) if learner else (None, whole)
    scores: dict[str, dict[str, Any]] = {"test": {}, "alone": {}}
    for kind, (ways, shots) in KINDS.items():
        seed_everything(seed)
        judged = light or untrained(name, ways)
        if not serves(judged, name, dataset, ways, shots):
            continue
        source = EpisodeSampler(pool, ways, shots, 15, seed=1)
        fewer = SCRATCH_TASKS if name == "FineTune" else PAIRED_TASKS if "RelationNet" in name and ways > 5 else None
        for how, tasks in {
            "test": min(fewer or TEST_TASKS, TEST_TASKS),
            "alone": alone if judged.transductive else 0,
        }.items():
            if tasks:
                file = folder / f"{name}-{seed}-{kind}-{how}-{tasks}.json"
                scores[how][kind] = scored(file, judged, source, tasks, one_by_one=how == "alone")
    return {"name": name, "seed": seed, "steps": steps, "cpu_seconds": seconds, "scores": scores}


def scored(file: Path, learner: Learner, source: EpisodeSampler, tasks: int, one_by_one: bool) -> list[Any]:
    """The accuracy in each task and whether it is transductive, from ``file`` if they are there."""
    if not file.exists():
        result = evaluate(learner, source, tasks=tasks, one_by_one=one_by_one)
        write_bytes(file, json.dumps([result.scores[0].tolist(), result.transductive]).encode())
    return json.loads(file.read_text(encoding="utf-8"))


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the record: a learner over its seeds."""
    found: dict[str, dict[str, Any]] = {"test": {}, "alone": {}}
    for how, entries in found.items():
        for kind in KINDS:
            scores = [run["scores"][how][kind] for run in runs if kind in run["scores"][how]]
            several = np.array([each for each, _ in scores])
            entries[kind] = Evaluation(several, "accuracy", scores[0][1]).record() if scores else None
    learner, recipe_name = named(name)
    return {
        "learner": learner,
        "label": LEARNERS[name],
        "recipe": recipe_name,
        "meta": name not in BASELINES,
        "transductive": found["test"]["5w1s"]["transductive"],
        "steps": [run["steps"] for run in runs],
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
        "test": found["test"],
        **({"alone": found["alone"]} if any(found["alone"].values()) else {}),
    }


def joined(rows: list[dict[str, Any]], earlier: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """New rows and those of an earlier record that they do not replace, in the order of :data:`LEARNERS`.

    A learner has a row for each budget.

    Raises
    ------
    ValueError
        If the earlier ones were measured on other tasks.
    """
    if earlier["settings"] != settings:
        raise ValueError(f"the record has other settings: {earlier['settings']}, not {settings}")
    order = list(LEARNERS.values())
    found = {(order.index(each["label"]), each["budget_cpu_seconds"]): each for each in [*earlier["rows"], *rows]}
    return [found[place] for place in sorted(found)]


def main(
    dataset: Annotated[str, typer.Option("--data")] = "glyphs",
    name: Annotated[str | None, typer.Option(help="Of the record. [default: few_shot_DATA]")] = None,
    background: Annotated[str | None, typer.Option(help="Omniglot's training alphabets.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A learner to measure; give it once for each.")] = None,
    budget: Annotated[float, typer.Option(help="CPU seconds of meta-training a run.")] = 100.0,
    seeds: int = 3,
    alone: Annotated[int, typer.Option(help="In so many tasks ask transductive learners each query by itself.")] = 0,
    add: Annotated[bool, typer.Option("--add", help="Keep the record's other rows.")] = False,
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
        futures = [pool.submit(measure, each, seed, dataset, options, budget, folder, alone) for each, seed in todo]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            run = future.result()
            runs[run["name"]].append(run)
    name = name or f"few_shot_{dataset}"
    settings = {"data": dataset, **options, "test_split": "test", "queries": 15, "threads": 1}
    rows = [row(each, sorted(found, key=lambda run: run["seed"])) for each, found in runs.items()]
    if add:
        rows = [{**each, "budget_cpu_seconds": budget, "seeds": seeds, "measured": measured} for each in rows]
        rows = joined(rows, results.read(name), settings) if name in results.names() else rows
        budget, seeds = (max(each[key] for each in rows) for key in ("budget_cpu_seconds", "seeds"))
    budgets = {"budget_cpu_seconds": budget, "seeds": list(range(seeds))}
    typer.echo(results.write(name, {"measured": measured, "settings": settings, **budgets, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, only=["NearestNeighbour", "ProtoNet", "MAML"], budget=1.0)
