import pytest
import torch
from sklearn.metrics.pairwise import linear_kernel
from torch import nn

from metabook import batched
from metabook.data import Sinusoids
from metabook.learners import ANIL, MAML
from metabook.nets import MLP, Conv4
from metabook.similarity import layer_features, layer_similarity, linear_cka


def features(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotations_moves_and_scales_change_nothing(unbiased):
    x, (rotation, _) = features(3, 20, 5), torch.linalg.qr(features(5, 5, seed=1))
    torch.testing.assert_close(linear_cka(x, 3 * x @ rotation + 7, unbiased), torch.ones(3, dtype=torch.float64))
    y = features(3, 20, 8, seed=2)
    torch.testing.assert_close(linear_cka(x, y, unbiased), linear_cka(x @ rotation - 1, 2 * y, unbiased))


def test_another_linear_map_does_change_it():
    x = features(20, 5)
    assert linear_cka(x, x * torch.tensor([10.0, 1, 1, 1, 1])) < 0.9


def test_two_single_features_give_their_squared_correlation():
    x, y = features(2, 30, 1)
    r = torch.corrcoef(torch.cat([x, y], 1).T)[0, 1]
    torch.testing.assert_close(linear_cka(x, y), r**2)


def test_it_is_the_ratio_of_cross_covariances():
    x, y = features(25, 4), features(25, 6, seed=1)
    a, b = x - x.mean(0), y - y.mean(0)
    wanted = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    torch.testing.assert_close(linear_cka(x, y), wanted)
    gram = [torch.as_tensor(linear_kernel(z)) for z in (a, b)]
    torch.testing.assert_close(linear_cka(x, y), (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm()))


def test_the_unbiased_inner_product_is_the_published_one():
    n, x, y = 7, features(7, 3), features(7, 5, seed=1)

    def without_diagonal(z):
        gram = z @ z.T
        return gram - gram.diag().diag()

    def hsic(k, m):  # Song et al., 2012, equation 5
        first = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return first / (n * (n - 3))

    k, m = without_diagonal(x), without_diagonal(y)
    wanted = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    torch.testing.assert_close(linear_cka(x, y, unbiased=True), wanted)


def test_many_unrelated_features_look_alike_unless_it_is_unbiased():
    x, y = features(200, 10, 100), features(200, 10, 100, seed=1)
    assert linear_cka(x, y).mean() > 0.8
    assert linear_cka(x, y, unbiased=True).mean().abs() < 0.03


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="10 and 9 examples"):
        linear_cka(features(10, 2), features(9, 2))
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(features(3, 2), features(3, 2), unbiased=True)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_layers_of_a_convolutional_net_are_its_blocks(downsample):
    net, x = Conv4(5, 4, downsample), torch.rand(2, 6, 1, 28, 28)
    found = layer_features(net, batched.expand(net, 2), x)
    assert list(found) == ["block 1", "block 2", "block 3", "block 4", "head"]
    assert found["block 1"].shape == (2, 6, 4 * 14 * 14)
    torch.testing.assert_close(found["head"][1], net(x[1]))
    torch.testing.assert_close(found["block 2"][0], net.blocks[: len(net.blocks) // 2](x[0]).flatten(1))


def test_layers_of_a_perceptron_are_its_activations():
    net, x = MLP(1, (7, 8)), torch.rand(2, 6, 1)
    found = layer_features(net, batched.expand(net, 2), x)
    assert {name: each.shape[2] for name, each in found.items()} == {"layer 1": 7, "layer 2": 8, "head": 1}
    torch.testing.assert_close(found["layer 2"], nn.Sequential(*list(net)[:4])(x))
    with pytest.raises(ValueError, match="Bilinear"):
        layer_features(nn.Bilinear(1, 1, 1), {}, x)


def test_adaptation_of_the_head_alone_leaves_the_body_as_it_is():
    episodes = Sinusoids(10, 30).sample(3)
    for learner, still in ((ANIL(MLP(), 0.01, 5), True), (MAML(MLP(), 0.05, 5), False)):
        before, after = batched.expand(learner.net, 3), learner.adapt(episodes)
        found = layer_similarity(learner.net, before, after, episodes.query_x)
        body = torch.stack([found["layer 1"], found["layer 2"]])
        assert bool((body > 1 - 1e-9).all()) is still
        assert (found["head"] < 1 - 1e-6).all()
