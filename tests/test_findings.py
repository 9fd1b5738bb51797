"""The tables of the results follow the records, and a record that is added appears in them."""

import re

import pytest

from metabook import findings, results

MEASURED = {"date": "2026-01-01", "device": "CPU (test)", "script": "benchmarks/x.py", "commit": "abc"}
TABLES = [name for name in findings.__all__ if name.islower() and name not in ("omniglot_rows", "families")]


@pytest.fixture
def shelf(tmp_path):
    """A folder in the place of the records: ``shelf(name, record)`` adds one."""
    results.write_to(tmp_path)

    def add(name, **record):
        results.write(name, {"measured": MEASURED, **record})

    yield add
    results.write_to(None)


def score(mean, half=0.01, transductive=False, seeds=3):
    interval = {"mean": mean, "ci95": half / 2, "seeds_ci95": half}
    return {**interval, "seed_means": [mean] * seeds, "transductive": transductive}


def learner(name, mean, seconds=60.0, kind="5w1s", transductive=False, meta=True):
    row = {"learner": name, "label": f"the {name}", "meta": meta, "cpu_seconds": seconds}
    return {**row, "test": {kind: score(mean, transductive=transductive)}}


def omniglot(*rows, **settings):
    return {"settings": {"data": "omniglot", "background": "small1+small2", **settings}, "rows": list(rows)}


# --- The records as they are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_book_has_whole_rows_and_names_devices(name):
    table = getattr(findings, name)()
    assert table.rows
    assert all(len(row) == len(table.head) and all(isinstance(cell, str) for cell in row) for row in table.rows)
    assert "device" in table.head
    assert any("CPU" in row[table.head.index("device")] for row in table.rows)


def test_every_record_of_the_book_is_in_a_table():
    shown = [cell for name in TABLES for row in getattr(findings, name)().rows for cell in row]
    listed = {row[0] for row in findings.records().rows}
    assert listed == set(results.names()) - {"chapters"}
    everywhere = " ".join(shown)
    for label in ("Prototypical Network", "Joint training, then fine-tuning", "Bayes-optimal", "TF-IDF prototypes"):
        assert label in everywhere


# --- Records that come later --------------------------------------------------------------------------------------


def test_a_learner_appears_when_its_record_does(shelf):
    assert findings.omniglot().rows == []
    shelf("one", **omniglot(learner("MAML", 0.943, transductive=True)))
    (row,) = findings.omniglot().rows
    assert row == ["the MAML", "yes", "together", "94.3 ± 1.0", "–", "–", "–", "3", "60", "one", "CPU (test)"]
    shelf("two", **omniglot(learner("ProtoNet", 0.974)))
    assert [row[0] for row in findings.omniglot().rows] == ["the MAML", "the ProtoNet"]


def test_what_is_not_a_test_on_omniglot_stays_out_and_equal_rows_are_one(shelf):
    shelf("search", **omniglot(learner("MAML", 0.9), test_split="validation"))
    shelf("glyphs", settings={"data": "glyphs"}, rows=[learner("MAML", 0.9)])
    shelf("one", **omniglot(learner("NearestNeighbour", 0.43, 0.0, meta=False)))
    shelf("two", **omniglot(learner("NearestNeighbour", 0.43, 0.0, meta=False)))
    (row,) = findings.omniglot().rows
    assert row[8:10] == ["–", "one"]


def test_a_learner_that_was_asked_both_ways_has_a_row_of_each_kind(shelf):
    row = {**learner("MAML", 0.95, transductive=True), "seeds": 2, "alone": {"5w1s": score(0.80), "20w5s": None}}
    shelf("both", **omniglot(row))
    together, alone = findings.omniglot_rows()
    assert (together.transductive, together.test["5w1s"]["mean"]) == (True, 0.95)
    assert (alone.transductive, alone.test["5w1s"]["mean"]) == (False, 0.80)
    assert together.seeds == alone.seeds == 2
    assert [each[2] for each in findings.omniglot().rows] == ["together", "alone"]
    assert findings.best("MAML", "5w1s") == together


def test_time_explains_a_distance_only_between_rows_of_one_recipe(shelf):
    shelf("short", **omniglot(learner("MAML", 0.90, 60.0)))
    shelf("long", **omniglot(learner("MAML", 0.94, 600.0)))
    (why,) = (row[4] for row in findings.aims().rows if row[0].startswith("MAML, Omniglot"))
    assert why.endswith("after 60 s it was at 90.0, so time counts")
    shelf("other", **omniglot({**learner("MAML", 0.96, 900.0), "recipe": "long"}))
    (why,) = (row[4] for row in findings.aims().rows if row[0].startswith("MAML, Omniglot"))
    assert why.endswith("after 600 s it was at 94.0, with another recipe")


def test_twenty_ways_and_five_shots_have_a_column_and_a_published_figure(shelf):
    shelf("one", **omniglot(learner("ProtoNet", 0.98, kind="20w5s")))
    table = findings.omniglot()
    assert table.rows[0][table.head.index("20w5s")] == "98.0 ± 1.0"
    assert findings.gaps().rows[0][1:5] == ["20w5s", "98.0 ± 1.0", "98.9", "0.9"]


def test_the_gap_is_that_of_the_best_row_to_the_figure_of_its_kind(shelf):
    shelf("short", **omniglot(learner("Reptile", 0.80, 60.0)))
    shelf("long", **omniglot(learner("Reptile", 0.90, 600.0), learner("Unheard", 0.5)))
    (row,) = findings.gaps().rows
    assert row[2:5] == ["90.0 ± 1.0", "95.39 ± 0.09", "5.4"]
    shelf("queries", **omniglot(learner("Reptile", 0.95, 600.0, transductive=True)))
    (row,) = findings.gaps().rows
    assert row[2:5] == ["95.0 ± 1.0", "97.68 ± 0.04", "2.7"]
    assert "242 training characters for about 1,200; 600 s on CPU (test)" in row[7]


def test_a_figure_of_another_kind_of_queries_says_so(shelf):
    shelf("alone", **omniglot(learner("MAML", 0.9, transductive=False)))
    assert "theirs together, ours alone" in findings.gaps().rows[0][7]


def test_a_text_learner_without_five_shots_has_a_row(shelf):
    row = {"learner": "Direct", "label": "in context", "meta": False, "test": {"1": score(0.79, seeds=1)}}
    shelf("intents_clinc150_2", settings={"data": "clinc150", "split": 2}, rows=[row])
    assert findings.intents().rows[0][:6] == ["clinc150, split 2", "in context", "no", "79.0 ± 1.0", "–", "1"]


def test_a_row_that_was_measured_elsewhere_names_its_device(shelf):
    row = {"learner": "TFIDF", "label": "TF-IDF", "meta": False, "test": {"1": score(0.7), "5": score(0.9)}}
    shelf("intents_banking77", settings={"data": "banking77"}, rows=[{**row, "measured": {"device": "a GPU"}}])
    assert findings.intents().rows[0][-1] == "a GPU"


def test_a_record_that_no_table_knows_is_listed_with_its_first_means(shelf):
    many = {f"user {i}": {"gain": {"mean": float(i), "ci95": 0.1}} for i in range(30)}
    shelf("personalisation", seeds=[0, 1, 2], users=many, headline={"mean": 0.5, "ci95": 0.1})
    rows = findings.others(limit=4).rows
    assert [row[0] for row in rows] == ["personalisation"] * 4
    assert rows[0][1:3] == ["headline", "mean 0.5 ± 0.1"]
    assert findings.records().rows == [["personalisation", "benchmarks/x.py", "2026-01-01", "abc", "3", "CPU (test)"]]


@pytest.mark.parametrize("name", sorted(set(findings.HEADLINES) & set(results.names())))
def test_the_means_that_stand_for_a_record_are_in_it(name):
    found = [place for place, _ in results.means(results.read(name))]
    for pattern in findings.HEADLINES[name]:
        assert any(re.fullmatch(pattern, place) for place in found), pattern


def test_a_record_whose_chosen_means_are_gone_is_still_listed(shelf):
    shelf("continual", headline={"mean": 0.5, "ci95": 0.1})
    assert findings.others().rows == [["continual", "headline", "mean 0.5 ± 0.1", "CPU (test)"]]


def test_tasks_that_diverged_have_a_median_and_no_mean(shelf):
    gone = {"mean": None, "ci95": None, "median": 0.32, "diverged": 0.001}
    mse = {"1": score(0.9), "5": gone, "10": gone}
    row = {"learner": "MAML", "label": "MAML", "steps": 100, "cpu_seconds": 2.0, "mse": mse, "mse_5shot": mse}
    shelf("sinusoids", rows=[row])
    assert findings.sinusoids().rows[0][2:4] == ["0.90 ± 0.01", "median 0.32, 0.1% diverged"]
    assert findings.AIMS[3].find().value == 0.9
    assert findings.AIMS[4].find() is None


def test_the_costs_of_the_chapters_are_summed(shelf):
    cost = {"seconds": 10.0, "cpu_seconds": 5.0, "memory_mib": 300.0, "device": "CPU (test)"}
    dear = {**cost, "cpu_seconds": 50.0, "memory_mib": 1200.0}
    chapters = {"a": {"presets": {"smoke": cost, "book": dear}}, "b": {"presets": {"smoke": cost}}}
    shelf("chapters", chapters=chapters)
    table = findings.chapters()
    assert table.rows[1] == ["b", "10 s", "5 s", "300 MiB", "–", "–", "–", "CPU (test)"]
    assert table.rows[2][1:] == ["20 s", "10 s", "300 MiB", "10 s", "50 s", "1,200 MiB", ""]


# --- Aims ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_most", "value", "half", "verdict"),
    [
        (False, 96.0, 0.5, "reached"),
        (False, 94.0, 0.5, "not reached"),
        (False, 94.8, 0.5, "not reached, the interval holds the bound"),
        (True, 94.0, 0.5, "reached"),
        (True, 95.2, 0.5, "not reached, the interval holds the bound"),
    ],
)
def test_a_verdict_compares_mean_and_bound(at_most, value, half, verdict):
    found = findings.Finding(value, half, "CPU")
    assert findings.Aim("x", 95.0, "%", lambda: found, at_most).verdict(found) == verdict


def test_aims_without_a_record_are_not_measured(shelf):
    table = findings.aims()
    assert {row[3] for row in table.rows} == {"not measured"}
    shelf("one", **omniglot(learner("ProtoNet", 0.985, kind="5w1s"), learner("MAML", 0.943, 900.0, transductive=True)))
    rows = {row[0]: row[1:] for row in findings.aims().rows}
    assert rows["Prototypical Network, Omniglot 5w1s"][:3] == [
        "≥ 98 %",
        "98.5 ± 1.0",
        "reached, the interval holds the bound",
    ]
    maml = rows["MAML, Omniglot 5w1s, 242 characters, 60 CPU minutes"]
    assert maml[2] == "not reached, the interval holds the bound"
    assert "25% of the time it was to have" in maml[3]


def test_the_frozen_model_is_judged_by_the_better_way_to_read_it(shelf):
    def row(name, mean):
        return {"learner": name, "label": name, "meta": False, "test": {"1": score(mean)}}

    def verdict():
        return next(row for row in findings.aims().rows if row[0] == "frozen LLM prototypes, BANKING77 1-shot")

    settings = {"data": "banking77", "split": 1}
    shelf("intents_banking77", settings=settings, rows=[row("LLMPrototypes", 0.70), row("TFIDF", 0.60)])
    assert (verdict()[3], verdict()[4]) == ("not reached", "+10.0 points against TF-IDF on the same tasks")
    both = [row("LLMPrototypes", 0.70), row("Whitened", 0.80), row("TFIDF", 0.60)]
    shelf("intents_banking77", settings=settings, rows=both)
    assert verdict()[3] == "reached"
    assert verdict()[4].startswith("several layers, whitened on training classes; one layer without labels 70.0")
