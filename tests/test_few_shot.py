"""The benchmarks of few-shot learners: which tasks a learner is judged by, its scores and the records."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metabook import EpisodeSampler, LabelledData, evaluate
from metabook.learners import MAML, NearestNeighbour, PretrainedNearestMean, ProtoNet, RelationNet
from metabook.nets import Conv4, ConvMaps, RelationHead
from metabook.recipes import recipe

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    found = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return loaded("few_shot")


@pytest.fixture(scope="module")
def pool():
    generator = torch.Generator().manual_seed(0)
    classes, examples = 24, 8
    shapes = torch.rand(classes, 1, 1, 28, 28, generator=generator)
    x = (180 * shapes + 70 * torch.rand(classes, examples, 1, 28, 28, generator=generator)).byte()
    names = tuple(map(str, range(classes)))
    return LabelledData(x.flatten(0, 1), torch.arange(classes).repeat_interleave(examples), names, ("a",) * classes)


def conv(**settings):
    torch.manual_seed(0)
    return Conv4(channels=4, **settings)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ProtoNet(conv(norm="running"), in_turn=True, views=3),
        lambda: PretrainedNearestMean(conv(norm="running"), 24, centre=True),
    ],
    ids=["prototypes of views", "centred means"],
)
def test_pictures_that_are_embedded_once_get_the_same_answers(script, pool, build):
    learner = build()
    light, small = script.embedded(learner, pool)
    assert small.x.dim() == 2
    for ways, shots in script.KINDS.values():
        direct, quick = (
            evaluate(each, EpisodeSampler(on, ways, shots, 3, seed=1), tasks=4)
            for each, on in ((learner, pool), (light, small))
        )
        assert np.array_equal(direct.scores, quick.scores)
        assert direct.transductive is quick.transductive is False


@pytest.mark.parametrize(
    "build",
    [
        lambda: ProtoNet(conv(norm="batch")),
        lambda: RelationNet(ConvMaps(4), RelationHead(4), "mean"),
        lambda: MAML(conv(outputs=5, downsample="stride")),
        NearestNeighbour,
    ],
    ids=["batch statistics", "maps", "an inner loop", "pixels"],
)
def test_where_pictures_matter_to_each_other_nothing_is_embedded_beforehand(script, pool, build):
    learner = build()
    assert script.embedded(learner, pool) == (learner, pool)


def test_a_name_in_brackets_is_that_of_a_recipe(script):
    assert script.named("MAML++") == ("MAML++", None)
    assert script.named("ProtoNet (few-alphabets)") == ("ProtoNet", "few-alphabets")
    for each in script.LEARNERS:
        learner, chosen = script.named(each)
        if chosen:
            assert recipe(learner, "omniglot", chosen).build(5, 10, False)


def test_a_learner_is_judged_by_the_tasks_that_it_is_for(script):
    def kinds(learner, name):
        return [kind for kind, each in script.KINDS.items() if script.serves(learner, name, "omniglot", *each)]

    assert kinds(NearestNeighbour(), "NearestNeighbour") == ["5w1s", "5w5s", "20w1s", "20w5s"]
    assert kinds(ProtoNet(nn.Identity()), "ProtoNet (few-alphabets)") == ["5w1s", "5w5s", "20w1s", "20w5s"]
    assert kinds(MAML(conv(outputs=5, downsample="stride")), "MAML (long)") == ["5w1s", "5w5s"]
    published = recipe("RelationNet", "omniglot", "published").build(5, 10, False)
    assert kinds(published, "RelationNet (published)") == ["5w1s"]  # the only tasks that its protocol trains for


def run(seed, mean, **alone):
    test = {kind: [[mean] * 4, bool(alone)] for kind in ("5w1s", "5w5s")}
    scores = {"test": test, "alone": {kind: [[value] * 3, False] for kind, value in alone.items()}}
    return {"name": "MAML (long)", "seed": seed, "steps": 10, "cpu_seconds": 2.0 + seed, "scores": scores}


def test_a_row_has_both_kinds_of_queries_and_names_its_recipe(script):
    row = script.row("MAML (long)", [run(0, 0.9, **{"5w1s": 0.5}), run(1, 0.8, **{"5w1s": 0.6})])
    assert (row["learner"], row["recipe"], row["meta"], row["transductive"]) == ("MAML", "long", True, True)
    assert row["test"]["5w1s"]["mean"] == pytest.approx(0.85)
    assert row["test"]["20w5s"] is None
    assert row["alone"]["5w1s"]["seed_means"] == pytest.approx([0.5, 0.6])
    assert row["alone"]["5w1s"]["transductive"] is False
    assert (row["steps"], row["cpu_seconds"]) == ([10, 10], 2.5)
    assert "alone" not in script.row("MAML (long)", [run(0, 0.9)])


def test_scores_are_kept_and_not_measured_again(script, pool, tmp_path):
    file, source = tmp_path / "scores.json", EpisodeSampler(pool, 5, 1, 3, seed=1)
    first = script.scored(file, NearestNeighbour(), source, 4, one_by_one=False)
    assert first == [evaluate(NearestNeighbour(), source, tasks=4).scores[0].tolist(), False]
    assert script.scored(file, ProtoNet(nn.Flatten()), source, 4, one_by_one=False) == first


def test_a_record_made_in_parts_keeps_the_rows_that_are_not_measured_now(script):
    settings = {"data": "omniglot"}
    maml, pixels = script.LEARNERS["MAML (long)"], script.LEARNERS["NearestNeighbour"]
    earlier = [{"label": label, "budget_cpu_seconds": 9, "n": 1} for label in (maml, pixels)]
    new = [{"label": maml, "budget_cpu_seconds": budget, "n": 2} for budget in (9, 5)]
    rows = script.joined(new, {"settings": settings, "rows": earlier}, settings)
    assert rows == [earlier[1], new[1], new[0]]  # one row for each learner and budget
    with pytest.raises(ValueError, match="other settings"):
        script.joined([], {"settings": {"data": "glyphs"}, "rows": []}, settings)


def test_a_new_test_of_the_few_alphabets_stands_beside_those_of_other_budgets():
    def tested(candidate, n, steps=4, **budget):
        return {"background": "small1", "candidate": candidate, "steps": [steps], "n": n, **budget}

    earlier = [tested("recipe", 1), tested("recipe", 1, budget_cpu_seconds=5), tested("pixels", 1, steps=0)]
    new = [tested("recipe", 2, budget_cpu_seconds=9), tested("recipe", 2, budget_cpu_seconds=7)]
    new += [tested("pixels", 2, steps=0, budget_cpu_seconds=7)]
    rows = loaded("few_alphabets").joined(new, {"budget_cpu_seconds": 9, "test": earlier})
    assert rows == [new[0], earlier[1], new[2], new[1]]
