import json

import pytest
from IPython.utils.capture import capture_output
from typer.testing import CliRunner

from metabook import results
from metabook.cli import app
from metabook.storage import StorageError


def test_a_record_says_how_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_CHECKOUT", tmp_path)
    results.write("speed", {"seconds": [1.5, 2.0]}, tmp_path)
    record = results.read("speed")
    assert record["seconds"] == [1.5, 2.0]
    assert {"date", "commit", "python", "torch", "device", "threads"} <= set(record["measured"])


def test_a_long_run_keeps_the_circumstances_of_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_CHECKOUT", tmp_path)
    results.write("speed", {"measured": {"commit": "at the start"}}, tmp_path)
    assert results.read("speed")["measured"] == {"commit": "at the start"}


def test_a_number_that_json_cannot_say_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write("speed", {"seconds": float("inf")}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_missing_record_is_named_with_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_CHECKOUT", tmp_path)
    results.write("speed", {}, tmp_path)
    with pytest.raises(StorageError, match="no record 'sped'; there are: speed"):
        results.read("sped")


def test_glue_shows_what_myst_nb_reads():
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    with capture_output() as captured:
        results.glue("gain", 1.5)
    (output,) = captured.outputs
    assert output.data == {"application/papermill.record/text/plain": "1.5"}
    assert output.metadata["scrapbook"]["name"] == "gain"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a script, a record that it made, and a chapter that reads it."""
    for folder in ("benchmarks", "results", "book/10-part"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(results, "_CHECKOUT", tmp_path / "results")
    monkeypatch.setattr(results, "BOOK", tmp_path / "book")
    monkeypatch.setattr(results, "_INSTALLED", tmp_path / "nowhere")
    (tmp_path / "benchmarks" / "speed.py").write_text("pass\n")
    (tmp_path / "book" / "10-part" / "fast.md").write_text('record = results.read("speed")\n')
    measured = {"date": "2026-01-01", "device": "CPU", "script": "benchmarks/speed.py"}
    results.write("speed", {"measured": measured, "gain": {"mean": 0.5, "ci95": 0.1}}, tmp_path / "results")
    quoted = {"10-part/fast": {"records": {"speed": results.read("speed")["digest"]}}}
    results.write("chapters", {"measured": measured, "chapters": quoted}, tmp_path / "results")
    return tmp_path


def test_the_records_of_the_book_are_in_order():
    assert results.check() == []


def test_a_tampered_record_is_caught(checkout):
    assert results.check(checkout / "book") == []
    path = checkout / "results" / "speed.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(StorageError, match=r"speed\.json was changed after it was written"):
        results.read("speed")
    assert [fault[:38] for fault in results.check(checkout / "book")] == ["speed.json was changed after it was wr"]
    path.write_text("{")
    assert results.check(checkout / "book")[0].startswith("speed.json is not JSON")


def test_another_layout_of_the_same_contents_is_no_tampering(checkout):
    path = checkout / "results" / "speed.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert results.check(checkout / "book") == []


def test_a_chapter_that_quotes_an_earlier_record_is_named(checkout):
    measured = results.read("speed")["measured"]
    results.write("speed", {"measured": measured, "gain": {"mean": 0.6, "ci95": 0.1}}, checkout / "results")
    (fault,) = results.check(checkout / "book")
    assert fault.startswith("10-part/fast shows numbers of an earlier speed.json")


def test_a_chapter_that_reads_what_is_not_there_is_named(checkout):
    (checkout / "book" / "10-part" / "slow.md").write_text('results.read("slowness")\n')
    assert [fault.split(":")[0] for fault in results.check(checkout / "book")] == ["10-part/slow"]


@pytest.mark.parametrize(("tolerance", "faults"), [(31, 0), (30, 1)])
def test_a_record_older_than_its_script_is_named(checkout, monkeypatch, tolerance, faults):
    monkeypatch.setattr(results, "_git", lambda *_: "2026-02-01")  # 31 days after the measurement
    found = [fault for fault in results.check(checkout / "book", tolerance) if fault.startswith("speed.json")]
    assert len(found) == faults


def test_the_oldest_part_of_a_record_counts(checkout, monkeypatch):
    monkeypatch.setattr(results, "_git", lambda *_: "2026-02-01")
    old = {"label": "an earlier row", "measured": {"date": "2025-12-01"}}
    measured = {**results.read("speed")["measured"], "date": "2026-01-31"}
    results.write("speed", {"measured": measured, "rows": [old]}, checkout / "results")
    faults = [fault for fault in results.check(checkout / "book") if fault.startswith("speed.json")]
    assert faults == ["speed.json is 62 days older than benchmarks/speed.py: run that again"]


def test_a_chapter_whose_record_is_gone_is_named(checkout):
    (checkout / "book" / "10-part" / "fast.md").write_text('name = "speed"\nrecord = results.read(name)\n')
    (checkout / "results" / "speed.json").unlink()
    (fault,) = results.check(checkout / "book")
    assert fault.startswith("10-part/fast read speed.json, which is gone")


def test_only_single_means_are_listed():
    curve = {"mean": [1.0, 0.5], "ci95": [0.1, 0.1]}
    record = {"curve": curve, "rows": [{"label": "MAML", "score": {"mean": 0.5, "ci95": 0.1, "seeds_ci95": 0.2}}]}
    assert results.means(record) == [("rows[MAML].score", "mean 0.5 ± 0.2")]


def test_records_of_a_trial_are_written_and_read_elsewhere(tmp_path, checkout):
    results.write_to(tmp_path / "trial")
    try:
        assert results.names() == []
        assert results.write("speed", {"gain": 1}) == tmp_path / "trial" / "speed.json"
        assert results.read("speed")["gain"] == 1
    finally:
        results.write_to(None)
    assert results.read("speed")["gain"]["mean"] == 0.5


def test_a_record_without_a_script_is_named(checkout):
    (checkout / "benchmarks" / "speed.py").unlink()
    assert "does not name a script" in results.check(checkout / "book")[0]


def test_the_command_line_shows_and_checks(checkout):
    run = CliRunner().invoke
    assert "speed     2026-01-01  CPU  benchmarks/speed.py" in run(app, ["results", "show"]).output
    assert "gain  mean 0.5 ± 0.1" in run(app, ["results", "show", "speed"]).output
    assert run(app, ["results", "check"]).exit_code == 0
    path = checkout / "results" / "speed.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))
    caught = run(app, ["results", "check"])
    assert caught.exit_code == 1
    assert "put it back from git" in caught.output
    assert run(app, ["results", "show", "sped"]).exit_code == 2
    assert run(app, ["results", "check", "--book", str(checkout / "none")]).exit_code == 2
