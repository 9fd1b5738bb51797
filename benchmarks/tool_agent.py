"""An agent that chooses among tools that it has not seen, at length: without a memory, with one, and meta-learned.

Writes ``results/tool_agent.json``. Settings are chosen on the validation tools. Features are kept in the cache and each
part under ``_build/benchmarks/tool_agent``, so that an interrupted benchmark goes on where it was; ``--fresh`` starts
anew. About three CPU minutes on one thread, most of them for what the language model reads.

    OMP_NUM_THREADS=1 python benchmarks/tool_agent.py
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from tqdm import tqdm

from metabook import presets, results
from metabook.episodes import generator_for
from metabook.learners import Learner, NearestNeighbour, ProtoNet
from metabook.llm import agent, cached_features, features, load
from metabook.llm.features import as_read
from metabook.llm.tools import SPLITS, TOOLS, ToolError, fill, parse_call, requests
from metabook.text import LinearProbe, TfIdf
from metabook.training import ci95

WORK = presets.work("tool_agent")
LAYER, WAYS, LENGTH, BLOCK, EVERY = 28, 8, 24, 4, 4
#: Share of the tools that have a description.
CONDITIONS = {"described": 1.0, "half described": 0.5, "undocumented": 0.0}
META = presets.sized(((100, 0), (100, 8), (300, 8)), smoke=((2, 0),))  # steps, rank
STRENGTHS = presets.sized((1.0, 10.0, 100.0), smoke=(10.0,))
#: Training requests that show how a call is written: tool and template.
SHOWN = (("tip", 1), ("time_between", 2), ("upper_text", 0), ("set_heating", 1))


class Bench:
    """Tools, requests and features, each computed once."""

    def __init__(self, streams: int, validation: int) -> None:
        self.pool = agent.Pool(TOOLS, tuple(requests(TOOLS, variants=2)))
        self.split = {name: self.pool.of_domains(domains) for name, domains in SPLITS.items()}
        self.streams, self.validation = streams, validation

    @cached_property
    def lm(self) -> Any:
        return load(device="cpu")

    @cached_property
    def table(self) -> Tensor:
        """Features of the language model, of length one."""
        found = cached_features(self.lm, self.pool.texts, LAYER, progress=True)
        return agent.standardised(found, self.pool, self.split["train"])

    @cached_property
    def tfidf(self) -> TfIdf:
        training = self.split["train"]
        texts = [self.pool.texts[row] for row in training]
        return TfIdf([*texts, *(self.pool.texts[row] for tool in training for row in self.pool.rows_for(tool))])

    @cached_property
    def counted(self) -> Tensor:
        return torch.from_numpy(self.tfidf.sparse(self.pool.texts).toarray())

    def drawn(self, part: str, condition: str, seed: int) -> list[agent.Stream]:
        """Streams of a seed: the same requests in every condition."""
        number, described = self.streams if part == "test" else self.validation, CONDITIONS[condition]
        return [
            agent.draw_stream(
                self.pool, self.split[part], WAYS, LENGTH, generator_for("tool agent", part, seed, i), described
            )
            for i in range(number)
        ]

    def lived(
        self, mind: Learner, streams: Sequence[agent.Stream], remembers: bool, every: int = 1, **options: Any
    ) -> Any:
        return [agent.Agent(mind, self.pool, s.toolbox, remembers, **options).live(s, every) for s in streams]

    def on_validation(self, mind: Learner, seed: int) -> float:
        """Share solved at once, with a memory, over all conditions."""
        parts = [self.lived(mind, self.drawn("validation", each, seed), True) for each in CONDITIONS]
        return float(np.mean([attempt.at_once for part in parts for life in part for attempt in life]))

    def best(
        self, settings: Sequence[Any], build: Callable[[Any], Learner], seed: int
    ) -> tuple[Learner, dict[str, Any]]:
        tried = [(setting, build(setting)) for setting in settings]
        found = [self.on_validation(mind, seed) for _, mind in tried]
        at = int(np.argmax(found))
        return tried[at][1], {"setting": tried[at][0], "tried": [[s, v] for (s, _), v in zip(tried, found)]}

    def minds(self, seed: int) -> dict[str, tuple[Learner, dict[str, Any]]]:
        """The minds that read features, with what was chosen for them."""
        spent: list[float] = []

        def meta(setting: tuple[int, int]) -> Learner:
            started = time.process_time()
            steps, rank = setting
            mind = agent.meta_train(self.pool, self.table, self.split["train"], steps, rank=rank, seed=seed)
            spent.append(time.process_time() - started)
            return mind

        learned, chosen = self.best(META, meta, seed)
        assert isinstance(learned, agent.WeighedMemory)
        chosen |= {"seconds": spent, "sharpness": learned.sharpness.tolist()}
        told = torch.tensor(self.split["test"])
        worth = [learned.log_worth(rows).exp().mean().item() for rows in (told, told + len(TOOLS))]
        chosen |= {"worth": dict(zip(("described", "undocumented"), worth))}
        probe = self.best(STRENGTHS, lambda strength: LinearProbe(self.table.numpy(), strength), seed)
        return {
            "chance": (agent.AnyTool(), {}),
            "TF-IDF, nearest": (agent.OverRows(NearestNeighbour(), self.counted), {}),
            "LLM, nearest": (agent.OverRows(NearestNeighbour(), self.table), {}),
            "LLM, prototypes": (agent.OverRows(ProtoNet(nn.Identity()), self.table), {}),
            "LLM, linear probe": probe,
            "LLM, meta-learned": (learned, chosen),
        }


def scores(lives: list[list[agent.Attempt]]) -> dict[str, Any]:
    """What an agent did in the streams of a seed, by stream."""
    return {
        "at_once": [[attempt.at_once for attempt in life] for life in lives],
        "tool": [[attempt.tool_right for attempt in life] for life in lives],
        "solved": [[attempt.solved for attempt in life] for life in lives],
        "calls": [[len(attempt.tried) for attempt in life] for life in lives],
        "seconds": float(np.mean([attempt.seconds for life in lives for attempt in life])),
    }


def quick(bench: Bench, seed: int) -> dict[str, Any]:
    """All minds that read features, on all streams of a seed."""
    found: dict[str, Any] = {"runs": {}, "chosen": {}, "checked": {}}
    for name, (mind, chosen) in bench.minds(seed).items():
        found["chosen"][name] = chosen
        for condition in CONDITIONS:
            streams = bench.drawn("test", condition, seed)
            for remembers in (False, True):
                if (name == "chance" and remembers) or (name == "LLM, linear probe" and not remembers):
                    continue  # nothing to remember with, nothing to fit
                key = f"{name}/{'memory' if remembers else 'none'}/{condition}"
                found["runs"][key] = scores(bench.lived(mind, streams, remembers))
                if name in ("chance", "LLM, nearest", "LLM, meta-learned"):
                    found["checked"][key] = scores(bench.lived(mind, streams, remembers, checks=True))
    return found


def in_context(bench: Bench, seed: int, condition: str, remembers: bool) -> dict[str, Any]:
    """The language model as the mind, on the first stream of a seed; it is left every fourth request."""
    mind = agent.InContextTools(bench.lm, bench.pool, bench.table, calibration="contextual")
    streams = bench.drawn("test", condition, seed)[:1]
    with agent.reading(bench.lm) as counts:
        found = scores(bench.lived(mind, streams, remembers, EVERY))
    return found | {"tokens": sum(counts) / len(found["at_once"][0])}


def reading_cost(bench: Bench) -> dict[str, float]:
    """What it costs to turn one request into features, in CPU seconds and tokens."""
    rows = [row for tool in bench.split["test"] for row in bench.pool.rows_for(tool)[:4:2]]
    texts = [bench.pool.texts[row] for row in rows]
    with torch.no_grad():
        features(bench.lm, texts[:2], LAYER)  # what is done once
        started = time.process_time()
        for text in texts:
            features(bench.lm, [text], LAYER)
    llm = time.process_time() - started
    started = time.process_time()
    for text in texts:
        bench.tfidf.sparse([text])
    tfidf = time.process_time() - started
    tokens = float(np.mean([len(ids) for ids in as_read(bench.lm, texts, "last")]))
    return {"LLM seconds": llm / len(texts), "TF-IDF seconds": tfidf / len(texts), "LLM tokens": tokens}


def arguments(bench: Bench) -> dict[str, Any]:
    """Whether the arguments are right where the right tool is given: by the rule, and as the model writes them."""
    known = {(each.call.tool.name, each.template): each for each in bench.pool.requests[::2]}
    asked = [known[TOOLS[tool].name, template] for tool in bench.split["test"] for template in (0, 2, 4)]
    written = agent.written_calls(bench.lm, asked, [known[pair] for pair in SHOWN])
    rows = []
    for request, text in zip(asked, written):
        row = {"request": request.text, "wanted": str(request.call), "written": text, "refused": ""}
        try:
            row["written right"] = parse_call(text, [request.call.tool]) == request.call
        except ToolError as error:
            row |= {"written right": False, "refused": str(error)}
        try:
            row["rule right"] = fill(request.call.tool, request.text) == request.call
        except ToolError:
            row["rule right"] = False
        rows.append(row)
    return {"rows": rows}


def without_training(bench: Bench, seed: int) -> dict[str, Any]:
    """What the nearest text does on the validation tools, on which the meta-learned mind was chosen."""
    return {"nearest": bench.on_validation(agent.OverRows(NearestNeighbour(), bench.table), seed)}


def interval(seeds: Sequence[Any], metric: str = "accuracy") -> dict[str, Any]:
    """Mean of ``[seeds][streams][requests]`` and its 95 % interval over all streams, and over the seeds."""
    lives = [np.asarray(each, dtype=float).mean(1) for each in seeds]
    means, over = [float(each.mean()) for each in lives], np.concatenate(lives)
    return {
        "metric": metric,
        "mean": round(float(over.mean()), 5),
        "ci95": round(ci95(over), 5),
        "seeds_ci95": round(ci95(np.array(means)), 5),
        "seed_means": [round(each, 5) for each in means],
        "streams": len(over),
    }


def entry(each: Sequence[dict[str, Any]], block: int) -> dict[str, Any]:
    """One mind in one condition over its seeds; the curve has a point for each ``block`` requests."""
    curve = [
        interval([[life[start : start + block] for life in run["at_once"]] for run in each])
        for start in range(0, len(each[0]["at_once"][0]), block)
    ]
    shares = {key: interval([run[key] for run in each]) for key in ("at_once", "tool", "solved")}
    calls = interval([run["calls"] for run in each], "calls")
    lives = [round(float(np.mean(life)), 5) for run in each for life in run["at_once"]]  # for paired differences
    return {
        **shares,
        "calls": calls,
        "curve": curve,
        "lives": lives,
        "seconds": float(np.mean([run["seconds"] for run in each])),
    }


def share(values: Sequence[bool]) -> dict[str, Any]:
    return {"metric": "accuracy", "mean": float(np.mean(values)), "ci95": ci95(np.array(values, dtype=float))}


def main(
    seeds: int = 3,
    streams: Annotated[int, typer.Option(help="Test streams of each seed.")] = 8,
    validation: Annotated[int, typer.Option(help="Validation streams of each seed.")] = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs.")] = False,
) -> None:
    """Run what has not been run yet, and write the record."""
    torch.set_num_threads(1)
    measured = results.circumstances()
    if fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    bench, total = Bench(streams, validation), 0.0
    tables: dict[str, Any] = {"runs": {}, "checked": {}}
    every = [
        presets.kept(WORK, f"quick {seed} {streams} {validation}", quick, bench, seed)
        for seed in tqdm(range(seeds), unit="seed")
    ]
    for part in tables:
        tables[part] = {key: entry([run[part][key] for run in every], BLOCK) for key in every[0][part]}
    pieces = [("described", False), ("described", True), ("undocumented", True)]
    slow: dict[str, list[Any]] = {}
    for seed, (condition, remembers) in tqdm([(s, p) for s in range(seeds) for p in pieces], unit="life"):
        key = f"LLM, in context/{'memory' if remembers else 'none'}/{condition}"
        slow.setdefault(key, []).append(
            presets.kept(WORK, f"{key} {seed}", in_context, bench, seed, condition, remembers)
        )
    for key, runs in slow.items():
        tokens = float(np.mean([run["tokens"] for run in runs]))
        tables["runs"][key] = entry(runs, 2) | {"tokens": tokens, "every": EVERY}
    judged = [
        presets.kept(WORK, f"validation {seed} {validation}", without_training, bench, seed) for seed in range(seeds)
    ]
    cost, written = (
        presets.kept(WORK, "reading", reading_cost, bench),
        presets.kept(WORK, "arguments", arguments, bench),
    )
    total = sum(run["cpu_seconds"] for run in [*every, *(run for runs in slow.values() for run in runs), cost, written])
    rows = written["rows"]
    settings = {
        "layer": LAYER,
        "tools": WAYS,
        "requests": LENGTH,
        "block": BLOCK,
        "tries": 3,
        "streams": streams,
        "threads": 1,
    }
    record = {
        "measured": measured,
        "settings": {**settings, "shown": 4, "validation_streams": validation, "conditions": CONDITIONS},
        "seeds": list(range(seeds)),
        "cpu_seconds": round(total, 1),
        "chosen": {name: [run["chosen"][name] for run in every] for name in ("LLM, linear probe", "LLM, meta-learned")},
        "validation": {
            "LLM, nearest": [run["nearest"] for run in judged],
            "LLM, meta-learned": [max(v for _, v in run["chosen"]["LLM, meta-learned"]["tried"]) for run in every],
        },
        "reading": {key: round(value, 5) for key, value in cost.items() if key != "cpu_seconds"},
        "runs": tables["runs"],
        "with a type check": tables["checked"],
        "arguments": {key: share([row[key] for row in rows]) for key in ("rule right", "written right")}
        | {"refused": share([bool(row["refused"]) for row in rows]), "rows": rows},
    }
    typer.echo(results.write("tool_agent", record))


if __name__ == "__main__":
    presets.run(main, seeds=2, streams=2, validation=1)
