import pytest
from IPython.utils.capture import capture_output

from metabook import results
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
