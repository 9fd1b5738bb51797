"""The networks of the book.

Every network is an ordinary :class:`torch.nn.Module` that maps one batch of inputs to one batch of
outputs; how tasks are batched is the learners' business. Each constructor keeps its arguments as
attributes of the same name, so that a saved learner can be described in JSON and built again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP", "Adapted", "BatchNorm", "Conv4", "ConvMaps", "RelationHead", "folded"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """A multi-layer perceptron, ``[..., inputs] -> [..., outputs]``.

    The default widths are those of the sinusoid experiment of Finn et al. (2017, section 5.1).

    Parameters
    ----------
    inputs, outputs : int
    hidden : sequence of int
        Width of each hidden layer.
    activation : {"relu", "tanh"}
        After each hidden layer.

    Raises
    ------
    ValueError
        For another activation.
    """

    def __init__(
        self, inputs: int = 1, hidden: Sequence[int] = (40, 40), outputs: int = 1, activation: str = "relu"
    ) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))
        self.inputs, self.hidden, self.outputs, self.activation = inputs, tuple(hidden), outputs, activation


class Adapted(nn.Module):
    r"""An adapter behind frozen features: a low-rank change :math:`s\,(z + BAz) / \lVert z + BAz \rVert` to be learned.

    The change is zero before training, as in LoRA (E. J. Hu et al., 2022, https://arxiv.org/abs/2106.09685).

    Parameters
    ----------
    width : int
        Of the features.
    rank : int
    scale : float
        The length :math:`s` of the result: how sharp a softmax over its squared distances can be.
    """

    def __init__(self, width: int, rank: int = 64, scale: float = 4.0) -> None:
        super().__init__()
        self.width, self.rank, self.scale = width, rank, scale
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Features ``[..., width]`` to ``[..., width]``."""
        return self.scale * F.normalize(z + self.up(self.down(z)), dim=-1)


class BatchNorm(nn.Module):
    """Batch normalisation that always uses the statistics of the batch at hand.

    Whoever predicts through it is *transductive*: the prediction for one query depends on the
    others (Ioffe and Szegedy, 2015; Bronskill et al., 2020). For statistics that are learned in
    training and fixed afterwards use :class:`torch.nn.BatchNorm2d`.

    The mean and the variance are written out because second-order gradients through the fused,
    affine ``torch.nn.functional.batch_norm`` under ``vmap`` are silently wrong in torch 2.13.

    Parameters
    ----------
    channels : int
        Size of dimension 1 of the input ``[examples, channels, height, width]``.
    eps : float
        Added to the variance.
    """

    batch_statistics = True

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale one and shift zero, as in the beginning."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return centred * scale + self.bias[:, None, None]


def _norm(kind: str, channels: int) -> nn.Module:
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": BatchNorm,
        "running": nn.BatchNorm2d,
        "none": lambda _: nn.Identity(),
    }
    if kind not in kinds:
        raise ValueError(f"norm must be one of {', '.join(kinds)}, not {kind!r}")
    return kinds[kind](channels)


class Conv4(nn.Module):
    """The four-block convolutional network of the few-shot literature (Vinyals et al., 2016).

    Each block is a 3 x 3 convolution, normalisation and ReLU, and halves the picture: by 2 x 2
    max-pooling (Snell et al., 2017) or by a stride of 2 (Finn et al., 2017, for Omniglot, followed
    by the mean over positions).

    Parameters
    ----------
    outputs : int, optional
        With a number, a linear head gives that many logits; without, the net returns features
        ``[examples, features]``.
    channels : int or sequence of int
        Filters of each block; one number stands for four equal blocks.
    downsample : {"pool", "stride"}
    norm : {"batch", "running", "none"}
        Whose statistics normalise: always the batch's (transductive; what MAML uses), the batch's in
        training and running ones in evaluation (inductive; what ProtoNet uses), or nobody's.
    in_channels, size : int
        Channels and side of the input pictures ``[examples, in_channels, size, size]``.

    Attributes
    ----------
    features : int
        Number of features before the head.
    """

    def __init__(
        self,
        outputs: int | None = None,
        channels: int | Sequence[int] = 64,
        downsample: str = "pool",
        norm: str = "batch",
        in_channels: int = 1,
        size: int = 28,
    ) -> None:
        super().__init__()
        if downsample not in ("pool", "stride"):
            raise ValueError(f"downsample must be 'pool' or 'stride', not {downsample!r}")
        widths = (channels,) * 4 if isinstance(channels, int) else tuple(channels)
        self.outputs, self.channels, self.downsample, self.norm = outputs, widths, downsample, norm
        self.in_channels, self.size = in_channels, size
        stride, blocks = (2 if downsample == "stride" else 1), []
        for fan_in, fan_out in pairwise((in_channels, *widths)):
            blocks += [nn.Conv2d(fan_in, fan_out, 3, stride, padding=1), _norm(norm, fan_out), nn.ReLU()]
            if downsample == "pool":
                blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.features = widths[-1] * (size // 2 ** len(widths)) ** 2 if downsample == "pool" else widths[-1]
        self.head = nn.Identity() if outputs is None else nn.Linear(self.features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(x)
        return self.head(maps.flatten(1) if self.downsample == "pool" else maps.mean((2, 3)))


@torch.no_grad()
def folded(net: Conv4) -> Conv4:
    r"""The same function without normalisation: what running statistics do to a convolution is put into its weights.

    In evaluation a norm with mean :math:`\mu`, variance :math:`v`, scale :math:`\gamma` and shift :math:`\beta` is a
    linear map of each channel: the weights are multiplied by :math:`a = \gamma / \sqrt{v + \epsilon}` and the bias
    :math:`b` becomes :math:`\beta + a (b - \mu)`.

    Parameters
    ----------
    net : Conv4
        With ``norm="running"``.

    Returns
    -------
    Conv4
        With ``norm="none"``, in evaluation mode; the net itself is left as it is.

    Raises
    ------
    ValueError
        If the net has other norms.
    """
    if net.norm != "running":
        raise ValueError(f"only running statistics can be folded into the weights, not norm={net.norm!r}")
    out = Conv4(net.outputs, net.channels, net.downsample, "none", net.in_channels, net.size).eval()
    out.head.load_state_dict(net.head.state_dict())
    targets = iter(each for each in out.blocks if isinstance(each, nn.Conv2d))
    for conv, norm in pairwise(net.blocks):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            state, target = norm.state_dict(), next(targets)
            scale = state["weight"] * (state["running_var"] + norm.eps).rsqrt()
            bias = state["bias"] + scale * (conv.state_dict()["bias"] - state["running_mean"])
            target.load_state_dict({"weight": conv.weight * scale[:, None, None, None], "bias": bias})
    return out


class ConvMaps(nn.Sequential):
    """The embedding of Relation Networks: four blocks, of which the first two halve the picture.

    ``[examples, in_channels, size, size] -> [examples, channels, size // 4, size // 4]``: the maps keep what is where.
    (With ``padding=0``, 28 pixels become 5.)

    Parameters
    ----------
    channels : int
        Filters of each block.
    norm, in_channels
        See :class:`Conv4`.
    padding : {1, 0}
        Of the first two convolutions; 0 in the authors' published code.
    """

    def __init__(self, channels: int = 64, norm: str = "running", in_channels: int = 1, padding: int = 1) -> None:
        layers: list[nn.Module] = []
        for block in range(4):
            fan_in = channels if block else in_channels
            around = padding if block < 2 else 1
            layers += [nn.Conv2d(fan_in, channels, 3, padding=around), _norm(norm, channels), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if block < 2 else []
        super().__init__(*layers)
        self.channels, self.norm, self.in_channels, self.padding = channels, norm, in_channels, padding


class RelationHead(nn.Sequential):
    """The relation module: two convolutional blocks and two linear layers.

    ``[pairs, 2 * channels, side, side] -> [pairs, 1]``.

    Parameters
    ----------
    channels : int
        Of the feature maps of one side of a pair.
    side : int
        Of these maps.
    norm
        See :class:`Conv4`.
    hidden : int
        Units before the score.
    """

    def __init__(self, channels: int = 64, side: int = 7, norm: str = "running", hidden: int = 8) -> None:
        layers: list[nn.Module] = []
        for fan_in in (2 * channels, channels):
            layers += [nn.Conv2d(fan_in, channels, 3, padding=1), _norm(norm, channels), nn.ReLU(), nn.MaxPool2d(2)]
        flat = channels * (side // 4) ** 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.channels, self.side, self.norm, self.hidden = channels, side, norm, hidden
