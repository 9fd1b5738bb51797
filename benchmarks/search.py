r"""Settings of the gradient family for Omniglot, compared on alphabets that are held out of the background set.

Writes ``results/search_omniglot.json``: the accuracy on the validation alphabets of each candidate after the same CPU
time. No test class is looked at. The recipes take the best candidate of each learner. An interrupted search goes on
where it was; ``--fresh`` starts anew.

    METABOOK_DATA=~/data python benchmarks/search.py --budget 60 --jobs 2
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from metabook import EpisodeSampler, data, evaluate, fit, presets, results, seed_everything
from metabook.learners import ANIL, MAML, Learner, MetaSGD, Reptile
from metabook.nets import Conv4
from metabook.recipes import recipe, task_source
from metabook.storage import write_bytes
from metabook.training import seconds_per_step

WORK = presets.work()
TASKS = presets.sized(200, 4)
KINDS: dict[str, type[Learner]] = {"MAML": MAML, "ANIL": ANIL, "MetaSGD": MetaSGD, "Reptile": Reptile}


def candidate(name: str, kind: str = "MAML", channels: int = 32, **learner: Any) -> dict[str, Any]:
    """A setting: which recipe it belongs to, the learner's class, its network's width and its arguments."""
    return {"name": name, "kind": kind, "channels": channels, "learner": learner}


CANDIDATES = [
    candidate("MAML", inner_lr=0.4, steps=1, eval_steps=3),
    candidate("MAML", inner_lr=1.0, steps=1, eval_steps=3),
    candidate("MAML", inner_lr=0.4, steps=3, eval_steps=5),
    candidate("MAML", inner_lr=0.4, steps=1, eval_steps=3, channels=64),
    candidate("FOMAML", inner_lr=0.4, steps=1, eval_steps=3, first_order=True),
    candidate("FOMAML", inner_lr=0.4, steps=3, eval_steps=5, first_order=True),
    candidate("ANIL", "ANIL", inner_lr=0.4, steps=5, eval_steps=5),
    candidate("ANIL", "ANIL", inner_lr=2.0, steps=3, eval_steps=3),
    candidate("MetaSGD", "MetaSGD", inner_lr=0.4, steps=1),
    candidate("MetaSGD", "MetaSGD", inner_lr=0.1, steps=1),
    candidate("MAML++", inner_lr=0.4, steps=3, learn_rates=True, multi_step=300),
    candidate("MAML++", inner_lr=0.1, steps=3, learn_rates=True, multi_step=300),
    candidate("Reptile", "Reptile", inner_lr=1e-3, steps=5, batch=10, eval_steps=20),
    candidate("Reptile", "Reptile", inner_lr=3e-3, steps=5, batch=10, eval_steps=20),
    candidate("Reptile", "Reptile", inner_lr=1e-3, steps=10, batch=10, eval_steps=20),
    candidate("Reptile", "Reptile", inner_lr=0.1, steps=5, batch=25, eval_steps=20, adam=False),
    candidate("Reptile", "Reptile", inner_lr=1e-2, steps=5, batch=10, eval_steps=20),
    candidate("Reptile", "Reptile", inner_lr=1e-2, steps=5, batch=25, eval_steps=20),
    candidate("Reptile", "Reptile", inner_lr=1.0, steps=5, batch=25, eval_steps=20, adam=False),
]


def measure(number: int, background: str, budget: float, folder: Path) -> dict[str, Any]:
    """Train one candidate on the training alphabets and score it on the validation alphabets."""
    torch.set_num_threads(1)
    file, chosen = folder / f"{number}.json", CANDIDATES[number]
    if file.exists():
        return json.loads(file.read_text())
    seed_everything(0)
    base = recipe("MAML" if chosen["name"] == "FOMAML" else chosen["name"], "omniglot")
    source = task_source("omniglot", "train", background=background, **base.tasks_settings(), seed=0, device="cpu")
    learner = KINDS[chosen["kind"]](Conv4(base.ways, chosen["channels"], "stride"), **chosen["learner"])
    arguments = {**base.fit, "tasks": base.tasks, "seed": 0}
    steps = max(1, round(budget / seconds_per_step(learner, source, **arguments)))
    started = time.process_time()
    fit(learner, source, steps=steps, **arguments, progress=False)
    seconds = time.process_time() - started
    pool = data.load("omniglot", "validation", background=background)
    score = evaluate(learner, EpisodeSampler(pool, 5, 1, 15, seed=2), tasks=TASKS).record()
    found = {"number": number, **chosen, "steps": steps, "cpu_seconds": seconds, "validation": score}
    write_bytes(file, json.dumps(found).encode())
    return found


def main(
    background: Annotated[str, typer.Option(help="Omniglot's training alphabets.")] = "small1+small2",
    budget: Annotated[float, typer.Option(help="CPU seconds of meta-training a candidate.")] = 60.0,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Train and score every candidate, and write the record."""
    measured = results.circumstances()
    folder = WORK / f"search_omniglot_{background}_{budget:g}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    data.load("omniglot", "validation", background=background)  # unpacked once, before the processes need it
    rows = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, number, background, budget, folder) for number in range(len(CANDIDATES))]
        for future in tqdm(as_completed(futures), total=len(futures), unit="candidate"):
            rows.append(future.result())
    rows.sort(key=lambda row: row["number"])
    settings = {"data": "omniglot", "background": background, "test_split": "validation", "ways": 5, "shots": 1}
    record = {"measured": measured, "settings": {**settings, "queries": 15, "seed": 0}, "budget_cpu_seconds": budget}
    typer.echo(results.write("search_omniglot", {**record, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, budget=0.3)
