"""Domains that come one after the other, at length: what networks, prototypes and adapters keep of the earlier ones.

Writes ``results/continual.json``. Data: CLINC150 where its files are, else the generated intents. Each seed draws which
domains are for meta-training, which for choosing settings, and which are the stream, and in what order they come; no
class is on two sides. Features: TF-IDF, a sentence encoder (MiniLM) and, with ``--llm``, a language model, all frozen
and computed once. Each run is kept under ``_build/benchmarks/continual``, so that an interrupted benchmark goes on
where it was; ``--fresh`` starts anew. Another row is another line in ``rows``.

    python benchmarks/continual.py
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

from metabook import EpisodeSampler, LabelledData, data, fit, presets, results, seed_everything
from metabook.continual import Continual, Network, Prototypes, Recalled, measure, stream
from metabook.episodes import generator_for
from metabook.llm import AdapterFewShot, MetaAdapter
from metabook.nets import Adapted
from metabook.text import TfIdf
from metabook.training import ci95

WORK = presets.work("continual")
FEATURES = presets.sized(("TF-IDF", "MiniLM"), smoke=("TF-IDF",))
SHOTS, TEST, FEW = presets.sized(
    (15, 10, 5), smoke=(6, 2, 5)
)  # examples of a class to learn from, to be asked, to be kept
PARTS = {"clinc150": (4, 2, 4), "intents": (4, 2, 3)}  # domains for meta-training, for choosing settings, in the stream
DIMENSIONS, RANK, SHARPNESS = 512, 32, 16.0
LAYER, POOLING = 8, "mean"  # of the language model: not its best features, but a sixth of the cost of those
MEASURES = ("final", "backward", "forgetting", "forward")


@lru_cache(maxsize=1)
def messages(name: str) -> data.TextData:
    """So many messages of each class as are needed, and the texts beside them."""
    whole = data.load(name, "train+validation+test")
    assert isinstance(whole, data.TextData)  # for the type checker
    starts = (whole.counts.cumsum(0) - whole.counts).tolist()
    pairs = [(whole.texts[start + i], whole.names[c]) for c, start in enumerate(starts) for i in range(SHOTS + TEST)]
    return data.TextData.of(pairs, dict(zip(whole.names, whole.groups)))


def domains(name: str, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Domains for meta-training, for choosing, and of the stream."""
    names, (first, second, third) = sorted(set(messages(name).groups)), PARTS[name]
    drawn = [names[i] for i in torch.randperm(len(names), generator=generator_for("domains", seed)).tolist()]
    return drawn[:first], drawn[first : first + second], drawn[first + second : first + second + third]


@lru_cache(maxsize=2)
def frozen(name: str, features: str) -> Tensor:
    """What a model makes of all messages, ``[texts, width]``; not of unit length yet."""
    texts = messages(name).texts
    if features == "MiniLM":
        from metabook.llm.sentences import sentence_features

        return sentence_features(texts, progress=True).cpu()
    from metabook import llm

    with torch.no_grad():
        return llm.cached_features(llm.load(), texts, LAYER, POOLING, progress=True).cpu()


@lru_cache(maxsize=2)
def pools(name: str, features: str, seed: int) -> list[LabelledData]:
    """The three parts of a seed; what is fitted is fitted to the meta-training domains alone.

    The vectors have one length, such that features have a variance of one on average: networks start well from that,
    and nothing else depends on it.
    """
    pool, parts = messages(name), domains(name, seed)
    known = torch.tensor([pool.groups[c] in parts[0] for c in pool.y.tolist()])
    if features == "TF-IDF":
        z = TfIdf([text for text, each in zip(pool.texts, known.tolist()) if each]).dense(pool.texts, DIMENSIONS)
    else:
        z = frozen(name, features)
        mean, deviation = z[known].mean(0), z[known].std(0).clamp_min(1e-6)
        z = F.normalize((z - mean) / deviation if features == "LLM" else z, dim=1)
    whole = pool.with_features(z.shape[1] ** 0.5 * z)
    return [whole.in_groups(part) for part in parts]


@lru_cache(maxsize=8)
def start(name: str, features: str, seed: int, method: str, steps: int) -> Adapted:
    """An adapter that was meta-learned on the domains for meta-training; with no steps the plain one."""
    pool = pools(name, features, seed)[0]
    seed_everything(seed)
    learner = MetaAdapter(Adapted(pool.x.shape[1], RANK, 1.0), method, 1e-2, sharpness=SHARPNESS)
    shots = 1 if method == "prototypes" else FEW
    source = EpisodeSampler(pool, ways=min(15, len(pool)), shots=shots, queries=5, seed=seed)
    if steps:
        fit(learner, source, steps=steps, tasks=2, lr=3e-3, anneal="cosine", seed=seed, progress=False)
    assert isinstance(learner.net, Adapted)  # for the type checker
    return learner.net


Build = Callable[[LabelledData], Continual]


def rows(name: str, features: str, seed: int) -> dict[str, dict[str, Build]]:
    """For each row, the settings between which the domains for choosing decide."""

    def network(keep: int) -> dict[str, Build]:
        def build(lr: float) -> Build:
            return lambda pool: Network(pool.x.shape[1], len(pool), keep, lr=lr, seed=seed)

        return {f"lr = {lr:g}": build(lr) for lr in (1e-3, 3e-3, 1e-2)}

    def adapter(method: str | None, keep: int) -> dict[str, Build]:
        def build(meta: int, steps: int) -> Build:
            def fresh(pool: LabelledData) -> Continual:
                net = start(name, features, seed, method or "fomaml", meta)
                inner = AdapterFewShot(net, 1e-2, steps, sharpness=SHARPNESS)
                return Recalled(inner, pool.x.shape[1], len(pool), keep)

            return fresh

        metas = (50, 200) if method else (0,)
        return {f"{meta} outer, {steps} inner": build(meta, steps) for meta in metas for steps in (5, 20)}

    def embedding(meta: int) -> Build:
        return lambda pool: Prototypes(len(pool), start(name, features, seed, "prototypes", meta))

    return {
        "fine-tuning": network(0),
        f"replay of {FEW}": network(FEW),
        "replay of everything": network(SHOTS),
        "prototypes": {"": lambda pool: Prototypes(len(pool))},
        "prototypes, meta-learned adapter": {f"{meta} outer": embedding(meta) for meta in (30, 100)},
        f"plain adapter, {FEW} kept": adapter(None, FEW),
        f"meta-learned adapter, {FEW} kept": adapter("fomaml", FEW),
        "plain adapter, everything kept": adapter(None, SHOTS),
        "meta-learned adapter, everything kept": adapter("fomaml", SHOTS),
    }


def run(name: str, features: str, row: str, seed: int) -> dict[str, Any]:
    """One row on the stream of a seed, with the setting that is best on the domains for choosing."""
    _, choosing, pool = pools(name, features, seed)
    settings, on = rows(name, features, seed)[row], stream(choosing, SHOTS, seed)
    tried = {key: measure(partial(build, choosing), on).final for key, build in settings.items()}
    best = max(tried, key=lambda key: tried[key])
    begun = time.process_time()
    found = measure(partial(settings[best], pool), stream(pool, SHOTS, seed))
    return {
        "setting": best,
        "tried": tried,
        **{each: getattr(found, each) for each in MEASURES},
        "accuracy": [each[: i + 1].tolist() for i, each in enumerate(found.accuracy)],
        "memory": found.memory,
        "seconds": time.process_time() - begun,
    }


def first_pass(name: str, features: str) -> dict[str, Any]:
    """The features of all messages, by themselves so that their time is counted by itself."""
    pools(name, features, 0)
    return {}


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over the seeds, and its 95 % interval."""
    half = float(ci95(np.array(values))) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 5), "ci95": None if half is None else round(half, 5)}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The table of one kind of features; differences of the final accuracy are paired over the seeds."""

    def against(row: str, other: str) -> dict[str, float | None]:
        return interval([one["final"] - base["final"] for one, base in zip(runs[row], runs[other])])

    found: dict[str, dict[str, Any]] = {}
    for row, each in runs.items():
        matrix = [[interval(column) for column in zip(*lines)] for lines in zip(*(one["accuracy"] for one in each))]
        found[row] = {
            **{measured: interval([one[measured] for one in each]) for measured in MEASURES},
            "against prototypes": against(row, "prototypes"),
            "accuracy": matrix,
            "memory": round(float(np.mean([one["memory"] for one in each]))),
            "seconds": interval([one["seconds"] for one in each]),
            "settings": [{"setting": one["setting"], "tried": one["tried"]} for one in each],
        }
        if (plain := row.replace("meta-learned", "plain")) != row and plain in runs:
            found[row]["against plain"] = against(row, plain)
    return found


def main(
    seeds: int = 3,
    llm: Annotated[bool, typer.Option("--llm", help="Also with the language model; minutes more.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Run what has not been run yet, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    try:
        name = "clinc150"
        messages(name)
    except data.DataError as error:
        typer.echo(f"without CLINC150, so with the generated intents: {error}", err=True)
        name = "intents"
    record: dict[str, Any] = {
        "measured": measured,
        "data": name,
        "settings": {
            "domains": PARTS[name],
            "shots": SHOTS,
            "test": TEST,
            "few": FEW,
            "rank": RANK,
            "sharpness": SHARPNESS,
            "inner_lr": 1e-2,
            "threads": 1,
        },
        "seeds": list(range(seeds)),
        "cpu_seconds": {},
        "features": {},
    }
    for features in (*FEATURES, "LLM") if llm else FEATURES:
        once = presets.kept(WORK, f"{name} {features}", first_pass, name, features)["cpu_seconds"]
        runs: dict[str, list[dict[str, Any]]] = {}
        works = [(name, features, row, seed) for seed in range(seeds) for row in rows(name, features, seed)]
        for work in tqdm(works, unit="run", desc=features):
            runs.setdefault(work[2], []).append(presets.kept(WORK, " ".join(map(str, work)), run, *work))
        seconds = sum(each["cpu_seconds"] for found in runs.values() for each in found)
        record["cpu_seconds"][features] = {"features": round(once, 1), "rows": round(seconds, 1)}
        record["features"][features] = summary(runs)
        typer.echo(results.write("continual", record))  # after each kind: what is done is there


if __name__ == "__main__":
    presets.run(main, seeds=2)
