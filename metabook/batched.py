r"""Many copies of a network at once: each task has its own parameters, and tasks are a batch dimension.

``forward(net, params, x)`` is what ``torch.func.vmap`` of ``functional_call`` computes, written out with batched matrix
products: a linear layer is one ``baddbmm`` for all tasks, a convolution unfolds its input into columns (im2col) and is
one ``baddbmm`` too. Both, and batch normalisation with its ReLU, can be differentiated twice, which is what MAML needs:
once in the inner loop, and once more through it. On a CPU this is nearly twice as fast as a loop over tasks for small
convolutional nets, and some fifteen times and more for small perceptrons (``benchmarks/maml_speed.py``). A layer of a
type that is not known here goes through ``vmap``.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, vmap

from metabook.nets import BatchNorm, Conv4

__all__ = ["Parameters", "embed", "expand", "forward", "head", "head_names", "initialise"]

MANY = 32
"""From so many images a task on, one task is work enough for a kernel of torch: the tasks run one after the other."""

# glibc gives freed memory back to the system, which then clears it page by page for the next step: up to a fifth of the
# time. It stops doing so for blocks as large as the largest that it has seen come and go (up to 32 MiB), and so it is
# shown one, which is not touched and costs nothing; at most twice as much stays with the process. Elsewhere: no effect.
torch.empty(2**25 - 2**14, dtype=torch.uint8, device="cpu")

Parameters = dict[str, Tensor]
"""Parameters by name, each with a leading task dimension."""


def expand(net: nn.Module, tasks: int) -> Parameters:
    """The net's parameters, once for each task: views ``[tasks, ...]`` of the shared ones, or of one copy."""
    return {name: _expand(p, tasks) for name, p in net.named_parameters()}


def initialise(net: nn.Module, tasks: int) -> Parameters:
    """New random weights for each task, ``[tasks, ...]``, as the layers of ``net`` draw theirs.

    Raises
    ------
    ValueError
        If a layer with parameters cannot draw them anew.
    """
    copy = deepcopy(net)
    drawn = []
    for _ in range(tasks):
        for layer in copy.modules():
            if next(layer.parameters(recurse=False), None) is not None:
                reset = getattr(layer, "reset_parameters", None)
                if reset is None:
                    raise ValueError(f"a {type(layer).__name__} has no reset_parameters to draw its weights anew")
                reset()
        drawn.append({name: p.detach().clone() for name, p in copy.named_parameters()})
    return {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}


def _expand(p: Tensor, tasks: int) -> Tensor:
    if p.dim() != 4:
        return p.expand(tasks, *p.shape)
    # A kernel [out, in, height, width] is copied once, to the order [height, width, in, out] in memory, in which it is
    # a matrix as it stands. Its gradients come in the same order, and are summed over the tasks along the memory, which
    # is fifty times faster than across it.
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
    return list(net._modules)  # named_children would leave out a layer that stands there twice, say one ReLU


def _run(module: nn.Module, prefix: str, params: Parameters, x: Tensor) -> Tensor:
    """One layer on ``[tasks, examples, ...]``."""
    match module:
        case nn.Sequential():
            for name, child in module._modules.items():
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
        maps = _convolution(maps, kernel, bias, convolution.stride[0], convolution.padding[0])
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
    """Of each block the number of its first layer, and its layers but the ReLU: convolution, norm, perhaps pooling."""
    if net.norm == "running":
        raise ValueError("tasks side by side need batch statistics: build the net with norm='batch' or norm='none'")
    layers = list(net.blocks)
    size = len(layers) // len(net.channels)
    return [(i, [*layers[i : i + 2], *layers[i + 3 : i + size]]) for i in range(0, len(layers), size)]


def _convolution(maps: Tensor, kernels: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Each task's own convolution of its maps.

    maps ``[tasks, examples, height, width, channels]``, kernels ``[tasks, out, channels, kernel, kernel]`` and bias
    ``[tasks, out]`` to maps again.
    """
    side = kernels.shape[3]
    weight = kernels.permute(0, 3, 4, 2, 1).flatten(1, 3)
    out = _Product.apply(_Columns.apply(maps, side, stride, padding), weight, bias)
    down, across = (_positions(length, side, stride, padding) for length in maps.shape[2:4])
    return out.view(*maps.shape[:2], down, across, -1)


class _Product(torch.autograd.Function):
    """Each task's rows times its weight, plus its bias: ``[tasks, n, in]``, ``[tasks, in, out]``, ``[tasks, out]``.

    What torch's derivatives of ``baddbmm`` compute, but better for large products: sums in the second derivative are
    taken by the products as they go, and each derivative by the weight comes in the weight's own order in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _ProductBackward.apply(grad, *ctx.saved_tensors, ctx.needs_input_grad[0])


class _ProductBackward(torch.autograd.Function):
    """The derivatives of :class:`_Product`, and in ``backward`` the derivatives of these."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, inner: bool) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, x, weight)
        by_x = torch.bmm(grad, weight.mT) if inner else None  # nobody asks for the derivative by the pictures
        return by_x, torch.bmm(x.mT, grad), grad.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u_x: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None) -> Any:
        # Differentiates sum(u_x * by_x) + sum(u_weight * by_weight) + sum(u_bias * by_bias).
        grad, x, weight = ctx.saved_tensors
        by_grad = torch.zeros_like(grad) if u_bias is None else u_bias.unsqueeze(1).expand_as(grad)
        by_x = by_weight = None
        if u_weight is not None:
            by_grad = torch.baddbmm(by_grad, x, u_weight)
            by_x = torch.bmm(grad, u_weight.mT) if ctx.needs_input_grad[1] else None
        if u_x is not None:
            by_grad = torch.baddbmm(by_grad, u_x, weight)
            by_weight = torch.bmm(u_x.mT, grad)
        return by_grad, by_x, by_weight, None


class _Columns(torch.autograd.Function):
    """The window under the kernel at each position as a row (im2col).

    ``[tasks, examples, height, width, channels]`` to ``[tasks, examples * positions, kernel ** 2 * channels]``.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        ctx.shape, ctx.how = maps.shape, (kernel, stride, padding)
        windows = F.pad(maps, (0, 0, *(padding,) * 4)).unfold(2, kernel, stride).unfold(3, kernel, stride)
        return windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(len(maps), -1, kernel**2 * maps.shape[4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AddColumns.apply(grad, ctx.shape, *ctx.how), None, None, None


class _AddColumns(torch.autograd.Function):
    """Each row added back to where its window was (col2im): the adjoint of :class:`_Columns`, and this is its."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, shape: torch.Size, kernel: int, stride: int, padding: int) -> Tensor:
        ctx.how = (kernel, stride, padding)
        tasks, examples, height, width, channels = shape
        down, across = (_positions(length, *ctx.how) for length in (height, width))
        rows = columns.reshape(tasks * examples, down, across, kernel, kernel, channels).transpose(2, 3)
        # The map is cut into squares with the stride as their side. Parts of the windows that are no larger do not
        # overlap each other, and all of them are added in one go: four times for a 3 x 3 kernel with a stride of 2.
        high, wide = (
            max(number + (kernel - 1) // stride, -(-(length + padding) // stride))
            for number, length in ((down, height), (across, width))
        )
        squares = columns.new_zeros(tasks * examples, high, stride, wide, stride, channels)
        for top in range(0, kernel, stride):
            for left in range(0, kernel, stride):
                part = rows[:, :, top : top + stride, :, left : left + stride]
                i, j = top // stride, left // stride
                squares[:, i : i + down, : part.shape[2], j : j + across, : part.shape[4]].add_(part)
        maps = squares.view(tasks, examples, high * stride, wide * stride, channels)
        return maps[:, :, padding : padding + height, padding : padding + width]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Columns.apply(grad, *ctx.how), None, None, None, None


def _positions(length: int, kernel: int, stride: int, padding: int) -> int:
    """How many places the kernel takes along a side."""
    return (length + 2 * padding - kernel) // stride + 1


class _NormReLU(torch.autograd.Function):
    r"""Batch normalisation with each task's own statistics, and the ReLU after it.

    maps ``[tasks, examples, height, width, channels]``, weight and bias ``[tasks, channels]``. Of a task and a channel
    with numbers ``x`` at L positions it makes ``max(0, weight * n + bias)`` with ``n = (x - mean(x)) * r`` and
    ``r = 1 / sqrt(mean((x - mean(x)) ** 2) + eps)``. The derivatives are written out because torch's, which it takes of
    each small operation one by one, pass over the maps several times as often.
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
        # Differentiates sum(u_maps * by_maps) + sum(u_weight * by_weight) + sum(u_bias * by_bias).
        weight, n, r, on, g, mean_g, mean_gn = ctx.saved_tensors
        u = torch.zeros_like(n) if u_maps is None else u_maps.flatten(1, 3)
        scale = weight.unsqueeze(1) * r
        mean_u, mean_un = _mean(u), _mean(u * n)
        # By g: scale * (u - mean(u) - n * mean(u * n)) + u_weight * n + u_bias.
        by_n, constant = -scale * mean_un, -scale * mean_u
        if u_weight is not None:
            by_n += u_weight.unsqueeze(1)
        if u_bias is not None:
            constant += u_bias.unsqueeze(1)
        by_grad = torch.addcmul(constant, n, by_n).addcmul_(u, scale).mul_(on)
        # By scale, divided by the number of positions: mean(u * by_maps) / scale.
        by_scale = _mean(u * g) - mean_u * mean_g - mean_un * mean_gn
        # By n: h = by_n * g + by_u * u. It goes back through the normalisation to x as g did above,
        # r * (h - mean(h) - n * mean(h * n)), and r, a factor of the scale, depends on x as well.
        by_u = -scale * mean_gn
        mean_h = by_n * mean_g + by_u * mean_u
        mean_hn = by_n * mean_gn + by_u * mean_un + scale * by_scale
        by_maps = torch.addcmul(-r * mean_h, n, -r * mean_hn).addcmul_(g, r * by_n).addcmul_(u, r * by_u)
        by_weight = (by_scale * r * n.shape[1]).squeeze(1)
        return by_grad.view(ctx.shape), by_maps.view(ctx.shape), by_weight, None, None, None


def _mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)
