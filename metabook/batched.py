r"""Many copies of a network at once: each task has its own parameters, and tasks are a batch dimension.

``forward(net, params, x)`` is what ``torch.func.vmap`` of ``functional_call`` computes, written out with batched matrix
products: a linear layer is one ``baddbmm`` for all tasks, a convolution unfolds its input into columns (im2col) and is
one ``baddbmm`` too. Both, and batch normalisation with its ReLU, can be differentiated twice, which is what MAML needs:
once in the inner loop, and once more through it. On a CPU this is nearly twice as fast as a loop over tasks for small
convolutional nets, and some fifteen times and more for small perceptrons (``benchmarks/maml_speed.py``). A layer of a
type that is not known here goes through ``vmap``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, vmap

from metabook.nets import BatchNorm, Conv4

__all__ = ["Parameters", "embed", "expand", "forward", "head", "head_names"]

MANY = 32
"""From so many images a task on, one task is work enough for a kernel of torch: the tasks run one after the other."""

Parameters = dict[str, Tensor]
"""Parameters by name, each with a leading task dimension."""


def expand(net: nn.Module, tasks: int) -> Parameters:
    """The net's parameters, once for each task: views ``[tasks, ...]`` of the shared ones, not copies."""
    return {name: _expand(p, tasks) for name, p in net.named_parameters()}


def _expand(p: Tensor, tasks: int) -> Tensor:
    if p.dim() != 4:
        return p.expand(tasks, *p.shape)
    # A kernel [out, channels, height, width] is copied once, to the memory order [height, width, channels, out], in
    # which it is a matrix as it stands. The copy is what is expanded, so that the gradients, which come in the same
    # order, are summed over the tasks in the order of the memory (fifty times faster than across it).
    kernel = p.permute(2, 3, 1, 0).contiguous()
    return kernel.expand(tasks, *kernel.shape).permute(0, 4, 3, 1, 2)


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
    if x.shape[1] >= MANY:
        return _embed_one_by_one(net, params, x)
    # [tasks, examples, height, width, channels]: with the channels last, windows are copied in long contiguous pieces.
    maps = x.movedim(2, 4)
    for i, (convolution, norm, *pooling) in _blocks(net):
        kernel, bias = params[f"blocks.{i}.weight"], params[f"blocks.{i}.bias"]
        maps = _Convolution.apply(maps, kernel, bias, convolution.stride[0], convolution.padding[0])
        if isinstance(norm, BatchNorm):
            weight, bias = params[f"blocks.{i + 1}.weight"], params[f"blocks.{i + 1}.bias"]
            maps = _NormReLU.apply(maps, weight, bias, norm.eps)
        else:
            maps = F.relu(maps)
        for layer in pooling:
            images = layer(maps.movedim(4, 2).flatten(0, 1))
            maps = images.unflatten(0, maps.shape[:2]).movedim(2, 4)
    return maps.movedim(4, 2).flatten(2) if net.downsample == "pool" else maps.mean((2, 3))


def _embed_one_by_one(net: Conv4, params: Parameters, x: Tensor) -> Tensor:
    tasks = []
    for maps, *own in zip(x, *params.values(), strict=True):
        p = dict(zip(params, own, strict=True))
        for i, (convolution, norm, *pooling) in _blocks(net):
            kernel, bias = p[f"blocks.{i}.weight"], p[f"blocks.{i}.bias"]
            maps = F.conv2d(maps, kernel, bias, convolution.stride, convolution.padding)
            if isinstance(norm, BatchNorm):
                weight, bias = p[f"blocks.{i + 1}.weight"], p[f"blocks.{i + 1}.bias"]
                maps = F.batch_norm(maps, None, None, weight, bias, training=True, eps=norm.eps)
            maps = F.relu(maps)
            for layer in pooling:
                maps = layer(maps)
        tasks.append(maps.flatten(1) if net.downsample == "pool" else maps.mean((2, 3)))
    return torch.stack(tasks)


def _blocks(net: Conv4) -> list[tuple[int, list[Any]]]:
    """For each block the number of its first layer, and its layers: convolution, normalisation and perhaps pooling."""
    if net.norm == "running":
        raise ValueError("tasks side by side need batch statistics: build the net with norm='batch' or norm='none'")
    layers = list(net.blocks)
    size = len(layers) // len(net.channels)
    return [(i, [layer for layer in layers[i : i + size] if type(layer) is not nn.ReLU]) for i in range(0, len(layers), size)]


def _positions(side: int, kernel: int, stride: int, padding: int) -> int:
    """How many places the kernel takes along a side."""
    return (side + 2 * padding - kernel) // stride + 1


def _columns(maps: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The window under the kernel at each position as a row (im2col).

    ``[tasks, examples, height, width, channels]`` to ``[tasks, examples * positions, kernel ** 2 * channels]``.
    """
    windows = F.pad(maps, (0, 0, *(padding,) * 4)).unfold(2, kernel, stride).unfold(3, kernel, stride)
    return windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(len(maps), -1, kernel**2 * maps.shape[4])


def _add_columns(columns: Tensor, shape: torch.Size, kernel: int, stride: int, padding: int) -> Tensor:
    """Each row added back to where its window was (col2im): the adjoint of :func:`_columns`."""
    tasks, examples, height, width, channels = shape
    down, across = (_positions(side, kernel, stride, padding) for side in (height, width))
    rows = columns.view(tasks * examples, down, across, kernel, kernel, channels).transpose(2, 3)
    # Parts of the windows that lie within one stride do not overlap: together they fill the map, cut into squares
    # whose side is the stride, without gaps, and are added in one go.
    squares = [
        max(number + (kernel - 1) // stride, -(-(side + padding) // stride))
        for number, side in ((down, height), (across, width))
    ]
    maps = columns.new_zeros(tasks * examples, squares[0], stride, squares[1], stride, channels)
    for i in range(0, kernel, stride):
        for j in range(0, kernel, stride):
            part = rows[:, :, i : i + stride, :, j : j + stride]
            top, left = i // stride, j // stride
            maps[:, top : top + down, : part.shape[2], left : left + across, : part.shape[4]].add_(part)
    maps = maps.view(tasks, examples, squares[0] * stride, squares[1] * stride, channels)
    return maps[:, :, padding : padding + height, padding : padding + width]


def _matrix(weight: Tensor) -> Tensor:
    """Kernels ``[tasks, out, channels, height, width]`` as ``[tasks, height * width * channels, out]``."""
    return weight.permute(0, 3, 4, 2, 1).flatten(1, 3)


def _kernels(matrix: Tensor, kernel: int) -> Tensor:
    """The inverse of :func:`_matrix`."""
    return matrix.unflatten(1, (kernel, kernel, -1)).permute(0, 4, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """A convolution with weights of its own for each task, as products of matrices.

    maps ``[tasks, examples, height, width, channels]``, weight ``[tasks, out, channels, kernel, kernel]`` and bias
    ``[tasks, out]`` to maps again.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.how = how = (weight.shape[3], stride, padding)
        columns = _columns(maps, *how)
        ctx.save_for_backward(maps, weight, columns)
        out = torch.baddbmm(bias.unsqueeze(1), columns, _matrix(weight))
        return out.view(*maps.shape[:2], *(_positions(side, *how) for side in maps.shape[2:4]), -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_ConvolutionBackward.apply(grad, *ctx.saved_tensors, ctx.how, ctx.needs_input_grad[0]), None, None


class _ConvolutionBackward(torch.autograd.Function):
    """The derivatives of :class:`_Convolution`, and in ``backward`` the derivatives of these."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, maps: Tensor, weight: Tensor, columns: Tensor, how: Any, inner: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.how, ctx.shape, ctx.out = how, maps.shape, grad.shape
        rows, matrix = grad.flatten(1, 3), _matrix(weight)
        ctx.save_for_backward(rows, matrix, columns)
        by_maps = _add_columns(torch.bmm(rows, matrix.mT), maps.shape, *how) if inner else None
        return by_maps, _kernels(torch.bmm(columns.mT, rows), how[0]), rows.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u_maps: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None) -> Any:
        rows, matrix, columns = ctx.saved_tensors
        by_rows = torch.zeros_like(rows) if u_bias is None else u_bias.unsqueeze(1)
        by_maps = by_weight = None
        if u_weight is not None:
            u_matrix = _matrix(u_weight)
            by_rows = torch.baddbmm(by_rows, columns, u_matrix)
            if ctx.needs_input_grad[1]:
                by_maps = _add_columns(torch.bmm(rows, u_matrix.mT), ctx.shape, *ctx.how)
        if u_maps is not None:
            u_columns = _columns(u_maps, *ctx.how)
            by_rows = torch.baddbmm(by_rows, u_columns, matrix)
            by_weight = _kernels(torch.bmm(u_columns.mT, rows), ctx.how[0])
        return by_rows.expand_as(rows).view(ctx.out), by_maps, by_weight, None, None, None


class _NormReLU(torch.autograd.Function):
    r"""Batch normalisation with each task's own statistics, and the ReLU after it.

    maps ``[tasks, examples, height, width, channels]``, weight and bias ``[tasks, channels]``. Of a task and a channel
    with numbers ``x`` at L positions it makes ``max(0, weight * n + bias)`` with ``n = (x - mean(x)) * r`` and
    ``r = 1 / sqrt(mean((x - mean(x)) ** 2) + eps)``. The derivatives are written out because torch's, which it takes of
    each small operation one by one, pass over the maps about three times as often.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = maps.flatten(1, 3)
        centred = x - _mean(x)
        r = (_mean(centred * centred) + eps).rsqrt_()
        n = centred.mul_(r)
        out = torch.addcmul(bias.unsqueeze(1), n, weight.unsqueeze(1)).clamp_min_(0)
        on = out.sign()  # 1.0 where the ReLU lets pass, otherwise 0.0: a product is faster than a selection
        ctx.save_for_backward(maps, weight, n, r, on)
        return out.view(maps.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormReLUBackward.apply(grad, *ctx.saved_tensors), None


class _NormReLUBackward(torch.autograd.Function):
    """The derivatives of :class:`_NormReLU`, and in ``backward`` the derivatives of these."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, maps: Tensor, weight: Tensor, n: Tensor, r: Tensor, on: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        g = (grad * on.view(maps.shape)).flatten(1, 3)
        mean_g, mean_gn = _mean(g), _mean(g * n)
        scale = weight.unsqueeze(1) * r
        ctx.shape = maps.shape
        ctx.save_for_backward(weight, n, r, on, g, mean_g, mean_gn)
        # scale * (g - mean(g) - n * mean(g * n))
        by_maps = torch.addcmul(-scale * mean_g, n, -scale * mean_gn).addcmul_(g, scale)
        count = g.shape[1]
        return by_maps.view(maps.shape), (mean_gn * count).squeeze(1), (mean_g * count).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u_maps: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None) -> Any:
        # With a letter for each of the directions, this differentiates sum(u * by_maps) + v * by_weight + w * by_bias.
        weight, n, r, on, g, mean_g, mean_gn = ctx.saved_tensors
        u = torch.zeros_like(n) if u_maps is None else u_maps.flatten(1, 3)
        scale = weight.unsqueeze(1) * r
        mean_u, mean_un = _mean(u), _mean(u * n)
        # By g: scale * (u - mean(u) - n * mean(u * n)) + v * n + w.
        by_n = -scale * mean_un
        constant = -scale * mean_u
        if u_weight is not None:
            by_n += u_weight.unsqueeze(1)
        if u_bias is not None:
            constant += u_bias.unsqueeze(1)
        by_grad = torch.addcmul(constant, n, by_n).addcmul_(u, scale).mul_(on)
        # By scale, for each position.
        by_scale = _mean(u * g) - mean_g * mean_u - mean_gn * mean_un
        # By n: h = by_n * g - scale * mean(g * n) * u, which then goes through the normalisation as g did above; and r,
        # which is a part of the scale, depends on x too.
        by_u = -scale * mean_gn
        mean_h = by_n * mean_g + by_u * mean_u
        mean_hn = by_n * mean_gn + by_u * mean_un + scale * by_scale
        by_maps = torch.addcmul(-r * mean_h, n, -r * mean_hn).addcmul_(g, r * by_n).addcmul_(u, r * by_u)
        by_weight = (by_scale * r * n.shape[1]).squeeze(1)
        return by_grad.view(ctx.shape), by_maps.view(ctx.shape), by_weight, None, None, None


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)
