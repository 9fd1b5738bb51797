"""Benchmarks run at three presets, and only the full one touches the records."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metabook import presets, results

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def command_line(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["script.py", *words])


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        ([], "full"),
        (["--preset", "smoke"], "smoke"),
        (["--preset=book"], "book"),
        (["--preset", "smoke", "--preset", "full"], "full"),
        (["--jobs", "2", "--preset"], "full"),
        (["--preset", "huge"], "full"),
    ],
)
def test_the_command_line_chooses(monkeypatch, words, preset):
    command_line(monkeypatch, *words)
    assert presets.chosen() == preset


def test_only_smoke_is_smaller_and_only_full_works_in_the_usual_folder(monkeypatch):
    folders = []
    for preset, tasks in (("full", 600), ("book", 600), ("smoke", 6)):
        command_line(monkeypatch, "--preset", preset)
        assert presets.sized(600, 6) == tasks
        folders.append(presets.work("runs").relative_to(presets.BUILD).as_posix())
    assert folders == ["runs", "book/runs", "smoke/runs"]


@pytest.mark.parametrize(
    ("words", "steps", "seeds", "trial"),
    [
        ([], 1000, 3, False),
        (["--preset", "full"], 1000, 3, False),
        (["--preset", "book"], 1000, 1, True),
        (["--preset", "smoke"], 4, 1, True),
        (["--preset", "smoke", "--steps", "7"], 7, 1, True),
    ],
)
def test_a_script_gets_the_values_of_its_preset(monkeypatch, tmp_path, words, steps, seeds, trial):
    monkeypatch.setattr(presets, "BUILD", tmp_path)
    asked, seen = [], []
    monkeypatch.setattr(results, "write_to", asked.append)

    def main(steps: int = 1000, seeds: int = 3) -> None:
        seen.append((steps, seeds))

    command_line(monkeypatch, *words)
    with pytest.raises(SystemExit) as ended:
        presets.run(main, steps=4)
    assert ended.value.code in (0, None)
    assert seen == [(steps, seeds)]
    assert bool(asked) == trial


def test_a_value_for_no_parameter_is_refused():
    with pytest.raises(TypeError, match="main has no parameter step"):
        presets.run(lambda steps=3: None, step=1)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_takes_a_preset(path):
    """It ends on ``presets.run``, with values for parameters that its ``main`` has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    calls = [node for node in ast.walk(tree.body[-1]) if isinstance(node, ast.Call)]
    (run,) = [call for call in calls if ast.unparse(call.func) == "presets.run"]
    assert {word.arg for word in run.keywords} <= {argument.arg for argument in main.args.args}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinusoids", "bandits"])
def test_a_benchmark_runs_at_smoke_and_leaves_the_record_alone(name, tmp_path):
    record = ROOT / "results" / f"{name}.json"
    before = record.read_bytes()
    trial = presets.BUILD / "smoke" / "records" / f"{name}.json"
    trial.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--preset", "smoke", "--jobs", "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert record.read_bytes() == before
    written = json.loads(trial.read_text())
    assert written["digest"] == results.digest(written)
    assert written["measured"]["script"] == f"benchmarks/{name}.py"


def test_what_was_measured_is_kept_by_its_name_and_not_measured_again(tmp_path):
    calls = []

    def measure(x):
        calls.append(x)
        return {"twice": 2 * x}

    first, again = (presets.kept(tmp_path, "a job/with 3", measure, 3) for _ in range(2))
    assert first == again
    assert first["twice"] == 6
    assert first["cpu_seconds"] >= 0
    presets.kept(tmp_path, "another", measure, 4)
    assert calls == [3, 4]
