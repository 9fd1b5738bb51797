import pytest
import torch
import torch.nn.functional as F

from metabook.nets import MLP, BatchNorm, Conv4, folded


@pytest.mark.parametrize(
    ("arguments", "features"),
    [
        (dict(), 64),
        (dict(downsample="stride"), 64),
        (dict(channels=(32, 64, 128, 128), norm="running"), 128),
        (dict(channels=32, in_channels=3, size=84), 32 * 5 * 5),
    ],
)
def test_conv4_gives_the_features_that_it_announces(arguments, features):
    net = Conv4(**arguments)
    assert net.features == features
    pictures = torch.rand(2, net.in_channels, net.size, net.size)
    assert net(pictures).shape == (2, features)
    assert Conv4(5, **arguments)(pictures).shape == (2, 5)


def test_conv4_64_has_the_published_number_of_parameters():
    # Four 3 x 3 convolutions (1 -> 64 -> 64 -> 64 -> 64) with biases, and scale and shift of each norm.
    expected = (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 2 * 64
    assert sum(p.numel() for p in Conv4().parameters()) == expected


def test_batch_norm_equals_torchs():
    x = torch.randn(6, 3, 5, 5, dtype=torch.float64)
    ours = BatchNorm(3).double()
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        ours.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    theirs = F.batch_norm(x, None, None, ours.weight, ours.bias, training=True)
    assert torch.allclose(ours(x), theirs, atol=1e-12)


def test_only_batch_statistics_make_an_answer_depend_on_the_company():
    pictures = torch.rand(8, 1, 28, 28)
    for norm, depends in (("batch", True), ("running", False), ("none", False)):
        net = Conv4(norm=norm).eval()
        alone, together = net(pictures[:1]), net(pictures)[:1]
        assert torch.allclose(alone, together, atol=1e-5) is not depends


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_folding_takes_the_norms_away_and_leaves_the_function(downsample):
    net = Conv4(3, channels=(4, 5, 6, 7), downsample=downsample, norm="running")
    for _ in range(3):
        net(2 + torch.randn(16, 1, 28, 28))  # running statistics that are not those of the beginning
    for norm in (each for each in net.blocks if isinstance(each, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    pictures = torch.rand(5, 1, 28, 28)
    plain = folded(net.eval())
    assert plain.norm == "none"
    assert torch.allclose(plain(pictures), net(pictures), atol=1e-4)


def test_batch_statistics_cannot_be_folded():
    with pytest.raises(ValueError, match="norm='batch'"):
        folded(Conv4())


def test_mlp_has_the_layers_asked_for():
    net = MLP(2, (8, 4), 3)
    assert [tuple(p.shape) for p in net.parameters()] == [(8, 2), (8,), (4, 8), (4,), (3, 4), (3,)]
    assert net(torch.zeros(5, 7, 2)).shape == (5, 7, 3)


@pytest.mark.parametrize("wrong", [dict(norm="layer"), dict(downsample="average")])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Conv4(**wrong)
