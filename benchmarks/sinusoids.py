"""Sinusoid regression at length: MAML, first-order MAML, joint training and no training at all.

Writes ``results/sinusoids.json``: the mean squared error on new tasks after 0 to 10 adaptation steps.

    python benchmarks/sinusoids.py --jobs 2
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import Evaluation, data, fit, presets, results, seed_everything
from metabook.learners import MAML, FineTune, task_losses
from metabook.nets import MLP

LEARNERS = {
    "MAML": "MAML",
    "FOMAML": "First-order MAML",
    "FineTune": "Joint training, then fine-tuning",
    "FromScratch": "From scratch",
}
STEPS = (0, 1, 5, 10)
TRAIN = dict(tasks=25, lr=1e-3, anneal="cosine")
INNER_LR, SHOTS, TEST_TASKS = 0.01, (5, 10), presets.sized(600, 20)
DIVERGED = 1000.0  # the largest amplitude is 5: no curve can be that far off


def measure(name: str, seed: int, iterations: int) -> dict[str, Any]:
    """Train one learner with one seed; its error on the test tasks after each number of steps."""
    torch.set_num_threads(1)
    seed_everything(seed)
    net = MLP()
    learner = MAML(net, INNER_LR, 1, first_order=name == "FOMAML") if "MAML" in name else FineTune(net, INNER_LR, 10)
    started = time.process_time()
    if name != "FromScratch":
        fit(learner, data.Sinusoids(shots=10, queries=10, seed=seed), steps=iterations, **TRAIN, progress=False)
    seconds = time.process_time() - started
    scores = {}
    for shots in SHOTS:
        episodes = data.Sinusoids(shots, 100, seed=1_000_000).sample(TEST_TASKS)
        path = learner.trajectory(episodes, max(STEPS))
        scores[shots] = {step: task_losses(path[step], episodes.query_y).tolist() for step in STEPS}
    return {"name": name, "seed": seed, "cpu_seconds": seconds, "scores": scores}


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Mean error with its intervals; where the adaptation diverged on some tasks, their share and the median."""
    scores = np.nan_to_num(scores, nan=np.inf)
    record = Evaluation(np.minimum(scores, DIVERGED), "mse", False).record()
    record |= {"median": float(np.median(scores)), "diverged": float((scores >= DIVERGED).mean())}
    if record["diverged"]:
        record |= dict.fromkeys(("mean", "ci95", "seeds_ci95", "seed_means"))  # a mean would say nothing
    return record


def main(
    iterations: int = 40_000, seeds: int = 3, jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2
) -> None:
    """Train and evaluate, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LEARNERS}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, name, seed, iterations) for seed in range(seeds) for name in LEARNERS]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            run = future.result()
            runs[run["name"]].append(run)
    rows = []
    for name, each in runs.items():
        each.sort(key=lambda run: run["seed"])
        mse = {
            shots: {str(step): summary(np.array([run["scores"][shots][step] for run in each])) for step in STEPS}
            for shots in SHOTS
        }
        rows.append(
            {
                "learner": name,
                "label": LEARNERS[name],
                "meta": "MAML" in name,
                "steps": 0 if name == "FromScratch" else iterations,
                "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in each])),
                "mse": mse[10],
                "mse_5shot": mse[5],
            }
        )
    settings = {"inner_lr": INNER_LR, "shots": 10, **TRAIN, "test_tasks": TEST_TASKS, "threads": 1}
    typer.echo(
        results.write(
            "sinusoids", {"measured": measured, "settings": settings, "seeds": list(range(seeds)), "rows": rows}
        )
    )


if __name__ == "__main__":
    presets.run(main, iterations=5)
