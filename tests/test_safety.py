import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

from metabook import Episodes, safety
from metabook.learners import ProtoNet


def episodes(tasks=6, ways=3, shots=5, queries=8, noise=0.3, d=6, seed=0):
    """Classes around random points, ordered by shot, then class."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(tasks, 1, ways, d, generator=generator)

    def draw(n):
        x = means + noise * torch.randn(tasks, n, ways, d, generator=generator)
        return x.flatten(1, 2), torch.arange(ways).repeat(n).expand(tasks, -1).clone()

    return Episodes(*draw(shots), *draw(queries))


def loss(learner, tasks):
    logits = learner.predict(tasks)
    return nn.functional.cross_entropy(logits.flatten(0, 1), tasks.query_y.flatten()).item()


# --- Poison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [0, 1, 4])
def test_so_many_labels_are_flipped_and_nothing_else(flips):
    clean = episodes()
    for poisoned in (safety.flip_at_random(clean, flips), safety.flip_together(clean, flips)):
        assert ((poisoned.support_y != clean.support_y).sum(1) == flips).all()
        assert ((poisoned.support_y >= 0) & (poisoned.support_y < 3)).all()
        assert poisoned.support_x is clean.support_x
        assert poisoned.query_y is clean.query_y
    together = safety.flip_together(clean, flips).support_y
    assert ((clean.support_y == 0) == (together == 0)).sum(1).eq(15 - flips).all()
    assert (together == 1).sum(1).eq(5 + flips).all()


def test_no_class_may_lose_all_of_its_examples():
    for flip in (
        safety.flip_at_random,
        safety.flip_together,
        lambda e, n: safety.worst_flips(ProtoNet(nn.Identity()), e, n),
    ):
        with pytest.raises(ValueError, match="flip fewer"):
            flip(episodes(shots=2), 2)


def test_random_flips_depend_on_the_seed_alone():
    clean = episodes()
    one, same, other = (safety.flip_at_random(clean, 3, seed).support_y for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_attacker_takes_the_single_worst_change():
    clean, learner = episodes(tasks=1), ProtoNet(nn.Identity())
    path = safety.worst_flips(learner, clean, 1)
    assert torch.equal(path[0], clean.support_y)
    worst = -math.inf
    for i in range(15):
        for k in range(3):
            y = clean.support_y.clone()
            y[0, i] = k
            worst = max(worst, loss(learner, replace(clean, support_y=y)))
    assert loss(learner, replace(clean, support_y=path[1])) == pytest.approx(worst, rel=1e-5)


def test_chosen_flips_harm_more_than_random_ones_and_chunks_change_nothing():
    clean, learner = episodes(), ProtoNet(nn.Identity())
    path = safety.worst_flips(learner, clean, 3)
    assert [int((y != clean.support_y).sum(1).max()) for y in path] == [0, 1, 2, 3]
    random = max(loss(learner, safety.flip_at_random(clean, 3, seed)) for seed in range(5))
    assert loss(learner, replace(clean, support_y=path[3])) > random
    for one, other in zip(path, safety.worst_flips(learner, clean, 3, chunk=2)):
        assert torch.equal(one, other)


def test_margins_are_those_of_a_loop():
    clean = safety.flip_at_random(episodes(tasks=2), 3)
    for spread in (0.0, 0.7):
        found = safety.margins(clean.support_x, clean.support_y, 3, spread)
        for t in range(2):
            z, y = clean.support_x[t], clean.support_y[t]
            for i in range(15):
                rest = torch.arange(15) != i
                score = [
                    (z[i] - z[rest & (y == k)].mean(0)).square().sum() - spread / (rest & (y == k)).sum()
                    for k in range(3)
                ]
                own = score.pop(int(y[i]))
                torch.testing.assert_close(found[t, i], min(score) - own, rtol=1e-4, atol=1e-4)


def test_the_only_example_of_a_class_is_never_left_out():
    one = episodes(shots=1)
    assert safety.margins(one.support_x, one.support_y, 3).isposinf().all()
    strict = safety.RobustPrototypes(nn.Identity(), slack=-1e9)  # leaves nothing of any class, so it must keep all
    five = episodes()
    torch.testing.assert_close(strict.predict(five), ProtoNet(nn.Identity()).predict(five))


def test_without_options_they_are_prototypes():
    tasks = episodes()
    torch.testing.assert_close(
        safety.RobustPrototypes(nn.Identity()).predict(tasks), ProtoNet(nn.Identity()).predict(tasks)
    )


def test_editing_finds_wrong_labels_between_distant_classes():
    tasks = episodes(noise=0.05)
    poisoned = safety.flip_at_random(tasks, 2)
    wrong = poisoned.support_y != tasks.support_y
    found = safety.margins(poisoned.support_x, poisoned.support_y, 3)
    assert found[wrong].max() < found[~wrong].min()
    edited = safety.RobustPrototypes(nn.Identity(), slack=0.0)
    clean = ProtoNet(nn.Identity()).predict(tasks)
    assert (edited.predict(poisoned) - clean).abs().max() < (
        ProtoNet(nn.Identity()).predict(poisoned) - clean
    ).abs().max()


@pytest.mark.parametrize("centre", ["median", "geometric"])
def test_medians_stay_where_the_mean_goes_far_away(centre):
    tasks = episodes()
    far = tasks.support_x.clone()
    far[:, 0] = 1e4
    poisoned = replace(tasks, support_x=far)
    mean, robust = ProtoNet(nn.Identity()), safety.RobustPrototypes(nn.Identity(), centre=centre)

    def right(learner, tasks):
        return float((learner.predict(tasks).argmax(2) == tasks.query_y).float().mean())

    assert right(robust, poisoned) > right(robust, tasks) - 0.1
    assert right(mean, poisoned) < right(mean, tasks) - 0.2


def test_the_geometric_median_has_the_least_sum_of_distances():
    z = episodes(tasks=1, ways=1).support_x.double()
    members = torch.ones(1, 1, 5, dtype=torch.float64)
    found = safety.centres(z, members, "geometric", steps=500)[0, 0]
    best = (z[0] - found).norm(dim=1).sum()
    for other in (*z[0], z[0].mean(0), *(found + 0.01 * torch.eye(6))):
        assert best <= (z[0] - other).norm(dim=1).sum() + 1e-9


def test_the_median_is_that_of_each_coordinate():
    tasks = episodes(tasks=2)
    members = nn.functional.one_hot(tasks.support_y, 3).float().transpose(1, 2)
    found = safety.centres(tasks.support_x, members, "median")
    for t in range(2):
        for k in range(3):
            wanted = np.median(tasks.support_x[t, tasks.support_y[t] == k], axis=0)
            np.testing.assert_allclose(found[t, k], wanted, rtol=1e-5)


def test_an_unknown_centre_is_refused():
    with pytest.raises(ValueError, match="centre must be one of"):
        safety.RobustPrototypes(nn.Identity(), centre="mode")


# --- The loop -----------------------------------------------------------------------------------------------------


def test_no_loop_changes_nothing():
    accuracy, classes = safety.self_train(episodes(queries=20), 4, 10, "none")
    assert torch.equal(accuracy, accuracy[:, :1].expand_as(accuracy))
    assert (classes == 3).all()


def test_a_loop_that_is_never_wrong_is_the_mean_of_what_it_was_given():
    """Classes so far apart that every label is right: verified or not, the loop knows the true means better."""
    tasks = episodes(queries=20, noise=0.01)
    for labels in ("own", "verified"):
        accuracy, classes = safety.self_train(tasks, 4, 10, labels)
        assert (accuracy == 1).all()
        assert (classes == 3).all()


def test_without_the_support_set_classes_are_lost_at_the_rate_of_chance():
    tasks = episodes(tasks=600, queries=40, noise=0.001, d=4)
    _, classes = safety.self_train(tasks, 6, 4, "own", anchored=False)
    assert (classes.diff(dim=1) <= 0).all()
    first = 3 * (
        1 - (2 / 3) ** 4
    )  # the first batch has perfect labels; then the messages of lost classes are mislabelled
    assert float(classes[:, 1].mean()) == pytest.approx(first, abs=0.1)
    assert float(classes[:, 6].mean()) < 2
    _, kept = safety.self_train(tasks, 6, 4, "own", anchored=True)
    assert (kept == 3).all()


def test_a_round_in_which_nothing_is_verified_changes_nothing():
    clean = episodes(queries=20, noise=0.001)
    clean = replace(clean, query_y=(clean.query_y + 1) % 3)  # so that the verifier finds every label wrong
    accuracy, classes = safety.self_train(clean, 4, 10, "verified", anchored=False)
    assert (accuracy == 0).all()
    assert (classes == 3).all()


@pytest.mark.parametrize(("options", "says"), [({"labels": "theirs"}, "labels must be"), ({"rounds": 6}, "leave none")])
def test_a_loop_that_cannot_run_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        safety.self_train(episodes(queries=20), **({"rounds": 2, "batch": 10} | options))


# --- Membership ---------------------------------------------------------------------------------------------------


def test_the_auc_is_scikit_learns_with_small_losses_for_members():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0, 1, (4, 7)).round(1), rng.normal(0.5, 1, (4, 9)).round(1)  # rounded: ties
    found = safety.membership_auc(torch.from_numpy(members), torch.from_numpy(others))
    for t in range(4):
        wanted = roc_auc_score([1] * 7 + [0] * 9, -np.concatenate([members[t], others[t]]))
        assert float(found[t]) == pytest.approx(wanted)


def test_one_shot_prototypes_give_their_support_set_away():
    tasks = episodes(shots=1, noise=1.0, d=200)  # many dimensions: two examples are never near to each other
    tasks = replace(tasks, support_x=tasks.support_x / 20, query_x=tasks.query_x / 20)
    auc, _ = safety.leak(ProtoNet(nn.Identity()).predict(safety.ask_again(tasks)), tasks)
    assert (auc > 0.8).all()


def test_a_learner_that_looks_at_nothing_gives_nothing_away():
    tasks = episodes()
    auc, accuracy = safety.leak(torch.zeros(6, 15 + 24, 3), tasks)
    assert (auc == 0.5).all()
    assert accuracy.tolist() == [pytest.approx(1 / 3)] * 6


def test_members_are_compared_within_their_class():
    """A class with small losses throughout would otherwise look like a class of members."""
    tasks = episodes(tasks=1, shots=2, queries=2)
    logits = torch.zeros(1, 12, 3)
    logits[:, [0, 3, 6, 9], 0] = 5.0  # class 0 is easy, members and others alike
    assert safety.leak(logits, tasks)[0].item() == 0.5


def test_examples_in_another_order_are_refused():
    tasks = episodes()
    shuffled = replace(tasks, support_y=tasks.support_y.flip(1))
    with pytest.raises(ValueError, match="ordered by shot"):
        safety.leak(torch.zeros(6, 39, 3), shuffled)


def test_without_noise_they_are_prototypes_and_noise_has_the_scale():
    tasks = episodes(tasks=400)
    assert torch.allclose(
        safety.NoisyPrototypes(nn.Identity(), 0.0).predict(tasks), ProtoNet(nn.Identity()).predict(tasks), atol=1e-4
    )
    zeros = replace(tasks, support_x=torch.zeros_like(tasks.support_x), query_x=torch.zeros_like(tasks.query_x))
    squared = -safety.NoisyPrototypes(nn.Identity(), 0.5).predict(zeros)[:, 0]  # a prototype's squared length
    assert float(squared.mean()) == pytest.approx(6 * 0.25, rel=0.1)


def test_the_noise_is_the_least_that_keeps_the_promise():
    for epsilon, delta in ((0.1, 1e-6), (1.0, 1e-5), (8.0, 1e-2)):
        scale = safety.gaussian_scale(0.4, epsilon, delta)
        assert safety.gaussian_delta(0.4, scale, epsilon) == pytest.approx(delta, rel=1e-5)
        assert safety.gaussian_delta(0.4, 1.01 * scale, epsilon) < delta
    # Less than the classical sufficient amount (C. Dwork, A. Roth, 2014, theorem A.1).
    assert safety.gaussian_scale(1.0, 0.9, 1e-5) < math.sqrt(2 * math.log(1.25e5)) / 0.9


def test_delta_is_what_the_best_event_has_too_much():
    """Of two normal distributions, the event in which their ratio exceeds e to the epsilon."""
    x = np.linspace(-30, 30, 400_001)
    one, other = stats.norm.pdf(x, 0.4, 0.7), stats.norm.pdf(x, 0, 0.7)
    wanted = np.trapezoid(np.maximum(one - math.exp(0.5) * other, 0), x)
    assert safety.gaussian_delta(0.4, 0.7, 0.5) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 0.1), (1.0, -1.0, 0.1), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_promise_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="positive, and delta below 1"):
        safety.gaussian_scale(*wrong)
