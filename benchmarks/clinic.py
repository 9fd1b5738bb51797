"""The clinic's errors of MAML at length: sinusoids, the settings of the chapter, more updates.

Writes ``results/clinic.json``: what each error costs in squared error, paired over seeds and test tasks.

    nice python benchmarks/clinic.py
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import clinic, results
from metabook.data import Sinusoids

NAMES = ("data", "graph", "joint", "wandering", "support", "other")
TEST_TASKS = 600


def entry(errors: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The cost after one and after five steps; null where a test task diverged."""
    costs = {steps: clinic.cost(errors[n], correct[n]) for n, steps in ((1, "1"), (2, "5"))}
    known = {steps: np.isfinite(cost.mean) for steps, cost in costs.items()}
    return {steps: {"mean": c.mean, "half": c.half} if known[steps] else None for steps, c in costs.items()}


def main(updates: int = 2_000, seeds: int = 5) -> None:
    """Train and evaluate, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    test = Sinusoids(5, 50, seed=1_000_000).sample(TEST_TASKS)
    exhibits = {name: clinic.EXHIBITS[name].broken for name in NAMES} | {"joint training": clinic.joint_training}
    started = time.process_time()
    correct, _ = clinic.train_on_curves(clinic.maml_loss, range(seeds), updates, test)
    rows = {}
    for name, exhibit in tqdm(exhibits.items(), unit="exhibit"):
        errors, _ = clinic.train_on_curves(exhibit, range(seeds), updates, test)
        rows[name] = entry(errors, correct)
    results.write(
        "clinic",
        {
            "measured": measured,
            "updates": updates,
            "seeds": list(range(seeds)),
            "test_tasks": TEST_TASKS,
            "cpu_seconds": time.process_time() - started,
            "correct": {"1": float(correct[1].mean()), "5": float(correct[2].mean())},
            "costs": rows,
        },
    )


if __name__ == "__main__":
    typer.run(main)
