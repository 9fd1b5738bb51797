"""Streams of domains, learners that forget and learners that do not, and the numbers that tell them apart."""

import numpy as np
import pytest
import torch

from metabook import LabelledData
from metabook.continual import Network, Prototypes, Recalled, Transfer, measure, stream
from metabook.learners import NearestNeighbour, ProtoNet
from metabook.llm import AdapterFewShot
from metabook.nets import Adapted

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


def test_a_few_shot_learner_recalls_the_first_examples_of_each_class(pool):
    stages = stream(pool, shots=6)
    first, second = stages[:2]
    recalled = Recalled(ProtoNet(torch.nn.Identity()), FEATURES, len(pool), keep=2)
    assert recalled.memory == 0
    recalled.learn(first.train_x, first.train_y)
    assert recalled.memory == 2 * CLASSES * FEATURES
    assert len(recalled.x) == 6 * CLASSES, "the domain at hand is there as a whole"
    recalled.learn(second.train_x, second.train_y)
    assert recalled.memory == 2 * 2 * CLASSES * FEATURES
    old, new = (recalled.y == first.train_y[0]).sum(), (recalled.y == second.train_y[0]).sum()
    assert (int(old), int(new)) == (2, 6)
    mine = first.train_x[first.train_y == first.train_y[0]][:2]
    assert torch.equal(recalled.x[recalled.y == first.train_y[0]], mine)


def test_it_scores_the_classes_that_it_knows_as_its_learner_does(pool):
    stages = stream(pool, shots=6)
    recalled = Recalled(NearestNeighbour(), FEATURES, len(pool), keep=6)
    for stage in stages[:2]:
        recalled.learn(stage.train_x, stage.train_y)
    scores = recalled.scores(stages[0].test_x)
    known = torch.cat([stage.train_y for stage in stages[:2]]).unique()
    assert torch.isfinite(scores[:, known]).all()
    assert torch.isinf(scores).sum() == len(scores) * (len(pool) - len(known))
    nearest = recalled.y[torch.cdist(stages[0].test_x, recalled.x).argmin(1)]
    assert torch.equal(scores.argmax(1), nearest)


def test_an_adapter_that_keeps_examples_does_not_forget_and_one_that_keeps_none_does(pool):
    stages = stream(pool, shots=6)

    def adapter(keep):
        learner = AdapterFewShot(Adapted(FEATURES, 4, 1.0), 1e-2, 3)
        return lambda: Recalled(learner, FEATURES, len(pool), keep)

    kept, none = (measure(adapter(keep), stages) for keep in (3, 0))
    assert kept.final > 0.9
    assert none.final == pytest.approx(none.accuracy[-1, -1] / DOMAINS)
    weights = 2 * 4 * FEATURES
    assert (kept.memory, none.memory) == (3 * len(pool) * FEATURES + weights, weights)


def test_the_measures_by_hand():
    accuracy = np.array([[0.9, np.nan, np.nan], [0.5, 0.8, np.nan], [0.6, 0.2, 1.0]])
    transfer = Transfer(accuracy, np.array([0.9, 0.9, 1.0]), np.array([0.9, 0.7, 0.9]), 1)
    assert transfer.final == pytest.approx(0.6)
    assert transfer.backward == pytest.approx((-0.3 - 0.6) / 2)
    assert transfer.forgetting == pytest.approx((0.3 + 0.6) / 2)
    assert transfer.forward == pytest.approx((0.2 + 0.1) / 2)
    with pytest.raises(ValueError, match="two domains"):
        measure(lambda: Prototypes(2), [])
