r"""Agents in a grid world with a hidden goal, at length: RL², policies without memory, searches by hand.

Writes ``results/hidden_goal.json``: returns of every episode of a trial in new tasks, whose goals stay or move once.
Each run is kept under ``_build/benchmarks/hidden_goal``, so that an interrupted benchmark goes on where it was;
``--fresh`` starts anew.

    python benchmarks/hidden_goal.py --jobs 2
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import fit, presets, results, seed_everything
from metabook.learners import Learner
from metabook.nets import MLP
from metabook.rl import (
    RL2,
    CategoricalPolicy,
    EnvTasks,
    PretrainedPolicy,
    Searcher,
    Tasks,
    optimal_search,
    replay,
    rollout,
    row_by_row,
    search_value,
)
from metabook.storage import load, save, write_bytes
from metabook.training import ci95

WORK = presets.work("hidden_goal")
GRID = dict(size=5, horizon=15)
EPISODES, LONG, MOVED_BEFORE = 4, 6, 4  # of a trial; of one in which goals can move; the episode before which they do
CHANGE = 0.2  # probability in training, before every episode but the first
VALIDATION, TEST, TEST_TASKS = 500_000, 1_000_000, presets.sized(1000, 20)
RL = dict(hidden=64, discount=0.95, trace=0.9, entropy=0.05, value=0.02)
TRAIN = dict(lr=6e-3, anneal="linear", clip=1.0)
POLICY = dict(discount=0.95, trajectories=4)
POLICY_TRAIN = dict(lr=1e-2, anneal="linear", clip=1.0)
# One thing at a time beside the settings above.
CANDIDATES: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "value loss counts 0.5": {"value": 0.5},
    "learning rate 0.003": {"lr": 3e-3},
    "discount 0.97": {"discount": 0.97},
    "entropy counts 0.1": {"entropy": 0.1},
}
INNER_LRS = (0.3, 1.0, 3.0, 10.0)
# label, episodes of a trial in training, tasks of an update (so that all see as many steps), change in training
AGENTS: dict[str, tuple[str, int, int, float]] = {
    "RL2": ("RL², trials of 4 episodes", EPISODES, 64, 0.0),
    "Short": ("RL², trials of 1 episode", 1, 64 * EPISODES, 0.0),
    "Memoryless": ("Policy without memory", 1, 64, 0.0),
    "Constant": ("RL², trials of 6 episodes, goals that stay", LONG, 64, 0.0),
    "Changing": ("RL², trials of 6 episodes, goals that move", LONG, 64, CHANGE),
}


def source(seed: int, **settings: Any) -> EnvTasks:
    """Tasks of the grid."""
    return EnvTasks("metabook/HiddenGoal-v0", seed=seed, **GRID, **settings)


def trained(name: str, seed: int, updates: int, **other: Any) -> tuple[Learner, float]:
    """An agent after its training, and the CPU seconds that it took; ``other`` settings than those chosen."""
    _, episodes, tasks, change = AGENTS[name]
    train = {**(POLICY_TRAIN if name == "Memoryless" else TRAIN), **{k: v for k, v in other.items() if k == "lr"}}
    seed_everything(seed)
    cells, learner = GRID["size"] ** 2, None
    if name == "Memoryless":
        learner = PretrainedPolicy(CategoricalPolicy(MLP(cells, (64,), 5)), **POLICY)
    else:
        learner = RL2(cells, 5, episodes=episodes, **{**RL, **{k: v for k, v in other.items() if k != "lr"}})
    started = time.process_time()
    fit(learner, source(seed, change=change), steps=updates, tasks=tasks, **train, seed=seed, progress=False)
    return learner, time.process_time() - started


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives, from the file if it is there."""
    if not file.exists():
        write_bytes(file, json.dumps(make()).encode())
    return json.loads(file.read_text())


def searched(title: str, updates: int) -> dict[str, Any]:
    """Return of a trial in the validation tasks with one candidate's settings."""
    torch.set_num_threads(1)
    learner, seconds = trained("RL2", 0, updates, **CANDIDATES[title])
    returns = learner.predict(source(VALIDATION).sample(TEST_TASKS)).sum(1).numpy()
    return {"settings": title, "mean": float(returns.mean()), "ci95": ci95(returns), "cpu_seconds": seconds}


def measure(name: str, seed: int, updates: int) -> dict[str, Any]:
    """Train one agent with one seed; its returns in the test tasks, ``[tasks, episodes]`` of every kind of trial."""
    torch.set_num_threads(1)
    learner, seconds = trained(name, seed, updates)
    scores: dict[str, Any] = {}
    if isinstance(learner, PretrainedPolicy):
        early = trained(name, seed, updates // 5)[0]  # less sure of itself, and so perhaps easier to tune
        assert isinstance(early, PretrainedPolicy)
        for data in (1, 20):
            scores |= tuned({updates: learner, updates // 5: early}, data)
        return {"name": name, "seed": seed, "cpu_seconds": seconds, "scores": scores}
    save(learner, WORK / f"{name}-{seed}.safetensors")
    learner.episodes = LONG if AGENTS[name][1] == LONG else EPISODES
    torch.manual_seed(seed)
    scores["stay"] = learner.predict(source(TEST).sample(TEST_TASKS)).tolist()
    if learner.episodes == LONG:
        scores["move"] = learner.predict(source(TEST, change=moves()).sample(TEST_TASKS)).tolist()
    return {"name": name, "seed": seed, "cpu_seconds": seconds, "scores": scores}


@torch.no_grad()
def stale(name: str, seed: int) -> dict[str, Any]:
    """In the episode after the move: share of steps on the old goal; how often the new goal is found.

    The latter for new goals whose cell the agent had entered before the move, and so ruled out, and for others.
    """
    learner = load(WORK / f"{name}-{seed}.safetensors")
    assert isinstance(learner, RL2)
    torch.manual_seed(seed)
    tasks, now = source(TEST, change=moves()).sample(TEST_TASKS), MOVED_BEFORE - 1
    learner.episodes = MOVED_BEFORE
    positions, goals = replay(tasks, learner.play(tasks).actions)
    waits = (positions[:, now, 1:] == goals[:, now - 1, None]).all(2).mean(1)
    found = (positions[:, now, 1:] == goals[:, now, None]).all(2).any(1)
    entered = (positions[:, :now, 1:] == goals[:, now, None, None]).all(3).any((1, 2))
    return {"waits": float(waits.mean()), "entered": float(found[entered].mean()), "new": float(found[~entered].mean())}


def tuned(policies: dict[int, PretrainedPolicy], data: int) -> dict[str, Any]:
    """Returns in the test tasks, with the training and the step size that are best in the validation tasks.

    ``data`` is the number of episodes that each update is made from.
    """
    validation, tried = source(VALIDATION).sample(TEST_TASKS), {}
    for updates, policy in policies.items():
        policy.trajectories = data
        for lr in INNER_LRS:
            tried[updates, lr] = fine_tuned(policy, lr, validation).mean()
    updates, lr = max(tried, key=lambda each: tried[each])
    returns = fine_tuned(policies[updates], lr, source(TEST).sample(TEST_TASKS))
    return {f"stay{data}": returns.tolist(), f"chosen{data}": {"updates": updates, "inner_lr": lr}}


def fine_tuned(policy: PretrainedPolicy, inner_lr: float, tasks: Tasks) -> np.ndarray:
    """Returns in episodes 1, 2, ..., with an update after each."""
    torch.manual_seed(0)
    policy.inner_lr = inner_lr
    return policy.returns(tasks, EPISODES - 1).numpy()


def moves() -> tuple[float, ...]:
    """Goals stay until one episode, and all move before it."""
    return tuple(float(episode == MOVED_BEFORE) for episode in range(2, MOVED_BEFORE + 1))


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean and interval of a number a seed."""
    return {"mean": float(np.mean(values)), "seeds_ci95": ci95(np.array(values)) if len(values) > 1 else None}


def summary(scores: list[Any]) -> list[dict[str, Any]]:
    """Of every episode: mean return, intervals over tasks and over seeds; ``scores [seeds, tasks, episodes]``."""
    found = np.array(scores)
    return [{"ci95": ci95(each.mean(0))} | over_seeds(each.mean(1).tolist()) for each in np.moveaxis(found, 2, 0)] + [
        {"trial": True, "mean": float(found.sum(2).mean()), "seed_means": found.sum(2).mean(1).tolist()}
    ]


def by_hand() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the agents that are not trained, and what is known exactly."""
    trial = (GRID["size"], GRID["horizon"], EPISODES)
    order, value = optimal_search(*trial)
    obvious = row_by_row(GRID["size"])
    rows = []
    tests = {"stay": (source(TEST), EPISODES), "stay_long": (source(TEST), LONG)}
    tests |= {"move": (source(TEST, change=moves()), LONG)}
    for name, label, path, told in (
        ("Told", "Told the goal", obvious, True),
        ("Optimal", "Best of all searches", order, False),
        ("RowByRow", "Search row by row", obvious, False),
    ):
        found = {
            test: summary([Searcher(path, episodes, told).predict(tasks.sample(TEST_TASKS)).numpy()])
            for test, (tasks, episodes) in tests.items()
        }
        rows.append({"agent": name, "label": label, "trained": False, **found})
    tasks = source(TEST).sample(TEST_TASKS)
    generator = torch.Generator().manual_seed(0)
    seen = rollout(tasks, lambda x: torch.randint(5, x.shape[:2], generator=generator), copies=EPISODES)
    chance = summary([seen.rewards.sum(2).numpy()])
    rows.append({"agent": "Random", "label": "Random actions", "trained": False, "stay": chance})
    return rows, {"optimal_order": order, "optimal_value": value, "row_by_row_value": search_value(obvious, *trial)}


def main(
    updates: int = 1500,
    search_updates: int = 1200,
    seeds: int = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
    only_search: Annotated[bool, typer.Option("--only-search", help="Compare settings, and stop.")] = False,
) -> None:
    """Compare settings on validation tasks, train and test every agent, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    todo: list[tuple[Path, Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
    if not only_search:
        todo = [
            (WORK / f"{name}-{seed}-{updates}.json", measure, (name, seed, updates))
            for seed in range(seeds)
            for name in AGENTS
        ]
    runs_to_do = len(todo)
    todo += [
        (WORK / f"search-{i}-{search_updates}.json", searched, (title, search_updates))
        for i, title in enumerate(CANDIDATES)
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_kept, *job) for job in todo]
        for _ in tqdm(as_completed(futures), total=len(futures), unit="run"):
            pass
        done = [future.result() for future in futures]
    runs, tried = done[:runs_to_do], done[runs_to_do:]
    for row in tried:
        typer.echo(f"{row['settings']:25} {row['mean']:.2f} ± {row['ci95']:.2f}")
    if only_search:
        return
    rows, exact = by_hand()
    for name, (label, episodes, tasks, change) in AGENTS.items():
        each = [run for run in runs if run["name"] == name]
        row = {"agent": name, "label": label, "trained": True, "episodes": episodes, "change": change}
        row |= {"updates": updates, "tasks": tasks, "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in each]))}
        row["steps"] = (
            updates * tasks * GRID["horizon"] * (POLICY["trajectories"] if name == "Memoryless" else episodes)
        )
        for test in each[0]["scores"]:
            found = [run["scores"][test] for run in each]
            row[test] = found if test.startswith("chosen") else summary(found)
        if "move" in row:
            counted = [stale(name, seed) for seed in range(seeds)]
            row["after_move"] = {key: over_seeds([each[key] for each in counted]) for key in counted[0]}
        rows.append(row)
    settings = {
        **GRID,
        "episodes": EPISODES,
        "long": LONG,
        "moved_before": MOVED_BEFORE,
        "change": CHANGE,
        **RL,
        **TRAIN,
    }
    settings |= {"policy": {**POLICY, **POLICY_TRAIN}, "inner_lrs": INNER_LRS, "test_tasks": TEST_TASKS, "threads": 1}
    record = {"measured": measured, "settings": settings, "seeds": list(range(seeds)), **exact, "search": tried}
    typer.echo(results.write("hidden_goal", {**record, "search_updates": search_updates, "rows": rows}))


def run_kept(file: Path, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """One job of the benchmark, in a process of its own."""
    return kept(file, lambda: function(*arguments))


if __name__ == "__main__":
    presets.run(main, updates=8, search_updates=8)
