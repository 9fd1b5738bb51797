from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metabook import Episodes, EpisodeSampler, LabelledData
from metabook.episodes import generator_for


def numbered(counts, groups=None):
    """Examples that carry their own row number, so that a test can see which were drawn."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    names = tuple(f"class{c}" for c in range(len(counts)))
    return LabelledData(torch.arange(len(y)).float().view(-1, 1), y, names, tuple(groups or ["all"] * len(counts)))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(4, 9), min_size=3, max_size=8),
    ways=st.integers(2, 3),
    shots=st.integers(1, 2),
    queries=st.integers(1, 2),
    step=st.integers(0, 5),
)
def test_sampled_tasks_are_tasks(counts, ways, shots, queries, step):
    data = numbered(counts)
    episodes = EpisodeSampler(data, ways, shots, queries).sample(7, step)
    assert episodes.support_x.shape == (7, ways * shots, 1)
    assert episodes.query_x.shape == (7, ways * queries, 1)
    rows = torch.cat([episodes.support_x, episodes.query_x], 1).squeeze(-1).long()
    labels = torch.cat([episodes.support_y, episodes.query_y], 1)
    for task in range(7):
        assert len(set(rows[task].tolist())) == rows.shape[1], "no example twice, none in support and query"
        assert len(set(episodes.classes[task].tolist())) == ways, "no class twice"
        assert torch.equal(episodes.classes[task][labels[task]], data.y[rows[task]]), "labels name the drawn class"
    assert torch.equal(episodes.support_y.sort(1).values, torch.arange(ways).repeat_interleave(shots).expand(7, -1))


def test_sampling_is_a_pure_function_of_seed_and_step():
    data = numbered([9] * 6)
    first = EpisodeSampler(data, 3, 1, 2, seed=4)
    again = EpisodeSampler(data, 3, 1, 2, seed=4)
    first.sample(2, 0)  # what was drawn before does not matter
    assert torch.equal(first.sample(5, 3).support_x, again.sample(5, 3).support_x)
    assert not torch.equal(first.sample(5, 3).support_x, first.sample(5, 4).support_x)
    assert not torch.equal(first.sample(5, 3).support_x, EpisodeSampler(data, 3, 1, 2, seed=5).sample(5, 3).support_x)


def test_the_stream_is_that_of_the_largest_of_uniform_keys():
    """Recorded results are of the tasks of this stream, so a faster sampler has to draw the same ones."""
    counts = [5, 9, 7, 8]
    data, seen = numbered(counts), []

    def keep(x, generator):
        seen.append(x.flatten())
        return x

    EpisodeSampler(data, 3, 2, 3, seed=8, transform=keep).sample(6, step=2)
    generator = generator_for("episodes", 8, 2)
    classes = torch.rand(6, 4, generator=generator).argsort(descending=True)[:, :3]
    keys, expected = torch.rand(6, 3, 9, generator=generator), []
    for task in range(6):
        orders = [keys[task, w, : counts[c]].argsort(descending=True) for w, c in enumerate(classes[task].tolist())]
        for place in range(5):
            expected += [sum(counts[:c]) + int(order[place]) for c, order in zip(classes[task].tolist(), orders)]
    assert seen[0].tolist() == expected


def test_every_class_and_example_is_drawn_equally_often():
    data = numbered([4, 6, 8, 10])
    episodes = EpisodeSampler(data, 2, 1, 1).sample(100_000)
    for label in (0, 1):
        by_class = torch.bincount(episodes.classes[:, label], minlength=4) / 100_000
        assert torch.allclose(by_class, torch.full((4,), 0.25), atol=0.006)  # about 4 standard errors
    for x in (episodes.support_x, episodes.query_x):
        rows = x.long().flatten()
        last = torch.bincount(rows, minlength=28)[18:] / (rows >= 18).sum()
        assert torch.allclose(last, torch.full((10,), 0.1), atol=0.006)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_writing_to_an_episode_changes_no_other_and_not_the_pool(tasks, dtype):
    data = numbered([5] * 4)
    data = replace(data, x=data.x.to(dtype))
    sampler, pool = EpisodeSampler(data, 3, 1, 2), data.x.clone()
    first = sampler.sample(tasks)
    expected = {name: part.clone() for name, part in vars(first).items()}
    for name, part in vars(first).items():
        part.fill_(7)
        for other in set(vars(first)) - {name}:
            assert torch.equal(getattr(first, other), expected[other]), f"writing to {name} changed {other}"
        part.copy_(expected[name])
    for part in vars(first).values():
        part.fill_(7)
    assert torch.equal(data.x, pool)
    for name, part in vars(sampler.sample(tasks)).items():
        assert torch.equal(part, expected[name])


def test_a_class_with_too_few_examples_is_named():
    with pytest.raises(ValueError, match=r"need 5 examples a class, but class 'class1' has 4"):
        EpisodeSampler(numbered([6, 4, 7]), ways=2, shots=2, queries=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ways=4), "4-way tasks need 4 classes, but the data has 3"),
        (dict(ways=1), "ways must be at least 2"),
        (dict(ways=2, shots=0), "shots must be at least 1"),
        (dict(ways=2, within_group=0.5), "no group has the 2 classes"),
    ],
)
def test_impossible_tasks_are_refused(arguments, message):
    data = numbered([30] * 3, groups=["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(data, **arguments)


def test_within_group_draws_whole_tasks_from_one_group():
    groups = ["a"] * 4 + ["b"] * 4 + ["c"]
    data = numbered([5] * 9, groups)
    drawn = EpisodeSampler(data, 3, 1, 1, within_group=1.0).sample(200).classes
    letters = [{groups[c] for c in task} for task in drawn.tolist()]
    assert {"a"} in letters
    assert {"b"} in letters
    assert all(len(task) == 1 for task in letters)
    mixed = EpisodeSampler(data, 3, 1, 1).sample(200).classes
    assert any(len({groups[c] for c in task}) > 1 for task in mixed.tolist())


def test_pictures_become_exactly_their_255th_part():
    x = torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4)
    data = LabelledData(x, torch.arange(4).repeat_interleave(4), tuple("abcd"), ("g",) * 4)
    drawn = EpisodeSampler(data, 4, 1, 3).sample(1)
    values = torch.cat([drawn.support_x, drawn.query_x], 1).flatten().sort().values
    assert torch.equal(values, torch.arange(256).float() / 255)


def test_pictures_become_floats_and_pass_the_transform():
    data = LabelledData(
        torch.full((20, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(2).repeat_interleave(10), ("a", "b"), ("g", "g")
    )
    seen = []

    def halve(images, generator):
        seen.append((images.shape, torch.rand(1, generator=generator).item()))
        return images / 2

    sampler = EpisodeSampler(data, 2, 1, 3, transform=halve)
    assert sampler.sample(5, 2).support_x.unique().tolist() == [0.5]
    sampler.sample(5, 2)
    assert seen[0] == ((5 * 2 * 4, 1, 2, 2), seen[1][1]), "the transform's randomness belongs to the step"


def test_labelled_data_selects_splits_and_joins():
    data = numbered([2, 3, 4], groups=["x", "y", "x"])
    assert data.in_groups(["x"]).x.flatten().tolist() == [0, 1, 5, 6, 7, 8]
    assert data.select([2, 0]).y.tolist() == [0, 0, 0, 0, 1, 1]
    joined = data.select([1]) + data.select([0])
    assert joined.names == ("class1", "class0")
    assert joined.counts.tolist() == [3, 2]
    with pytest.raises(ValueError, match="no such group: z"):
        data.in_groups(["z"])
    with pytest.raises(ValueError, match="sorted"):
        LabelledData(torch.zeros(2, 1), torch.tensor([1, 0]), ("a", "b"), ("g", "g"))


def test_episodes_check_their_parts():
    x, y = torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="number of tasks"):
        Episodes(x, y, x[:1], y[:1])
    with pytest.raises(ValueError, match="support: 3 inputs a task but 2 targets"):
        Episodes(x, y[:, :2], x, y)


def test_episodes_slice_split_and_move():
    episodes = EpisodeSampler(numbered([5] * 4), 2, 1, 1).sample(5)
    assert [len(part) for part in episodes.split(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([part.query_x for part in episodes.split(2)]), episodes.query_x)
    assert episodes.to("cpu").ways == 2
    assert not episodes.regression


def test_generators_are_independent_of_one_another():
    draws = [torch.rand(1, generator=generator_for("a", step)).item() for step in range(1000)]
    assert len(set(draws)) > 990
    assert abs(sum(draws) / 1000 - 0.5) < 4 * (1 / 12 / 1000) ** 0.5


def test_the_tasks_do_not_depend_on_the_default_precision(make_pool):
    sampler = EpisodeSampler(make_pool(), ways=3, shots=1, queries=2, within_group=0.5)
    usual = sampler.sample(8)
    torch.set_default_dtype(torch.float64)
    try:
        double = sampler.sample(8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(usual.classes, double.classes)
    assert torch.equal(usual.query_x, double.query_x.to(usual.query_x.dtype))
