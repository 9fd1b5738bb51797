"""The clinic's errors of MAML at length: sinusoids, the settings of the chapter, more updates.

Writes ``results/clinic.json``: what each error costs, paired over seeds and test tasks. The errors of MAML are measured
on sinusoids, in squared error (``costs``); those of MAML for policies on 2-D navigation, in return (``policies``).
``search`` compares settings of two exhibits on validation tasks, at the length of the chapter's book preset, and the
chapter takes the best. ``--only`` measures one of the three anew and leaves the rest of the record as it is.

    nice python benchmarks/clinic.py [--only policies]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import clinic, presets, results
from metabook.data import Sinusoids
from metabook.rl import EnvTasks
from metabook.storage import StorageError

NAMES = ("data", "graph", "joint", "wandering", "support", "other")
TEST_TASKS = presets.sized(600, 20)
#: Of the search. Neither these curves nor these training runs are among the chapter's.
VALIDATION_SEED, VALIDATION_TASKS, SEARCH_SEEDS = 2_000_000, 300, range(100, 105)
SGD_UPDATES, SGD_RATES = 100, (0.01, 0.03, 0.1, 0.3)
REPTILE_UPDATES, REPTILE_RATES, REPTILE_STEPS = 50, (0.005, 0.01, 0.02, 0.05), (5, 8, 16)
AFFORDABLE_STEPS = 8  # in the chapter; it takes the best rate for them
POLICY_UPDATES, POLICY_SEEDS, TEST_GOALS = presets.sized((60, 3, 100), (1, 2, 4))


def entry(errors: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The cost after one and after five steps; null where a test task diverged."""
    costs = {steps: clinic.cost(errors[n], correct[n]) for n, steps in ((1, "1"), (2, "5"))}
    known = {steps: np.isfinite(cost.mean) for steps, cost in costs.items()}
    return {steps: {"mean": c.mean, "half": c.half} if known[steps] else None for steps, c in costs.items()}


def score(setting: dict[str, Any], errors: np.ndarray) -> dict[str, Any]:
    """A setting and its squared error on the validation tasks; null where a run diverged."""
    known = np.isfinite(errors).all()
    return {
        **setting,
        "error": float(errors.mean()) if known else None,
        "half": clinic.half_width(errors) if known else None,
    }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the smallest error."""
    row = min((row for row in rows if row["error"] is not None), key=lambda row: row["error"])
    return {name: value for name, value in row.items() if name not in ("error", "half")}


def search_sgd(seeds: Sequence[int]) -> dict[str, Any]:
    """The outer rate of gradient descent for MAML with the mean over tasks, by the error after one inner step."""
    tasks, rows = Sinusoids(5, 50, seed=VALIDATION_SEED).sample(VALIDATION_TASKS), []
    for lr in tqdm(SGD_RATES, unit="rate"):
        errors, _ = clinic.train_on_curves(clinic.maml_loss, seeds, SGD_UPDATES, tasks, optimiser="sgd", lr=lr)
        rows.append(score({"lr": lr}, errors[1]))
    return {"updates": SGD_UPDATES, "best": best(rows), "rows": rows}


def search_reptile(seeds: Sequence[int]) -> dict[str, Any]:
    """Reptile's inner rate for the steps that the chapter affords, by the error after the inner steps.

    Other numbers of steps are there to show what they would change.
    """
    tasks, rows = Sinusoids(10, 50, seed=VALIDATION_SEED).sample(VALIDATION_TASKS), []
    for lr, steps in tqdm(list(product(REPTILE_RATES, REPTILE_STEPS)), unit="setting"):
        setting = {"inner_lr": lr, "inner_steps": steps}
        rows.append(score(setting, clinic.train_reptile(seeds, REPTILE_UPDATES, tasks, **setting)))
    affordable = [row for row in rows if row["inner_steps"] == AFFORDABLE_STEPS]
    return {"updates": REPTILE_UPDATES, "best": best(affordable), "rows": rows}


def search() -> dict[str, Any]:
    """What the record says of the two searches."""
    started, measured, seeds = time.process_time(), results.circumstances(), list(SEARCH_SEEDS)
    found = {"sgd": search_sgd(seeds), "reptile": search_reptile(seeds)}
    settings = {"seeds": seeds, "validation_seed": VALIDATION_SEED, "validation_tasks": VALIDATION_TASKS}
    return {"measured": measured, **settings, "cpu_seconds": time.process_time() - started, **found}


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


def compare(updates: int, seeds: int) -> dict[str, Any]:
    """What the record says of the errors' costs."""
    measured = results.circumstances()
    test = Sinusoids(5, 50, seed=1_000_000).sample(TEST_TASKS)
    exhibits = {name: clinic.EXHIBITS[name].broken for name in NAMES} | {"joint training": clinic.joint_training}
    started = time.process_time()
    correct, _ = clinic.train_on_curves(clinic.maml_loss, range(seeds), updates, test)
    rows = {}
    for name, exhibit in tqdm(exhibits.items(), unit="exhibit"):
        errors, _ = clinic.train_on_curves(exhibit, range(seeds), updates, test)
        rows[name] = entry(errors, correct)
    return {
        "measured": measured,
        "updates": updates,
        "seeds": list(range(seeds)),
        "test_tasks": TEST_TASKS,
        "cpu_seconds": time.process_time() - started,
        "correct": {"1": float(correct[1].mean()), "5": float(correct[2].mean())},
        "costs": rows,
    }


class Part(StrEnum):
    costs, policies, search = "costs", "policies", "search"


def main(
    updates: int = 2_000,
    seeds: int = 5,
    only: Annotated[Part | None, typer.Option(help="The part to measure anew. [default: costs and policies]")] = None,
) -> None:
    """Train and evaluate, and write the record or a part of it."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    with suppress(StorageError):
        record = results.read("clinic")
    if only in (None, Part.costs):
        record |= compare(updates, seeds)
    if only in (None, Part.policies):
        record |= {"policies": policies()}
    if only is Part.search:
        record |= {"search": search()}
    results.write("clinic", record)


if __name__ == "__main__":
    presets.run(main, updates=4, seeds=2)
