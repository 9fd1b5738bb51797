import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from metabook import data
from metabook.cli import app
from metabook.storage import read_tensors

runner = CliRunner()
SINUSOIDS = ["train", "MAML", "--data", "sinusoids", "--iterations", "30", "--tasks", "4", "--device", "cpu"]


@pytest.fixture
def glyphs(make_pool, monkeypatch):
    """Small pools in the place of the generated glyphs: the command line is tested, not the data."""
    pool = make_pool(classes=35, instances=20, groups=("a",))
    pixels = data.LabelledData((pool.x * 255).byte(), pool.y, pool.names, pool.groups)
    monkeypatch.setitem(data.REGISTRY, "glyphs", data.DataSet("d", "s", "l", lambda split: pixels, (), list, ()))


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    """One line on standard error, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("metabook: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_train_then_evaluate(glyphs, tmp_path):
    out = tmp_path / "runs" / "p"
    small = ("--ways", 5, "--queries", 3, "--tasks", 1, "--plain", "--device", "cpu")
    trained = run("train", "ProtoNet", *small, "--iterations", 5, "--out", out)
    assert trained.exit_code == 0, trained.output
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.safetensors", "learner.safetensors", "train.json"]
    assert json.loads((out / "train.json").read_text())["steps"] == 5
    judged = run("evaluate", out, "--tasks", 20, "--device", "cpu")
    assert judged.exit_code == 0, judged.output
    record = json.loads((out / "evaluation-glyphs-test-5w1s.json").read_text())
    assert record["tasks"] == 20
    assert f"{100 * record['mean']:.1f} ± {100 * record['ci95']:.1f} %" in judged.stdout
    assert "inductive" in judged.stdout
    assert record["measured"]["torch"] == torch.__version__


def test_sinusoids_train_resume_and_evaluate(tmp_path):
    first = run(*SINUSOIDS, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    weights = (tmp_path / "a" / "learner.safetensors").read_bytes()
    again = run(*SINUSOIDS, "--out", tmp_path / "a")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a" / "learner.safetensors").read_bytes() == weights
    result = run("evaluate", tmp_path / "a", "--data", "sinusoids", "--tasks", 20, "--device", "cpu")
    assert "10-shot" in result.stdout
    assert json.loads((tmp_path / "a" / "evaluation-sinusoids-test-10s.json").read_text())["metric"] == "mse"


def test_minutes_become_steps_that_a_second_start_keeps(tmp_path):
    minutes = ["--minutes", 0.02, "--out", tmp_path / "a", "--data", "sinusoids", "--tasks", 2, "--device", "cpu"]
    started = time.monotonic()
    assert run("train", "MAML", *minutes).exit_code == 0
    assert time.monotonic() - started < 30
    steps = read_tensors(tmp_path / "a" / "checkpoint.safetensors")[1]["run"]["steps"]
    assert steps > 5
    assert run("train", "MAML", *minutes).exit_code == 0
    assert read_tensors(tmp_path / "a" / "checkpoint.safetensors")[1]["run"]["steps"] == steps


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "metabook", *SINUSOIDS, "--iterations", "200", "--save-seconds", "0", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, whole], check=True, capture_output=True)
    process = subprocess.Popen([*command, killed], stderr=subprocess.DEVNULL)
    checkpoint = killed / "checkpoint.safetensors"
    while not _steps_done(checkpoint):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < _steps_done(checkpoint) < 200
    subprocess.run([*command, killed], check=True, capture_output=True)
    assert (whole / "learner.safetensors").read_bytes() == (killed / "learner.safetensors").read_bytes()


def _steps_done(checkpoint: Path) -> int:
    return len(read_tensors(checkpoint)[0]["losses"]) if checkpoint.exists() else 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "Protonet"], ["no learner called 'Protonet'", "ProtoNet"]),
        (["train", "ProtoNet", "--data", "imagenet"], ["imagenet", "glyphs"]),
        (["train", "ProtoNet", "--data", "sinusoids"], ["cannot be trained on sinusoids"]),
        (["train", "ProtoNet", "--recipe", "few-alphabets"], ["not for ProtoNet on glyphs", "ProtoNet on omniglot"]),
        (["train", "MAML", "--recipe", "fast"], ["no recipe 'fast'", "few-alphabets"]),
        (["train", "ProtoNet", "--ways", "40", "--plain"], ["40-way tasks need 40 classes, but the data has 35"]),
        (["train", "ProtoNet", "--shots", "9", "--queries", "12"], ["need 21 examples a class", "has 20"]),
        (["train", "ProtoNet", "--device", "tpu"], ["device must be auto"]),
        (["train", "ProtoNet", "--first-order"], ["option of MAML"]),
        (["train", "ProtoNet", "--iterations", "3", "--minutes", "1"], ["not both"]),
        (["train", "ProtoNet", "--ways", "0"], ["ways must be at least 2"]),
        (["train", "ProtoNet", "--tasks", "0", "--plain"], ["tasks must be at least 1"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(arguments, words, glyphs, tmp_path):
    refused(run(*arguments, "--out", tmp_path / "runs" / "x"), *words)
    assert not any(tmp_path.iterdir())


def test_the_checkpoint_of_another_learner_is_refused_and_kept(glyphs, tmp_path):
    assert run(*SINUSOIDS, "--out", tmp_path).exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    refused(run(*SINUSOIDS, "--first-order", "--out", tmp_path), "another run", "learner")
    refused(run("train", "ProtoNet", "--plain", "--tasks", "1", "--out", tmp_path), "another run")
    refused(run("train", "ProtoNet", "--plain", "--tasks", "1", "--minutes", "0.01", "--out", tmp_path), "another run")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", _no_space)
    refused(run(*SINUSOIDS, "--out", tmp_path / "runs" / "x"), "cannot write", "No space left")
    assert not any(tmp_path.iterdir())


def _no_space(_):
    raise OSError(28, os.strerror(28))


def test_evaluation_needs_a_learner_and_fitting_tasks(glyphs, tmp_path):
    refused(run("evaluate", tmp_path / "absent"), "there is no file")
    (tmp_path / "learner.safetensors").write_bytes(b"damaged")
    refused(run("evaluate", tmp_path), "damaged")
    assert run(*SINUSOIDS, "--out", tmp_path / "a").exit_code == 0
    refused(run("evaluate", tmp_path / "a", "--data", "glyphs"), "the net has 1 outputs, but the tasks have 5 ways")
    refused(run("evaluate", "NearestNeighbour", "--ways", "41"), "41-way tasks need 41 classes")


def test_a_baseline_needs_no_run(glyphs):
    result = run("evaluate", "NearestNeighbour", "--tasks", "10", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["mean"] > 0.9


def test_help_shows_examples():
    for command in (("train",), ("evaluate",), ("data", "fetch")):
        assert "metabook " + " ".join(command) in run(*command, "--help").stdout.split("Examples:")[1]


def test_data_are_listed_with_their_licence():
    listed = run("data", "list").stdout
    assert all(name in listed for name in ("sinusoids", "glyphs", "omniglot", "MIT"))
    refused(run("data", "fetch", "imagenet"), "imagenet", "omniglot")


def test_texts_are_listed_but_no_learner_of_the_command_line_reads_them():
    assert "intents" in run("data", "list").stdout
    refused(run("evaluate", "NearestNeighbour", "--data", "intents"), "intents holds texts", "Python")
