r"""Carts, poles and unlabelled buttons: agents that find the buttons out, and agents that cannot.

Writes ``results/control.json``: returns of every episode of a trial in new tasks, and in tasks under another gravity.
Every trained agent has seen as many steps, but for one more row, RL² trained three times as long; ``--publish`` puts
the first of those agents into the package. Each run is kept under ``_build/benchmarks/control``, so that an interrupted
benchmark goes on where it was; ``--fresh`` starts anew.

    nice python benchmarks/control.py
"""

from __future__ import annotations

import json
import shutil
import time
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import fit, presets, results, seed_everything
from metabook.learners import Learner
from metabook.nets import MLP
from metabook.rl import MAMLRL, RL2, CategoricalPolicy, Engineer, EnvTasks, Memoryless, PretrainedPolicy, Tasks, rollout
from metabook.rl.control import PILOT
from metabook.storage import load, save, write_bytes
from metabook.training import ci95

WORK = presets.work("control")
EPISODES, TASKS, TEST_TASKS = 3, 64, 300
VALIDATION, TEST = 500_000, 1_000_000
RL = dict(hidden=48, discount=0.85, trace=0.9, entropy=0.005, value=0.3)
POLICY = dict(discount=0.85)
# label, learning rate, tasks of an update: with the episodes in each, 192 episodes an update for everybody
AGENTS: dict[str, tuple[str, float, int]] = {
    "RL2": ("RL²", 2e-2, 64),
    "Memoryless": ("the same without memory", 2e-2, 192),
    "Told": ("the same without memory, told the task", 2e-2, 192),
    "Pretrained": ("trained on all tasks", 1e-2, 64),
    "MAML": ("MAML, twelve episodes an update", 3e-2, 8),
}
LONGER = 3  # times as many updates for RL² beside the others; the first of these agents comes with the package
RATES, DATA = (1.0, 3.0, 10.0), (1, 12)
GRAVITIES = {"the Moon": 1.6, "Mars": 3.7, "the Earth": 9.8, "Jupiter": 24.8}


def source(seed: int, **settings: Any) -> EnvTasks:
    """Tasks of the family."""
    return EnvTasks("metabook/CartPoles-v0", seed=seed, **settings)


def build(name: str) -> tuple[Learner, bool]:
    """An agent that is not trained yet, and whether it is told its task."""
    policy = CategoricalPolicy(MLP(4, (32,), 3, "tanh"))
    if name == "RL2":
        return RL2(4, 3, episodes=EPISODES, **RL), False
    if name in ("Memoryless", "Told"):
        return Memoryless(4 + 5 * (name == "Told"), 3, episodes=1, **RL), name == "Told"
    if name == "Pretrained":
        return PretrainedPolicy(policy, trajectories=3, **POLICY), False
    return MAMLRL(policy, 3.0, trajectories=12, past=0.0, **POLICY), False


def returns_of(learner: Learner, tasks: Tasks) -> np.ndarray:
    """Returns of one trial in each task, ``[tasks, episodes]``; those of MAML are before and after its updates."""
    torch.manual_seed(0)
    if isinstance(learner, MAMLRL):
        return learner.returns(tasks, EPISODES - 1).numpy()
    assert isinstance(learner, RL2)
    learner.episodes = EPISODES
    return learner.predict(tasks).numpy()


def measure(name: str, seed: int, updates: int) -> dict[str, Any]:
    """Train one agent with one seed; its returns in the test tasks."""
    file = WORK / f"{name}-{seed}-{updates}.json"
    if file.exists():
        return json.loads(file.read_text())
    _, lr, tasks = AGENTS[name]
    seed_everything(seed)
    learner, told = build(name)
    started = time.process_time()
    settings: dict[str, Any] = dict(lr=lr, anneal="linear", clip=1.0, seed=seed, progress=False)
    fit(learner, source(seed, told=told), steps=updates, tasks=tasks, **settings)
    run: dict[str, Any] = {"name": name, "seed": seed, "cpu_seconds": time.process_time() - started}
    test = source(TEST, told=told).sample(TEST_TASKS)
    if isinstance(learner, PretrainedPolicy):
        for data in DATA:
            learner.trajectories, tried = data, {}
            for learner.inner_lr in RATES:
                tried[learner.inner_lr] = float(returns_of(learner, source(VALIDATION).sample(TEST_TASKS)).mean())
            learner.inner_lr = max(tried, key=lambda rate: tried[rate])
            run |= {f"returns{data}": returns_of(learner, test).tolist(), f"rate{data}": learner.inner_lr}
    else:
        run["returns"] = returns_of(learner, test).tolist()
    if name == "RL2":
        save(learner, WORK / f"RL2-{seed}-{updates}.safetensors")
        run["gravity"] = {planet: returns_of(learner, under(gravity)).tolist() for planet, gravity in GRAVITIES.items()}
    write_bytes(file, json.dumps(run).encode())
    return run


def under(gravity: float) -> Tasks:
    """The test tasks under one gravity, in m/s²."""
    tasks = source(TEST).sample(TEST_TASKS)
    parameters = tasks.parameters.copy()
    parameters[:, -1] = gravity
    return Tasks(tasks.family, parameters, tasks.seed)


def summary(scores: list[Any]) -> list[dict[str, Any]]:
    """Of every episode: mean return, intervals over tasks and over seeds; ``scores [seeds, tasks, episodes]``."""
    each = np.moveaxis(np.array(scores), 2, 0)
    return [
        {
            "mean": float(x.mean()),
            "ci95": ci95(x.mean(0)),
            "seeds_ci95": ci95(x.mean(1)) if len(x) > 1 else None,
            "seed_means": x.mean(1).tolist(),
        }
        for x in each
    ]


def by_hand() -> list[dict[str, Any]]:
    """Rows of the agents that are not trained."""
    tasks, rows = source(TEST).sample(TEST_TASKS), []
    for name, label, agent in (
        ("EngineerTold", "engineer, told the buttons", Engineer(EPISODES, told=True)),
        ("Engineer", "engineer", Engineer(EPISODES)),
        ("Forgetful", "engineer that forgets between episodes", Engineer(EPISODES, remembers=False)),
    ):
        rows.append({"agent": name, "label": label, "returns": summary([agent.predict(tasks).numpy()])})
    generator = torch.Generator().manual_seed(0)
    seen = rollout(tasks, lambda x: torch.randint(3, x.shape[:2], generator=generator), copies=EPISODES)
    rows.append({"agent": "Random", "label": "random buttons", "returns": summary([seen.rewards.sum(2).numpy()])})
    return rows


def main(
    updates: int = 260,
    seeds: int = 3,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Put the RL² agent into the package that was trained longer.")
    ] = False,
) -> None:
    """Train and test every agent with every seed, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()  # now: the checkout can move on while this runs
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    runs = [measure(name, seed, updates) for seed, name in tqdm(list(product(range(seeds), AGENTS)), unit="run")]
    long = [measure("RL2", seed, LONGER * updates) for seed in range(seeds)]
    rows: list[dict[str, Any]] = []
    for name, (label, lr, tasks) in AGENTS.items():
        each = [run for run in runs if run["name"] == name]
        row: dict[str, Any] = {"agent": name, "label": label, "lr": lr, "tasks": tasks}
        row["cpu_seconds"] = float(np.mean([run["cpu_seconds"] for run in each]))
        for key in [key for key in each[0] if key.startswith("returns")]:
            row[key] = summary([run[key] for run in each])
        for key in [key for key in each[0] if key.startswith("rate")]:
            row[key] = [run[key] for run in each]
        rows.append(row)
    longer = {"agent": "Longer", "label": "RL², trained three times as long", "updates": LONGER * updates}
    longer |= {"cpu_seconds": float(np.mean([run["cpu_seconds"] for run in long]))}
    longer |= {"gravity": {planet: summary([run["gravity"][planet] for run in long]) for planet in GRAVITIES}}
    rows.append(longer | {"returns": summary([run["returns"] for run in long])})
    gravity = {
        planet: {
            "told": summary([Engineer(EPISODES, told=True).predict(under(g)).numpy()]),
            "engineer": summary([Engineer(EPISODES).predict(under(g)).numpy()]),
        }
        for planet, g in GRAVITIES.items()
    }
    if publish:
        save(load(WORK / f"RL2-0-{LONGER * updates}.safetensors"), PILOT)
    settings: dict[str, Any] = {
        "episodes": EPISODES,
        "updates": updates,
        "steps": updates * 192 * 20,
        "test_tasks": TEST_TASKS,
    }
    settings |= {**RL, "policy": POLICY, "rates": RATES, "gravities": GRAVITIES, "threads": 1}
    record = {"measured": measured, "settings": settings, "seeds": list(range(seeds)), "gravity": gravity}
    typer.echo(results.write("control", {**record, "rows": rows + by_hand()}))


if __name__ == "__main__":
    presets.run(main, updates=2)
