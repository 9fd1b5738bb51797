r"""Many copies of a network at once: each task has its own parameters, and tasks are a batch dimension.

``forward(net, params, x)`` is what ``torch.func.vmap`` of ``functional_call`` computes, written out with batched matrix
products: a linear layer is one ``baddbmm`` for all tasks, a convolution unfolds its input into columns (im2col) and is
one ``baddbmm`` too. Both can be differentiated as often as one likes, which MAML needs to do twice. On a CPU this is
about twice as fast as a loop over tasks for small convolutional nets, and some twenty times for small perceptrons
(``benchmarks/maml_speed.py``). A layer of a type that is not known here goes through ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metabook.nets import BatchNorm, Conv4

__all__ = ["Parameters", "embed", "expand", "forward", "head", "head_names"]

MANY = 32
"""From so many images a task on, one task is work enough for a convolution: each runs by itself, in torch's kernel."""

Parameters = dict[str, Tensor]
"""Parameters by name, each with a leading task dimension."""


def expand(net: nn.Module, tasks: int) -> Parameters:
    """The net's parameters, once for each task: views ``[tasks, ...]`` of the shared ones, not copies."""
    return {name: _channels_last(p).expand(tasks, *p.shape) for name, p in net.named_parameters()}


def _channels_last(p: Tensor) -> Tensor:
    """A kernel ``[out, channels, height, width]`` in the memory order that makes it a matrix without a copy."""
    return p.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1) if p.dim() == 4 else p


def forward(net: nn.Module, params: Parameters, x: Tensor) -> Tensor:
    """Outputs of every task's own copy of ``net`` for that task's inputs.

    Parameters
    ----------
    net : Module
        Gives the architecture; its own parameters are not used.
    params : dict of str to Tensor [tasks, ...]
    x : Tensor [tasks, examples, ...]

    Returns
    -------
    Tensor [tasks, examples, ...]
    """
    if isinstance(net, Conv4):
        return head(net, params, embed(net, params, x))
    return _run(net, "", params, x)


def embed(net: nn.Module, params: Parameters, x: Tensor) -> Tensor:
    """Features before the last layer, ``[tasks, examples, ...]`` to ``[tasks, examples, features]``.

    Raises
    ------
    ValueError
        If the net is neither a :class:`~metabook.nets.Conv4` nor a sequence of layers.
    """
    if isinstance(net, Conv4):
        return _embed_images(net, params, x)
    for name in _layers(net)[:-1]:
        x = _run(net.get_submodule(name), f"{name}.", params, x)
    return x


def head(net: nn.Module, params: Parameters, z: Tensor) -> Tensor:
    """The last layer alone: what :func:`forward` does with the features of :func:`embed`."""
    name = _head(net)
    return _run(net.get_submodule(name), f"{name}.", params, z)


def head_names(net: nn.Module) -> list[str]:
    """Names of the parameters of the last layer."""
    name = _head(net)
    return [f"{name}.{each}" for each, _ in net.get_submodule(name).named_parameters()]


def _head(net: nn.Module) -> str:
    return "head" if isinstance(net, Conv4) else _layers(net)[-1]


def _layers(net: nn.Module) -> list[str]:
    if not isinstance(net, nn.Sequential):
        raise ValueError(
            f"a {type(net).__name__} has no layer that is known to be its last: give a Sequential or a Conv4"
        )
    return [name for name, _ in net.named_children()]


def _run(module: nn.Module, prefix: str, params: Parameters, x: Tensor) -> Tensor:
    """One layer on ``[tasks, examples, ...]``."""
    match module:
        case nn.Sequential():
            for name, child in module.named_children():
                x = _run(child, f"{prefix}{name}.", params, x)
            return x
        case nn.Linear() if x.dim() == 3 and module.bias is not None:
            return torch.baddbmm(params[f"{prefix}bias"].unsqueeze(1), x, params[f"{prefix}weight"].mT)
        case nn.ReLU() | nn.Tanh() | nn.Sigmoid() | nn.Identity():
            return module(x)  # acts on each number by itself
        case _:
            own = {name: params[f"{prefix}{name}"] for name, _ in module.named_parameters()}
            return vmap(lambda p, each: functional_call(module, p, (each,)), randomness="different")(own, x)


def _embed_images(net: Conv4, params: Parameters, x: Tensor) -> Tensor:
    # [tasks, examples, height, width, channels]: with the channels last, windows are copied in long contiguous pieces.
    maps = x.movedim(2, 4)
    for name, layer in net.blocks.named_children():
        maps = _LAYERS[type(layer)](layer, f"blocks.{name}.", params, maps)
    return maps.movedim(4, 2).flatten(2) if net.downsample == "pool" else maps.mean((2, 3))


def _convolution(layer: nn.Conv2d, prefix: str, params: Parameters, maps: Tensor) -> Tensor:
    weight, bias = params[f"{prefix}weight"], params[f"{prefix}bias"]
    stride, padding = layer.stride[0], int(layer.padding[0])
    if maps.shape[1] >= MANY:
        images = maps.movedim(4, 2)
        tasks = [F.conv2d(*each, stride, padding) for each in zip(images, weight, bias)]
        return torch.stack([each.movedim(1, 3) for each in tasks])
    return _Convolution.apply(maps, weight.permute(0, 3, 4, 2, 1), bias.unsqueeze(1), stride, padding)


def _normalisation(layer: BatchNorm, prefix: str, params: Parameters, maps: Tensor) -> Tensor:
    flat = maps.flatten(1, 3)  # [tasks, examples * height * width, channels]
    if maps.shape[1] >= MANY:
        weight, bias = params[f"{prefix}weight"], params[f"{prefix}bias"]
        tasks = [F.batch_norm(z, None, None, w, b, True, 0.0, layer.eps) for z, w, b in zip(flat, weight, bias)]
        return torch.stack(tasks).view(maps.shape)
    centred = flat - flat.mean(1, keepdim=True)
    scale = params[f"{prefix}weight"].unsqueeze(1) * (centred.square().mean(1, keepdim=True) + layer.eps).rsqrt()
    return torch.addcmul(params[f"{prefix}bias"].unsqueeze(1), centred, scale).view(maps.shape)


def _pooling(layer: nn.MaxPool2d, prefix: str, params: Parameters, maps: Tensor) -> Tensor:
    images = maps.movedim(4, 2).flatten(0, 1)
    return layer(images).unflatten(0, maps.shape[:2]).movedim(2, 4)


_LAYERS: dict[type[nn.Module], Callable[[Any, str, Parameters, Tensor], Tensor]] = {
    nn.Conv2d: _convolution,
    BatchNorm: _normalisation,
    nn.MaxPool2d: _pooling,
    nn.ReLU: lambda layer, prefix, params, maps: F.relu(maps),
    nn.Identity: lambda layer, prefix, params, maps: maps,
}


def _columns(maps: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The window under the kernel at each position as a row (im2col).

    ``[tasks, examples, height, width, channels]`` to ``[tasks, examples * positions, kernel ** 2 * channels]``.
    """
    windows = F.pad(maps, (0, 0, *(padding,) * 4)).unfold(2, kernel, stride).unfold(3, kernel, stride)
    return windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(len(maps), -1, kernel**2 * maps.shape[4])


def _add_columns(columns: Tensor, shape: torch.Size, kernel: int, stride: int, padding: int) -> Tensor:
    """Each row added back to where its window was (col2im): the adjoint of :func:`_columns`."""
    tasks, examples, height, width, channels = shape
    down, across = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    parts = columns.view(tasks, examples, down, across, kernel, kernel, channels)
    maps = columns.new_zeros(tasks, examples, height + 2 * padding, width + 2 * padding, channels)
    for i in range(kernel):
        for j in range(kernel):
            maps[:, :, i : i + stride * down : stride, j : j + stride * across : stride] += parts[:, :, :, :, i, j]
    return maps[:, :, padding : padding + height, padding : padding + width]


class _Convolution(torch.autograd.Function):
    """A convolution with weights of its own for each task, as products of matrices.

    maps ``[tasks, examples, height, width, channels]``, weight ``[tasks, kernel, kernel, channels, out]`` and bias
    ``[tasks, 1, out]`` to maps again.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        kernel = weight.shape[1]
        ctx.settings, ctx.shape = (kernel, stride, padding), maps.shape
        columns = _columns(maps, kernel, stride, padding)
        ctx.save_for_backward(maps, weight, columns)
        out = torch.baddbmm(bias, columns, weight.flatten(1, 3))
        down, across = ((side + 2 * padding - kernel) // stride + 1 for side in maps.shape[2:4])
        return out.view(len(maps), maps.shape[1], down, across, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, columns = ctx.saved_tensors
        return *_Backward.apply(grad, maps, weight, columns, ctx.settings, ctx.needs_input_grad[0]), None, None


class _Backward(torch.autograd.Function):
    """The derivatives of :class:`_Convolution`, and in ``backward`` the derivatives of these."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, maps: Tensor, weight: Tensor, columns: Tensor, settings: Any, inner: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.shape = settings, maps.shape
        ctx.out, rows = grad.shape, grad.flatten(1, 3)
        ctx.save_for_backward(rows, weight, columns)
        by_maps = _add_columns(rows @ weight.flatten(1, 3).mT, maps.shape, *settings) if inner else None
        by_weight = (columns.mT @ rows).view(weight.shape)
        return by_maps, by_weight, rows.sum(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, u_maps: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None) -> Any:
        rows, weight, columns = ctx.saved_tensors
        matrix = weight.flatten(1, 3)
        by_rows = torch.zeros_like(rows) if u_bias is None else u_bias.expand_as(rows)
        by_maps = by_weight = None
        if u_weight is not None:
            by_rows = torch.baddbmm(by_rows, columns, u_weight.flatten(1, 3))
            by_maps = _add_columns(rows @ u_weight.flatten(1, 3).mT, ctx.shape, *ctx.settings)
        if u_maps is not None:
            u_columns = _columns(u_maps, *ctx.settings)
            by_rows = torch.baddbmm(by_rows, u_columns, matrix)
            by_weight = (u_columns.mT @ rows).view(weight.shape)
        return by_rows.view(ctx.out), by_maps, by_weight, None, None, None
