r"""Adapters on few-shot intents: a plain start, meta-learned starts and masked steps, on the published class splits.

Every method trains for the same CPU time on the training classes, and is judged on the same tasks of test classes after
several numbers of inner steps. Writes ``results/adapters_<data>.json`` with all runs that were made so far; a run that
is in the record with the same settings is not made again, one that was interrupted goes on at its last checkpoint (the
states that enter the adapted layers, and the checkpoints, are kept under ``_build/benchmarks``).

    METABOOK_DATA=~/data python benchmarks/adapters.py --data clinc150 --method prototypes --seconds 600 --seeds 1
    METABOOK_DATA=~/data python benchmarks/adapters.py --data banking77 --method plain --method fomaml --layer 8 \
        --first 0 --pooling mean --seconds 100 --seeds 3
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from metabook import EpisodeSampler, LabelledData, data, evaluate, presets, results
from metabook.data import TextData
from metabook.episodes import generator_for
from metabook.learners import ProtoNet
from metabook.llm import AdaptedFeatures, Adapter, AdapterFewShot, LowerStates, MaskedAdapter, MetaAdapter, load
from metabook.llm.few_shot import METHODS, rarity
from metabook.storage import read_tensors, write_tensors
from metabook.training import ci95

WORK = presets.work("adapters")
LABELS = {
    "plain": "LoRA, plain start",
    "prototypes": "LoRA, start from the prototypical loss",
    "fomaml": "LoRA, start from first-order MAML",
    "reptile": "LoRA, start from Reptile",
    "masked": "LoRA, masked steps from a plain start",
    "masked-start": "LoRA, start from the masked loss",
}
SHOTS = (1, 5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on besides data, method and seed."""

    layer: int = 28  # the features are the states after so many layers
    first: int = 20  # the lowest adapted layer
    pooling: str = "last"
    rank: int = 8
    ways: int = 10  # of training tasks
    examples: int = 5  # a class, of training tasks
    lr: float = 1e-3
    inner_lr: float = 1e-3
    sharpness: float = 10.0
    seconds: float = 600.0
    split: int = 1
    texts: int | None = None  # of each class, for a short trial; None: all


class Pool:
    """The texts of all splits in one numbering, their lower states, and tasks of each split."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        parts = [
            data.load(name, each, **({} if name == "intents" else {"split_number": settings.split}))
            for each in ("train", "validation", "test")
        ]
        self.all = parts[0] + parts[1] + parts[2]
        ends = np.cumsum([len(part) for part in parts])
        starts = np.concatenate([[0], ends[:-1]])
        self.classes = {each: range(a, b) for each, a, b in zip(("train", "validation", "test"), starts, ends)}
        self.lm = load(device="cpu")
        self.states = LowerStates(self.lm, self.all.texts, settings.first, settings.pooling)
        self.file = WORK / f"{name}-{settings.split}-{settings.first}-{settings.pooling}.safetensors"
        if self.file.exists():
            self.states.load(self.file)

    def tasks(self, split: str, shots: int, queries: int, seed: int, ways: int = 5) -> EpisodeSampler:
        rows, y = rows_of(self.all, self.classes[split], self.settings.texts)
        names = tuple(self.all.names[c] for c in self.classes[split])
        return EpisodeSampler(LabelledData(rows, y, names, names), ways, shots, queries, seed=seed)

    def rows(self, split: str) -> torch.Tensor:
        """Row numbers of a split's texts."""
        return rows_of(self.all, self.classes[split], self.settings.texts)[0]


def rows_of(pool: TextData, classes: range, texts: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of some classes' texts, or of the same random few of each class, and their labels from 0."""
    found = []
    for c in classes:
        rows = torch.nonzero(pool.y == c).flatten()
        found.append(rows[torch.randperm(len(rows), generator=generator_for("few texts", c))[:texts].sort().values])
    return torch.cat(found), torch.arange(len(found)).repeat_interleave(torch.tensor([len(rows) for rows in found]))


def build(method: str, net: AdaptedFeatures, pool: Pool, settings: Settings) -> AdapterFewShot:
    """The untrained learner of a method."""
    common: dict[str, Any] = dict(inner_lr=settings.inner_lr, sharpness=settings.sharpness)
    if method in METHODS:
        return MetaAdapter(net, method, **common)
    if method == "plain":
        return AdapterFewShot(net, **common)
    texts = net.states if settings.pooling == "mean" else LowerStates(pool.lm, pool.all.texts, settings.first, "mean")
    weights = rarity(pool.lm, [pool.all.texts[int(row)] for row in pool.rows("train")])
    return MaskedAdapter(net, texts, weights=weights, queries=True, **common)


def train(
    learner: AdapterFewShot, method: str, pool: Pool, settings: Settings, seed: int, file: Path
) -> dict[str, Any]:
    """Meta-train for the CPU time of the settings; the number of steps is known only at the end."""
    if method in ("plain", "masked"):
        return {"steps": 0, "cpu_seconds": 0.0, "losses": []}
    source = pool.tasks("train", 1, settings.examples - 1, 100 + seed, settings.ways)
    reptile = method == "reptile"
    params = list(learner.parameters())
    optimiser = torch.optim.SGD(params, lr=1.0) if reptile else torch.optim.AdamW(params, settings.lr, weight_decay=0.0)
    losses: list[float] = []
    spent = 0.0
    if file.exists():
        losses, spent = resume(file, learner, optimiser)
    bar = tqdm(total=round(settings.seconds), initial=round(spent), unit="CPU-s", desc=f"{method}, seed {seed}")
    saved = time.monotonic()
    while spent < settings.seconds:
        started, done = time.process_time(), spent / settings.seconds
        for group in optimiser.param_groups:
            group["lr"] = 1.0 - done if reptile else settings.lr * (0.5 + 0.5 * np.cos(np.pi * done))
        optimiser.zero_grad()
        losses.append(float(learner.accumulate_gradients(source.sample(1, len(losses)))))
        optimiser.step()
        spent += time.process_time() - started
        bar.n = round(spent)
        bar.set_postfix_str(f"loss {np.mean(losses[-10:]):.3f}")
        if time.monotonic() - saved > 200 or spent >= settings.seconds:
            keep(file, learner, optimiser, losses, spent)
            pool.states.save(pool.file)
            saved = time.monotonic()
    bar.close()
    curve = [float(np.mean(part)) for part in np.array_split(losses, min(40, len(losses)))]
    return {"steps": len(losses), "cpu_seconds": spent, "losses": curve}


def keep(
    file: Path, learner: AdapterFewShot, optimiser: torch.optim.Optimizer, losses: list[float], spent: float
) -> None:
    tensors = {f"learner.{name}": value for name, value in learner.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if value is not None}
    write_tensors(file, tensors, {"losses": losses, "spent": spent})


def resume(file: Path, learner: AdapterFewShot, optimiser: torch.optim.Optimizer) -> tuple[list[float], float]:
    tensors, header = read_tensors(file)
    learner.load_state_dict({n.removeprefix("learner."): v for n, v in tensors.items() if n.startswith("learner.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return header["losses"], header["spent"]


def judge(
    learner: AdapterFewShot, source: EpisodeSampler, tasks: int, adapt_tasks: int, steps: list[int]
) -> dict[str, Any]:
    """Accuracy by number of inner steps. Adapting costs: it is done for fewer tasks, and the record says how many."""
    with torch.no_grad():
        rows = source.data.x
        parts = [learner.features(part) for part in tqdm(rows.split(64), desc="features", leave=False)]
    table = torch.zeros(int(rows.max()) + 1, parts[0].shape[1])
    table[rows] = torch.cat(parts)
    frozen = ProtoNet(torch.nn.Identity())
    frozen.embed = lambda x: table[x]  # type: ignore[method-assign]
    found = {"0": evaluate(frozen, source, tasks=tasks).record()}
    later = [n for n in steps if n]
    scores: list[list[float]] = []
    for step in tqdm(range(adapt_tasks if later else 0), unit="task", desc="adapting", leave=False):
        task = source.sample(1, 1_000_000 + step)
        right = learner.trajectory(task, [0, *later]).argmax(-1) == task.query_y
        scores.append(right.double().mean((1, 2)).tolist())
    for n, values in zip([0, *later], np.array(scores).T):
        # Without steps and with them on the same tasks, whose difference has the smaller interval.
        gain = values - np.array(scores)[:, 0]
        paired = {"gain": float(gain.mean()), "gain_ci95": ci95(gain)} if n else {}
        summary = {"mean": float(values.mean()), "ci95": ci95(values), "tasks": len(values), **paired}
        found[str(n) if n else "0 on the tasks of the others"] = summary
    return found


def main(
    dataset: Annotated[str, typer.Option("--data", help="clinc150, banking77 or intents.")] = "clinc150",
    split: Annotated[int, typer.Option(help="Which of the published class splits, 1 to 5.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="Give it once for each. [default: all]")] = None,
    seconds: Annotated[float, typer.Option(help="CPU seconds of meta-training a run.")] = 600.0,
    seeds: int = 1,
    layer: int = 28,
    first: int = 20,
    pooling: str = "last",
    rank: int = 8,
    ways: int = 10,
    examples: int = 5,
    lr: float = 1e-3,
    inner_lr: float = 1e-3,
    sharpness: float = 10.0,
    steps: Annotated[
        list[int] | None, typer.Option(help="Inner steps at which to test. [default: 0, 1, 5, 20]")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Test tasks of each number of shots.")] = 300,
    adapt_tasks: Annotated[int, typer.Option(help="Of these, with inner steps.")] = 60,
    texts: Annotated[int | None, typer.Option(help="Of each class, for a short trial. [default: all]")] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Judge on validation classes: to choose settings.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the record. [default: adapters_DATA]")] = None,
) -> None:
    """Train and judge, and add to the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    if unknown := set(method or ()) - set(LABELS):
        raise typer.BadParameter(f"{', '.join(unknown)}: take some of {', '.join(LABELS)}")
    settings = Settings(layer, first, pooling, rank, ways, examples, lr, inner_lr, sharpness, seconds, split, texts)
    record_name, on = name or f"adapters_{dataset}", "validation" if validation else "test"
    pool, sample = Pool(dataset, settings), None
    for seed in range(seeds):
        for each in method or list(LABELS):
            key = {"method": each, "seed": seed, "judged_on": on, "settings": dataclasses.asdict(settings)}
            runs = read_runs(record_name)
            if any({name: run[name] for name in key} == key for run in runs):
                continue
            adapter = Adapter(pool.lm, rank, layers=range(first, min(layer, pool.lm.depth)), seed=seed)
            if sample is None:
                drawn = torch.randperm(len(pool.rows("train")), generator=generator_for("scale"))[:300]
                sample = AdaptedFeatures(adapter, pool.states, layer, pool.rows("train")[drawn])
            learner = build(each, sample.beside(adapter), pool, settings)
            file = WORK / f"{dataset}-{each}-{seed}-{hash_of(key):x}.safetensors"
            trained = train(learner, each, pool, settings, seed, file)
            kinds = {
                f"5w{shots}s": judge(learner, pool.tasks(on, shots, 5, 1), tasks, adapt_tasks, steps or [0, 1, 5, 20])
                for shots in SHOTS
            }
            pool.states.save(pool.file)
            run = {**key, "label": LABELS[each], "transductive": learner.transductive, **trained, "accuracy": kinds}
            results.write(record_name, {"measured": measured, "data": dataset, "runs": [*runs, run]})
            typer.echo(json.dumps({"method": each, "seed": seed, "steps": trained["steps"], **kinds}))


def hash_of(key: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(key, sort_keys=True).encode())


def read_runs(name: str) -> list[dict[str, Any]]:
    return results.read(name)["runs"] if name in results.names() else []


if __name__ == "__main__":
    presets.run(
        main,
        dataset="intents",
        method=["plain", "fomaml"],
        seconds=2.0,
        layer=3,
        first=1,
        ways=5,
        steps=[0, 1],
        tasks=4,
        adapt_tasks=2,
        texts=10,
    )
