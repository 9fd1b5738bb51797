"""Poisoned support sets, loops on own labels and membership tests, for the chapter on safety.

Writes ``results/safety.json``. What a seed found is kept under ``_build/benchmarks/safety``, so that an interrupted
run goes on where it was; ``--fresh`` starts anew. Two minutes for each data set.

    METABOOK_DATA=~/data python benchmarks/safety.py
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, data, fit, presets, results, safety, seed_everything
from metabook.chat import UnbiasedPrototypes, within_class_spread
from metabook.learners import MAML, FineTune, Learner, ProtoNet
from metabook.llm import AdapterFewShot
from metabook.nets import MLP, Adapted
from metabook.storage import write_bytes
from metabook.text import LinearProbe, TfIdf
from metabook.training import ci95

WORK = presets.work("safety")
SETTINGS = {
    "tasks": presets.sized(80, smoke=4),
    "dimensions": 256,
    "ways": 5,
    "shots": 5,
    "flips": 4,
    "lost": 0.01,  # share of right labels that the slack of editing may cost on validation tasks
    "rounds": 8,
    "batch": 10,
    "updates": 200,
    "noises": [0.0, 0.02, 0.05, 0.1, 0.2],
    "strengths": [0.01, 1.0, 100.0],
    "steps": [1, 3, 5, 10, 30, 100],
}
Scores = dict[str, Any]  # nested by name, with a list of one number a task at the ends


def features(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Messages and unit vectors of each split."""
    messages: dict[str, Any] = {part: data.load(name, part) for part in ("train", "validation", "test")}
    tfidf = TfIdf(messages["train"].texts)
    return messages, {part: tfidf.dense(pool.texts, SETTINGS["dimensions"]) for part, pool in messages.items()}


@torch.no_grad()
def right(learner: Learner, episodes: Episodes) -> list[float]:
    return (learner.predict(episodes).argmax(2) == episodes.query_y).double().mean(1).tolist()


def poison(messages: dict[str, Any], z: dict[str, Tensor], seed: int) -> Scores:
    """Accuracy with 0, 1, ... wrong labels, by kind of poison and learner."""
    tasks, flips = SETTINGS["tasks"], range(SETTINGS["flips"] + 1)
    spread = within_class_spread(z["validation"], messages["validation"].y)
    validation = messages["validation"].with_features(z["validation"])
    calm = EpisodeSampler(validation, 5, 5, 1, seed=seed).sample(400)
    slack = -float(safety.margins(calm.support_x, calm.support_y, 5, spread).quantile(SETTINGS["lost"]))
    lookup = nn.Embedding.from_pretrained(z["test"])
    learners: dict[str, Learner] = {
        "prototypes": ProtoNet(lookup),
        "geometric median": safety.RobustPrototypes(lookup, centre="geometric"),
        "counted": UnbiasedPrototypes(lookup, spread),
        "counted and edited": safety.RobustPrototypes(lookup, spread, slack=slack),
        "linear probe": LinearProbe(z["test"].numpy()),
    }
    drawn = EpisodeSampler(messages["test"], 5, 5, 15, seed=seed).sample(tasks)
    theirs = replace(drawn, query_x=drawn.query_x[:, :25], query_y=drawn.query_y[:, :25])
    ours = replace(drawn, query_x=drawn.query_x[:, 25:], query_y=drawn.query_y[:, 25:])
    poisons = {
        "random": [safety.flip_at_random(ours, m, seed) for m in flips],
        "together": [safety.flip_together(ours, m) for m in flips],
        "chosen": [
            replace(ours, support_y=y) for y in safety.worst_flips(learners["prototypes"], theirs, SETTINGS["flips"])
        ],
    }
    return {
        how: {label: [right(learner, each) for each in several] for label, learner in learners.items()}
        for how, several in poisons.items()
    }


def loop(messages: dict[str, Any], z: dict[str, Tensor], seed: int) -> Scores:
    """Accuracy at the end of each loop and gain over no loop, by loop and number of shots."""
    spread = within_class_spread(z["validation"], messages["validation"].y)
    loops = {
        "own labels": ("own", False, 0.0),
        "own, anchored": ("own", True, 0.0),
        "verified": ("verified", False, 0.0),
        "verified, anchored": ("verified", True, 0.0),
        "own, anchored, counted": ("own", True, spread),
        "verified, anchored, counted": ("verified", True, spread),
    }
    found: Scores = {label: {} for label in loops}
    for shots in (1, 5):
        sampler = EpisodeSampler(messages["test"].with_features(z["test"]), 5, shots, 40, seed=seed)
        episodes = sampler.sample(SETTINGS["tasks"])
        for label, (labels, anchored, correction) in loops.items():
            path, _ = safety.self_train(
                episodes, SETTINGS["rounds"], SETTINGS["batch"], labels, anchored, correction, seed
            )
            found[label][str(shots)] = {"end": path[:, -1].tolist(), "gain": (path[:, -1] - path[:, 0]).tolist()}
    return found


def membership(messages: dict[str, Any], z: dict[str, Tensor], seed: int) -> Scores:
    """AUROC and accuracy by learner and setting."""
    seed_everything(seed)
    tasks, d = SETTINGS["tasks"], SETTINGS["dimensions"]
    wide = {part: pool.with_features(z[part] * d**0.5) for part, pool in messages.items()}
    maml = MAML(MLP(d, (64, 64), 5), inner_lr=0.1, steps=5)
    training = EpisodeSampler(wide["train"], 5, 5, 5, seed=seed)
    fit(maml, training, steps=SETTINGS["updates"], tasks=8, lr=1e-3, seed=seed, progress=False)
    pools = {"vectors": messages["test"].with_features(z["test"]), "rows": messages["test"], "wide": wide["test"]}
    users = {kind: EpisodeSampler(pool, 5, 5, 15, seed=seed).sample(tasks) for kind, pool in pools.items()}

    def entry(logits: Tensor) -> Scores:
        auc, accuracy = safety.leak(logits.detach(), users["vectors"])
        return {"auroc": auc.tolist(), "accuracy": accuracy.tolist()}

    def ask(learner: Learner, kind: str) -> Scores:
        with torch.no_grad():
            return entry(learner.predict(safety.ask_again(users[kind])))

    noisy = {s: safety.NoisyPrototypes(nn.Identity(), s, seed) for s in SETTINGS["noises"]}
    probes = {C: LinearProbe(z["test"].numpy(), C) for C in SETTINGS["strengths"]}
    found = {
        "prototypes with noise": {f"noise {s:g}": ask(learner, "vectors") for s, learner in noisy.items()},
        "linear probe": {f"C = {C:g}": ask(learner, "rows") for C, learner in probes.items()},
    }
    scratch = FineTune(MLP(d, (64, 64), 5), inner_lr=0.1, steps=100)
    for label, learner in (("network from MAML", maml), ("network from scratch", scratch)):
        path = learner.trajectory(safety.ask_again(users["wide"]), max(SETTINGS["steps"]))
        found[label] = {f"{k} steps": entry(path[k]) for k in SETTINGS["steps"]}
    adapter = AdapterFewShot(Adapted(d, rank=16, scale=1.0), inner_lr=1e-2, sharpness=16.0)
    path = adapter.trajectory(safety.ask_again(users["vectors"]), SETTINGS["steps"])
    found["low-rank adapter"] = {f"{k} steps": entry(logits) for k, logits in zip(SETTINGS["steps"], path)}
    return found


def summary(seeds: list[Any]) -> Any:
    """The same nesting with mean and intervals at the ends; a list is of tasks if it holds numbers."""
    first = seeds[0]
    if isinstance(first, dict):
        return {key: summary([each[key] for each in seeds]) for key in first}
    if isinstance(first[0], list):
        return [summary([each[i] for each in seeds]) for i in range(len(first))]
    scores = np.array(seeds)  # each seed has tasks of its own
    return {
        "mean": round(float(scores.mean()), 5),
        "ci95": round(ci95(scores.ravel()), 5),
        "seeds_ci95": round(ci95(scores.mean(1)), 5) if len(scores) > 1 else None,
        "seed_means": [round(float(each), 5) for each in scores.mean(1)],
    }


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    fresh: Annotated[bool, typer.Option(help="Forget what earlier runs found.")] = False,
) -> None:
    torch.set_num_threads(1)
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    record: dict[str, Any] = {"measured": results.circumstances(), "settings": SETTINGS, "seeds": list(range(seeds))}
    record |= {"data": {}, "cpu_seconds": {}}
    names = ("intents", "clinc150")
    with tqdm(total=len(names) * seeds, unit="seed") as bar:
        for name in names:
            loaded = None
            found = []
            for seed in range(seeds):
                bar.set_description(f"{name}, seed {seed}")
                path = WORK / f"{name}-{seed}.json"
                if not path.exists() or json.loads(path.read_text())["settings"] != SETTINGS:
                    loaded = loaded or features(name)
                    started = time.process_time()
                    parts = {"poison": poison, "loop": loop, "membership": membership}
                    scores = {part: measure(*loaded, seed) for part, measure in parts.items()}
                    entry = {"settings": SETTINGS, "scores": scores, "cpu_seconds": time.process_time() - started}
                    write_bytes(path, json.dumps(entry).encode())
                found.append(json.loads(path.read_text()))
                bar.update()
            record["data"][name] = summary([each["scores"] for each in found])
            record["cpu_seconds"][name] = round(sum(each["cpu_seconds"] for each in found), 1)
    print(results.write("safety", record))


if __name__ == "__main__":
    presets.run(main)
