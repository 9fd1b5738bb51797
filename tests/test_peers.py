import importlib.util
import sys

import pytest
import torch
from torch import nn

from metabook import peers


@pytest.fixture(scope="module")
def l2l():
    if importlib.util.find_spec("learn2learn") is None:
        pytest.skip("learn2learn is not installed (pip install --no-deps -r requirements/learn2learn.txt)")
    return peers.learn2learn()


@pytest.fixture
def scalar():
    """The model ``w x`` with ``w = 3``, of which every derivative below can be done by hand."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    return model


ONE = torch.ones(1, 1)


def test_the_same_module_as_the_import_statement(l2l):
    import learn2learn

    assert learn2learn is l2l is peers.learn2learn()
    assert peers.learn2learn_algorithms() is learn2learn.algorithms
    assert l2l.__version__ == "0.2.0"


@pytest.mark.parametrize(("first_order", "gradient"), [(False, 6 * 0.8**2), (True, 6 * 0.8)])
def test_maml_adapts_and_differentiates_through_the_step(l2l, scalar, first_order, gradient):
    # Support loss w², so w' = w (1 - 2 a); query loss w'², so its gradient is 2 w (1 - 2 a)², or 2 w' to first order.
    maml = l2l.algorithms.MAML(scalar, lr=0.1, first_order=first_order)
    clone = maml.clone()
    clone.adapt(clone(ONE).square().mean())
    assert clone.module.weight.item() == pytest.approx(3 * 0.8)
    clone(ONE).square().mean().backward()
    assert scalar.weight.item() == 3
    assert scalar.weight.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("name", ["MetaSGD", "GBML"])
def test_the_other_wrappers_adapt(l2l, scalar, name):
    # Both learn how to scale the gradient, and start from plain descent.
    options = {"transform": l2l.optim.ModuleTransform(l2l.nn.Scale)} if name == "GBML" else {}
    clone = getattr(l2l.algorithms, name)(scalar, lr=0.1, **options).clone()
    clone.adapt(clone(ONE).square().mean())
    assert clone(ONE).item() == pytest.approx(3 * 0.8)


def test_tasks_can_be_drawn(l2l):
    labels = torch.arange(4).repeat_interleave(3)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(labels.float().unsqueeze(1), labels))
    transforms = [
        l2l.data.transforms.NWays(dataset, 2),
        l2l.data.transforms.KShots(dataset, 3),
        l2l.data.transforms.LoadData(dataset),
    ]
    x, y = l2l.data.Taskset(dataset, task_transforms=transforms, num_tasks=5).sample()
    assert x.squeeze(1).tolist() == y.tolist()
    assert sorted(y.bincount().tolist())[-2:] == [3, 3]


def test_absent_says_how_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "learn2learn", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed.*--no-deps -r requirements/learn2learn.txt"):
        peers.learn2learn()


def test_broken_says_so_and_leaves_no_half_module(monkeypatch, tmp_path):
    package = tmp_path / "learn2learn"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_dependency")
    for name in [name for name in sys.modules if name.partition(".")[0] == "learn2learn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"learn2learn\.utils cannot be imported.*install it anew"):
        peers.learn2learn()
    assert "learn2learn" not in sys.modules
