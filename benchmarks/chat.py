"""Bots that learn while they are used, at length: new intents from few examples, and 300 turns with a scripted user.

Writes ``results/chat.json``. Settings and thresholds are chosen on validation classes. Each run is kept under
``_build/benchmarks/chat``, so that an interrupted benchmark goes on where it was; ``--fresh`` starts anew. CLINC150 is
measured where its files are. ``--llm`` adds prototypes over the features of the language model for the users.
Another mind is added by a line in ``MINDS``.

    python benchmarks/chat.py
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from tqdm import tqdm

from metabook import EpisodeSampler, chat, data, fit, presets, results, seed_everything
from metabook.chat import setup, users
from metabook.learners import Learner, NearestNeighbour, ProtoNet
from metabook.llm import MetaAdapter
from metabook.nets import Adapted
from metabook.training import ci95

WORK = presets.work("chat")
SHOTS = (1, 3, 5)
CHECKS = (0, 25, 50, 100, 150, 200, 250, 300)
BLOCK = 25  # turns that are averaged for the curve
INNER_STEPS, INNER_LR, SHARPNESS = 5, 1e-2, 16.0  # of the adapters
#: What talks with the users beside the minds themselves, and which of them it is.
KIND = dict.fromkeys(("no learning", "with a threshold", "LLM prototypes"), "unbiased prototypes")


@lru_cache(maxsize=4)
def tfidf(name: str) -> tuple[Any, data.TextData]:
    pool = chat.training_part(name)
    return chat.TfIdfFeatures(pool.texts), pool


def validation(name: str, **options: Any) -> list[chat.Scenario]:
    draws = [(k, s) for k in (1, 5) for s in (0, 1)]
    return [chat.draw_scenario(name, "validation", shots=k, seed=s, **options) for k, s in draws]


def unbiased(embed: Any, scenarios: list[chat.Scenario], net: nn.Module | None = None) -> Learner:
    return chat.UnbiasedPrototypes(net or nn.Identity(), setup.spread_in(embed, scenarios, net))


def meta(name: str, steps: int, seed: int, scenarios: list[chat.Scenario]) -> Learner:
    embed, pool = tfidf(name)
    return unbiased(embed, scenarios, chat.meta_learn(embed, pool, steps, seed=seed))


@lru_cache(maxsize=4)
def adapter(name: str, steps: int, seed: int) -> Adapted:
    """An adapter whose start is meta-learned on tasks of old intents; with no steps the plain one."""
    embed, pool = tfidf(name)
    seed_everything(seed)
    learner = MetaAdapter(Adapted(setup.DIMENSIONS, scale=1.0), "fomaml", INNER_LR, sharpness=SHARPNESS)
    if steps:
        tasks = EpisodeSampler(pool.with_features(embed(pool.texts)), ways=16, shots=5, queries=5, seed=seed)
        fit(learner, tasks, steps=steps, tasks=2, lr=3e-3, anneal="cosine", seed=seed, progress=False)
    assert isinstance(learner.net, Adapted)  # for the type checker
    return learner.net


def adapting(name: str, steps: int, seed: int, scenarios: list[chat.Scenario]) -> Learner:
    """Steps on all that is remembered, from that start, whenever something has been corrected."""
    net = adapter(name, steps, seed)
    spread = setup.spread_in(tfidf(name)[0], scenarios, net)
    return MetaAdapter(net, "fomaml", INNER_LR, INNER_STEPS, sharpness=SHARPNESS, spread=spread)


def minds(name: str, seed: int, scenarios: list[chat.Scenario]) -> dict[str, dict[str, Callable[[], Learner]]]:
    """For each kind of mind, the settings between which the validation scenarios decide."""
    embed, _ = tfidf(name)
    old = len(scenarios[0].known)
    return {
        "nearest example": {"": NearestNeighbour},
        "prototypes": {"": lambda: ProtoNet(nn.Identity())},
        "unbiased prototypes": {"": lambda: unbiased(embed, scenarios)},
        "meta-learned": {f"{n} steps": lambda n=n: meta(name, n, seed, scenarios) for n in (10, 30, 100)},
        "plain adapter": {"": lambda: adapting(name, 0, seed, scenarios)},
        "meta-learned adapter": {f"{n} steps": lambda n=n: adapting(name, n, seed, scenarios) for n in (30, 100)},
        "retrained classifier": {f"C = {c}": lambda c=c: chat.Retrained(c) for c in (10.0, 100.0)},
        "fine-tuned classifier": {f"{n} steps": lambda n=n: chat.FineTuned(old, n) for n in (3, 10)},
    }


@cache
def chosen(name: str, mind: str, seed: int) -> tuple[Learner, dict[str, Any]]:
    """The mind with the setting and the threshold that have the best balance on the validation scenarios."""
    embed, scenarios = tfidf(name)[0], validation(name)
    tried = []
    for setting, build in minds(name, seed, scenarios)[mind].items():
        learner = build()
        outcomes = [chat.ask(embed, learner, scenario) for scenario in scenarios]
        threshold = chat.pooled_threshold(outcomes).value
        balance = float(np.mean([outcome.shares(threshold)["balance"] for outcome in outcomes]))
        tried.append((balance, setting, threshold, learner))
    best = max(tried, key=lambda each: each[0])
    settings = {"setting": best[1], "threshold": best[2], "tried": {each[1]: each[0] for each in tried}}
    return best[3], settings


def settled(name: str, mind: str, seed: int) -> tuple[Learner, dict[str, Any]]:
    """What was chosen; only the meta-learned minds are others for each seed."""
    return chosen(name, mind, seed if mind.startswith("meta-learned") else 0)


def new_intents(name: str, mind: str, seed: int, draws: int) -> dict[str, Any]:
    """One kind of mind on test scenarios, and what it costs."""
    embed = tfidf(name)[0]
    learner, settings = settled(name, mind, seed)
    run: dict[str, Any] = {"settings": settings}
    for shots in SHOTS:
        rows = []
        for draw in range(draws):
            scenario = chat.draw_scenario(name, "test", shots=shots, seed=draws * seed + draw)
            outcome = chat.ask(embed, learner, scenario)
            free, held = outcome.shares(), outcome.shares(settings["threshold"])
            free = {"old": free["old"], "new": free["new"], "auroc": outcome.auroc}
            rows.append(free | {f"{part} at the threshold": share for part, share in held.items()})
        run[str(shots)] = {key: [row[key] for row in rows] for key in rows[0]}
    bot = chat.Chatbot(embed, learner, starter=scenario.known)
    bot.answer(scenario.old[0].message)  # what is done once
    started = time.process_time()
    for example in scenario.taught:
        bot.teach(example.intent, example.message)
    bot.answer(scenario.new[0].message)
    learnt = time.process_time()
    for example in scenario.old[:30]:
        bot.answer(example.message)
    run["learn_seconds"], run["answer_seconds"] = learnt - started, (time.process_time() - learnt) / 30
    return run


def feedback(name: str, mind: str, seed: int, turns: int, setting: str, threshold: float) -> dict[str, Any]:
    """A scripted user's dialogue with one kind of bot; settings are those that were chosen for new intents."""
    user = chat.ScriptedUser.draw(name, "test", turns=turns, seed=seed)
    if mind == "LLM prototypes":
        embed: Any = llm(name)
        learner: Learner = unbiased(embed, few(name))
    else:
        embed = tfidf(name)[0]
        learner = minds(name, seed, validation(name))[KIND.get(mind, mind)][setting]()
    if isinstance(learner, chat.Retrained):
        learner.every = 10
    bot = chat.Chatbot(embed, learner, threshold=threshold, starter=user.known)
    says = users.nothing if mind == "no learning" else users.correct
    dialogue = chat.talk(bot, user, says, [check for check in CHECKS if check <= turns])
    blocks = [dialogue.accuracy(first, first + BLOCK) for first in range(0, turns, BLOCK)]
    return {
        "blocks": blocks,
        "accuracy": dialogue.accuracy(),
        "last 100": dialogue.accuracy(-100),
        "wrong": dialogue.wrong,
        "silent": sum(dialogue.silent),
        "stored": dialogue.stored[-1],
        "checks": {str(turn): value for turn, value in dialogue.checks.items()},
        "answer_seconds": dialogue.answer_seconds / turns,
        "learn_seconds": dialogue.learn_seconds / max(1, dialogue.stored[-1]),
    }


def few(name: str) -> list[chat.Scenario]:
    """Validation scenarios with few messages, for features that take their time."""
    return [chat.draw_scenario(name, "validation", shots=5, seed=s, known_shots=5) for s in (0, 1)]


@lru_cache(maxsize=2)
def llm(name: str) -> chat.LLMFeatures:
    from metabook import llm as models

    training = [example.message for scenario in few(name) for example in scenario.known]
    return chat.LLMFeatures(models.load(), list(dict.fromkeys(training)), cached=True, progress=True)


def interval(runs: Any) -> dict[str, Any]:
    """Mean of ``[seeds]`` or ``[seeds, draws]``, and its 95 % intervals over the seeds and over all draws."""
    scores = np.asarray(runs, dtype=float).reshape(len(runs), -1)
    over_seeds = ci95(scores.mean(1)) if len(scores) > 1 else None
    every = ci95(scores.ravel()) if scores.size > 1 else None
    values = {"mean": scores.mean(), "ci95": every, "seeds_ci95": over_seeds}
    return {name: None if value is None else round(float(value), 5) for name, value in values.items()}


def present() -> list[str]:
    names = ["intents"]
    try:
        data.load("clinc150", "train")
        names.append("clinc150")
    except data.DataError as error:
        typer.echo(f"without CLINC150: {error}", err=True)
    return names


def summary(name: str, kinds: Sequence[str], talkers: Sequence[str], runs: dict[str, Any]) -> tuple[Any, Any]:
    """The two tables of a data set."""
    parts = {}
    for kind in kinds:
        each = runs["new", kind]
        shots = {str(k): {key: interval([run[str(k)][key] for run in each]) for key in each[0][str(k)]} for k in SHOTS}
        costs = {key: interval([run[key] for run in each]) for key in ("learn_seconds", "answer_seconds")}
        parts[kind] = {"settings": [run["settings"] for run in each], **shots, **costs}
    dialogues = {}
    for kind in talkers:
        each = runs["user", kind]
        single = ("accuracy", "last 100", "wrong", "silent", "stored", "answer_seconds", "learn_seconds")
        dialogues[kind] = {
            **{key: interval([run[key] for run in each]) for key in single},
            "blocks": [interval(column) for column in zip(*(run["blocks"] for run in each))],
            "checks": {turn: interval([run["checks"][turn] for run in each]) for turn in each[0]["checks"]},
        }
    return parts, dialogues


def main(
    seeds: int = 3,
    draws: Annotated[int, typer.Option(help="Test scenarios of each seed and number of shots.")] = 2,
    turns: int = 300,
    only: Annotated[str | None, typer.Option(help="One data set: intents or clinc150.")] = None,
    llm: Annotated[bool, typer.Option("--llm", help="Also with the language model; minutes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Run what has not been run yet, and write the record."""
    torch.set_num_threads(1)
    measured, names = results.circumstances(), present() if only is None else [only]
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    kinds = tuple(minds("intents", 0, validation("intents")))
    talkers = ("no learning", *kinds[:-1], "with a threshold", *(["LLM prototypes"] if llm else []))
    record: dict[str, Any] = {
        "measured": measured,
        "settings": {
            "draws": draws,
            "turns": turns,
            "block": BLOCK,
            "shots": SHOTS,
            "threads": 1,
            "retrain_every": 10,
            "inner_steps": INNER_STEPS,
            "inner_lr": INNER_LR,
        },
        "seeds": list(range(seeds)),
        "cpu_seconds": {},
        "new_intents": {},
        "feedback": {},
    }
    for name in names:
        runs: dict[Any, list[Any]] = {}
        for kind in tqdm(kinds, unit="mind", desc=f"{name}, new intents"):
            works = [(name, kind, seed, draws) for seed in range(seeds)]
            runs["new", kind] = [
                presets.kept(WORK, " ".join(map(str, ("new", *work))), new_intents, *work) for work in works
            ]
        for kind in tqdm(talkers, unit="mind", desc=f"{name}, users"):
            for seed in range(seeds):
                settings = runs["new", KIND.get(kind, kind)][seed]["settings"]
                limit = settings["threshold"] if kind == "with a threshold" else -math.inf
                job = f"user {name} {kind} {seed} {turns}"
                run = presets.kept(WORK, job, feedback, name, kind, seed, turns, settings["setting"], limit)
                runs.setdefault(("user", kind), []).append(run)
        seconds = sum(run["cpu_seconds"] for each in runs.values() for run in each)
        record["cpu_seconds"][name] = round(seconds, 1)
        record["new_intents"][name], record["feedback"][name] = summary(name, kinds, talkers, runs)
        typer.echo(results.write("chat", record))  # after each data set: what is done is there


if __name__ == "__main__":
    presets.run(main, draws=1, turns=25, only="intents")
