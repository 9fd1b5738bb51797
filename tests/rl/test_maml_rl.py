"""MAML for policies against exact derivatives: on a problem of two steps everything is a sum of four terms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import grad, jacrev

from metabook import clinic, fit
from metabook.nets import MLP
from metabook.rl import MAMLRL, CategoricalPolicy, EnvTasks, GaussianPolicy, PretrainedPolicy, Trajectories, rollout
from metabook.rl.maml_rl import linear_baseline, returns_to_go, surrogate
from metabook.theory import two_steps
from metabook.theory.two_steps import STATES, expected_return, path_log_probs, path_rewards

REWARDS = torch.tensor([[[0.0, 1.0], [2.0, -1.0], [-2.0, 3.0]], [[1.0, 0.0], [-2.0, 1.0], [2.0, 0.0]]])
LOGITS = torch.tensor([[0.3, -0.5, 0.2], [-0.3, 0.4, 0.1]])
REPEATS = 30
BAND = stats.t.ppf(1 - 0.001 / 2 / 3, REPEATS - 1)
"""99.9 % for the largest of three components (the two rows of a gradient are minus each other)."""


def hessian(function):
    return jacrev(grad(function))


def policy(logits=LOGITS):
    table = nn.Linear(3, 2, bias=False)
    table.weight.data = logits.clone()
    return CategoricalPolicy(table)


# --- The surrogate, with the probabilities of all trajectories --------------------------------------------------------


def expected_surrogate(logits, rewards, baseline, **kind):
    """The mean of the surrogate over all trajectories, whose probabilities are held."""
    weights = path_log_probs(logits).sum(1).exp().detach()
    gain = returns_to_go(path_rewards(rewards), 1.0) - baseline[STATES]
    each = surrogate(path_log_probs(logits).unsqueeze(1), gain.unsqueeze(1), torch.ones(4, 1, 2), **kind)
    return (weights * each).sum()


@pytest.mark.parametrize("baseline", [torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])])
def test_both_derivatives_of_the_surrogate_are_those_of_the_expected_return(baseline):
    logits, rewards, baseline = LOGITS.double(), REWARDS[0].double(), baseline.double()
    for derivative in (grad, hessian):
        torch.testing.assert_close(
            derivative(expected_surrogate)(logits, rewards, baseline),
            derivative(expected_return)(logits, rewards),
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("kind", [{"sampling_term": False}, {"past": 0.0}, {"past": 0.5}])
def test_short_cuts_keep_the_first_derivative_and_bias_the_second(kind):
    logits, rewards, baseline = LOGITS.double(), REWARDS[0].double(), torch.zeros(3).double()

    def short(logits):
        return expected_surrogate(logits, rewards, baseline, **kind)

    def exact(logits):
        return expected_return(logits, rewards)

    torch.testing.assert_close(grad(short)(logits), grad(exact)(logits), rtol=0, atol=1e-12)
    difference = (hessian(short)(logits) - hessian(exact)(logits)).norm() / hessian(exact)(logits).norm()
    assert difference > 0.2


def test_what_earlier_actions_count_falls_with_every_step():
    """Second derivatives of one trajectory whose log-probabilities are three separate parameters."""
    gain = torch.tensor([2.0, 3.0, 5.0])

    def of(log_probs):
        return surrogate(log_probs.view(1, 1, 3), gain.view(1, 1, 3), torch.ones(1, 1, 3), past=0.5).sum()

    expected = torch.tensor([[2.0, 0.5 * 3, 0.25 * 5], [0.5 * 3, 3.0, 0.5 * 5], [0.25 * 5, 0.5 * 5, 5.0]])
    torch.testing.assert_close(hessian(of)(torch.zeros(3)), expected)
    torch.testing.assert_close(grad(of)(torch.zeros(3)), gain)


def test_steps_after_the_end_count_in_no_derivative():
    alive = torch.tensor([[[1.0, 1.0, 0.0]]])

    def of(log_probs):
        return surrogate(log_probs.view(1, 1, 3), torch.ones(1, 1, 3), alive).sum()

    point = torch.tensor([0.1, -0.2, 0.7])
    assert grad(of)(point).tolist() == [1, 1, 0]
    assert (hessian(of)(point)[2] == 0).all()


# --- The meta-gradient, through the learner's own code ----------------------------------------------------------------


class Reusing(MAMLRL):
    """Judges the updated policies by the trajectories from before the update."""

    def collect(self, params, tasks, stream=0):
        if stream == 0:
            self.seen = super().collect(params, tasks)
        return self.seen


def deviations(kind, trajectories=1000, **settings):
    """Standard errors by which the mean estimate misses the exact meta-gradient, ``[3]``."""
    learner = kind(policy(), 1.0, trajectories=trajectories, discount=1.0, normalise=False, **settings)

    def estimate(seed):
        loss = learner.loss(two_steps.two_step_tasks(REWARDS, seed))
        return -torch.autograd.grad(loss, learner.net.net.weight)[0]

    exact = two_steps.meta_gradient(LOGITS, REWARDS, 1.0)
    return two_steps.deviation(two_steps.repeated(estimate, REPEATS), exact)[0].abs()


def test_the_exact_meta_gradient_is_the_slope_of_the_exact_objective():
    direction = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def objective(h):
        logits, values = LOGITS.double() + h * direction, []
        for task in REWARDS.double():
            values.append(expected_return(logits + 0.7 * grad(expected_return)(logits, task), task))
        return float(sum(values)) / 2

    slope = (objective(1e-5) - objective(-1e-5)) / 2e-5
    exact = two_steps.meta_gradient(LOGITS.double(), REWARDS.double(), 0.7)
    assert float((exact * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_the_mean_estimate_is_the_exact_meta_gradient():
    assert deviations(MAMLRL).max() < BAND


@pytest.mark.parametrize("settings", [{"sampling_term": False}, {"past": 0.0}, {"first_order": True}])
def test_a_missing_part_of_the_sampling_term_is_detected(settings):
    assert deviations(MAMLRL, **settings).max() > 5 * BAND


def test_reused_trajectories_are_detected():
    assert deviations(Reusing).max() > 5 * BAND


def test_few_trajectories_bias_the_estimate_and_many_do_not():
    """It is consistent, not unbiased: updated parameters are random, and the objective is not linear in them."""
    learner = MAMLRL(policy(), 1.0, trajectories=2, discount=1.0, normalise=False)
    many = two_steps.two_step_tasks(REWARDS.repeat(2000, 1, 1), 0)  # 2 trajectories in each of many copies of the tasks
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [learner.loss(many) for _ in range(REPEATS)]
    estimates = torch.stack([-torch.autograd.grad(loss, learner.net.net.weight)[0] for loss in losses])
    assert two_steps.deviation(estimates, two_steps.meta_gradient(LOGITS, REWARDS, 1.0))[0].abs().max() > 3 * BAND


def test_for_a_table_dropping_the_sampling_term_leaves_the_first_order():
    """The second derivative of a softmax's log-probability is the same for each action, and advantages average to 0."""
    tasks, kinds = two_steps.two_step_tasks(REWARDS), ({"sampling_term": False}, {"first_order": True})
    gradients = []
    for settings in kinds:
        learner = MAMLRL(policy(), 1.0, trajectories=500, discount=1.0, normalise=False, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            gradients.append(torch.autograd.grad(learner.loss(tasks), learner.net.net.weight)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-4)


def test_the_package_passes_the_check_of_the_clinic():
    def loss(net, tasks, alpha, **settings):
        return MAMLRL(net, alpha, **settings).loss(tasks)

    clinic.check_policy_gradient(loss)


# --- Updates ----------------------------------------------------------------------------------------------------------


def navigation(**settings):
    torch.manual_seed(0)
    return MAMLRL(GaussianPolicy(MLP(2, (16,), 2, "tanh"), 0.3), trajectories=5, **settings)


def test_later_updates_take_the_later_step_size():
    tasks, distances = EnvTasks("metabook/Navigation-v0", horizon=5).sample(3), {}
    for later in (None, 0.05, 0.1):
        learner = navigation(later_lr=later)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            path = [{n: p.detach() for n, p in each.items()} for each in learner.inner_loop(tasks, 2)]
        distances[later] = [sum((b[n] - a[n]).square().sum() for n in a).sqrt() for a, b in pairwise(path)]
    assert distances[None] == distances[0.1]
    assert distances[0.05][0] == distances[None][0]
    torch.testing.assert_close(distances[0.05][1], distances[None][1] / 2)


def test_an_update_raises_the_return_and_normalised_updates_forget_the_scale_of_the_rewards():
    tasks = EnvTasks("metabook/Navigation-v0", horizon=20, seed=1).sample(10)
    learner = navigation()
    learner.trajectories = 100
    torch.manual_seed(0)
    returns = learner.returns(tasks, 3)
    assert returns.shape == (10, 4)
    assert (returns.diff(dim=1).mean(0) > 0).all()
    seen = learner.collect(learner.adapt(tasks, 0), tasks)
    larger = Trajectories(seen.observations, seen.actions, 7 * seen.rewards, seen.alive)
    torch.testing.assert_close(learner.advantages(larger), learner.advantages(seen), rtol=1e-3, atol=1e-5)
    assert learner.advantages(seen).mean().abs() < 1e-6


def test_pretraining_climbs_the_return_before_any_update():
    source = EnvTasks("metabook/Navigation-v0", horizon=20)
    learner = PretrainedPolicy(navigation().net, trajectories=5)
    held_out = EnvTasks("metabook/Navigation-v0", horizon=20, seed=1).sample(20)
    torch.manual_seed(0)
    before = learner.returns(held_out, 0).mean()
    fit(learner, source, steps=30, tasks=5, lr=1e-2, clip=1.0, progress=False)
    torch.manual_seed(0)
    assert learner.returns(held_out, 0).mean() > before + 0.5


def test_training_makes_the_return_after_an_update_better():
    source = EnvTasks("metabook/Navigation-v0", horizon=20)
    held_out = EnvTasks("metabook/Navigation-v0", horizon=20, seed=1).sample(20)
    learner = navigation(past=0.0)
    torch.manual_seed(0)
    before = learner.returns(held_out, 1)[:, 1].mean()
    fit(learner, source, steps=30, tasks=5, lr=1e-2, clip=1.0, progress=False)
    torch.manual_seed(0)
    assert learner.returns(held_out, 1)[:, 1].mean() > before + 0.3


# --- The baseline -----------------------------------------------------------------------------------------------------


def test_the_baseline_fits_what_is_linear_in_its_features():
    tasks = EnvTasks("metabook/Navigation-v0", horizon=9).sample(2)
    torch.manual_seed(0)
    seen = rollout(tasks, lambda x: 0.1 * torch.randn(*x.shape[:2], 2), copies=30)
    t = torch.arange(9) / 100
    target = 2 * seen.observations[..., 0] - seen.observations[..., 1] ** 2 + 3 * t + 0.5
    torch.testing.assert_close(linear_baseline(seen, target, ridge=1e-8), target, rtol=0, atol=1e-4)


def test_the_baseline_bears_policies_that_have_run_away():
    tasks = EnvTasks("metabook/Navigation-v0", horizon=100).sample(2)
    seen = rollout(tasks, lambda x: torch.full((*x.shape[:2], 2), 0.1), copies=5)
    to_go = returns_to_go(seen.rewards, 0.99)
    np.testing.assert_allclose(linear_baseline(seen, to_go), to_go, rtol=0.1, atol=50)
