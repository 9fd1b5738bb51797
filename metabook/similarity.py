"""What adaptation does to the inside of a network: how alike its features are before and after, layer by layer."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metabook.batched import Parameters
from metabook.nets import Conv4

__all__ = ["layer_features", "layer_similarity", "linear_cka"]


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    r"""Linear centred kernel alignment of two sets of features of the same examples.

    With the Gram matrices :math:`K = XX^\top` and :math:`L = YY^\top`, centred in rows and columns,

    .. math:: \mathrm{CKA} = \frac{\langle K, L \rangle}{\lVert K \rVert\, \lVert L \rVert}
              = \frac{\lVert Y_c^\top X_c \rVert^2}{\lVert X_c^\top X_c \rVert\, \lVert Y_c^\top Y_c \rVert}.

    It does not change when either set is rotated, moved or scaled. S. Kornblith, M. Norouzi, H. Lee, G. Hinton,
    Similarity of Neural Network Representations Revisited, ICML 2019, https://arxiv.org/abs/1905.00414

    Parameters
    ----------
    x : Tensor [..., examples, features]
    y : Tensor [..., examples, features]
        Of as many examples; the number of features may differ.
    unbiased : bool
        With fewer examples than features, unrelated features look alike, because every example is most like itself.
        This leaves out the diagonals of K and L and centres what is left so that each inner product has the mean
        zero for unrelated features: the estimate of L. Song, A. Smola, A. Gretton, J. Bedo, K. Borgwardt, Feature
        Selection via Dependence Maximization, JMLR 2012. The result can be a little below zero.

    Returns
    -------
    Tensor [...]
        At most 1; NaN where all examples have the same features.

    Raises
    ------
    ValueError
        If the numbers of examples differ, or are below 2 (unbiased: 4).
    """
    n, least = x.shape[-2], 4 if unbiased else 2
    if y.shape[-2] != n or n < least:
        raise ValueError(f"{n} and {y.shape[-2]} examples: both need the same number, at least {least}")
    a, b = (_centred(z.double(), unbiased) for z in (x, y))

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1))

    return inner(a, b) / (inner(a, a) * inner(b, b)).sqrt()


def _centred(z: Tensor, unbiased: bool) -> Tensor:
    z = z - z.mean(-2, keepdim=True)
    gram = z @ z.mT
    if not unbiased:
        return gram
    n = gram.shape[-1]
    gram = gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
    rows = gram.sum(-1, keepdim=True) / (n - 2)
    gram = gram - rows - rows.mT + gram.sum((-2, -1), keepdim=True) / ((n - 1) * (n - 2))
    return gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))


def layer_features(net: nn.Module, params: Parameters, x: Tensor) -> dict[str, Tensor]:
    """What comes out of each layer, every task with its own parameters.

    Parameters
    ----------
    net : Conv4 or Sequential
        Of a Conv4 its blocks, of a Sequential what comes out of each activation, and the last layer, ``"head"``.
    params : dict of str to Tensor [tasks, ...]
    x : Tensor [tasks, examples, ...]

    Returns
    -------
    dict of str to Tensor [tasks, examples, features]
        On the CPU.

    Raises
    ------
    ValueError
        For another kind of network.
    """
    layers, found = _layers(net), []

    def keep(seen: dict[str, Tensor], name: str, out: Tensor) -> None:
        seen[name] = out.detach().flatten(1).cpu()

    with torch.no_grad():
        for task, inputs in enumerate(x):
            seen: dict[str, Tensor] = {}
            hooks = [
                layer.register_forward_hook(lambda _, __, out, name=name, seen=seen: keep(seen, name, out))
                for name, layer in layers.items()
            ]
            try:
                functional_call(net, {name: p[task] for name, p in params.items()}, (inputs,))
            finally:
                for hook in hooks:
                    hook.remove()
            found.append(seen)
    return {name: torch.stack([seen[name] for seen in found]) for name in layers}


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    if isinstance(net, Conv4):
        size = len(net.blocks) // len(net.channels)
        blocks = [net.blocks[last] for last in range(size - 1, len(net.blocks), size)]
        return {f"block {i + 1}": block for i, block in enumerate(blocks)} | {"head": net.head}
    if not isinstance(net, nn.Sequential):
        raise ValueError(f"a {type(net).__name__} has no layers that are known: give a Sequential or a Conv4")
    # The last of the layers between one linear map and the next.
    runs = [list(run) for linear, run in groupby(net, lambda layer: isinstance(layer, nn.Linear)) if not linear]
    hidden = [run[-1] for run in runs if run[-1] is not net[-1]]
    return {f"layer {i + 1}": layer for i, layer in enumerate(hidden)} | {"head": net[-1]}


def layer_similarity(
    net: nn.Module, one: Parameters, other: Parameters, x: Tensor, unbiased: bool = True
) -> dict[str, Tensor]:
    """:func:`linear_cka` of each layer's features under two sets of weights, of the same examples.

    Parameters
    ----------
    net, x
        See :func:`layer_features`.
    one, other : dict of str to Tensor [tasks, ...]
        Say before and after adaptation: ``batched.expand(net, tasks)`` and ``learner.adapt(episodes)``.
    unbiased : bool

    Returns
    -------
    dict of str to Tensor [tasks]
    """
    first, second = (layer_features(net, params, x) for params in (one, other))
    return {name: linear_cka(first[name], second[name], unbiased) for name in first}
