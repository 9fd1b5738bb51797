from dataclasses import replace

import pytest
import torch

from metabook import evaluate, fit
from metabook.data import LinearFunctions
from metabook.learners import ALPaCA, InContextTransformer
from metabook.learners.transformer import visible


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return InContextTransformer(inputs=2, width=8, depth=2, heads=2).double()


@pytest.fixture
def episodes():
    drawn = LinearFunctions(inputs=2, shots=3, queries=4).sample(5)
    return replace(drawn, **{name: part.double() for name, part in vars(drawn).items() if part is not None})


def shown(episodes, points):
    """The same tasks with the first support points only."""
    return replace(episodes, support_x=episodes.support_x[:, :points], support_y=episodes.support_y[:, :points])


def test_support_tokens_see_those_before_and_queries_the_number_given():
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert visible(2, torch.tensor([0, 1])).int().tolist() == expected


def test_predictions_by_points_are_those_of_the_shortened_support_set(learner, episodes):
    answers = learner.by_points(episodes)
    assert answers.shape == (5, 4, 4, 1)
    for points in range(4):
        torch.testing.assert_close(answers[:, points], learner.predict(shown(episodes, points)))


def test_the_loss_is_the_mean_over_numbers_of_support_points(learner, episodes):
    answers = learner.by_points(episodes).diagonal(dim1=1, dim2=2)  # query j after j points, [tasks, outputs, 4]
    expected = (answers - episodes.query_y.mT).square().mean()
    torch.testing.assert_close(learner.loss(episodes), expected)


def test_tasks_and_queries_do_not_see_each_other(learner, episodes):
    together = learner.predict(episodes)
    alone = learner.predict(
        replace(episodes[2:3], query_x=episodes.query_x[2:3, 1:2], query_y=episodes.query_y[2:3, :1])
    )
    torch.testing.assert_close(together[2:3, 1:2], alone)
    assert not learner.transductive


def test_the_value_of_a_support_point_is_read_and_that_of_a_query_is_not(learner, episodes):
    before = learner.predict(episodes)
    blind = replace(episodes, query_y=torch.full_like(episodes.query_y, 7.0))
    assert torch.equal(before, learner.predict(blind))
    other = replace(episodes, support_y=episodes.support_y + 1)
    assert not torch.allclose(before, learner.predict(other))


def test_training_comes_near_to_the_best_predictor():
    torch.manual_seed(0)
    learner = InContextTransformer(inputs=1, width=32, depth=2, heads=2)
    fit(learner, LinearFunctions(1, 4, 5), steps=250, tasks=32, lr=5e-3, anneal="cosine", clip=1.0, progress=False)
    best = ALPaCA(torch.nn.Identity(), 1, noise=0.5)  # exact inference for this prior
    torch.nn.init.constant_(best.log_diagonal, torch.tensor(0.5).log())
    test = LinearFunctions(1, 4, 20, seed=1)
    ours, bayes = (evaluate(each, test, tasks=200).mean for each in (learner, best))
    assert bayes < ours < 1.6 * bayes  # the mean value, zero, has four times the error
    nothing = evaluate(learner, LinearFunctions(1, 1, 20, seed=1), tasks=200).mean
    assert ours < 0.8 * nothing  # more points help


@pytest.mark.parametrize("tasks", [LinearFunctions(3), LinearFunctions(1)])
def test_tasks_of_another_shape_are_refused(learner, tasks):
    with pytest.raises(ValueError, match="maps 2 numbers to 1"):
        learner.predict(tasks.sample(1))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads"):
        InContextTransformer(width=8, heads=3)
