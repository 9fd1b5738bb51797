"""Time and memory are counted as one would count them by hand."""

import pytest
import torch

from metabook import costs
from metabook.data import Sinusoids
from metabook.learners import MAML
from metabook.nets import MLP

FLOAT = 4


def test_what_a_product_keeps_is_its_factors():
    a, b = torch.ones(1000, requires_grad=True), torch.ones(1000, requires_grad=True)
    assert costs.kept_for_backward(lambda: a * b) == 2 * 1000 * FLOAT
    assert costs.kept_for_backward(lambda: a + b) == 0  # whose derivative needs neither


def test_shared_memory_counts_once():
    a = torch.ones(1000, requires_grad=True)
    assert costs.kept_for_backward(lambda: a * a) == 1000 * FLOAT
    assert costs.kept_for_backward(lambda: a[:10] * a[10:20]) == 1000 * FLOAT  # views of one storage


def test_the_peak_counts_and_not_the_sum():
    a = torch.ones(1000, requires_grad=True)
    square = 1000 * FLOAT
    assert costs.kept_for_backward(lambda: [a.exp().sum().backward() for _ in range(5)]) == square  # freed in between
    graphs = []
    assert costs.kept_for_backward(lambda: graphs.extend(a.exp() for _ in range(5))) == 5 * square


@pytest.mark.parametrize("first_order", [False, True])
def test_the_second_order_keeps_every_inner_step_the_first_order_one(first_order):
    tasks = Sinusoids(10, 10).sample(20)
    kept = [
        costs.kept_for_backward(lambda steps=steps: MAML(MLP(), 0.01, steps, first_order).loss(tasks))
        for steps in (1, 4)
    ]
    assert (kept[1] > 2 * kept[0]) is not first_order


def test_cpu_seconds_is_the_mean_of_a_call():
    calls = []
    assert costs.cpu_seconds(lambda: calls.append(sum(range(20_000))), repeats=4) > 0
    assert len(calls) == 5
