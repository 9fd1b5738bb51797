"""The clinic's errors of MAML at length: sinusoids, the settings of the chapter, more updates.

Writes ``results/clinic.json``: what each error costs in squared error, paired over seeds and test tasks. The errors of
MAML for policies are measured on 2-D navigation, in return; ``--only-policies`` measures these anew and keeps the rest.

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
from metabook.rl import EnvTasks

NAMES = ("data", "graph", "joint", "wandering", "support", "other")
TEST_TASKS = 600
POLICY_UPDATES, POLICY_SEEDS, TEST_GOALS = 60, 3, 100


def entry(errors: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The cost after one and after five steps; null where a test task diverged."""
    costs = {steps: clinic.cost(errors[n], correct[n]) for n, steps in ((1, "1"), (2, "5"))}
    known = {steps: np.isfinite(cost.mean) for steps, cost in costs.items()}
    return {steps: {"mean": c.mean, "half": c.half} if known[steps] else None for steps, c in costs.items()}


def policies() -> dict[str, Any]:
    """What the errors of MAML for policies cost in return, after 0 to 3 updates."""
    measured, started = results.circumstances(), time.process_time()
    test = EnvTasks("metabook/Navigation-v0", seed=1_000_000, horizon=50).sample(TEST_GOALS)

    def trained(exhibit: Any, past: float) -> np.ndarray:
        return clinic.train_on_goals(exhibit, range(POLICY_SEEDS), POLICY_UPDATES, test, past)

    short, exact = (trained(clinic.policy_maml_loss, past) for past in (0.0, 1.0))
    reused, dropped = trained(clinic.reused_trajectories, 0.0), trained(clinic.sampling_term_dropped, 0.0)
    pairs = {"reused": (reused, short), "sampling": (dropped, exact), "sampling, low variance": (dropped, short)}
    costs = {name: [clinic.cost(*pair) for pair in zip(*both)] for name, both in pairs.items()}
    return {
        "measured": measured,
        "updates": POLICY_UPDATES,
        "seeds": list(range(POLICY_SEEDS)),
        "test_tasks": TEST_GOALS,
        "cpu_seconds": time.process_time() - started,
        "correct": [float(-each.mean()) for each in short],
        "costs": {name: [{"mean": c.mean, "half": c.half} for c in each] for name, each in costs.items()},
    }


def main(updates: int = 2_000, seeds: int = 5, only_policies: bool = False) -> None:
    """Train and evaluate, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    if only_policies:
        results.write("clinic", {**results.read("clinic"), "policies": policies()})
        return
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
            "policies": policies(),
        },
    )


if __name__ == "__main__":
    typer.run(main)
