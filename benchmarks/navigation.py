r"""MAML for policies at length: 2-D navigation, three estimates of its gradient, and what is not meta-learning.

Writes ``results/navigation.json``: the grid of settings on validation goals, and the returns on test goals after 0 to 3
updates with the settings that were best there. Each training run is kept under ``_build/benchmarks``, so that an
interrupted benchmark goes on where it was; ``--fresh`` starts anew.

    nice python benchmarks/navigation.py --jobs 2
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import fit, results, seed_everything
from metabook.clinic import TrainedBy, reused_trajectories
from metabook.learners import Learner
from metabook.nets import MLP
from metabook.rl import MAMLRL, EnvTasks, GaussianPolicy, PretrainedPolicy, Tasks, rollout
from metabook.rl.navigation import oracle
from metabook.storage import write_bytes
from metabook.training import ci95

WORK = Path(__file__).parents[1] / "_build" / "benchmarks" / "navigation"
ARMS = {
    "low variance": "MAML, low-variance gradient",
    "unbiased": "MAML, unbiased gradient",
    "dropped": "MAML, sampling term dropped",
    "reused": "MAML, trajectories reused",
    "pretrained": "Pre-trained on all tasks",
    "untrained": "Not trained",
}
TRAIN = dict(tasks=20, clip=1.0, anneal="cosine")
GRID = {"std": (0.1, 0.3, 1.0), "lr": (1e-2, 3e-3)}
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the baselines' updates: MAML keeps 0.1, with which it was trained
UPDATES, TEST_SEED, VALIDATION_SEED = 3, 1_000_000, 2_000_000
GRID_TASKS, TEST_TASKS = 40, 100


def goals(seed: int, tasks: int) -> Tasks:
    """Goals that are in no training run."""
    return EnvTasks("metabook/Navigation-v0", seed=seed).sample(tasks)


def build(arm: str, std: float) -> MAMLRL:
    """An untrained learner."""
    policy = GaussianPolicy(MLP(2, (64, 64), 2, "tanh"), std)
    if arm in ("pretrained", "untrained"):
        return PretrainedPolicy(policy)
    return MAMLRL(policy, sampling_term=arm != "dropped", past=0.0 if arm in ("low variance", "reused") else 1.0)


def judge(learner: MAMLRL, tasks: Tasks, rate: float) -> np.ndarray:
    """Returns after each update, the step size halved after the first: ``[tasks, updates + 1]``."""
    learner.inner_lr, learner.later_lr = rate, rate / 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return learner.returns(tasks, UPDATES).double().numpy()


def trained(arm: str, seed: int, iterations: int, std: float, lr: float) -> tuple[MAMLRL, float]:
    """A learner after as many trajectories as MAML collects in ``iterations``, and the CPU seconds."""
    torch.set_num_threads(1)
    seed_everything(seed)
    learner = build(arm, std)
    by: Learner = TrainedBy(learner, partial(reused_trajectories, past=0.0)) if arm == "reused" else learner
    steps = 2 * iterations if arm in ("pretrained", "reused") else iterations  # MAML collects twice in each
    started = time.process_time()
    if arm != "untrained":
        source = EnvTasks("metabook/Navigation-v0", seed=seed)
        fit(by, source, steps=steps, seed=seed, lr=lr, **TRAIN, progress=False)
    return learner, time.process_time() - started


def measure(arm: str, seed: int, iterations: int, std: float, lr: float, rate: float | None) -> dict[str, Any]:
    """Train once. With a rate: returns on test goals; without: mean returns on validation goals at each rate."""
    file = WORK / f"{arm.replace(' ', '_')}-{seed}-{iterations}-{std}-{lr}-{rate}.json"
    if file.exists():
        return json.loads(file.read_text())
    learner, seconds = trained(arm, seed, iterations, std, lr)
    run: dict[str, Any] = {"arm": arm, "seed": seed, "std": std, "lr": lr, "cpu_seconds": seconds}
    if rate is not None:
        run["returns"] = judge(learner, goals(TEST_SEED, TEST_TASKS), rate).tolist()
    else:
        rates = RATES if arm in ("pretrained", "untrained") else (0.1,)
        run["rates"] = [[r, judge(learner, goals(VALIDATION_SEED, GRID_TASKS), r).mean(0).tolist()] for r in rates]
    write_bytes(file, json.dumps(run).encode())
    return run


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean of ``[seeds, tasks]`` and its intervals."""
    over_seeds = ci95(returns.mean(1)) if len(returns) > 1 else None
    return {"mean": float(returns.mean()), "ci95": ci95(returns.mean(0)), "seeds_ci95": over_seeds}


def fixed(act: Any, tasks: Tasks) -> dict[str, float]:
    """What a policy earns that learns nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return summary(rollout(tasks, act, copies=20).returns.double().numpy()[None])


def main(
    iterations: int = 60,
    grid_iterations: int = 40,
    seeds: int = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    fresh: Annotated[bool, typer.Option(help="Forget the runs of an interrupted benchmark.")] = False,
) -> None:
    """Choose settings on validation goals, train and evaluate, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    searched = [arm for arm in ARMS if arm != "reused"]  # which takes over the settings of the right version

    def all_of(calls: list[tuple]) -> list[dict[str, Any]]:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(measure, *call) for call in calls]
            for _ in tqdm(as_completed(futures), total=len(futures), unit="run"):
                pass
            return [future.result() for future in futures]

    grid = all_of(
        [
            (arm, 0, grid_iterations, std, lr, None)
            for arm, std, lr in product(searched, *GRID.values())
            if arm != "untrained" or lr == GRID["lr"][0]
        ]
    )
    chosen = {}
    for arm in searched:
        tried = [(run, rate, means) for run in grid if run["arm"] == arm for rate, means in run["rates"]]
        run, rate, _ = max(tried, key=lambda each: np.mean(each[2][1:]))
        chosen[arm] = {"std": run["std"], "lr": run["lr"], "rate": rate}
    chosen["reused"] = chosen["low variance"]
    runs = all_of([(arm, seed, iterations, *chosen[arm].values()) for arm in ARMS for seed in range(seeds)])

    rows, best = [], np.array([run["returns"] for run in runs if run["arm"] == "low variance"])
    for arm, label in ARMS.items():
        own = [run for run in runs if run["arm"] == arm]
        returns = np.array([run["returns"] for run in own])  # [seeds, tasks, updates + 1]
        rows.append(
            {
                "arm": arm,
                "label": label,
                **chosen[arm],
                "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in own])),
                "returns": [summary(returns[..., k]) for k in range(UPDATES + 1)],
                "gains": [summary(returns[..., k + 1] - returns[..., k]) for k in range(UPDATES)],
                "behind": [summary(best[..., k] - returns[..., k]) for k in range(UPDATES + 1)],
            }
        )
    test = goals(TEST_SEED, TEST_TASKS)
    anywhere = torch.distributions.Uniform(-0.1, 0.1)
    typer.echo(
        results.write(
            "navigation",
            {
                "measured": measured,
                "settings": {**TRAIN, "iterations": iterations, "grid_iterations": grid_iterations, "threads": 1},
                "grid": {**GRID, "rates": RATES, "tasks": GRID_TASKS, "runs": grid},
                "seeds": list(range(seeds)),
                "test_tasks": TEST_TASKS,
                "rows": rows,
                "random": fixed(lambda x: anywhere.sample(x.shape), test),
                "oracle": fixed(lambda x: oracle(test.parameters, x), test),
            },
        )
    )


if __name__ == "__main__":
    typer.run(main)
