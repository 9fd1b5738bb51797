"""The closed forms against simulation and enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from metabook.theory import across_tasks
from metabook.theory import self_evolution as theory

BASE = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
DIVERSITY = float(across_tasks.diversity(BASE.numpy()))


def simulated(**options):
    options = {"eta": 0.7, "size": 8, "rounds": 12, "runs": 20_000} | options
    return theory.simulate(BASE, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_spread_without_a_verifier_is_that_of_the_simulation(cumulative, eta) -> None:
    path = simulated(cumulative=cumulative, eta=eta)
    expected = theory.spread(DIVERSITY, eta, 8, 12, cumulative=cumulative)
    torch.testing.assert_close((path - BASE).square().sum(-1).mean(1), expected, atol=0.01, rtol=0.02)
    torch.testing.assert_close(path.mean(1), BASE.expand(13, -1), atol=0.015, rtol=0)  # nothing is learnt


def test_cumulative_runs_end_on_one_answer_as_often_the_right_one_as_it_was_given_first() -> None:
    end = simulated(cumulative=True, eta=1.0, rounds=150, runs=5000)[-1]
    assert (end.max(1).values > 0.999).all()
    assert abs(end[:, 0].mean() - BASE[0]) < 0.03


def test_restarting_from_the_base_model_bounds_the_spread() -> None:
    limit = 0.7**2 * DIVERSITY / (0.7**2 + 8 * (1 - 0.7**2))
    assert theory.spread(DIVERSITY, 0.7, 8, 200, cumulative=False)[-1] == pytest.approx(limit)
    assert theory.spread(DIVERSITY, 0.7, 8, 2000, cumulative=True)[-1] == pytest.approx(DIVERSITY)
    assert limit < 0.2 * DIVERSITY


def test_the_simulation_with_a_verifier_follows_the_closed_form_of_large_pools() -> None:
    path = simulated(cumulative=False, size=2000, runs=50, tpr=0.9, fpr=0.1)
    assert path[-1, :, 0].mean() == pytest.approx(across_tasks.verified_fixed_point(9.0, 0.4, 0.3), abs=0.01)


def test_nothing_helps_where_no_answer_is_right() -> None:
    hopeless = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    path = theory.simulate(hopeless, 0.8, 8, 3, cumulative=True, fpr=0.0, runs=5)
    assert torch.equal(path, hopeless.expand(4, 5, 3))


def test_a_majority_of_three_by_enumeration() -> None:
    p = 0.37
    votes = itertools.product((0, 1), repeat=3)
    enumerated = sum(p ** sum(v) * (1 - p) ** (3 - sum(v)) for v in votes if sum(v) >= 2)
    assert theory.majority(p) == pytest.approx(enumerated)
    assert [theory.majority(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_unequal_tasks_are_solved_less_often_than_equal_ones() -> None:
    p = torch.tensor([0.0, 0.1, 0.9], dtype=torch.float64)
    tries = torch.rand(100_000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < p[:, None]
    assert theory.solved(p, 4) == pytest.approx(tries.any(2).double().mean().item(), abs=0.005)
    assert theory.solved(p, 4) < theory.solved(p.mean().expand(3), 4) - 0.1
