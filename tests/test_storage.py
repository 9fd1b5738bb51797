import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from metabook import load, save, storage
from metabook.learners import MAML, PretrainedNearestMean, ProtoNet
from metabook.nets import MLP, Conv4
from metabook.storage import StorageError, build, describe, read_tensors, write_bytes


@pytest.mark.parametrize(
    "learner",
    [
        MAML(MLP(2, (3, 4), 5), inner_lr=0.3, steps=2, first_order=True, eval_steps=7),
        ProtoNet(Conv4(None, (4, 5, 6, 7), "pool", "running", 3, 32)),
        PretrainedNearestMean(Conv4(channels=4), classes=9),
    ],
)
def test_a_description_is_json_and_builds_the_same_learner(learner):
    description = json.loads(json.dumps(describe(learner)))
    again = build(description)
    assert describe(again) == description
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in learner.named_parameters()}


def test_a_saved_learner_comes_back_bit_for_bit_and_ready_to_predict(tmp_path):
    learner = ProtoNet(Conv4(channels=4, norm="running"))
    save(learner, tmp_path / "deep" / "learner.safetensors")
    again = load(tmp_path / "deep" / "learner.safetensors")
    assert not again.training
    assert all(
        torch.equal(a, b) for a, b in zip(learner.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_network_of_ones_own_is_refused_before_anything_is_written(tmp_path):
    class Mine(torch.nn.Module):
        pass

    with pytest.raises(StorageError, match="Mine"):
        save(ProtoNet(Mine()), tmp_path / "learner.safetensors")
    assert not any(tmp_path.iterdir())


def test_a_description_cannot_name_anything_but_learners_and_networks():
    for name in ("os.system", "Sequential", "describe", "task_losses", None):
        with pytest.raises(StorageError, match="no learner or network"):
            build({"class": name})


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_what_is_not_ours_is_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="damaged or was not written by metabook"):
        load(tmp_path / "x.safetensors")


def test_a_truncated_file_and_strangers_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save(MAML(MLP()), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="damaged"):
        load(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(StorageError, match="not written by metabook"):
        load(path)
    storage.write_tensors(path, {}, {"something": "else"})
    with pytest.raises(StorageError, match="does not hold a learner"):
        load(path)
    with pytest.raises(StorageError, match="there is no file"):
        load(tmp_path / "absent.safetensors")


def test_weights_of_another_shape_are_refused(tmp_path):
    storage.write_tensors(tmp_path / "x", MAML(MLP()).state_dict(), {"learner": describe(MAML(MLP(hidden=(9,))))})
    with pytest.raises(StorageError, match="disagree"):
        load(tmp_path / "x")


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(code, words, tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=words):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_header_survives(tmp_path):
    storage.write_tensors(tmp_path / "x", {"a": torch.arange(3)}, {"name": "é", "n": [1, 2]})
    tensors, header = read_tensors(tmp_path / "x")
    assert header == {"name": "é", "n": [1, 2]}
    assert tensors["a"].tolist() == [0, 1, 2]
