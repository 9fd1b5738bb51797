"""Streams of domains, learners that forget and learners that do not, and the numbers that tell them apart."""

import numpy as np
import pytest
import torch

from metabook import LabelledData
from metabook.continual import Network, Prototypes, Transfer, measure, stream

DOMAINS, CLASSES, EXAMPLES, FEATURES = 3, 4, 12, 20


@pytest.fixture
def pool() -> LabelledData:
    """Twelve well separated classes in three domains."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(DOMAINS * CLASSES, 1, FEATURES, generator=generator)
    x = centres + 0.2 * torch.randn(DOMAINS * CLASSES, EXAMPLES, FEATURES, generator=generator)
    groups = tuple("abc"[c % DOMAINS] for c in range(DOMAINS * CLASSES))  # not in the order of the classes
    y = torch.arange(len(groups)).repeat_interleave(EXAMPLES)
    return LabelledData(x.flatten(0, 1), y, tuple(map(str, range(len(groups)))), groups)


def test_a_stream_has_each_domain_once_and_tests_on_other_examples(pool):
    stages = stream(pool, shots=5, seed=1)
    assert sorted(stage.name for stage in stages) == ["a", "b", "c"]
    for stage in stages:
        assert {pool.groups[c] for c in stage.train_y.tolist()} == {stage.name}
        assert stage.train_y.bincount().tolist().count(5) == CLASSES
        assert len(stage.test_x) == CLASSES * (EXAMPLES - 5)
        assert torch.cdist(stage.train_x, stage.test_x).min() > 0
    assert all(torch.equal(one.train_x, other.train_x) for one, other in zip(stages, stream(pool, 5, seed=1)))
    assert len({tuple(stage.name for stage in stream(pool, 5, seed)) for seed in range(8)}) > 1
    with pytest.raises(ValueError, match="no example for the test"):
        stream(pool, shots=EXAMPLES)


def test_fine_tuning_forgets_replay_forgets_less_and_prototypes_hardly(pool):
    stages = stream(pool, shots=6)
    found = {
        "fine-tuning": measure(lambda: Network(FEATURES, len(pool)), stages),
        "replay": measure(lambda: Network(FEATURES, len(pool), keep=3), stages),
        "prototypes": measure(lambda: Prototypes(len(pool)), stages),
    }
    assert found["fine-tuning"].forgetting > 0.5
    assert found["fine-tuning"].final < 0.6
    assert found["replay"].final > 0.85
    assert found["prototypes"].final > 0.9
    assert abs(found["prototypes"].forward) < 1e-9, "prototypes share nothing between domains"
    assert found["replay"].memory - found["fine-tuning"].memory == 3 * len(pool) * FEATURES
    assert found["prototypes"].memory == len(pool) * (FEATURES + 1)


def test_prototypes_do_not_depend_on_the_order(pool):
    stages = stream(pool, shots=6)
    first, last = (measure(lambda: Prototypes(len(pool)), each) for each in (stages, stages[::-1]))
    assert first.accuracy[-1].tolist() == last.accuracy[-1][::-1].tolist()


def test_an_embedding_can_be_plugged_in(pool):
    stages = stream(pool, shots=6)
    blind = measure(lambda: Prototypes(len(pool), lambda x: torch.ones(len(x), 2)), stages)
    assert blind.within.mean() == pytest.approx(1 / CLASSES)


def test_a_class_that_has_not_come_is_never_the_answer(pool):
    stages = stream(pool, shots=6)
    for learner in (Network(FEATURES, len(pool)), Prototypes(len(pool))):
        learner.learn(stages[0].train_x, stages[0].train_y)
        answers = learner.scores(stages[1].test_x).argmax(1)
        assert set(answers.tolist()) <= set(stages[0].train_y.tolist())


def test_the_measures_by_hand():
    accuracy = np.array([[0.9, np.nan, np.nan], [0.5, 0.8, np.nan], [0.6, 0.2, 1.0]])
    transfer = Transfer(accuracy, np.array([0.9, 0.9, 1.0]), np.array([0.9, 0.7, 0.9]), 1)
    assert transfer.final == pytest.approx(0.6)
    assert transfer.backward == pytest.approx((-0.3 - 0.6) / 2)
    assert transfer.forgetting == pytest.approx((0.3 + 0.6) / 2)
    assert transfer.forward == pytest.approx((0.2 + 0.1) / 2)
    with pytest.raises(ValueError, match="two domains"):
        measure(lambda: Prototypes(2), [])
