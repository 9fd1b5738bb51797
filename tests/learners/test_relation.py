import pytest
import torch
from torch import nn

from metabook import Episodes
from metabook.learners import MatchingNet, NearestNeighbour, RelationNet
from metabook.nets import MLP


def vectors(support, labels, queries, answers=None):
    ways = max(labels) + 1
    answers = [0] * len(queries) if answers is None else answers
    return Episodes(
        torch.tensor([support]),
        torch.tensor([labels]),
        torch.tensor([queries]),
        torch.tensor([answers]),
        torch.zeros(1, ways),
    )


def test_matching_sums_the_attention_of_a_class():
    """Cosines 1, 0 and -1 to three examples, of which the first two are of class 0."""
    episodes = vectors([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], [0, 0, 1], [[0.5, 0.0]])
    p = MatchingNet(nn.Identity(), sharpness=2.0).predict(episodes).exp()
    weights = torch.tensor([2.0, 0.0, -2.0]).softmax(0)
    torch.testing.assert_close(p[0, 0], torch.stack([weights[0] + weights[1], weights[2]]))


def test_matching_with_a_sharp_attention_is_the_nearest_neighbour():
    support, queries = torch.randn(2, 8, 5), torch.randn(2, 9, 5)
    support, queries = (nn.functional.normalize(x, dim=2) for x in (support, queries))
    labels = torch.arange(4).repeat(2, 2)
    episodes = Episodes(support, labels, queries, torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 4))
    sharp = MatchingNet(nn.Identity(), sharpness=1e4).predict(episodes)
    assert torch.equal(sharp.argmax(2), NearestNeighbour().predict(episodes).argmax(2))


def test_the_papers_cosine_without_a_factor_cannot_be_sure():
    """What the docstring says: of five classes with one example each, none gets more than 0.65."""
    support = torch.cat([torch.ones(1, 1, 2), -torch.ones(1, 4, 2)], 1)
    episodes = Episodes(
        support, torch.arange(5)[None], torch.ones(1, 1, 2), torch.zeros(1, 1).long(), torch.zeros(1, 5)
    )
    assert 0.64 < MatchingNet(nn.Identity(), sharpness=1.0).predict(episodes).exp().max() < 0.65


class Difference(nn.Module):
    def forward(self, pairs):
        one, other = pairs.chunk(2, 1)
        return -(one - other).abs().sum(1, keepdim=True)


def test_relation_compares_every_query_with_the_sum_of_each_class():
    episodes = vectors([[1.0], [5.0], [2.0]], [0, 1, 0], [[3.0], [4.0]])
    scores = RelationNet(nn.Identity(), Difference()).predict(episodes)
    assert scores.tolist() == [[[0.0, -2.0], [-1.0, -1.0]]]


def test_the_mean_of_a_class_does_not_grow_with_the_shots():
    episodes = vectors([[1.0], [5.0], [2.0]], [0, 1, 0], [[3.0], [4.0]])
    scores = RelationNet(nn.Identity(), Difference(), combine="mean").predict(episodes)
    assert scores.tolist() == [[[-1.5, -2.0], [-2.5, -1.0]]]
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        RelationNet(nn.Identity(), Difference(), combine="max")


def test_relations_loss_is_the_mean_square_of_the_scores_errors():
    episodes = vectors([[1.0], [5.0]], [0, 1], [[1.0], [5.0]], [0, 1])
    right, wrong = torch.sigmoid(torch.tensor([0.0, -4.0]))
    loss = RelationNet(nn.Identity(), Difference()).loss(episodes)
    torch.testing.assert_close(loss, ((1 - right) ** 2 + wrong**2) / 2)


def test_relation_takes_vectors_such_as_those_of_texts():
    torch.manual_seed(0)
    episodes = Episodes(
        torch.randn(3, 4, 6),
        torch.tensor([[0, 1, 0, 1]] * 3),
        torch.randn(3, 2, 6),
        torch.zeros(3, 2).long(),
        torch.zeros(3, 2),
    )
    learner = RelationNet(MLP(6, (8,), 5), MLP(10, (8,), 1))
    assert learner.predict(episodes).shape == (3, 2, 2)
    learner.loss(episodes).backward()
    assert all(p.grad is not None for p in learner.parameters())


@pytest.mark.parametrize("learner", [MatchingNet(nn.Identity()), RelationNet(nn.Identity(), Difference())])
def test_the_order_of_the_support_set_does_not_matter(learner):
    support, labels = torch.randn(2, 6, 3), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    queries, order = torch.randn(2, 4, 3), torch.tensor([3, 5, 0, 1, 4, 2])
    rest = (queries, torch.zeros(2, 4).long(), torch.zeros(2, 3))
    one = learner.predict(Episodes(support, labels, *rest))
    other = learner.predict(Episodes(support[:, order], labels[:, order], *rest))
    torch.testing.assert_close(one, other)
