r"""Letters of new alphabets, learnt from five: the recipe ``few-alphabets`` and what each ingredient adds.

Writes ``results/few_alphabets.json``, or the record that ``--name`` names. First every candidate is trained on the
first background set and judged inside those alphabets of the other small background set that it did not have (20-way
1-shot). No evaluation alphabet is looked at. Then the best candidate, the recipe, and with ``--test-all`` the others,
are trained on each background set by itself and tested inside each of the 20 evaluation alphabets.
An interrupted run goes on where it was, in the middle of a training too; ``--fresh`` starts anew. With ``--add`` the
record keeps its selection and the tests that are not made anew; a new test says by itself how long it had, and when it
was measured.

    METABOOK_DATA=~/data python benchmarks/few_alphabets.py --jobs 2
    METABOOK_DATA=~/data python benchmarks/few_alphabets.py --background small1 --select-budget 20 --budget 60 \
        --only recipe --only "no distortion" --name try_few_alphabets
    METABOOK_DATA=~/data python benchmarks/few_alphabets.py --add --background small1 --budget 1050 --jobs 1
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
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, LabelledData, data, evaluate, fit, presets, results, seed_everything
from metabook.episodes import TaskSource, generator_for
from metabook.learners import Learner, NearestNeighbour, PretrainedNearestMean
from metabook.nets import Conv4
from metabook.recipes import Recipe, few_alphabets
from metabook.storage import load, read_tensors, save, write_bytes
from metabook.training import ci95, seconds_per_step

WORK = presets.work("few_alphabets")
WAYS = 20


def pretrained() -> Recipe:
    """The same pictures and schedule, but a classifier of all characters with centred nearest means."""
    net = Conv4(channels=(32, 64, 128, 128), norm="running")
    return replace(few_alphabets(), build=lambda _, classes, __: PretrainedNearestMean(net, classes, centre=True))


CANDIDATES: dict[str, Callable[[], Recipe]] = {
    "recipe": few_alphabets,
    "no rotations": partial(few_alphabets, rotate=False),
    "no tasks inside an alphabet": partial(few_alphabets, within_group=0.0),
    "all tasks inside an alphabet": partial(few_alphabets, within_group=1.0),
    "no distortion": partial(few_alphabets, distort=False),
    "affine distortion only": partial(few_alphabets, distort=("affine",)),
    "no stroke width": partial(few_alphabets, distort=("affine", "elastic")),
    "one instance as the support": partial(few_alphabets, in_turn=False),
    "constant rate": partial(few_alphabets, anneal=None),
    "no weight decay": partial(few_alphabets, weight_decay=0.0),
    "no weight average": partial(few_alphabets, average=0.0),
    "one view": partial(few_alphabets, views=1),
    "64 filters a block": partial(few_alphabets, lambda: Conv4(channels=64, norm="running")),
    "pre-trained, centred nearest mean": pretrained,
}


class OneDrawer:
    """Tasks as in the one-shot test of Omniglot's authors: one person draws the support, another the queries."""

    def __init__(self, pool: LabelledData, ways: int, seed: int) -> None:
        self.x, self.ways, self.seed = pool.x.view(len(pool), -1, *pool.x.shape[1:]), ways, seed

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` tasks of one support and one query a class."""
        generator = generator_for("drawers", self.seed, step)
        classes = torch.rand(tasks, len(self.x), generator=generator).topk(self.ways).indices
        drawers = torch.rand(tasks, self.x.shape[1], generator=generator).topk(2).indices
        support, query = (self.x[classes, drawers[:, [i]]].float() / 255 for i in (0, 1))
        y = torch.arange(self.ways).expand(tasks, -1)
        return Episodes(support, y, query, y, classes)


def errors(learner: Learner, pool: LabelledData, tasks: int) -> dict[str, dict[str, float]]:
    """Percentage of wrong answers, 20-way 1-shot inside each alphabet; of mixed drawers, and of one a side."""
    found: dict[str, dict[str, float]] = {}
    for alphabet in sorted(set(pool.groups)):
        inside = pool.in_groups([alphabet])
        sources: dict[str, TaskSource] = {
            "mixed": EpisodeSampler(inside, WAYS, 1, 1, seed=3),
            "one_drawer": OneDrawer(inside, WAYS, seed=3),
        }
        found[alphabet] = {
            kind: 100 * (1 - evaluate(learner, source, tasks=tasks).mean) for kind, source in sources.items()
        }
    return found


def trained(name: str, pool: LabelledData, seed: int, budget: float, place: Path) -> tuple[Learner, int, float]:
    """The learner after ``budget`` CPU seconds of training, the steps that these were, and their CPU time."""
    file, note, checkpoint = (Path(f"{place}{suffix}") for suffix in (".safetensors", ".json", ".checkpoint"))
    if file.exists():
        told = json.loads(note.read_text())
        return load(file), told["steps"], told["cpu_seconds"]
    seed_everything(seed)
    chosen = CANDIDATES[name]()
    settings = chosen.tasks_settings()
    rotate, distort = settings.pop("rotate"), settings.pop("distort")
    parts = data.distort if distort is True else partial(data.distort, parts=distort) if distort else None
    source = EpisodeSampler(data.rotations(pool) if rotate else pool, **settings, transform=parts, seed=seed)
    learner = chosen.build(chosen.ways, len(source.data), False)
    arguments = {**chosen.fit, "tasks": chosen.tasks, "seed": seed}
    if note.exists():
        steps = json.loads(note.read_text())["steps"]
    else:
        steps = max(1, round(budget / seconds_per_step(learner, source, **arguments)))
        write_bytes(note, json.dumps({"steps": steps}).encode())
    done = len(read_tensors(checkpoint)[0]["losses"]) if checkpoint.exists() else 0
    started = time.process_time()
    fit(learner, source, steps=steps, **arguments, checkpoint=checkpoint, progress=False)
    seconds = (time.process_time() - started) * steps / max(1, steps - done)  # what was done before counts as well
    write_bytes(note, json.dumps({"steps": steps, "cpu_seconds": seconds}).encode())
    save(learner, file)
    checkpoint.unlink()
    return learner, steps, seconds


def held_out_alphabets(background: str) -> LabelledData:
    """The characters of those small background alphabets that a background set has not, and that suffice for a task."""
    both = data.load("omniglot", "train+validation", background="small1+small2")
    own = data.load("omniglot", "train+validation", background=background).groups
    return both.in_groups([each for each in sorted(set(both.groups) - set(own)) if both.groups.count(each) >= WAYS])


def measure(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one candidate and count its errors on other background alphabets, or on the evaluation alphabets."""
    torch.set_num_threads(1)
    place = folder / "-".join(str(part).replace(" ", "_") for key, part in job.items() if key != "tasks")
    answer = Path(f"{place}-{job['tasks']}.answer.json")
    if answer.exists():
        return json.loads(answer.read_text())
    background = data.load("omniglot", "train+validation", background=job["background"])
    judged = held_out_alphabets(job["background"]) if job["selection"] else data.load("omniglot", "test")
    if job["candidate"] == "nearest neighbour on pixels":
        learner, steps, seconds = NearestNeighbour(), 0, 0.0
    else:
        learner, steps, seconds = trained(job["candidate"], background, job["seed"], job["budget"], place)
    found = {**job, "steps": steps, "cpu_seconds": seconds, "errors": errors(learner, judged, job["tasks"])}
    write_bytes(answer, json.dumps(found).encode())
    return found


def run(jobs: list[dict[str, Any]], folder: Path, processes: int, title: str) -> list[dict[str, Any]]:
    """The answers of all jobs, in their order."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, job, folder) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(futures), unit="training", desc=title):
            future.result()
    return [future.result() for future in futures]


def row(background: str, candidate: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the record: the error, each alphabet averaged over seeds; the interval is over alphabets."""
    alphabets = {name: part for each in runs for name, part in each["errors"].items()}
    each: dict[str, dict[str, float]] = {
        name: {
            kind: float(np.mean([one["errors"][name][kind] for one in runs if name in one["errors"]])) for kind in part
        }
        for name, part in alphabets.items()
    }
    summary: dict[str, Any] = {"background": background, "candidate": candidate}
    for kind in ("mixed", "one_drawer"):
        values = np.array([part[kind] for part in each.values()])
        half = ci95(values) if len(values) > 4 else None
        summary[kind] = {"error": float(values.mean()), "ci95_over_alphabets": half}
    steps, seconds = ([one[key] for one in runs] for key in ("steps", "cpu_seconds"))
    return {**summary, "steps": steps, "cpu_seconds": float(np.mean(seconds)), "alphabets": each}


def joined(rows: list[dict[str, Any]], earlier: dict[str, Any]) -> list[dict[str, Any]]:
    """The tests of an earlier record, and the new ones behind them or in the place of those with the same budget."""

    def kind(each: dict[str, Any]) -> tuple[Any, ...]:
        budget = each.get("budget_cpu_seconds", earlier["budget_cpu_seconds"]) if any(each["steps"]) else None
        return each["background"], each["candidate"], budget

    new = {kind(each): each for each in rows}
    kept = [new.pop(kind(each), each) for each in earlier["test"]]
    return [*kept, *new.values()]


def main(
    background: Annotated[list[str] | None, typer.Option(help="[default: small1 and small2, each by itself]")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A candidate; give it once for each.")] = None,
    select_budget: Annotated[float, typer.Option(help="CPU seconds of a training in the selection.")] = 120.0,
    budget: Annotated[float, typer.Option(max=1200, help="CPU seconds of a training that is tested.")] = 1200.0,
    seeds: Annotated[int, typer.Option(min=1, help="Of the trainings that are tested.")] = 1,
    tasks: Annotated[int, typer.Option(min=20, help="Of an alphabet.")] = 40,
    test_all: Annotated[bool, typer.Option("--test-all", help="Test every candidate, not only the best.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Keep the record's selection, and its other tests.")] = False,
    name: str = "few_alphabets",
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Compare the candidates on background alphabets, test the best, and write the record."""
    measured = results.circumstances()
    if unknown := set(only or ()) - set(CANDIDATES):
        raise typer.BadParameter(f"{', '.join(unknown)}: take some of {', '.join(CANDIDATES)}")
    settings = {"data": "omniglot", "ways": WAYS, "shots": 1, "tasks_an_alphabet": tasks, "threads": 1}
    earlier = results.read(name) if add else None
    if earlier and earlier["settings"] != settings:
        raise typer.BadParameter(f"the record {name} has other settings: {earlier['settings']}, not {settings}")
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    sets, names = background or ["small1", "small2"], [each for each in CANDIDATES if not only or each in only]
    data.load("omniglot", "test")  # unpacked once, before the processes need it
    common = {"budget": select_budget, "tasks": tasks}
    jobs_of = [{"candidate": each, "background": sets[0], "selection": True, "seed": 0, **common} for each in names]
    selection = (
        earlier["selection"]
        if earlier
        else [row(sets[0], one["candidate"], [one]) for one in run(jobs_of, WORK, jobs, "selection")]
    )
    chosen = min(selection, key=lambda each: each["mixed"]["error"])["candidate"]
    todo = names if test_all else list(dict.fromkeys([chosen, names[0]]))
    common = {"budget": budget, "tasks": tasks}
    tested = run(
        [
            {"candidate": each, "background": on, "selection": False, "seed": seed, **common}
            for seed in range(seeds)
            for on in sets
            for each in (*todo, *(["nearest neighbour on pixels"] if not seed else []))
        ],
        *(WORK, jobs, "test"),
    )
    test_rows = [
        row(on, each, [one for one in tested if (one["background"], one["candidate"]) == (on, each)])
        for on in sets
        for each in (*todo, "nearest neighbour on pixels")
    ]
    if earlier:
        own = {"budget_cpu_seconds": budget, "seeds": seeds, "measured": measured}
        tests = joined([{**each, **own} for each in test_rows], earlier)
        typer.echo(results.write(name, {**earlier, "test": tests}))
        return
    budgets = {"select_budget_cpu_seconds": select_budget, "budget_cpu_seconds": budget}
    record = {"measured": measured, "settings": settings, **budgets, "seeds": list(range(seeds))}
    typer.echo(results.write(name, {**record, "selection": selection, "chosen": chosen, "test": test_rows}))


if __name__ == "__main__":
    presets.run(main, background=["small1"], only=["recipe", "no distortion"], select_budget=1.0, budget=1.0, tasks=20)
