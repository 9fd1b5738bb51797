import torch
from torch import nn

from metabook import Episodes, EpisodeSampler
from metabook.data import affine_views
from metabook.learners import ProtoNet
from metabook.learners.prototypes import class_means, squared_distances
from metabook.nets import Conv4


def episodes_of(support_x, support_y, query_x):
    query_y = torch.zeros(query_x.shape[:2], dtype=torch.long)
    return Episodes(support_x, support_y, query_x, query_y, torch.zeros(len(support_x), int(support_y.max()) + 1))


def test_logits_by_hand():
    """Two classes on a line, prototypes at 1 (mean of 0 and 2) and 5, a query at 2."""
    support = torch.tensor([[[0.0], [5.0], [2.0], [5.0]]])
    labels = torch.tensor([[0, 1, 0, 1]])
    logits = ProtoNet(nn.Identity()).predict(episodes_of(support, labels, torch.tensor([[[2.0]]])))
    assert logits.tolist() == [[[-1.0, -9.0]]]


def test_logits_are_the_closed_form(make_pool):
    net = Conv4(channels=8, norm="running").double().eval()
    pool = make_pool(classes=6, instances=8, dtype=torch.float64)
    episodes = EpisodeSampler(pool, 3, 3, 2).sample(4)
    logits = ProtoNet(net).eval().predict(episodes)
    for task in range(4):
        z, queries = net(episodes.support_x[task]), net(episodes.query_x[task])
        for way in range(3):
            prototype = z[episodes.support_y[task] == way].mean(0)
            assert torch.allclose(
                logits[task, :, way], -(torch.linalg.vector_norm(queries - prototype, dim=1) ** 2), atol=1e-10
            )


def test_it_is_a_linear_model_in_the_embedding():
    """Snell et al., section 2.4: weights 2 c_k and biases -|c_k|^2 give the same probabilities."""
    support, queries = torch.randn(1, 6, 4, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2]])
    logits = ProtoNet(nn.Identity()).predict(episodes_of(support, labels, queries))
    c = class_means(support, labels, 3)[0]
    linear = 2 * queries[0] @ c.T - c.square().sum(1)
    assert torch.allclose(logits[0].softmax(-1), linear.softmax(-1), atol=1e-12)


def test_unequal_class_sizes_and_any_order():
    support = torch.tensor([[[1.0], [10.0], [3.0], [5.0]]])
    means = class_means(support, torch.tensor([[1, 0, 1, 1]]), 2)
    assert means.tolist() == [[[10.0], [3.0]]]


def test_squared_distances_have_a_gradient_where_points_coincide():
    a = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone()
    squared_distances(a, b).sum().backward()
    assert torch.isfinite(a.grad).all()
    assert torch.allclose(squared_distances(a, b), torch.cdist(a, b) ** 2, atol=1e-12)


def test_the_loss_in_turn_is_the_mean_over_one_shot_splits(make_pool):
    """Every index of the drawn examples once as the support, the others as queries, written as a loop."""
    net = Conv4(channels=4, norm="none").double()
    pool = make_pool(classes=6, instances=8, dtype=torch.float64)
    episodes = EpisodeSampler(pool, 3, 1, 3).sample(2)
    x = torch.cat([episodes.support_x, episodes.query_x], 1).unflatten(1, (4, 3))  # [tasks, index, ways, ...]
    y = torch.arange(3).expand(2, 3)
    losses = []
    for turn in range(4):
        rest = [index for index in range(4) if index != turn]
        split = Episodes(x[:, turn], y, x[:, rest].flatten(1, 2), y.repeat(1, 3), episodes.classes)
        losses.append(ProtoNet(net).loss(split))
    assert torch.allclose(ProtoNet(net, in_turn=True).loss(episodes), torch.stack(losses).mean(), atol=1e-12)


def test_the_embedding_is_the_mean_over_views_in_evaluation_only(make_pool):
    net = Conv4(channels=4, norm="running")
    episodes = EpisodeSampler(make_pool(classes=6, instances=8), 3, 1, 2).sample(2)
    several, one = ProtoNet(net, views=4), ProtoNet(net)
    assert torch.equal(several.train().embed(episodes.query_x), one.train().embed(episodes.query_x))
    found = several.eval().embed(episodes.query_x)
    views = [one.embed(view[None])[0] for view in affine_views(episodes.query_x.flatten(0, 1), 4)]
    assert torch.allclose(found.flatten(0, 1), torch.stack(views).mean(0), atol=1e-6)
    assert not torch.allclose(found, one.eval().embed(episodes.query_x), atol=1e-4)
