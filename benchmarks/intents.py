r"""Every text learner on the published 5-way tasks of CLINC150 and BANKING77.

Adds the learners that it measures to ``results/intents_<data>.json`` (of ``--split 2``: ``intents_<data>_2.json``);
those that it does not measure stay as they were. Features and the scores of in-context learning are kept, so that an
interrupted run goes on where it was. CPU minutes on one thread for CLINC150: TF-IDF 1, MiniLM 1, LLMPrototypes 5 (most
of it for features; with them LLMProbe 1), Whitened 8, MeanPooling 3, Direct 20 (with its scores Calibrated and Batch
nothing), Channel 26. So that it stays at that, tasks draw from 50 messages of each test class (``--texts 1000``: from
all).

    export METABOOK_DATA=~/data OMP_NUM_THREADS=1
    python benchmarks/intents.py --data clinc150 --only TFIDF --only TFIDFProbe --only MiniLM \
        --only LLMPrototypes --only LLMProbe
    python benchmarks/intents.py --data clinc150 --only Direct --only Calibrated --only Batch
    python benchmarks/intents.py --data clinc150 --only Channel

A learner of your own is one more entry of :data:`LEARNERS`: a function that gets the :class:`Bench` and a number of
shots, and returns a learner over the row numbers of ``bench.whole`` with what was chosen on validation classes;
everything else is shared.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, Evaluation, LabelledData, data, evaluate, presets, results
from metabook.data import TextData
from metabook.learners import Learner
from metabook.llm import InContext, LLMPrototypes, Whitening, cached_features, choose, load
from metabook.llm.in_context import CONTENT_FREE, calibrated
from metabook.llm.sentences import sentence_features
from metabook.storage import StorageError, read_tensors, write_tensors
from metabook.text import LinearProbe, SparsePrototypes, TfIdf

WORK = presets.work()
WAYS, CHUNK = 5, 10
TEST_SEED, VALIDATION_SEED = 1, 2
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
LAYERS = {"last": (20, 22, 24, 26, 28, 30), "mean": (2, 4, 8, 12, 16, 20, 24)}
# What the whitened features are chosen from: layers put one beside the other, and shrinkages of the spread.
JOINED, SHRINKAGES = ((28,), (26, 28, 30), (16, 20, 24, 26, 28, 30)), (0.3, 1.0, 3.0)
SPREAD_TEXTS = presets.sized(40, 2)  # of each training class


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    tasks, queries : int
        Test tasks, and queries of a class in each.
    read : int
        Test tasks of the learners that read each task's support set with the language model, with one query of a class.
    validation_tasks : int
        Tasks on which settings are chosen.
    test_texts, validation_texts, training_texts : int
        Texts of each class that take part, evenly spaced: features of the others are not computed.
    """

    tasks: int = 600
    queries: int = 5
    read: int = 300
    validation_tasks: int = 300
    test_texts: int = 50
    validation_texts: int = 20
    training_texts: int = 10


SIZES = presets.sized(Sizes(), Sizes(20, 5, 3, 10, 12, 10, 2))


class Bench:
    """A data set with its published split, and everything that is computed once for several learners.

    Parameters
    ----------
    name : str
    split : int
        1 to 5.
    sizes : Sizes
    folder : Path
        Where unfinished work is kept.
    """

    def __init__(self, name: str, split: int, sizes: Sizes, folder: Path) -> None:
        self.sizes, self.folder = sizes, folder
        pools = {part: data.load(name, part, split_number=split) for part in ("train", "validation", "test")}
        whole = pools["train"] + pools["validation"] + pools["test"]
        assert isinstance(whole, TextData)
        self.whole = whole
        sides = np.cumsum([0, *(len(pool) for pool in pools.values())])
        # Unlike TextData.select, this keeps the row numbers of the whole pool.
        self.parts = {part: LabelledData.select(whole, range(*sides[i : i + 2])) for i, part in enumerate(pools)}

    def rows(self, part: str, texts: int) -> Tensor:
        """Rows of at most ``texts`` texts of each class, evenly spaced."""
        pool = self.parts[part]
        chosen = [np.linspace(0, n - 1, min(texts, n)).round().astype(int) for n in pool.counts.tolist()]
        starts = pool.counts.cumsum(0) - pool.counts
        return torch.cat([pool.x[int(start) + torch.from_numpy(rows)] for start, rows in zip(starts, chosen)])

    @cached_property
    def training_rows(self) -> Tensor:
        return self.rows("train", self.sizes.training_texts)

    @cached_property
    def validation_rows(self) -> Tensor:
        return self.rows("validation", self.sizes.validation_texts)

    @cached_property
    def test_rows(self) -> Tensor:
        return self.rows("test", self.sizes.test_texts)

    def test(self, shots: int, queries: int | None = None) -> EpisodeSampler:
        """The test tasks; zero shots are those of one shot (their support set is to be left out)."""
        part = self._only("test", self.test_rows)
        return EpisodeSampler(part, WAYS, max(shots, 1), queries or self.sizes.queries, seed=TEST_SEED)

    def validation(self, shots: int = 1) -> EpisodeSampler:
        part = self._only("validation", self.validation_rows)
        return EpisodeSampler(part, WAYS, shots, self.sizes.queries, seed=VALIDATION_SEED)

    def _only(self, name: str, rows: Tensor) -> LabelledData:
        part = self.parts[name]
        kept = torch.isin(part.x, rows)
        return replace(part, x=part.x[kept], y=part.y[kept])

    @cached_property
    def lm(self) -> Any:
        return load(device="cpu")

    def features(self, rows: Tensor, layers: Sequence[int], pooling: str) -> list[Tensor]:
        """Features of some rows, in a table of all texts ``[texts, width]`` for each layer; the other rows are NaN."""
        texts = [self.whole.texts[row] for row in rows.tolist()]
        found = cached_features(self.lm, texts, list(layers), pooling, progress=True)
        tables = found.new_full((len(layers), len(self.whole.texts), found.shape[-1]), torch.nan)
        tables[:, rows] = found
        return list(tables)

    def searched(self, pooling: str) -> dict[int, Tensor]:
        """Features of the training and validation texts by layer, one pass for all."""
        known = torch.cat([self.training_rows, self.validation_rows])
        return dict(zip(LAYERS[pooling], self.features(known, LAYERS[pooling], pooling)))

    @cached_property
    def _chosen(self) -> dict[str, tuple[LLMPrototypes, dict[str, Any]]]:
        return {}

    def prototypes(self, pooling: str) -> tuple[LLMPrototypes, dict[str, Any]]:
        """Prototypes over the language model; layer and scaling are the best on 1-shot validation tasks."""
        if pooling not in self._chosen:
            tables = self.searched(pooling)
            choices = choose(tables, self.training_rows, self.validation(), tasks=self.sizes.validation_tasks)
            tried = [
                {"layer": each.setting, "scaling": each.scaling, "mean": each.accuracy, "ci95": each.ci95}
                for each in choices
            ]
            best = {name: tried[0][name] for name in ("layer", "scaling")}
            typer.echo(f"chosen for {pooling}: layer {best['layer']}, {best['scaling']}")
            table = tables[best["layer"]]
            table[self.test_rows] = self.features(self.test_rows, [best["layer"]], pooling)[0][self.test_rows]
            learner = LLMPrototypes(table, self.training_rows, best["scaling"])
            self._chosen[pooling] = learner, {"pooling": pooling, **best, "tried": tried}
        return self._chosen[pooling]

    @cached_property
    def whitened(self) -> tuple[LLMPrototypes, dict[str, Any]]:
        """Prototypes in several layers at once, whitened; layers and shrinkage are the best on validation tasks."""
        training, layers = self.rows("train", SPREAD_TEXTS), max(JOINED, key=len)
        rows, n = torch.cat([training, self.validation_rows, self.test_rows]), len(training)
        states = torch.stack([table[rows] for table in self.features(rows, layers, "last")])  # [layers, texts, width]
        known = states[:, :n]
        states = F.normalize((states - known.mean(1, keepdim=True)) / known.std(1, keepdim=True), dim=-1)
        tables = {}
        for joined, shrinkage in itertools.product(JOINED, SHRINKAGES):
            features = torch.cat([states[layers.index(layer)] for layer in joined], 1)
            white = Whitening(features[:n], self.whole.y[training], shrinkage)
            tables[joined, shrinkage] = features.new_full((len(self.whole.texts), features.shape[1]), torch.nan)
            tables[joined, shrinkage][rows] = white(features)
        choices = choose(
            tables, training, self.validation(), scalings=["none"], tasks=self.sizes.validation_tasks, progress=True
        )
        tried = [
            {"layers": list(c.setting[0]), "shrinkage": c.setting[1], "mean": c.accuracy, "ci95": c.ci95}
            for c in choices
        ]
        best = {name: tried[0][name] for name in ("layers", "shrinkage")}
        return LLMPrototypes(tables[choices[0].setting], training, "none"), {"pooling": "last", **best, "tried": tried}

    @cached_property
    def tfidf(self) -> Any:
        """TF-IDF of all texts; n-grams and their rarity from the training classes."""
        return TfIdf([self.whole.texts[row] for row in self.parts["train"].x]).sparse(self.whole.texts)

    @cached_property
    def minilm(self) -> Tensor:
        rows = torch.cat([self.training_rows, self.test_rows])
        found = sentence_features([self.whole.texts[row] for row in rows.tolist()], progress=True)
        table = found.new_full((len(self.whole.texts), found.shape[1]), torch.nan)
        table[rows] = found
        return table

    def strongest(self, features: Any, shots: int) -> tuple[float, list[dict[str, float]]]:
        """The strength of a linear probe that is best on the validation tasks of as many shots."""
        tried = []
        for strength in STRENGTHS:
            found = evaluate(
                LinearProbe(features, strength), self.validation(shots), tasks=self.sizes.validation_tasks, chunk=CHUNK
            )
            tried.append({"strength": strength, "mean": found.mean, "ci95": found.ci95})
        return max(tried, key=lambda each: each["mean"])["strength"], tried


# --- Learners -----------------------------------------------------------------------------------------------------


def tfidf(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    return SparsePrototypes(bench.tfidf), {"ngrams": [2, 4]}


def tfidf_probe(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    strength, tried = bench.strongest(bench.tfidf, shots)
    return LinearProbe(bench.tfidf, strength), {"strength": strength, "tried": tried}


def minilm(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    return LLMPrototypes(bench.minilm, bench.training_rows, "none"), {"model": "all-MiniLM-L6-v2", "scaling": "none"}


def llm_prototypes(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    return bench.prototypes("last")


def mean_pooling(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    return bench.prototypes("mean")


def whitened(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    return bench.whitened


def llm_probe(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
    """Logistic regression on the very features that the prototypes have."""
    learner, chosen = bench.prototypes("last")
    features = learner.embed(torch.arange(len(learner.table)).unsqueeze(0))[0].numpy()
    strength, tried = bench.strongest(features, shots)
    settings = {name: chosen[name] for name in ("layer", "pooling", "scaling")}
    return LinearProbe(features, strength), {**settings, "strength": strength, "tried": tried}


class Stored(Learner):
    """In-context learning whose scores are kept, since several learners are made of the same ones.

    Each task's examples stand in a random order of its own, so that the interval over tasks covers the order as well.
    The prompt is the default one.
    """

    def __init__(self, bench: Bench, scoring: str, calibration: str, shots: int) -> None:
        super().__init__()
        self.bench, self.scoring, self.calibration, self.shots = bench, scoring, calibration, shots

    @property
    def transductive(self) -> bool:
        return self.calibration == "batch"

    def predict(self, episodes: Episodes) -> Tensor:
        rows = torch.cat([episodes.support_x, episodes.query_x], 1)
        name = f"{self.scoring}-{self.shots}-{int(rows[0, 0])}-{int(rows.sum())}.safetensors"
        path = self.bench.folder / "in_context" / name
        try:
            tensors, _ = read_tensors(path)
        except StorageError:
            tensors = {"rows": rows, "scores": self._scores(episodes)}
            write_tensors(path, tensors, {})
        if not torch.equal(tensors["rows"], rows):
            raise StorageError(f"{path} is of other tasks: delete it")
        return torch.stack([self._calibrated(scores, episodes.query_x.shape[1]) for scores in tensors["scores"]])

    def _calibrated(self, scores: Tensor, queries: int) -> Tensor:
        found = scores[:queries]
        if self.calibration == "none":
            return found
        return calibrated(found, found if self.calibration == "batch" else scores[queries:])

    def _scores(self, episodes: Episodes) -> Tensor:
        """Plain scores of the queries and, below them, of the content-free inputs, ``[tasks, texts, ways]``."""
        texts, names = self.bench.whole.texts, self.bench.parts["test"].names
        shown = self.shots * WAYS
        found = []
        for task in tqdm(range(len(episodes)), unit="task", leave=False, desc=f"{self.scoring}, {self.shots} shots"):
            learner = InContext(self.bench.lm, scoring=self.scoring, seed=int(episodes.support_x[task].sum()))
            asked = [texts[row] for row in episodes.query_x[task].tolist()]
            found.append(
                learner.scores(
                    [texts[row] for row in episodes.support_x[task, :shown].tolist()],
                    episodes.support_y[task, :shown],
                    [names[c] for c in episodes.classes[task].tolist()],  # type: ignore[index]
                    asked + (list(CONTENT_FREE) if self.scoring == "direct" else []),
                )
            )
        return torch.stack(found).float().cpu()


def in_context(scoring: str, calibration: str = "none") -> Callable[[Bench, int], tuple[Learner, dict[str, Any]]]:
    def build(bench: Bench, shots: int) -> tuple[Learner, dict[str, Any]]:
        return Stored(bench, scoring, calibration, shots), {"scoring": scoring, "calibration": calibration}

    return build


@dataclass(frozen=True)
class Entry:
    """A learner of the benchmark.

    Parameters
    ----------
    label : str
    build : callable
        ``build(bench, shots)`` to the learner and what was chosen for it, JSON-ready.
    meta : bool
        Whether it was meta-trained on tasks of the training classes.
    shots : tuple of int
    read : bool
        Whether it reads each task with the language model: fewer tasks, and one query a class.
    """

    label: str
    build: Callable[[Bench, int], tuple[Learner, dict[str, Any]]]
    meta: bool = False
    shots: tuple[int, ...] = (1, 5)
    read: bool = False


LEARNERS = {
    "TFIDF": Entry("TF-IDF prototypes", tfidf),
    "TFIDFProbe": Entry("TF-IDF, linear probe", tfidf_probe),
    "MiniLM": Entry("MiniLM prototypes (a trained sentence encoder)", minilm),
    "MeanPooling": Entry("LLM prototypes, mean over the tokens", mean_pooling),
    "LLMPrototypes": Entry("LLM prototypes, last token of a one-word prompt", llm_prototypes),
    "Whitened": Entry("LLM prototypes, several layers, whitened on training classes", whitened),
    "LLMProbe": Entry("LLM linear probe, the same features", llm_probe),
    "Direct": Entry("In context, direct", in_context("direct"), shots=(0, 1, 5), read=True),
    "Calibrated": Entry(
        "In context, direct, calibrated", in_context("direct", "contextual"), shots=(0, 1, 5), read=True
    ),
    "Batch": Entry("In context, direct, batch-calibrated", in_context("direct", "batch"), shots=(0, 1, 5), read=True),
    "Channel": Entry("In context, channel", in_context("channel"), shots=(0, 1, 5), read=True),
}


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """One row of the record."""
    entry, test, chosen, started = LEARNERS[name], {}, {}, time.process_time()
    for shots in entry.shots:
        learner, chosen[str(shots)] = entry.build(bench, shots)
        tasks, queries = (bench.sizes.read, 1) if entry.read else (bench.sizes.tasks, bench.sizes.queries)
        found: Evaluation = evaluate(learner, bench.test(shots, queries), tasks=tasks, chunk=CHUNK)
        test[str(shots)] = {**found.record(), "queries": queries}
        typer.echo(f"{entry.label}, {shots} shots: {found}")
    if len({repr(each) for each in chosen.values()}) == 1:
        chosen = next(iter(chosen.values()))
    return {
        "learner": name,
        "label": entry.label,
        "meta": entry.meta,
        "chosen": chosen,
        "cpu_seconds": time.process_time() - started,  # less where features or scores were in the cache
        "test": test,
    }


def main(
    dataset: Annotated[str, typer.Option("--data", help="clinc150 or banking77.")] = "clinc150",
    split: Annotated[int, typer.Option(help="The published class split, 1 to 5.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="A learner to measure; give it once for each.")] = None,
    texts: Annotated[int | None, typer.Option(help="Texts of each test class that take part.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the record.")] = None,
) -> None:
    """Measure learners, and put them into the record."""
    torch.set_num_threads(1)
    if unknown := set(only or ()) - set(LEARNERS):
        raise typer.BadParameter(f"{', '.join(unknown)}: take some of {', '.join(LEARNERS)}")
    measured = results.circumstances()  # now: the checkout can move on while this runs
    sizes, preset = SIZES if texts is None else replace(SIZES, test_texts=texts), presets.chosen()
    name = name or f"intents_{dataset}" + (f"_{split}" if split > 1 else "")
    settings = {"data": dataset, "split": split, "ways": WAYS, "preset": preset, **vars(sizes), "threads": 1}
    rows = earlier(name, settings)
    bench = Bench(dataset, split, sizes, WORK / f"{name}_{preset}")
    for each in only or list(LEARNERS):
        rows[each] = {**measure(each, bench), "measured": measured}
        shown = [rows[key] for key in LEARNERS if key in rows]
        path = results.write(name, {"measured": measured, "settings": settings, "rows": shown})
    typer.echo(path)


def earlier(name: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the record that there is, by learner; none if it was measured with other settings."""
    try:
        record = results.read(name)
    except StorageError:
        return {}
    return {row["learner"]: row for row in record["rows"]} if record["settings"] == settings else {}


if __name__ == "__main__":
    presets.run(main, only=["TFIDF", "TFIDFProbe", "Direct"])
