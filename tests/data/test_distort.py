from __future__ import annotations

import pytest
import torch

from metabook.data import affine_views, distort
from metabook.data.distort import PARTS
from metabook.episodes import EpisodeSampler, LabelledData, generator_for


@pytest.fixture
def strokes() -> torch.Tensor:
    """64 copies of an L of two-pixel strokes."""
    image = torch.zeros(1, 28, 28)
    image[:, 6:22, 9:11] = 1
    image[:, 20:22, 9:20] = 1
    return image.expand(64, -1, -1, -1).clone()


def test_strength_zero_is_the_identity(strokes: torch.Tensor) -> None:
    out = distort(strokes, generator_for(0), strength=0)
    assert torch.equal(out, strokes)
    assert out.data_ptr() != strokes.data_ptr()


def test_a_vanishing_strength_vanishes(strokes: torch.Tensor) -> None:
    torch.testing.assert_close(distort(strokes, generator_for(0), strength=1e-6), strokes, rtol=0, atol=1e-4)


def test_shape_range_and_input_left_alone(strokes: torch.Tensor) -> None:
    before = strokes.clone()
    out = distort(strokes, generator_for(0))
    assert out.shape == strokes.shape
    assert out.dtype == strokes.dtype
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(strokes, before)


def test_the_generator_decides(strokes: torch.Tensor) -> None:
    first, again, other = (distort(strokes, generator_for(key)) for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_two_images_are_not_distorted_alike(strokes: torch.Tensor) -> None:
    out = distort(strokes, generator_for(0)).flatten(1)
    distances = torch.cdist(out, out)
    assert distances[~torch.eye(len(out), dtype=torch.bool)].min() > 0.5


def test_a_global_seed_does_not_matter(strokes: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = distort(strokes, generator_for(0))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert torch.equal(first, distort(strokes, generator_for(0)))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_thin_strokes_survive(strokes: torch.Tensor, strength: float) -> None:
    out = distort(strokes, generator_for(0), strength)
    ink = out.sum((1, 2, 3)) / strokes[0].sum()
    assert ink.min() > 0.4
    assert ink.max() < 2.5
    assert out.amax((1, 2, 3)).min() > 0.6


def test_strength_orders_the_change(strokes: torch.Tensor) -> None:
    weak, strong = ((distort(strokes, generator_for(0), s) - strokes).abs().mean() for s in (0.3, 1.0))
    assert 0 < weak < strong


def test_channels_move_together_and_images_need_not_be_square(strokes: torch.Tensor) -> None:
    tall = torch.nn.functional.pad(strokes, (0, 0, 10, 10)).expand(-1, 3, -1, -1)
    out = distort(tall, generator_for(0))
    assert out.shape == (64, 3, 48, 28)
    assert torch.equal(out[:, 0], out[:, 1])
    assert out[:, 0].sum((1, 2)).min() > 0


def test_rotation_keeps_lengths_on_an_oblong_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter turn about the centre takes a bar that fits across an oblong image to an upright bar."""
    import sys

    module = sys.modules["metabook.data.distort"]
    for name, value in {"SHEAR": 0, "LOG_SCALE": 0, "SHIFT": 0, "ELASTIC": 0, "THICKER": 0, "THINNER": 0}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module.torch, "randn", lambda *shape, **_: torch.ones(shape))
    monkeypatch.setattr(module, "ROTATION", torch.pi / 2)
    image = torch.zeros(1, 1, 40, 20)
    image[..., 19:21, 4:16] = 1
    expected = torch.zeros(1, 1, 40, 20)
    expected[..., 14:26, 9:11] = 1
    torch.testing.assert_close(distort(image, generator_for(0)), expected, rtol=0, atol=1e-3)


def test_double_precision_and_empty_input(strokes: torch.Tensor) -> None:
    single = distort(strokes, generator_for(0))
    double = distort(strokes.double(), generator_for(0))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-4)
    assert distort(strokes[:0], generator_for(0)).shape == (0, 1, 28, 28)


def test_many_images_are_as_if_in_one_piece(strokes: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    whole = distort(strokes, generator_for(0))
    monkeypatch.setattr(sys.modules["metabook.data.distort"], "CHUNK", 7)
    torch.testing.assert_close(distort(strokes, generator_for(0)), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "strength"),
    [(torch.zeros(2, 28, 28), 1.0), (torch.zeros(2, 1, 8, 8).byte(), 1.0), (torch.zeros(2, 1, 8, 8), -1.0)],
)
def test_what_cannot_be_distorted(images: torch.Tensor, strength: float) -> None:
    with pytest.raises(ValueError):
        distort(images, generator_for(0), strength)


def test_as_the_transform_of_a_sampler(strokes: torch.Tensor) -> None:
    pool = LabelledData((strokes * 255).byte(), torch.arange(4).repeat_interleave(16), tuple("abcd"), ("g",) * 4)
    sampler = EpisodeSampler(pool, ways=3, shots=2, queries=3, transform=distort)
    first, again = sampler.sample(5, step=3), sampler.sample(5, step=3)
    assert first.support_x.shape == (5, 6, 1, 28, 28)
    assert torch.equal(first.query_x, again.query_x)
    assert not torch.equal(first.support_x[0, 0], first.support_x[0, 3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_distorts_as_the_cpu_does(strokes: torch.Tensor) -> None:
    there = distort(strokes.cuda(), generator_for(0))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), distort(strokes, generator_for(0)), rtol=0, atol=2e-2)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_does_its_own_and_none_does_nothing(strokes: torch.Tensor, part: str) -> None:
    alone = distort(strokes, generator_for(0), parts=(part,))
    assert not torch.allclose(alone, strokes, atol=0.1)
    assert not torch.allclose(alone, distort(strokes, generator_for(0)), atol=0.1)
    torch.testing.assert_close(distort(strokes, generator_for(0), parts=()), strokes, rtol=0, atol=1e-5)
    if part == "stroke":  # nothing is moved: the middle of the strokes keeps its ink
        torch.testing.assert_close(alone[:, :, 6:22, 9:11], strokes[:, :, 6:22, 9:11], rtol=0, atol=0.5)


def test_unknown_parts_are_refused(strokes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no part 'blur'"):
        distort(strokes, generator_for(0), parts=("affine", "blur"))


def test_views_are_the_image_and_the_same_maps_for_every_image(strokes: torch.Tensor) -> None:
    mixed = torch.cat([strokes[:2], strokes[:2].flip(-1)])
    views, alone = list(affine_views(mixed, 5)), list(affine_views(mixed[3:], 5))
    assert len(views) == 5
    assert torch.equal(views[0], mixed)
    for view, again in zip(views, alone):
        assert torch.equal(view[0], view[1])
        torch.testing.assert_close(view[3:], again)
        torch.testing.assert_close(view.sum((1, 2, 3)), mixed.sum((1, 2, 3)), rtol=0.5, atol=0)  # still there
    for i, view in enumerate(views):  # all of them different
        assert all((view - other).abs().max() > 0.1 for other in views[:i])
