"""The clinic: every check passes on the repair and fails on the error, and the repairs are what the package does."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metabook import Episodes, EpisodeSampler, clinic, data, fit, results, seed_everything
from metabook.clinic import EXHIBITS, Cost, Exhibit, TrainedBy, cost
from metabook.data import Sinusoids
from metabook.learners import MAML, ProtoNet, Reptile
from metabook.nets import MLP
from metabook.rl import MAMLRL, EnvTasks, GaussianPolicy
from metabook.training import ci95

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "40-code" / "clinic.md"


# --- The exhibits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_check_passes_on_the_repair(name):
    EXHIBITS[name].check(EXHIBITS[name].fixed)


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_check_fails_on_the_error(name):
    with pytest.raises(AssertionError, match=r"\w"):  # and says why
        EXHIBITS[name].check(EXHIBITS[name].broken)


@pytest.mark.parametrize("name", EXHIBITS)
def test_wrong_code_says_that_it_is_wrong_and_right_code_does_not(name):
    exhibit = EXHIBITS[name]
    parts = (exhibit.broken, exhibit.fixed)
    wrong, right = (getattr(each, exhibit.method) if exhibit.method else each for each in parts)
    assert wrong.__doc__.startswith("Wrong")
    assert not right.__doc__.startswith("Wrong")


@pytest.mark.parametrize("name", EXHIBITS)
def test_what_is_shown_has_lines_of_both_and_the_verdict(name):
    shown = EXHIBITS[name].show()
    assert any(line.startswith("-") for line in EXHIBITS[name].diff().splitlines())
    assert any(line.startswith("+") for line in EXHIBITS[name].diff().splitlines())
    assert shown._repr_markdown_().startswith("```diff\n")
    assert EXHIBITS[name].check.__name__ in repr(shown)


def pair(broken, fixed):
    def check(function):
        assert function() == "right"

    return Exhibit("title", "symptom", broken, fixed, check)


def test_a_repair_in_the_place_of_the_error_is_noticed():
    with pytest.raises(LookupError, match="finds no fault"):
        pair(lambda: "right", lambda: "right").verdict()


def test_an_error_in_the_place_of_the_repair_is_noticed():
    with pytest.raises(AssertionError):
        pair(lambda: "wrong", lambda: "wrong").verdict()


def test_the_chapter_shows_every_exhibit_and_every_check():
    text = CHAPTER.read_text(encoding="utf-8")
    assert re.findall(r'^EXHIBITS\["([^"]+)"\]\.show\(\)$', text, re.MULTILINE) == list(EXHIBITS)
    shown = " ".join(re.findall(r"^clinic\.listing\((.*)\)$", text, re.MULTILINE))
    for exhibit in EXHIBITS.values():
        assert re.search(rf"\b{exhibit.check.__name__}\b", shown), exhibit.check.__name__


# --- Which checks find which errors of an outer loss ------------------------------------------------------------------

LOSS_CHECKS = {
    check.__name__: check
    for check in (
        clinic.check_meta_gradient,
        clinic.check_weights_stay,
        clinic.check_queries_count,
        clinic.check_mean_over_tasks,
    )
}
FOUND = {
    clinic.maml_loss: set(),
    clinic.steps_on_a_copy: {"check_meta_gradient"},
    clinic.no_create_graph: {"check_meta_gradient"},
    clinic.detached_weights: {"check_meta_gradient"},
    clinic.support_as_query: {"check_queries_count"},
    clinic.query_of_another_task: {"check_mean_over_tasks"},
    clinic.sum_over_tasks: {"check_mean_over_tasks"},
}


@pytest.mark.parametrize("check", LOSS_CHECKS)
@pytest.mark.parametrize("loss", FOUND, ids=lambda loss: loss.__name__)
def test_which_check_finds_which_error(loss, check):
    if check in FOUND[loss]:
        with pytest.raises(AssertionError):
            LOSS_CHECKS[check](loss)
    else:
        LOSS_CHECKS[check](loss)


@pytest.mark.parametrize("loss", [clinic.data_updates, clinic.joint_listing, clinic.wandering_listing])
def test_the_gradient_check_finds_overwritten_weights_too(loss):
    with pytest.raises(AssertionError):
        clinic.check_meta_gradient(loss)


# --- The repairs are what the package does ----------------------------------------------------------------------------


def of_learner(build):
    return lambda net, episodes, alpha=0.01: build(net, alpha).loss(episodes)


def test_the_packages_maml_passes():
    for check in LOSS_CHECKS.values():
        check(of_learner(lambda net, alpha: MAML(net, alpha)))
    clinic.check_first_order(of_learner(lambda net, alpha: MAML(net, alpha, first_order=True)))
    clinic.check_published_step(lambda net, episodes, rate: MAML(net, rate * episodes.ways).loss(episodes))


def test_the_five_lines_are_the_packages_maml():
    net, episodes = clinic.practice()
    torch.testing.assert_close(clinic.maml_loss(net, episodes, 0.1), MAML(net, 0.1).loss(episodes), rtol=0, atol=1e-12)


def test_the_packages_prototypes_pass():
    def loss(net, episodes):
        return ProtoNet(net).loss(episodes)

    clinic.check_sure_answer(loss)
    clinic.check_squared_distance(loss)
    clinic.check_queries_are_separate(lambda learner, episodes: learner.eval().predict(episodes))


def test_the_packages_reptile_is_the_clinics():
    net, episodes = clinic.practice()
    twin = copy.deepcopy(net)
    clinic.reptile(net, episodes, clinic.TaskTraining(0.05, 4))
    whole = replace(episodes, query_x=episodes.query_x[:, :0], query_y=episodes.query_y[:, :0])
    Reptile(twin, 0.05, 4, batch=None).accumulate_gradients(whole)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-10)


def test_the_policy_exhibit_has_the_gradient_of_the_package():
    policy = GaussianPolicy(MLP(2, (8,), 2, "tanh"), 0.3)
    tasks = EnvTasks("metabook/Navigation-v0", horizon=6).sample(2)
    gradients = []
    for loss in (
        partial(clinic.policy_maml_loss, policy, trajectories=4, past=0.5),
        MAMLRL(policy, 0.1, trajectories=4, past=0.5).loss,
    ):
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(loss(tasks), list(policy.parameters())))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)


def test_policies_are_judged_by_minus_their_returns_after_each_update():
    test = EnvTasks("metabook/Navigation-v0", seed=1, horizon=5).sample(3)
    scores = clinic.train_on_goals(clinic.policy_maml_loss, [0, 1], 1, test, tasks=2)
    assert scores.shape == (4, 2, 3)
    assert (scores > 0).all()


def test_the_packages_rotations_sampler_and_split_pass(make_pool):
    clinic.check_one_angle_a_class(data.rotations)
    assert torch.equal(clinic.classes_rotated(clinic.small_pool()).x, data.rotations(clinic.small_pool()).x)

    def draw(classes, ways, generator):
        step = int(torch.randint(1_000_000, (), generator=generator))
        return EpisodeSampler(make_pool(classes), ways, 1, 1).sample(1, step).classes[0]

    clinic.check_classes_differ(draw)


# --- The two listings -------------------------------------------------------------------------------------------------


def test_the_first_listings_outer_gradient_is_that_of_the_joint_loss_at_the_moved_weights():
    net, episodes = clinic.practice()
    start = [p.detach().clone() for p in net.parameters()]
    clinic.joint_listing(net, episodes, 0.1)
    moved = copy.deepcopy(net)
    (moved(episodes.support_x) - episodes.support_y).square().mean((1, 2)).sum().backward()
    for p, q, s in zip(net.parameters(), moved.parameters(), start):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-12)
        assert not torch.equal(p, s)


def test_the_second_listings_outer_gradient_is_a_sum_of_plain_gradients_along_the_way():
    net, episodes = clinic.practice()
    walker, expected = copy.deepcopy(net), [torch.zeros_like(p) for p in net.parameters()]
    for task in episodes.split(1):
        for use in ("step", "add"):
            walker.zero_grad()
            (walker(task.support_x) - task.support_y).square().sum().backward()
            if use == "step":
                torch.optim.SGD(walker.parameters(), lr=0.01).step()
            else:
                expected = [e + p.grad for e, p in zip(expected, walker.parameters())]
    clinic.wandering_listing(net, episodes, 0.01)
    for p, e in zip(net.parameters(), expected):
        torch.testing.assert_close(p.grad, e, rtol=0, atol=1e-12)


def test_pytorch_finds_overwritten_weights_unless_they_are_written_through_data():
    """What the chapter says of ``.data``: under ``no_grad`` the same updates make ``backward`` fail."""
    net, episodes = clinic.practice()
    losses = []
    for task in episodes.split(1):
        loss = (net(task.support_x) - task.support_y).square().mean()
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            with torch.no_grad():
                p.sub_(0.1 * g)
        losses.append((net(task.query_x) - task.query_y).square().mean())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.stack(losses).sum().backward()
    clinic.data_updates(*clinic.practice()).backward()


# --- What an error costs ----------------------------------------------------------------------------------------------


def test_cost_is_the_paired_difference_with_the_larger_interval():
    random = np.random.default_rng(0)
    fixed, noise = random.random((3, 40)), 0.01 * random.random((3, 40))
    found = cost(fixed + 0.2 + noise, fixed, scale=10)
    assert found.mean == pytest.approx(2 + 10 * noise.mean())
    assert found.half == pytest.approx(10 * max(ci95(noise.mean(0)), ci95(noise.mean(1))))
    assert found.resolved
    assert not cost(fixed, fixed + random.normal(size=(3, 40))).resolved


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Cost(0.25, 0.1), "+0.25 ± 0.10"),
        (Cost(-0.25, 0.3), "-0.25 ± 0.30 (not resolved)"),
        (Cost(1e-4, 1e-4), "none (within 0.005 of zero)"),
        (Cost(3e12, 1e12), "+3e+12"),
        (cost(np.array([[1.0, np.nan]]), np.zeros((1, 2))), "diverges"),
    ],
)
def test_a_cost_in_words(value, text):
    assert str(value) == text


def test_training_by_an_exhibit_is_training_by_its_gradient():
    """By MAML's own loss it ends where MAML does; on a copy it does not move."""
    source = Sinusoids(5, 5, seed=3)
    settings = dict(steps=3, tasks=2, lr=1e-2, progress=False)
    nets = [MLP() for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    before = copy.deepcopy(nets[0].state_dict())
    fit(MAML(nets[0], 0.01, 1), source, **settings)
    fit(TrainedBy(MAML(nets[1], 0.01, 1), clinic.maml_loss), source, **settings)
    fit(TrainedBy(MAML(nets[2], 0.01, 1), clinic.steps_on_a_copy), source, **settings)
    for name, p in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], p, rtol=0, atol=1e-6)
        assert torch.equal(nets[2].state_dict()[name], before[name])


def test_where_training_diverges_the_error_is_no_number():
    test = Sinusoids(5, 5, seed=1).sample(4)
    errors, losses = clinic.train_on_curves(clinic.maml_loss, [0], 60, test, optimiser="sgd", lr=1e3)
    assert losses == [[]]
    assert str(cost(errors[1], np.zeros((1, 4)))) == "diverges"


class SupportOnly:
    """The clinic's Reptile trains on the support, the package's on all examples."""

    def __init__(self, source):
        self.source = source

    def sample(self, tasks, step=0):
        episodes = self.source.sample(tasks, step)
        return replace(episodes, query_x=episodes.query_x[:, :0], query_y=episodes.query_y[:, :0])


def test_training_reptile_by_exhibits_is_training_the_packages():
    test = Sinusoids(10, 5, seed=1).sample(4)
    found = clinic.train_reptile([3], 2, test, 0.02, 3)
    seed_everything(3)
    learner, source = Reptile(MLP(), 0.02, 3, batch=None), SupportOnly(Sinusoids(10, 1, seed=3))
    outer = dict(lr=1.0, optimiser="sgd", anneal="linear")
    fit(learner, source, steps=2, tasks=5, seed=3, progress=False, **outer)
    with torch.no_grad():
        expected = (learner.predict(test) - test.query_y).square().mean((1, 2))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert clinic.train_reptile([3], 2, test, 0.02, 3, step=clinic.reptile_away).mean() > found.mean()


def test_settings_are_the_best_on_validation_tasks():
    search = results.read("clinic")["search"]
    assert search["validation_seed"] != 1_000_000, "the seed of the chapter's test tasks"
    for kind, names in (("sgd", {"lr"}), ("reptile", {"inner_lr", "inner_steps"})):
        chosen = search[kind]["best"]
        alike = [r for r in search[kind]["rows"] if r.get("inner_steps") == chosen.get("inner_steps")]
        best = min((row for row in alike if row["error"] is not None), key=lambda row: row["error"])
        assert chosen == {name: best[name] for name in names}


def test_a_point_on_a_line_is_one_task():
    task = clinic.on_a_line([0.0, 3.0], 1.0)
    assert isinstance(task, Episodes)
    assert task.ways == 2
    assert clinic.protonet_loss(nn.Identity(), task).item() == pytest.approx(np.log1p(np.exp(-3)), rel=1e-6)
