import numpy as np
import pytest
import torch
from PIL import Image

from metabook import EpisodeSampler, LabelledData, fit, load, recipes, save
from metabook.data import Sinusoids, distort
from metabook.episodes import Episodes, generator_for
from metabook.recipes import NAMED, RECIPES, few_alphabets, recipe, task_source

LEARNERS = sorted({(data, name) for data, known in RECIPES.items() for name in known if data != "sinusoids"})


@pytest.fixture
def omniglot(make_pool, monkeypatch):
    """64 made-up characters of two alphabets in the place of the data set."""
    pool = make_pool(classes=64, instances=20, groups=("Greek", "Latin"))
    pixels = LabelledData((pool.x * 255).byte(), pool.y, pool.names, pool.groups)
    monkeypatch.setattr(recipes.data_sets, "load", lambda *_, **__: pixels)


def trained(chosen, source, ways=None):
    learner = chosen.build(ways or chosen.ways, len(source.data), False)
    return learner, fit(learner, source, steps=1, tasks=1, **chosen.fit, progress=False)


@pytest.mark.parametrize("name", ["SimpleShot", "PretrainedLinearProbe", "MatchingNet", "RelationNet"])
def test_the_metric_learners_have_a_recipe_that_trains(name, omniglot):
    chosen = recipe(name, "omniglot")
    source = task_source("omniglot", "train", background=None, **chosen.tasks_settings(), seed=0, device="cpu")
    learner, history = trained(chosen, source)
    assert np.isfinite(history.losses).all()
    assert not learner.transductive
    other = EpisodeSampler(source.data, 7, 2, 1).sample(1)  # an embedding serves any number of ways and shots
    assert learner.predict(other).shape == (1, 7, 7)


@pytest.mark.parametrize("name", ["GaussianPrototypes", "NeuralProcess", "LearnedOptimiser"])
def test_the_bayesian_and_the_black_box_learners_train_on_characters_and_are_saved(name, omniglot, tmp_path):
    chosen = recipe(name, "omniglot")
    source = task_source("omniglot", "train", background=None, **chosen.tasks_settings(), seed=0, device="cpu")
    learner, history = trained(chosen, source)
    assert np.isfinite(history.losses).all()
    save(learner, tmp_path / "learner.safetensors")
    episodes = EpisodeSampler(source.data, 5, 2, 1).sample(1)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path).predict(episodes), learner.eval().predict(episodes))


@pytest.mark.parametrize("name", RECIPES["sinusoids"])
def test_every_recipe_for_sinusoids_trains_serves_other_shots_and_is_saved(name, tmp_path):
    chosen = recipe(name, "sinusoids")
    source = task_source("sinusoids", "train", background=None, **chosen.tasks_settings(), seed=0, device="cpu")
    learner = chosen.build(chosen.ways, 0, False)
    history = fit(learner, source, steps=3, tasks=2, **chosen.fit, progress=False)
    assert np.isfinite(history.losses).all()
    save(learner, tmp_path / "learner.safetensors")
    with torch.no_grad():
        for shots in (5, 20):
            episodes = Sinusoids(shots, 7, seed=1).sample(3)
            answers = learner.eval().predict(episodes)
            assert answers.shape == (3, 7, 1)
            torch.testing.assert_close(load(tmp_path).predict(episodes), answers)


def test_the_published_relation_net_is_that_of_its_authors(omniglot):
    chosen = recipe("RelationNet", "omniglot", "published")
    source = task_source("omniglot", "train", background=None, **chosen.tasks_settings(), seed=0, device="cpu")
    assert len(source.data) == 4 * 64
    learner = chosen.build(5, len(source.data), False)
    assert learner.transductive
    assert learner.net(torch.zeros(2, 1, 28, 28)).shape == (2, 64, 5, 5)
    # The relation module: 128 -> 64 -> 64 filters of 3 x 3 with scale and shift, then 64 -> 8 -> 1.
    wanted = (9 * 128 * 64 + 64 + 128) + (9 * 64 * 64 + 64 + 128) + (64 * 8 + 8) + (8 + 1)
    assert sum(p.numel() for p in learner.relation.parameters()) == wanted
    assert source.sample(1).query_x.shape[1] == 5 * 19


def test_each_ingredient_of_the_few_alphabets_can_be_left_out(omniglot):
    def source(chosen):
        return task_source("omniglot", "train", background="small1", **chosen.tasks_settings(), seed=0, device="cpu")

    whole, plain = source(few_alphabets()), source(few_alphabets(rotate=False, distort=False, within_group=0.0))
    assert (len(whole.data), len(plain.data)) == (256, 64)
    assert (whole.within_group, plain.within_group) == (0.5, 0.0)
    assert plain.transform is None
    images, affine = torch.rand(4, 1, 28, 28), source(few_alphabets(distort=("affine",))).transform
    assert torch.equal(affine(images, generator_for(0)), distort(images, generator_for(0), parts=("affine",)))
    assert not torch.equal(affine(images, generator_for(0)), whole.transform(images, generator_for(0)))
    assert few_alphabets(anneal=None, average=0.0, weight_decay=0.0).fit == dict(
        lr=3e-3, anneal=None, average=0.0, weight_decay=0.0
    )
    assert few_alphabets(in_turn=False).build(20, 1, False).in_turn is False


def test_a_learner_of_the_few_alphabets_reads_drawings_of_either_size(omniglot, tmp_path):
    chosen = recipe("ProtoNet", "omniglot", "few-alphabets")
    save(chosen.build(20, 256, False), tmp_path / "learner.safetensors")
    learner = load(tmp_path)
    large = (torch.rand(1, 10, 1, 105, 105) < 0.1).float()
    y = torch.arange(5).repeat(2)[None]
    pages = [Image.fromarray((255 * page).byte().numpy()) for page in large[0, :, 0]]
    scaled = np.stack([np.asarray(page.resize((28, 28), Image.Resampling.LANCZOS)) for page in pages])
    small = torch.from_numpy(scaled)[None, :, None] / 255
    with torch.no_grad():
        answers = [learner.predict(Episodes(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])) for x in (small, large)]
    assert answers[0].shape == (1, 5, 5)
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ProtoNet", "omniglot", "many-alphabets"), "no recipe 'many-alphabets'.*few-alphabets, long, published"),
        (("MAML", "omniglot", "few-alphabets"), "is not for MAML on omniglot.*ProtoNet on omniglot"),
        (("ProtoNet", "glyphs", "few-alphabets"), "is not for ProtoNet on glyphs"),
    ],
)
def test_what_there_is_no_recipe_for_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(*arguments)


def test_every_named_recipe_is_of_a_learner_that_can_be_trained():
    assert {name for known in NAMED.values() for on in known.values() for name in on} <= {name for _, name in LEARNERS}
