"""Rooms of MiniGrid in which one colour of boxes holds the prize: who remembers the colour, and who searches again.

Writes ``results/minigrid.json``: returns of every episode of a trial in new rooms, and how often the first box that was
opened was the right one; the same in larger rooms; and, with one seed, how many episodes an agent needs that learns one
task from scratch. Every trained agent has seen as many episodes. Its learning rate is the best of three on validation
tasks after a third of the updates, with a seed of its own. Each run is kept under ``_build/benchmarks/rooms``, so that
an interrupted benchmark goes on where it was; ``--fresh`` starts anew.

    nice python benchmarks/rooms.py
"""

from __future__ import annotations

import copy
import shutil
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from control import summary
from tqdm import tqdm

from metabook import fit, presets, results, seed_everything
from metabook.rl import RL2, EnvTasks, Memoryless, TaskBelief, Tasks, Walker
from metabook.rl.rooms import MOVES, first_right

WORK = presets.work("rooms")
EPISODES, BATCH, HORIZON, COLOURS, LARGER = 3, 96, 16, 3, 6
TEST_TASKS, VALIDATION_TASKS, ADAPTED = presets.sized((300, 100, 200), (20, 10, 4))
VALIDATION, TEST = 500_000, 1_000_000
RL = dict(hidden=64, discount=0.9, trace=0.9, entropy=0.01, value=0.3)
RATES = (3e-3, 1e-2, 2e-2)
FINE_RATES, FINE_UPDATES = (1e-2, 1e-1, 1.0), 2
AGENTS = {
    "RL2": "RL²",
    "TaskBelief": "RL², asked for the task in training",
    "Memoryless": "the same without memory",
    "Told": "the same without memory, told the task",
}


def source(seed: int, **settings: Any) -> EnvTasks:
    """Tasks of the family."""
    return EnvTasks("metabook/Rooms-v0", seed=seed, colours=COLOURS, horizon=HORIZON, **settings)


def build(name: str) -> RL2:
    """An agent that is not trained yet."""
    seen = source(0, told=name == "Told").family(1).single_observation_space.shape[0]  # type: ignore[index]
    if name == "TaskBelief":
        return TaskBelief(seen, len(MOVES), COLOURS, episodes=EPISODES, **RL)
    kind = RL2 if name == "RL2" else Memoryless
    return kind(seen, len(MOVES), episodes=EPISODES if name == "RL2" else 1, **RL)  # type: ignore[arg-type]


def trained(name: str, seed: int, lr: float, updates: int) -> RL2:
    """An agent after its training, each update on ``BATCH`` episodes."""
    seed_everything(seed)
    agent = build(name)
    settings: dict[str, Any] = dict(lr=lr, anneal="linear", clip=1.0, seed=seed, progress=False)
    fit(agent, source(seed, told=name == "Told"), steps=updates, tasks=BATCH // agent.episodes, **settings)
    return agent


@torch.no_grad()
def tried(agent: RL2, tasks: Tasks) -> dict[str, list[list[float]]]:
    """What one trial in each task gave: returns, and whether the first box was right, ``[tasks, episodes]``."""
    torch.manual_seed(0)
    trained_for, agent.episodes = agent.episodes, EPISODES
    trial = agent.play(tasks)
    agent.episodes = trained_for
    return {"returns": trial.returns.tolist(), "first": first_right(trial.rewards, EPISODES).tolist()}


def validated(name: str, lr: float, updates: int) -> dict[str, float]:
    """Mean return on validation tasks with a learning rate."""
    agent = trained(name, 1_000, lr, updates)
    seen = tried(agent, source(VALIDATION, told=name == "Told").sample(VALIDATION_TASKS))
    return {"mean": float(np.mean(seen["returns"]))}


def measured(name: str, seed: int, lr: float, updates: int) -> dict[str, Any]:
    """One agent with one seed: what it does in the test tasks, in larger rooms, and after fine-tuning."""
    agent, told = trained(name, seed, lr, updates), name == "Told"
    run: dict[str, Any] = tried(agent, source(TEST, told=told).sample(TEST_TASKS))
    run["larger"] = tried(agent, source(TEST, told=told, size=LARGER).sample(TEST_TASKS))
    if name == "Memoryless":
        seed_everything(seed)
        for key, start in (("tuned", agent), ("scratch", build(name))):
            score = {rate: np.mean(tuned(start, VALIDATION, VALIDATION_TASKS // 5, rate)) for rate in FINE_RATES}
            best = max(score, key=lambda rate: score[rate])
            run[key] = {"rate": best, "returns": tuned(start, TEST, ADAPTED, best)}
    return run


def tuned(start: RL2, seed: int, number: int, rate: float) -> list[list[float]]:
    """Returns before and after each update of a policy in each task by itself, ``[tasks, FINE_UPDATES + 1]``.

    An update is on ``EPISODES`` episodes of the task, as many as a trial has. What it is judged by are others.
    """
    torch.manual_seed(0)
    scores = []
    tasks = source(seed).sample(number)
    for task, rule in enumerate(tasks.parameters):
        agent = copy.deepcopy(start)
        optimiser = torch.optim.SGD(agent.parameters(), lr=rate)
        scores.append([played(agent, rule, EPISODES, 2_000 * task)])
        for update in range(FINE_UPDATES):
            optimiser.zero_grad()
            agent.loss(alike(rule, EPISODES, 2_000 * task + 1_000 + update)).backward()
            optimiser.step()
            scores[-1].append(played(agent, rule, EPISODES, 2_000 * task + update + 1))
    return scores


def alike(rule: int, copies: int, seed: int) -> Tasks:
    """One task in several environments."""
    return Tasks(source(0).family, np.full(copies, rule), seed)


@torch.no_grad()
def played(agent: RL2, rule: int, episodes: int, seed: int) -> float:
    """Mean return of single episodes of a task."""
    return float(agent.play(alike(rule, episodes, seed)).returns.mean())


def learnt_alone(seed: int, lr: float, updates: int) -> dict[str, Any]:
    """Returns of an agent that learns one task from scratch, against the episodes that it has seen of it."""
    seed_everything(seed)
    agent, rule = build("Memoryless"), seed % COLOURS
    optimiser, curve = torch.optim.Adam(agent.parameters(), lr=lr), []
    for update in range(updates + 1):
        if update % 10 == 0:
            curve.append([update * BATCH, played(agent, rule, TEST_TASKS, 10**6)])
        optimiser.zero_grad()
        agent.loss(alike(rule, BATCH, update)).backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
        optimiser.step()
    return {"curve": curve}


def summaries(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of returns and of first boxes."""
    return {key: summary([run[key] for run in runs]) for key in ("returns", "first")}


def by_hand() -> list[dict[str, Any]]:
    """Rows of the agents that are not trained."""
    rows = []
    for name, label, agent in (
        ("WalkerTold", "walker, told the colour", Walker(EPISODES, told=True)),
        ("Walker", "walker", Walker(EPISODES)),
        ("Forgetful", "walker that forgets between episodes", Walker(EPISODES, remembers=False)),
    ):
        both = []
        for settings in ({}, {"size": LARGER}):
            rewards = torch.from_numpy(agent.play(source(TEST, **settings).sample(TEST_TASKS)).rewards)
            returns = rewards.unflatten(1, (EPISODES, -1)).sum(2)
            both.append({"returns": returns.tolist(), "first": first_right(rewards, EPISODES).tolist()})
        rows.append({"agent": name, "label": label, **summaries(both[:1]), "larger": summaries(both[1:])})
    chance = build("RL2")
    with torch.no_grad():
        for weights in chance.policy.parameters():
            weights.zero_()
    run = tried(chance, source(TEST).sample(TEST_TASKS))
    return [*rows, {"agent": "Random", "label": "random actions", **summaries([run])}]


def main(
    updates: int = 360,
    seeds: int = 3,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Choose the learning rates, train and test every agent with every seed, and write the record."""
    torch.set_num_threads(1)
    measured_in = results.circumstances()  # now: the checkout can move on while this runs
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    rates, scores = {}, {}
    for name in tqdm(AGENTS, unit="agent"):
        found = {lr: presets.kept(WORK, f"{name} {lr}", validated, name, lr, -(-updates // 3)) for lr in RATES}
        scores[name] = {str(lr): run["mean"] for lr, run in found.items()}
        rates[name] = max(found, key=lambda lr: found[lr]["mean"])
    runs: dict[str, list[Any]] = {name: [] for name in AGENTS}
    for seed, name in tqdm(list(product(range(seeds), AGENTS)), unit="run"):
        job = f"{name} {seed} {updates}"
        runs[name].append(presets.kept(WORK, job, measured, name, seed, rates[name], updates))
    alone = presets.kept(WORK, "alone 0", learnt_alone, 0, rates["Memoryless"], updates // 4)["curve"]
    rows: list[dict[str, Any]] = [
        {
            "agent": name,
            "label": label,
            "lr": rates[name],
            "validation": scores[name],
            "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs[name]])),
            **summaries(runs[name]),
            "larger": summaries([run["larger"] for run in runs[name]]),
        }
        for name, label in AGENTS.items()
    ]
    for key, label in (("tuned", "the same without memory, fine-tuned"), ("scratch", "from scratch")):
        each = [run[key] for run in runs["Memoryless"]]
        row = {"agent": key, "label": label, "rate": [one["rate"] for one in each]}
        rows.append(row | {"returns": summary([one["returns"] for one in each])})
    record = {
        "measured": measured_in,
        "settings": {
            "episodes": EPISODES,
            "updates": updates,
            "episodes_an_update": BATCH,
            "steps": updates * BATCH * HORIZON,
            "horizon": HORIZON,
            "colours": COLOURS,
            "larger": LARGER,
            "test_tasks": TEST_TASKS,
            "tuned_tasks": ADAPTED,
            "rates": RATES,
            "fine_rates": FINE_RATES,
            "threads": 1,
            **RL,
        },
        "seeds": list(range(seeds)),
        "rows": rows + by_hand(),
        "alone": {"episodes": [point[0] for point in alone], "returns": [point[1] for point in alone]},
    }
    typer.echo(results.write("minigrid", record))


if __name__ == "__main__":
    presets.run(main, updates=2)
