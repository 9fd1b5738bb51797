r"""MAML for policies at length: 2-D navigation, three estimates of its gradient, and what is not meta-learning.

Writes ``results/navigation.json``: the grid of settings on validation goals, and the returns on test goals after 0 to 3
updates with the settings that were best there. The whole grid is tried with one seed, the two best of it with all
seeds. Each training run is kept under ``_build/benchmarks``, so that an interrupted benchmark goes on where it was;
``--fresh`` starts anew.

    nice python benchmarks/navigation.py --jobs 2
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import fit, presets, results, seed_everything
from metabook.clinic import TrainedBy, reused_trajectories
from metabook.learners import Learner
from metabook.nets import MLP
from metabook.rl import MAMLRL, EnvTasks, GaussianPolicy, PretrainedPolicy, Tasks, rollout
from metabook.rl.navigation import oracle
from metabook.storage import write_bytes
from metabook.training import ci95

WORK = presets.work("navigation")
ARMS = {
    "low variance": "MAML, low-variance gradient",
    "unbiased": "MAML, unbiased gradient",
    "dropped": "MAML, sampling term dropped",
    "reused": "MAML, trajectories reused",
    "pretrained": "Pre-trained on all tasks",
    "same rate": "Pre-trained on all tasks, α as for MAML",
    "untrained": "Not trained",
}
TRAIN = dict(tasks=20, clip=1.0, anneal="cosine")
GRID = {"std": (0.1, 0.3, 1.0), "lr": (1e-2, 3e-3)}
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the baselines' updates: MAML keeps 0.1, with which it was trained
LONGER_RATES = (0.03, 0.1, 0.3, 1.0)  # of the updates after longer training, for MAML too
UPDATES, TEST_SEED, VALIDATION_SEED = 3, 1_000_000, 2_000_000
GRID_TASKS, TEST_TASKS = presets.sized((40, 100), (2, 4))


def goals(seed: int, tasks: int) -> Tasks:
    """Goals that are in no training run."""
    return EnvTasks("metabook/Navigation-v0", seed=seed).sample(tasks)


def build(arm: str, std: float) -> MAMLRL:
    """An untrained learner."""
    policy = GaussianPolicy(MLP(2, (64, 64), 2, "tanh"), std)
    if arm in ("pretrained", "same rate", "untrained"):
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
    steps = (
        2 * iterations if arm in ("pretrained", "same rate", "reused") else iterations
    )  # MAML collects twice in each
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


def measure_longer(arm: str, seed: int, iterations: int, std: float, lr: float) -> dict[str, Any]:
    """Train once; returns at each rate, the means on validation goals and all on test goals."""
    file = WORK / f"{arm.replace(' ', '_')}-{seed}-{iterations}-{std}-{lr}-longer.json"
    if file.exists():
        return json.loads(file.read_text())
    learner, seconds = trained(arm, seed, iterations, std, lr)
    validation, test = goals(VALIDATION_SEED, GRID_TASKS), goals(TEST_SEED, TEST_TASKS)
    run: dict[str, Any] = {"arm": arm, "seed": seed, "std": std, "lr": lr, "cpu_seconds": seconds}
    run["rates"] = [[rate, judge(learner, validation, rate).mean(0).tolist()] for rate in LONGER_RATES]
    run["test"] = [judge(learner, test, rate).tolist() for rate in LONGER_RATES]
    write_bytes(file, json.dumps(run).encode())
    return run


def quality(run: dict[str, Any]) -> dict[float, float]:
    """Mean return after 1 to 3 updates on validation goals, by the step size of the updates."""
    return {rate: float(np.mean(means[1:])) for rate, means in run["rates"]}


def best_settings(runs: list[dict[str, Any]], seeds: int) -> dict[str, float]:
    """The settings with the best mean over the seeds, among those that were tried with all of them."""
    found: dict[tuple[float, float, float], list[float]] = {}
    for run in runs:
        for rate, value in quality(run).items():
            found.setdefault((run["std"], run["lr"], rate), []).append(value)
    means = {each: np.mean(values) for each, values in found.items() if len(values) == seeds}
    return dict(zip(("std", "lr", "rate"), max(means, key=lambda each: means[each])))


def summary(returns: np.ndarray) -> dict[str, float]:
    """Mean of ``[seeds, tasks]`` and its intervals."""
    over_seeds = ci95(returns.mean(1)) if len(returns) > 1 else None
    return {"mean": float(returns.mean()), "ci95": ci95(returns.mean(0)), "seeds_ci95": over_seeds}


def row(arm: str, settings: dict[str, float], returns: np.ndarray, best: np.ndarray, seconds: list[float]) -> dict:
    """What the record says of an arm with the returns ``[seeds, tasks, updates + 1]``, beside the best arm's."""
    return {
        "arm": arm,
        "label": ARMS[arm],
        **settings,
        "cpu_seconds": float(np.mean(seconds)),
        "returns": [summary(returns[..., k]) for k in range(UPDATES + 1)],
        "gains": [summary(returns[..., k + 1] - returns[..., k]) for k in range(UPDATES)],
        "behind": [summary(best[..., k] - returns[..., k]) for k in range(UPDATES + 1)],
    }


def fixed(act: Any, tasks: Tasks) -> dict[str, float]:
    """What a policy earns that learns nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return summary(rollout(tasks, act, copies=20).returns.double().numpy()[None])


def main(
    iterations: int = 60,
    grid_iterations: int = 40,
    longer: int = 150,
    seeds: int = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    fresh: Annotated[bool, typer.Option(help="Forget the runs of an interrupted benchmark.")] = False,
) -> None:
    """Choose settings on validation goals, train and evaluate, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    searched = [arm for arm in ARMS if arm not in ("reused", "same rate")]  # which take over from others

    def all_of(calls: list[tuple], measure: Callable[..., dict[str, Any]] = measure) -> list[dict[str, Any]]:
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
    second = [
        (arm, seed, grid_iterations, run["std"], run["lr"], None)
        for arm in searched
        for run in sorted((run for run in grid if run["arm"] == arm), key=lambda run: max(quality(run).values()))[-2:]
        for seed in range(1, seeds)
    ]
    grid += all_of(second)
    chosen = {arm: best_settings([run for run in grid if run["arm"] == arm], seeds) for arm in searched}
    chosen["reused"] = chosen["low variance"]
    same = [{**run, "rates": [r for r in run["rates"] if r[0] == 0.1]} for run in grid if run["arm"] == "pretrained"]
    chosen["same rate"] = best_settings(same, seeds)
    runs = all_of([(arm, seed, iterations, *chosen[arm].values()) for arm in ARMS for seed in range(seeds)])
    rows, best = [], np.array([run["returns"] for run in runs if run["arm"] == "low variance"])
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        seconds = [run["cpu_seconds"] for run in own]
        rows.append(row(arm, chosen[arm], np.array([run["returns"] for run in own]), best, seconds))

    two = ("low variance", "pretrained")
    calls = [  # the outer rate is chosen anew: a long run may want a smaller one
        (arm, seed, longer, chosen[arm]["std"], lr) for arm, lr, seed in product(two, GRID["lr"], range(seeds))
    ]
    runs, longer_rows = all_of(calls, measure_longer), []
    for arm in two:
        own = [run for run in runs if run["arm"] == arm]
        settings = best_settings(own, seeds)
        own = [run for run in own if run["lr"] == settings["lr"]]
        seconds = [run["cpu_seconds"] for run in own]
        returns = np.array([run["test"][LONGER_RATES.index(settings["rate"])] for run in own])
        best = returns if arm == two[0] else best
        longer_rows.append(row(arm, settings, returns, best, seconds))
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
                "longer": {
                    "iterations": longer,
                    "rates": LONGER_RATES,
                    "rows": longer_rows,
                    "runs": [{name: run[name] for name in ("arm", "seed", "std", "lr", "rates")} for run in runs],
                },
                "random": fixed(lambda x: anywhere.sample(x.shape), test),
                "oracle": fixed(lambda x: oracle(test.parameters, x), test),
            },
        )
    )


if __name__ == "__main__":
    presets.run(main, iterations=1, grid_iterations=1, longer=1)
