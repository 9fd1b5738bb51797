"""Names, rotations, sinusoids and quadratics."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from metabook import data
from metabook.data import Quadratics, Sinusoids
from metabook.data.images import thinned
from metabook.episodes import LabelledData
from metabook.learners import task_losses


@pytest.fixture
def pool() -> LabelledData:
    x = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return LabelledData(x, torch.arange(3).repeat_interleave(4), ("A/1", "A/2", "B/1"), ("A", "A", "B"))


def test_rotations_are_classes_of_their_own(pool: LabelledData) -> None:
    turned = data.rotations(pool)
    assert len(turned) == 12
    assert turned.counts.tolist() == [4] * 12
    assert turned.names[:6] == ("A/1", "A/2", "B/1", "A/1@90", "A/2@90", "B/1@90")
    assert turned.groups == tuple(f"{group}{angle}" for angle in ("", "@90", "@180", "@270") for group in "AAB")
    assert torch.equal(turned.x[:12], pool.x)


def test_every_image_of_a_rotated_class_is_turned_by_the_same_angle(pool: LabelledData) -> None:
    turned = data.rotations(pool)
    for quarter in range(4):
        for example in range(12):
            assert torch.equal(turned.x[12 * quarter + example, 0], torch.rot90(pool.x[example, 0], quarter))


def test_rotations_needs_square_images(pool: LabelledData) -> None:
    oblong = LabelledData(pool.x[..., :5], pool.y, pool.names, pool.groups)
    with pytest.raises(ValueError, match="square"):
        data.rotations(oblong)


def test_thinning_leaves_a_connected_line_one_pixel_wide() -> None:
    image = np.zeros((1, 56, 56), bool)
    image[0, 10:45, 10:17] = image[0, 38:45, 10:45] = image[0, 10:16, 10:40] = True
    line = thinned(image)[0]
    assert 60 < line.sum() < 110
    assert not (line & ~image[0]).any()
    assert ndimage.label(line, np.ones((3, 3)))[1] == 1
    assert ndimage.uniform_filter(line.astype(float), 3).max() < 6 / 9


def test_load_by_name(folder: Path) -> None:
    assert (
        data.load("omniglot", "train", background="small1").names == data.omniglot("train", background="small1").names
    )
    assert data.load("omniglot", "test", size=20).x.shape[-1] == 20


def test_an_unknown_name_lists_the_known() -> None:
    for call in (data.load, data.fetch):
        with pytest.raises(ValueError, match=r"'mnist'.*glyphs, omniglot"):
            call("mnist")


def test_an_option_that_a_data_set_does_not_have() -> None:
    with pytest.raises(ValueError, match="glyphs has no option 'background'"):
        data.load("glyphs", "train", background="small1")
    with pytest.raises(ValueError, match="omniglot has no option 'size'"):
        data.fetch("omniglot", size=28)


def test_every_entry_says_what_it_is() -> None:
    assert tuple(data.REGISTRY) == data.NAMES
    for entry in data.REGISTRY.values():
        for line in (entry.description, entry.source, entry.licence):
            assert line
            assert "\n" not in line


def test_the_names_are_functions_not_modules() -> None:
    for name in ("glyphs", "omniglot", "distort", "rotations"):
        assert callable(getattr(data, name))


def test_sinusoids_are_points_of_the_curves_they_name() -> None:
    source = Sinusoids(shots=7, queries=9, seed=3)
    episodes = source.sample(20, step=5)
    assert episodes.support_x.shape == episodes.support_y.shape == (20, 7, 1)
    assert episodes.query_x.shape == episodes.query_y.shape == (20, 9, 1)
    assert episodes.regression
    amplitude, phase = source.function(20, step=5)
    for x, y in ((episodes.support_x, episodes.support_y), (episodes.query_x, episodes.query_y)):
        torch.testing.assert_close(y, amplitude.view(-1, 1, 1) * torch.sin(x - phase.view(-1, 1, 1)))


def test_sinusoids_follow_the_distributions() -> None:
    source = Sinusoids()
    amplitude, phase = source.function(20_000)
    x = source.sample(20_000).support_x
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, math.pi), (x, -5, 5)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(float(values.mean()) - (low + high) / 2) < 0.01 * (high - low)
    assert abs(float(torch.corrcoef(torch.stack([amplitude, phase]))[0, 1])) < 0.03


def test_sinusoids_are_a_function_of_seed_and_step() -> None:
    source = Sinusoids(seed=1)
    first = source.sample(4, step=2)
    source.sample(100)
    again = Sinusoids(seed=1).sample(4, step=2)
    assert torch.equal(first.support_y, again.support_y)
    assert torch.equal(first.query_x, again.query_x)
    for other in (source.sample(4, step=3), Sinusoids(seed=2).sample(4, step=2)):
        assert not torch.equal(first.support_x, other.support_x)
        assert not torch.equal(first.support_y, other.support_y)


def test_the_number_of_points_does_not_change_the_curves() -> None:
    few, many = Sinusoids(shots=1, queries=1), Sinusoids(shots=50, queries=50)
    assert torch.equal(few.function(10, 4)[0], many.function(10, 4)[0])


def test_noise_is_added_to_the_same_points() -> None:
    clean, noisy = Sinusoids(seed=2).sample(2000, step=3), Sinusoids(seed=2, noise=0.3).sample(2000, step=3)
    for part in ("support", "query"):
        assert torch.equal(getattr(clean, f"{part}_x"), getattr(noisy, f"{part}_x"))
        noise = getattr(noisy, f"{part}_y") - getattr(clean, f"{part}_y")
        assert float(noise.std()) == pytest.approx(0.3, rel=0.03)
        assert abs(float(noise.mean())) < 0.01
    again = Sinusoids(seed=2, noise=0.3).sample(2000, step=3)
    assert torch.equal(noisy.support_y, again.support_y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shots": 0}, "at least 1"), ({"queries": 0}, "at least 1"), ({"noise": -0.1}, "standard deviation")],
)
def test_sinusoids_refuse(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinusoids(**arguments)


def test_quadratics_are_what_the_paper_says():
    episodes = Quadratics(4, seed=3).sample(2, step=5)
    assert episodes.support_x.shape == (2, 4, 4)
    assert episodes.support_y.shape == (2, 4, 1)
    assert torch.equal(episodes.query_x, episodes.support_x)
    assert torch.equal(episodes.support_x, Quadratics(4, seed=3).sample(2, step=5).support_x)
    assert not torch.equal(episodes.support_x, Quadratics(4, seed=3).sample(2, step=6).support_x)
    net = torch.nn.Linear(4, 1)
    (W, y), x, b = (episodes.support_x[0], episodes.support_y[0]), net.weight[0], net.bias
    loss = task_losses(net(episodes.support_x), episodes.support_y)[0]
    assert torch.allclose(loss, (W @ x + b - y[:, 0]).square().sum() / 4)
    with pytest.raises(ValueError, match="n must be at least 1"):
        Quadratics(0)
