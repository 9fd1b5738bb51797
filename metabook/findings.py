"""What the records say: the tables of the results, the points of their figure, and which aims were reached.

Everything is read from ``results/`` when it is asked for. A record is recognised by its form and not by its name where
several can have it, so that rows of a record that is added later appear by themselves; what no table knows is listed by
:func:`others`. Each row says on which device it was measured. A ± is the larger of the 95 % intervals over tasks and
over seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from metabook import published, results
from metabook.published import Published

__all__ = [
    "AIMS",
    "Aim",
    "Finding",
    "Table",
    "aims",
    "bandits",
    "chapters",
    "families",
    "gaps",
    "intents",
    "memory",
    "navigation",
    "omniglot",
    "omniglot_rows",
    "others",
    "records",
    "sinusoids",
    "speed",
]

Record = dict[str, Any]
KINDS = ("5w1s", "5w5s", "20w1s", "20w5s")
NONE = "–"


class Table(NamedTuple):
    """A table: ``figures.table(*table)`` shows it."""

    head: list[str]
    rows: list[list[str]]


# --- Cells --------------------------------------------------------------------------------------------------------


def half(entry: Record) -> float:
    """The larger of the two 95 % intervals of a mean, both half widths."""
    return max(entry.get("ci95") or 0.0, entry.get("seeds_ci95") or 0.0)


def percent(entry: Record | None) -> str:
    """An accuracy with its interval, in %."""
    return NONE if entry is None else f"{100 * entry['mean']:.1f} ± {100 * half(entry):.1f}"


def number(entry: Record | None, digits: int = 2) -> str:
    """A mean with its interval; where tasks diverged, whose mean says nothing, the median and their share."""
    if entry is None:
        return NONE
    if entry["mean"] is None:
        return f"median {entry['median']:.{digits}f}, {entry['diverged']:.1%} diverged"
    return f"{entry['mean']:.{digits}f} ± {half(entry):.{digits}f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """CPU-seconds; a dash where nothing was trained, or the time was not kept."""
    return NONE if not value or value < 0.05 else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def device(record: Record, row: Record | None = None) -> str:
    """Where a row was measured: what the row says of itself, or else its record."""
    return str(((row or {}).get("measured") or record["measured"])["device"])


def everything() -> Iterator[tuple[str, Record]]:
    """All records but that of the chapters' costs."""
    for name in results.names():
        if name != "chapters":
            yield name, results.read(name)


def read(name: str) -> Record:
    """A record, or one without rows where it has not been measured."""
    return results.read(name) if name in results.names() else {"rows": [], "measured": {"device": NONE}}


# --- Images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A learner on Omniglot, as one record has it.

    Parameters
    ----------
    learner, label, record, device : str
    cpu_seconds : float
        Of training, a run; 0 where nothing is trained, or the record does not say.
    meta : bool
        Whether it is meta-learning.
    transductive : bool
        Whether the queries of a task are answered together.
    background : str
        The alphabets that it was trained on.
    seeds : int
        Of trainings; where nothing is trained, of test tasks.
    test : dict
        For each of :data:`KINDS`: mean and intervals of the accuracy.
    recipe : str, optional
        The name of its recipe, where that is not the usual one.
    """

    learner: str
    label: str
    record: str
    device: str
    cpu_seconds: float
    meta: bool
    transductive: bool
    background: str
    seeds: int
    test: dict[str, Record]
    recipe: str | None = None


def omniglot_rows() -> list[Row]:
    """Every learner with a score on Omniglot's evaluation characters; of equal rows the first."""
    found: dict[tuple[Any, ...], Row] = {}
    for name, record in everything():
        settings = record.get("settings", {})
        if settings.get("data") != "omniglot" or settings.get("test_split") == "validation":
            continue
        for row in record.get("rows", []):
            for how in ("test", "alone"):  # a transductive learner can have been asked each query by itself too
                test = {kind: row[how][kind] for kind in KINDS if (row.get(how) or {}).get(kind)}
                if test:
                    one = _row(name, record, row, test)
                    found.setdefault((one.learner, *(each["mean"] for each in test.values())), one)
        for label, test in record.get("accuracy", {}).items():  # the drawing pad: one network, several kinds of images
            row = {"label": f"{label} (drawing pad)", "learner": "ProtoNet" if "net" in label else "NearestNeighbour"}
            row |= {"meta": "net" in label and "untrained" not in label, "seeds": 1}  # its seeds are of test tasks
            found[name, label] = _row(name, record, row, {kind: test[kind] for kind in KINDS if kind in test})
    return list(found.values())


def _row(name: str, record: Record, row: Record, test: dict[str, Record]) -> Row:
    return Row(
        row["learner"],
        row["label"],
        name,
        device(record, row),
        row.get("cpu_seconds", 0.0),
        row.get("meta", row.get("family", "none") != "none"),
        any(each.get("transductive", False) for each in test.values()),
        record["settings"].get("background", "background"),
        row.get("seeds") or max(len(each.get("seed_means") or [0]) for each in test.values()),
        test,
        row.get("recipe"),
    )


def omniglot() -> Table:
    """Accuracy on Omniglot in %, every learner of every record."""
    head = ["learner", "meta", "queries", *KINDS, "seeds", "CPU s", "record", "device"]
    rows = [
        [
            row.label,
            "yes" if row.meta else "no",
            "together" if row.transductive else "alone",
            *(percent(row.test.get(kind)) for kind in KINDS),
            str(row.seeds),
            seconds(row.cpu_seconds),
            row.record,
            row.device,
        ]
        for row in sorted(omniglot_rows(), key=lambda row: (row.meta, row.label, row.cpu_seconds))
    ]
    return Table(head, rows)


def gaps() -> Table:
    """Our best result of each learner beside the published one, in %, with the difference and its known reasons."""
    head = ["learner", "task", "ours", "published", "gap", "source", "read in", "what differs", "device"]
    rows = []
    for learner in dict.fromkeys(row.learner for row in omniglot_rows() if row.meta):
        for kind in KINDS:
            row = best(learner, kind)
            theirs = row and published.on_omniglot(learner, row.transductive)
            if row and theirs and kind in theirs.values:
                gap = theirs.mean(kind) - 100 * row.test[kind]["mean"]
                cells = [percent(row.test[kind]), theirs.values[kind], f"{gap:.1f}", theirs.origin, theirs.read]
                rows.append([row.label, kind, *cells, differences(row, theirs), row.device])
    return Table(head, rows)


def best(learner: str, kind: str) -> Row | None:
    """The row of a learner with the highest accuracy on a kind of tasks."""
    mine = [row for row in omniglot_rows() if row.learner == learner and kind in row.test and row.meta]
    return max(mine, key=lambda row: row.test[kind]["mean"], default=None)


def differences(row: Row, theirs: Published) -> str:
    """What sets our row apart from the published one, as far as record and source say it."""
    ours, reasons = published.TRAINING_CHARACTERS.get(row.background), []
    if ours:
        reasons.append(f"{ours} training characters for about {published.TRAINING_CHARACTERS['published']:,}")
    if row.cpu_seconds:
        reasons.append(f"{row.cpu_seconds:,.0f} s on {row.device}")
    if theirs.transductive is not None and theirs.transductive != row.transductive:
        reasons.append("theirs together, ours alone" if theirs.transductive else "theirs alone, ours together")
    return "; ".join([*reasons, *([f"theirs: {theirs.remark}"] if theirs.remark else [])])


# --- Regression and families --------------------------------------------------------------------------------------


def sinusoids() -> Table:
    """Squared error after 1, 5 and 10 steps, from 10 and from 5 points, and the published figures."""
    head = ["start", "points", "after 1 step", "after 5", "after 10", "updates", "CPU s", "device"]
    record, steps, rows = read("sinusoids"), ("1", "5", "10"), []
    for points, key in (("10", "mse"), ("5", "mse_5shot")):
        for row in record["rows"]:
            cells = [number(row[key].get(step)) for step in steps]
            trained = [f"{row['steps']:,}" if row["steps"] else NONE, seconds(row["cpu_seconds"])]
            rows.append([row["label"], points, *cells, *trained, device(record, row)])
    for each in published.SINUSOIDS:
        cells = [each.values[step] for step in steps]
        rows.append([f"{each.label}, published", "5", *cells, each.remark, NONE, each.origin])
    return Table(head, rows)


def families(data: str) -> Table:
    """Every learner on the same tasks with the same CPU time, where ``families_<data>`` has been measured."""
    record = read(f"families_{data}")
    kinds = list(dict.fromkeys(kind for row in record["rows"] for kind in row["test"]))
    show = number if data == "sinusoids" else percent
    rows = [
        [row["label"], row["family"], *(show(row["test"].get(kind)) for kind in kinds), device(record, row)]
        for row in record["rows"]
    ]
    return Table(["learner", "family", *kinds, "device"], rows)


# --- Agents -------------------------------------------------------------------------------------------------------


def navigation() -> Table:
    """Return on 2-D navigation before and after three updates, with what is not learnt and the published row."""
    head = ["policy", "outer updates", "before", "after 1", "after 2", "after 3", "CPU s", "device"]
    record, rows = read("navigation"), []
    for part in (record, record.get("longer", {"rows": []})):
        updates = part.get("iterations") or part.get("settings", {}).get("iterations", 0)
        for row in part["rows"]:
            cells = [number(each) for each in row["returns"]]
            trained = "0" if row["arm"] == "untrained" else str(updates)
            rows.append([row["label"], trained, *cells, seconds(row["cpu_seconds"]), device(record, row)])
    for label, key in (("random moves", "random"), ("told the goal", "oracle")):
        if key in record:
            rows.append([label, NONE, number(record[key]), *[NONE] * 4, device(record)])
    for each in published.NAVIGATION:
        cells = [each.values[k].replace("-", "−") for k in "0123"]
        rows.append([f"{each.label}, published", each.remark, *cells, NONE, each.origin])
    return Table(head, rows)


def bandits() -> Table:
    """Total reward of ten pulls, the optimum, and the published figure."""
    record = read("bandits")
    rows = [
        [
            row["label"],
            row["payoff"],
            number(row["total"], 3),
            number(row.get("given_away"), 3),
            f"{row['updates']:,}" if row["updates"] else NONE,
            seconds(row["cpu_seconds"] if row["updates"] else None),
            device(record, row),
        ]
        for row in record["rows"]
    ]
    if "optimum" in record:
        rows.append(
            ["best possible expectation", "bernoulli", f"{record['optimum']['value']:.3f}", *[NONE] * 3, "exact"]
        )
    for each in published.BANDITS:
        rows.append(
            [f"{each.label}, published", "bernoulli", each.values["total"], NONE, each.remark, NONE, each.origin]
        )
    return Table(["agent", "rewards", "total reward", "given away", "updates", "CPU s", "device"], rows)


# --- Text ---------------------------------------------------------------------------------------------------------


def intents() -> Table:
    """Accuracy in % on 5-way tasks of messages: every text learner and every adapter that has a record."""
    head = ["data", "learner", "meta", "1-shot", "5-shot", "seeds", "CPU s", "device"]
    rows = []
    for name, record in everything():
        if name.startswith("intents_"):
            split = record["settings"].get("split", 1)
            shown = record["settings"]["data"] + (f", split {split}" if split > 1 else "")
            for row in record["rows"]:
                test, meta = row["test"], "yes" if row["meta"] else "no"
                cells = [percent(test.get("1")), percent(test.get("5"))]
                seeds = str(max(len(each.get("seed_means") or [0]) for each in test.values()))
                rows.append(
                    [shown, row["label"], meta, *cells, seeds, seconds(row.get("cpu_seconds")), device(record, row)]
                )
        elif name.startswith("adapters_"):
            rows += list(_adapters(record))
    for each in published.INTENTS:
        shots = "; ".join(f"{value} at {shots} shots" for shots, value in each.values.items())
        rows.append([each.learner, f"{each.label}, published", NONE, shots, NONE, NONE, NONE, each.origin])
    return Table(head, rows)


def _adapters(record: Record) -> Iterator[list[str]]:
    """The runs of adapters that were judged on test classes, before any step on the task, a row for each run."""
    for run in record["runs"]:
        if run["judged_on"] == "test":
            cells = [percent(run["accuracy"].get(kind, {}).get("0")) for kind in ("5w1s", "5w5s")]
            meta = "no" if run["method"] in ("plain", "masked") else "yes"
            spent = seconds(run["settings"]["seconds"])
            yield [record["data"], f"{run['label']}, seed {run['seed']}", meta, *cells, "1", spent, device(record, run)]


# --- Speed and cost -----------------------------------------------------------------------------------------------


def speed() -> Table:
    """CPU time of metabook and learn2learn for the same work, and how far their gradients differ."""
    head = ["work", "metabook", "learn2learn", "ratio", "gradients differ by", "device"]
    record = read("maml_speed")
    rows = []
    for row in record["rows"]:
        times = [f"{1000 * row[side]['median_cpu_seconds']:.2f} ms" for side in ("metabook", "learn2learn")]
        apart = row.get("gradient_difference")
        rows.append(
            [row["case"], *times, f"{row['ratio']:.2f}", NONE if apart is None else f"{apart:.0e}", device(record)]
        )
    return Table(head, rows)


def memory() -> Table:
    """Peak memory of a meta-training step, ours and learn2learn's."""
    record, sides = read("maml_speed"), ("metabook", "learn2learn")
    rows = [
        [row["case"], *(f"{row[side]['peak_memory_mib']:.1f} MiB" for side in sides), device(record)]
        for row in record["rows"]
        if "peak_memory_mib" in row["metabook"]
    ]
    return Table(["work", *sides, "device"], rows)


def chapters() -> Table:
    """Time and peak memory of each chapter at each preset that was recorded, and the sums."""
    record = read("chapters").get("chapters", {})
    presets = [each for each in ("smoke", "book", "full") if any(each in c["presets"] for c in record.values())]
    head = ["chapter", *(f"{each}: {what}" for each in presets for what in ("run", "CPU", "peak")), "device"]
    rows, totals = [], dict.fromkeys(presets, (0.0, 0.0, 0.0))
    for name, chapter in record.items():
        cells, where = [], NONE
        for preset in presets:
            cost = chapter["presets"].get(preset)
            if cost is None:
                cells += [NONE] * 3
                continue
            new = (cost["seconds"], cost["cpu_seconds"], cost["memory_mib"])
            cells += _costs(*new)
            run, cpu, peak = totals[preset]
            totals[preset] = (run + new[0], cpu + new[1], max(peak, new[2]))
            where = cost["device"]
        rows.append([name, *cells, where])
    if rows:
        rows.append(["all chapters", *(cell for preset in presets for cell in _costs(*totals[preset])), ""])
    return Table(head, rows)


def _costs(run: float, cpu: float, peak: float) -> list[str]:
    return [f"{run:,.0f} s", f"{cpu:,.0f} s", f"{peak:,.0f} MiB"]


# --- Everything else ----------------------------------------------------------------------------------------------

#: Which means of a record stand for it, as patterns of their places (:func:`metabook.results.means`).
HEADLINES = {
    "bayesian": (r"rows\[.*\]\.points\.10\.nll",),
    "chat": (r"feedback\..*\.accuracy",),
    "continual": (r"features\..*\.final",),
    "drawing": (r"robust_5w1s\..*\.trained net, redrawn",),
    "evolution": (r"domains\..*\.pools\..*\.(plain\[\d\]|verified_minus_this\.plain)",),
    "few_shot_glyphs": (r"rows\[.*\]\.test\.5w1s",),
    "hidden_goal": (r"rows\[.*\]\.stay\[[03]\]",),
    "personalisation": (r"rows\[.*\]\.mse\.(0|5)",),
    "safety": (
        r"data\..*\.poison\.chosen\.(prototypes|counted)\[[04]\]",
        r"data\..*\.loop\.(own labels|verified)\.5\.end",
    ),
    "learned_optimiser": (
        r"optimisers\..*\.learned minus hand-designed\..*, after 20",
        r"processes\..*\.mse\[4\]",
        r"no_meta\..*\.mse\[4\]",
    ),
    "tool_agent": (r"runs\..*\.at_once",),
}
#: The records whose rows the other tables show.
SHOWN = ("bandits", "navigation", "sinusoids", "maml_speed", "search_omniglot")


def others(limit: int = 12) -> Table:
    """The records that no other table shows: their chosen means, or where nothing was chosen their first ones.

    Parameters
    ----------
    limit : int
        Rows of a record for which no means were chosen, those with the shortest places.
    """
    rows = []
    for name, record in everything():
        if name in SHOWN or name.startswith(("intents_", "adapters_", "families_")):
            continue
        if name != "drawing" and record.get("settings", {}).get("data") == "omniglot" and "rows" in record:
            continue
        every, patterns = results.means(record), HEADLINES.get(name, ())
        found = [(place, mean) for place, mean in every if any(re.fullmatch(each, place) for each in patterns)]
        found = found or sorted(every, key=lambda one: len(re.findall(r"[.\[]", one[0])))[:limit]
        first = {readable(place): mean for place, mean in reversed(found)}  # of rows with one label the first
        rows += [[name, what, first[what], device(record)] for what in dict.fromkeys(readable(p) for p, _ in found)]
    return Table(["record", "what", "mean", "device"], rows)


def readable(place: str) -> str:
    """The place of a mean as words."""
    return re.sub(r"^(rows|domains)[.,: ]*", "", re.sub(r"\[|\]\.?|\.(?!\d)", ": ", place)).strip(" :")


def records() -> Table:
    """Every record: its script, the day, the seeds and the device."""
    head = ["record", "made by", "measured", "commit", "seeds", "device"]
    rows = []
    for name, record in everything():
        measured, seeds = record["measured"], record.get("seeds")
        said = str(len(seeds)) if isinstance(seeds, list) else NONE
        rows.append([name, measured["script"], measured["date"], measured["commit"], said, measured["device"]])
    return Table(head, rows)


# --- Aims ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What was measured for an aim.

    Parameters
    ----------
    value, half : float
        Mean and half width of its 95 % interval, in the unit of the aim.
    device : str
    why : str
        What explains the distance, as far as the records say.
    remark : str
        A reservation that belongs beside the verdict.
    """

    value: float
    half: float
    device: str
    why: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Aim:
    """Something that the book set out to reach.

    Parameters
    ----------
    text : str
        What is measured.
    bound : float
        What it should reach.
    unit : str
    find : callable
        Reads the records; None where it has not been measured.
    at_most : bool
        Whether small is good.
    """

    text: str
    bound: float
    unit: str
    find: Callable[[], Finding | None]
    at_most: bool = False

    def verdict(self, found: Finding | None) -> str:
        """``reached``, ``not reached`` or ``not measured``; with a remark where the interval holds the bound."""
        if found is None:
            return "not measured"
        reached = found.value <= self.bound if self.at_most else found.value >= self.bound
        close = abs(found.value - self.bound) < found.half
        said = ["reached" if reached else "not reached", "the interval holds the bound" if close else "", found.remark]
        return ", ".join(filter(None, said))


def _accuracy(learner: str, kind: str, budget: float | None = None) -> Callable[[], Finding | None]:
    """The best row of a learner on Omniglot; with a budget, how much of that CPU time it had."""

    def find() -> Finding | None:
        row = best(learner, kind)
        if row is None:
            return None
        spent = f"{row.cpu_seconds:,.0f} CPU s a run" if row.cpu_seconds else "time not kept"
        entry, why = row.test[kind], [f"{row.label}, {row.record}: {spent}"]
        if budget and row.cpu_seconds:
            why.append(f"{row.cpu_seconds / budget:.0%} of the time it was to have")
        slower = [r for r in omniglot_rows() if r.learner == learner and kind in r.test and r.record != row.record]
        slower = [r for r in slower if 0 < r.cpu_seconds < row.cpu_seconds]
        if slower:
            less = max(slower, key=lambda r: r.cpu_seconds)
            before = f"after {less.cpu_seconds:,.0f} s it was at {100 * less.test[kind]['mean']:.1f}"
            why.append(f"{before}, so time counts" if less.recipe == row.recipe else f"{before}, with another recipe")
        one = "one training" if row.seeds == 1 else ""
        return Finding(100 * entry["mean"], 100 * half(entry), row.device, "; ".join(why), one)

    return find


def _error(step: str) -> Callable[[], Finding | None]:
    def find() -> Finding | None:
        record = read("sinusoids")
        row = next((row for row in record["rows"] if row["learner"] == "MAML"), None)
        if row is None or row["mse"][step]["mean"] is None:
            return None
        theirs = published.SINUSOIDS[0].remark
        why = f"{row['steps']:,} updates in {row['cpu_seconds']:.0f} CPU s; the paper has {theirs}"
        return Finding(row["mse"][step]["mean"], half(row["mse"][step]), device(record, row), why)

    return find


def _text(data: str, shots: str) -> Callable[[], Finding | None]:
    def find() -> Finding | None:
        record = read(f"intents_{data}")
        rows = {row["learner"]: row for row in record["rows"] if shots in row["test"]}
        if "LLMPrototypes" not in rows:
            return None
        row = rows.get("Whitened", rows["LLMPrototypes"])  # the aim is about the model, not about one way to read it
        entry, why = row["test"][shots], []
        if row["learner"] == "Whitened":
            single = rows["LLMPrototypes"]["test"][shots]["mean"]
            why.append(f"several layers, whitened on training classes; one layer without labels {100 * single:.1f}")
        if "TFIDF" in rows:
            plain = rows["TFIDF"]["test"][shots]["mean"]
            why.append(f"{100 * (entry['mean'] - plain):+.1f} points against TF-IDF on the same tasks")
        return Finding(100 * entry["mean"], 100 * half(entry), device(record, row), "; ".join(why))

    return find


def _reward() -> Finding | None:
    record = read("bandits")
    rows = {row["agent"]: row for row in record["rows"] if row["payoff"] == "bernoulli"}
    if "RL2" not in rows:
        return None
    total = rows["RL2"]["total"]
    seeds = ", ".join(f"{each:.2f}" for each in total["seed_means"])
    why = f"seeds: {seeds}; the best possible is {record['optimum']['value']:.2f}"
    return Finding(total["mean"], half(total), device(record), why)


def _lead() -> Finding | None:
    record = read("navigation")
    rows = {row["arm"]: row for row in record.get("longer", record)["rows"]}
    if "pretrained" not in rows:
        return None
    lead = rows["pretrained"]["behind"][1]
    return Finding(lead["mean"], half(lead), device(record), "paired over goals and seeds, each with its best settings")


def _slowest(pattern: str) -> Callable[[], Finding | None]:
    def find() -> Finding | None:
        record = read("maml_speed")
        rows = [row for row in record["rows"] if re.search(pattern, row["case"])]
        if not rows:
            return None
        worst = min(rows, key=lambda row: row["ratio"])
        return Finding(worst["ratio"], 0.0, device(record), f"the smallest of {len(rows)} cases: {worst['case']}")

    return find


def _evolved() -> Finding | None:
    record = read("evolution")
    leads: list[tuple[Record, str, int]] = []
    for name, entry in record.get("domains", {}).items():
        gain = entry["pools"].get("demonstrations", {}).get("verified_minus_this", {}).get("plain")
        if gain:
            leads.append((gain, name, len(entry["seeds"])))
    if not leads:
        return None
    worst, name, seeds = min(leads, key=lambda one: one[0]["mean"])
    why = f"domains: {len(leads)}, the smallest lead in {name}; seeds: {seeds}"
    one = "one seed" if seeds == 1 else ""
    return Finding(100 * worst["mean"], 100 * half(worst), device(record), why, one)


def _chapter(preset: str) -> Callable[[], Finding | None]:
    def find() -> Finding | None:
        costs = {
            name: chapter["presets"][preset]
            for name, chapter in read("chapters").get("chapters", {}).items()
            if preset in chapter["presets"]
        }
        if not costs:
            return None
        name, cost = max(costs.items(), key=lambda one: one[1]["cpu_seconds"])
        return Finding(cost["cpu_seconds"], 0.0, cost["device"], f"the slowest of {len(costs)}: {name}")

    return find


def _book() -> Finding | None:
    costs = [c["presets"]["book"] for c in read("chapters").get("chapters", {}).values() if "book" in c["presets"]]
    if not costs:
        return None
    total = sum(cost["cpu_seconds"] for cost in costs)
    why = f"{len(costs)} chapters one after the other; on two cores half of it"
    return Finding(total / 60, 0.0, costs[0]["device"], why)


#: What the book set out to reach. The bounds are aims, not measurements.
AIMS = (
    Aim("MAML, Omniglot 5w1s, 242 characters, 60 CPU minutes", 95.0, "%", _accuracy("MAML", "5w1s", 3600.0)),
    Aim("Prototypical Network, Omniglot 5w1s", 98.0, "%", _accuracy("ProtoNet", "5w1s")),
    Aim("Prototypical Network, Omniglot 20w1s", 94.0, "%", _accuracy("ProtoNet", "20w1s")),
    Aim("MAML, sinusoids from 10 points, after 1 step", 0.40, "", _error("1"), at_most=True),
    Aim("MAML, sinusoids from 10 points, after 10 steps", 0.15, "", _error("10"), at_most=True),
    Aim("frozen LLM prototypes, CLINC150 1-shot", 90.0, "%", _text("clinc150", "1")),
    Aim("frozen LLM prototypes, CLINC150 5-shot", 97.0, "%", _text("clinc150", "5")),
    Aim("frozen LLM prototypes, BANKING77 1-shot", 75.0, "%", _text("banking77", "1")),
    Aim("frozen LLM prototypes, BANKING77 5-shot", 91.0, "%", _text("banking77", "5")),
    Aim("RL², total reward of ten pulls, as published", 6.6, "", _reward),
    Aim("MAML's lead over pre-training on 2-D navigation, after 1 update", 0.0, "", _lead),
    Aim("self-evolution's lead over training on the demonstrations", 0.0, "points", _evolved),
    Aim("MAML step against learn2learn's, all cases", 1.0, "times", _slowest(r"^(sinusoids|Conv4)")),
    Aim("MAML step against learn2learn's, 5w1s second order, 1 query", 2.0, "times", _slowest(r"5w1s, 1 .* tasks$")),
    Aim("sampling of episodes against learn2learn's", 2.0, "times", _slowest("^sampling")),
    Aim("slowest chapter at smoke, CPU s", 40.0, "s", _chapter("smoke"), at_most=True),
    Aim("slowest chapter at book, CPU s", 50.0, "s", _chapter("book"), at_most=True),
    Aim("all chapters at book, CPU minutes", 20.0, "min", _book, at_most=True),
)


def aims() -> Table:
    """For each aim: its bound, what was measured and where, whether that is enough, and what explains the distance."""
    rows = []
    for aim in AIMS:
        found = aim.find()
        unit = f" {aim.unit}" if aim.unit else ""
        digits = 1 if max(abs(aim.bound), abs(found.value) if found else 0) >= 10 else 2
        measured = NONE if found is None else f"{found.value:.{digits}f}"
        if found and found.half:
            measured += f" ± {found.half:.{digits}f}"
        bound = f"{'≤' if aim.at_most else '≥'} {aim.bound:g}{unit}"
        rows.append(
            [aim.text, bound, measured, aim.verdict(found), found.why if found else "", found.device if found else NONE]
        )
    return Table(["aim", "bound", "measured", "verdict", "why", "device"], rows)
