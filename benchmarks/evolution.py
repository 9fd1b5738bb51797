"""Self-evolution at length: the verified loop and its controls, domain by domain.

Writes ``results/evolution.json``. For each domain and seed: the verified loop; the same loop without the verifier; as
many tasks of the domain's own with true answers; and the demonstrations alone. All train for the same number of steps
in each round. Every round is kept under ``_build/benchmarks/evolution``, so that an interrupted benchmark goes on at
its round, and domains can be measured in several calls. Settings are chosen on other held-out tasks (``--split``).

    python benchmarks/evolution.py --domain maximum --domain minimum --seeds 3
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import torch
import typer

from metabook import presets, results
from metabook.llm import load
from metabook.llm.adapters import Adapter
from metabook.llm.domains import DOMAINS
from metabook.llm.evolution import VERDICTS, Evolution, Round, Settings, evolve
from metabook.storage import StorageError
from metabook.training import ci95

WORK = presets.work("evolution")
POOLS = ("verified", "demonstrations", "truth", "unverified")


def interval(scores: list[list[int]]) -> dict[str, Any]:
    """Accuracy of ``[seeds, tasks]`` with its 95 % intervals over tasks and over seeds."""
    table = np.array(scores, dtype=float)
    return {
        "mean": float(table.mean()),
        "ci95": ci95(table.mean(0)),
        "seeds_ci95": ci95(table.mean(1)) if len(table) > 1 else None,
        "by_seed": table.mean(1).tolist(),
    }


def difference(ours: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
    """Paired over seeds and tasks: the first less the second."""
    gap = np.array(ours, dtype=float) - np.array(theirs, dtype=float)
    return {
        "mean": float(gap.mean()),
        "ci95": ci95(gap.mean(0)),
        "seeds_ci95": ci95(gap.mean(1)) if len(gap) > 1 else None,
    }


def arms(lm: Any, name: str, seed: int, changes: dict[str, Any], controls: list[str]) -> dict[str, Evolution]:
    """The verified loop of one seed and the controls."""
    adapter: Adapter | None = None
    base: Round | None = None
    found: dict[str, Evolution] = {}
    for pool in controls:
        # With the same data in every round, later rounds of the demonstrations alone would only repeat the first.
        rounds = 1 if pool == "demonstrations" else changes["rounds"]
        settings = Settings(**{**changes, "rounds": rounds}, pool=pool, seed=seed)
        folder = WORK / "_".join([name, settings.split, str(settings.held_out), pool, str(seed)])
        sizes = found["verified"].sizes if pool == "truth" else ()
        run = evolve(lm, DOMAINS[name], settings, sizes=sizes, base=base, adapter=adapter, folder=folder, progress=True)
        found[pool], adapter, base = run, run.adapter, run.rounds[0]
        typer.echo(
            f"{name} {seed} {pool}: " + ", ".join(f"{np.mean(r.plain):.3f}/{np.mean(r.shown):.3f}" for r in run.rounds)
        )
    return found


def summary(runs: list[dict[str, Evolution]]) -> dict[str, Any]:
    """What the record says of one domain, from one dictionary of arms for each seed."""
    entry: dict[str, Any] = {"pools": {}, "seeds": [run["verified"].settings.seed for run in runs]}
    for pool in runs[0]:
        each = [run[pool].rounds for run in runs]
        entry["pools"][pool] = {
            "plain": [interval([rounds[n].plain for rounds in each]) for n in range(len(each[0]))],
            "shown": [interval([rounds[n].shown for rounds in each]) for n in range(len(each[0]))],
            "kept": [[len(r.kept) for r in rounds[1:]] for rounds in each],
            "cpu_seconds": [round(sum(r.cpu_seconds for r in rounds), 1) for rounds in each],
        }
        if pool in ("verified", "unverified"):
            proposed = {v: [[r.verdicts.get(v, 0) for r in rounds[1:]] for rounds in each] for v in VERDICTS}
            right = [[float(np.mean(r.right)) if r.right else None for r in rounds[1:]] for rounds in each]
            solved = [
                [float(np.mean(np.array(r.right) > 0)) if r.right else None for r in rounds[1:]] for rounds in each
            ]
            entry["pools"][pool] |= {"verdicts": proposed, "mean_right": right, "solved": solved}
        if pool != "verified":
            entry["pools"][pool]["verified_minus_this"] = {
                kind: difference(*([getattr(run[p].rounds[-1], kind) for run in runs] for p in ("verified", pool)))
                for kind in ("plain", "shown")
            }
    return entry


def main(
    domain: Annotated[list[str], typer.Option(help="A domain; several times for several.")] = list(DOMAINS),  # noqa: B006
    seeds: int = 3,
    first_seed: int = 0,
    held_out: int = 200,
    rounds: int = 2,
    split: Annotated[str, typer.Option(help="'validation' to choose settings; then nothing is recorded.")] = "test",
    pool: Annotated[list[str], typer.Option(help="Arms; 'verified' comes first.")] = list(POOLS),  # noqa: B006
    steps: int = Settings.steps,
    lr: float = Settings.lr,
    tasks: int = Settings.tasks,
) -> None:
    """Run what has not been run yet, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    changes = {"held_out": held_out, "rounds": rounds, "split": split, "steps": steps, "lr": lr, "tasks": tasks}
    record: dict[str, Any] = {}
    with suppress(StorageError):
        record = results.read("evolution")
    lm = load(device="cpu")
    for name in domain:
        runs = [arms(lm, name, seed, changes, pool) for seed in range(first_seed, first_seed + seeds)]
        if split == "test":
            settings = {**vars(Settings(**changes)), "pool": None, "seed": None}
            entry = {"measured": measured, "settings": settings, **summary(runs)}
            record = {**record, "measured": measured, "domains": {**record.get("domains", {}), name: entry}}
            typer.echo(results.write("evolution", record))


if __name__ == "__main__":
    presets.run(main, domain=["maximum"], held_out=4, rounds=1, steps=1, tasks=2)
