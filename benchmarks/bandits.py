"""Bandits at length: RL² beside its controls, the agents that need no training, and the optimum.

Writes ``results/bandits.json``. Five arms and ten pulls unless said otherwise; every agent meets the same test tasks
and the same luck.

    python benchmarks/bandits.py --jobs 2
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

from metabook import Evaluation, fit, presets, results, seed_everything
from metabook.rl import (
    RL2,
    UCB1,
    BayesOptimal,
    EnvTasks,
    Gittins,
    Greedy,
    Memoryless,
    RewardBlind,
    Tasks,
    Thompson,
    Uniform,
    regret,
)
from metabook.rl.bandits import Pulls
from metabook.rl.rl2 import Trial
from metabook.training import ci95

VALIDATION, TEST = 500_000, 1_000_000  # seeds of tasks; those of training tasks are the seeds of the runs
TEST_TASKS, LONG = presets.sized(20_000, 200), 50
LEARNERS: dict[str, tuple[str, type[RL2], str]] = {
    "RL2": ("RL²", RL2, "bernoulli"),
    "Memoryless": ("RL² without memory", Memoryless, "bernoulli"),
    "RewardBlind": ("RL² without rewards", RewardBlind, "bernoulli"),
    "RL2Gaussian": ("RL²", RL2, "gaussian"),
}
AGENT = dict(hidden=64, discount=1.0, trace=0.95, entropy=0.01)
TRAIN = dict(tasks=256, lr=1e-2, anneal="linear", clip=1.0)
# Compared on validation tasks, with one seed and short trainings: one setting changed at a time.
CANDIDATES: list[dict[str, Any]] = [
    {},
    {"lr": 5e-3},
    {"lr": 2e-2},
    {"trace": 0.8},
    {"entropy": 0.003},
    {"entropy": 0.03},
]


def source(seed: int, payoff: str = "bernoulli", pulls: int = 10) -> EnvTasks:
    return EnvTasks("metabook/Bandits-v0", seed=seed, payoff=payoff, pulls=pulls)


def untrained(payoff: str) -> dict[str, tuple[str, Any]]:
    """The agents that need no training."""
    found: dict[str, tuple[str, Any]] = {
        "Uniform": ("any arm", Uniform()),
        "UCB1": ("UCB1", UCB1(1.0 if payoff == "bernoulli" else 2.0)),
        "UCB1Tuned": ("UCB1, bonus chosen on validation tasks", UCB1(best_bonus(payoff))),
        "Thompson": ("Thompson sampling", Thompson()),
        "Greedy": ("greedy on the posterior mean", Greedy()),
    }
    if payoff == "bernoulli":
        found |= {"Gittins": ("Gittins index", Gittins(10)), "BayesOptimal": ("Bayes-optimal", BayesOptimal(5, 10))}
    return found


def best_bonus(payoff: str) -> float:
    tasks = source(VALIDATION, payoff).sample(TEST_TASKS)
    return max((0.1, 0.2, 0.3, 0.5, 0.7, 1.0), key=lambda bonus: UCB1(bonus).play(tasks).rewards.sum(1).mean().item())


def judge(tasks: Tasks, played: list[Pulls | Trial], payoff: str) -> dict[str, Any]:
    """What one agent earned on the test tasks, for each of its seeds."""
    earned = np.stack([pulls.rewards.sum(1).double().numpy() for pulls in played])
    regrets = np.stack([regret(tasks, pulls.actions) for pulls in played])  # [seeds, tasks, pulls]
    found: dict[str, Any] = {
        "total": Evaluation(earned, "total reward", False).record(),
        "regret": regrets.mean((0, 1)).tolist(),
        "regret_ci95": [ci95(each) for each in regrets.mean(0).T],
    }
    if payoff == "bernoulli":
        lost = np.stack([BayesOptimal(5, 10).given_away(pulls) for pulls in played])
        found["given_away"] = Evaluation(lost.sum(2), "reward given away", False).record()
        found["given_away_by_pull"] = lost.mean((0, 1)).tolist()
        found["optimal_pulls"] = float((lost < 1e-9).mean())
    return found


def train(name: str, seed: int, steps: int, **changes: Any) -> tuple[RL2, float]:
    """A trained agent and the CPU seconds that it took."""
    torch.set_num_threads(1)
    _, kind, payoff = LEARNERS[name]
    seed_everything(seed)
    agent = {key: changes.get(key, value) for key, value in AGENT.items()}
    training = {key: changes.get(key, value) for key, value in TRAIN.items()}
    learner, started = kind(1, 5, **agent), time.process_time()
    fit(learner, source(seed, payoff), steps=steps, seed=seed, progress=False, **training)
    return learner, time.process_time() - started


@torch.no_grad()
def play(learner: RL2, tasks: Tasks, greedy: bool = False) -> Pulls:
    torch.manual_seed(tasks.seed % 2**31)
    trial = learner.play(tasks, greedy=greedy)
    return Pulls(trial.actions, trial.rewards)


def measure(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one agent with one seed and let it play the test tasks."""
    learner, seconds = train(name, seed, steps)
    payoff = LEARNERS[name][2]
    tasks = source(TEST, payoff).sample(TEST_TASKS)
    found = {"name": name, "seed": seed, "cpu_seconds": seconds, "pulls": play(learner, tasks)}
    found["greedy"] = play(learner, tasks, greedy=True)
    if name == "RL2":
        found["long"] = play(learner, source(TEST, pulls=LONG).sample(TEST_TASKS // 4)).rewards.mean(0).tolist()
    return found


def candidate(number: int, steps: int) -> dict[str, Any]:
    """One setting of the search: what it earns on validation tasks."""
    changes = CANDIDATES[number]
    learner, seconds = train("RL2", 0, steps, **changes)
    earned = play(learner, source(VALIDATION).sample(TEST_TASKS)).rewards.sum(1).mean().item()
    return {**AGENT, **TRAIN, **changes, "updates": steps, "cpu_seconds": seconds, "validation_total": earned}


def row(name: str, label: str, payoff: str, seconds: float, updates: int, found: dict[str, Any]) -> dict[str, Any]:
    return {"agent": name, "label": label, "payoff": payoff, "updates": updates, "cpu_seconds": seconds, **found}


def main(
    steps: Annotated[int, typer.Option(help="Updates of a training.")] = 5_000,
    seeds: int = 3,
    search: Annotated[int, typer.Option(help="Updates of each candidate setting.")] = 1_500,
    jobs: Annotated[int, typer.Option(help="Processes side by side, one thread each.")] = 2,
) -> None:
    """Compare the settings, train, let all agents play the test tasks, and write the record."""
    measured = results.circumstances()  # now: the checkout can move on while this runs
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LEARNERS}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs_of_runs = [
            pool.submit(measure, name, seed, steps if name != "RL2Gaussian" else steps // 2)
            for name in LEARNERS
            for seed in range(seeds)
        ]
        searched = [pool.submit(candidate, number, search) for number in range(len(CANDIDATES))]
        for future in tqdm(as_completed(jobs_of_runs), total=len(jobs_of_runs), unit="run"):
            runs[future.result()["name"]].append(future.result())
        grid = [future.result() for future in searched]
    rows = []
    for payoff in ("bernoulli", "gaussian"):
        tasks = source(TEST, payoff).sample(TEST_TASKS)
        for name, (label, agent) in untrained(payoff).items():
            started = time.process_time()
            pulls = [agent.play(tasks)]
            rows.append(row(name, label, payoff, time.process_time() - started, 0, judge(tasks, pulls, payoff)))
            if isinstance(agent, UCB1):
                rows[-1]["bonus"] = agent.bonus
        for name, (label, _, its_payoff) in LEARNERS.items():
            each = sorted(runs[name], key=lambda run: run["seed"])
            if its_payoff == payoff:
                seconds = float(np.mean([run["cpu_seconds"] for run in each]))
                found = judge(tasks, [run["pulls"] for run in each], payoff)
                found["greedy_total"] = judge(tasks, [run["greedy"] for run in each], payoff)["total"]
                updates = steps if name != "RL2Gaussian" else steps // 2
                rows.append(row(name, label, payoff, seconds, updates, found))
    long_tasks = source(TEST, pulls=LONG).sample(TEST_TASKS // 4)
    long = {"RL2": np.mean([run["long"] for run in runs["RL2"]], 0).tolist()}
    for name, agent in (("Gittins", Gittins(LONG)), ("Thompson", Thompson()), ("UCB1", UCB1()), ("Greedy", Greedy())):
        long[name] = agent.play(long_tasks).rewards.mean(0).tolist()
    optimum = BayesOptimal(5, 10)
    record = {
        "measured": measured,
        "settings": {"arms": 5, "pulls": 10, **AGENT, **TRAIN, "test_tasks": TEST_TASKS, "threads": 1},
        "seeds": list(range(seeds)),
        "optimum": {"value": optimum.value, "beliefs": optimum.states},
        "rows": rows,
        "search": grid,
        "long": {"pulls": LONG, "rewards": long},
    }
    typer.echo(results.write("bandits", record))


if __name__ == "__main__":
    presets.run(main, steps=4, search=2)
