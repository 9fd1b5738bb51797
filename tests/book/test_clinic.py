"""The clinic: each check passes on the repair and fails on the error, so that neither can turn into the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from metabook.clinic import EXHIBITS, Exhibit, cost


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_check_passes_on_the_repair(name: str) -> None:
    EXHIBITS[name].check(EXHIBITS[name].fixed)


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_check_fails_on_the_error(name: str) -> None:
    with pytest.raises(AssertionError):
        EXHIBITS[name].check(EXHIBITS[name].broken)


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_says_what_is_wrong(name: str) -> None:
    exhibit = EXHIBITS[name]
    assert exhibit.title
    assert exhibit.symptom
    lines = exhibit.diff().splitlines()
    assert {"-", "+"} <= {line[0] for line in lines if line}, "the listing shows no difference"
    assert ": " in exhibit.verdict()


def swapped(broken: Callable[..., Any], fixed: Callable[..., Any]) -> Exhibit:
    def check(function: Callable[..., Any]) -> None:
        assert function() == "right"

    return Exhibit("t", "s", broken, fixed, check)


def test_a_repair_in_the_place_of_the_error_is_noticed() -> None:
    with pytest.raises(LookupError):
        swapped(lambda: "right", lambda: "right").verdict()


def test_an_error_in_the_place_of_the_repair_is_noticed() -> None:
    with pytest.raises(AssertionError):
        swapped(lambda: "wrong", lambda: "wrong").verdict()


def test_a_cost_is_of_pairs() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((3, 200))  # how hard each task is, for both
    slightly_worse = cost(hard + 0.01, hard)
    assert slightly_worse.mean == pytest.approx(0.01)
    assert slightly_worse.resolved
    assert not cost(rng.random((3, 200)), hard).resolved
    assert str(cost(np.full((3, 2), np.inf), np.ones((3, 2)))) == "diverges"
