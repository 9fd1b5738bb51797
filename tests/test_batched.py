"""The fast path computes what a loop over tasks with the plain modules computes, to the second derivative."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metabook import Episodes, batched
from metabook.learners import MAML
from metabook.nets import MLP, Conv4

NETS = {
    "perceptron": (lambda: MLP(3, (7, 5), 2), (4, 3)),
    "tanh, no bias, dropout off": (
        lambda: nn.Sequential(nn.Linear(3, 6, bias=False), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 2)),
        (4, 3),
    ),
    "layer norm, which only vmap knows": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        (4, 3),
    ),
    "one ReLU in two places": (
        lambda: nn.Sequential(nn.Linear(3, 6), relu := nn.ReLU(), nn.Linear(6, 5), relu, nn.Linear(5, 2)),
        (4, 3),
    ),
    "stride, batch norm": (lambda: Conv4(3, 4, "stride", "batch", size=16), (5, 1, 16, 16)),
    "pool, batch norm": (lambda: Conv4(3, 4, "pool", "batch", size=16), (5, 1, 16, 16)),
    "pool, no norm, colours": (lambda: Conv4(2, (2, 3, 4, 5), "pool", "none", 3, size=18), (3, 3, 18, 18)),
    "no head": (lambda: Conv4(None, 4, "stride", size=16), (5, 1, 16, 16)),
}
TASKS = 3


@pytest.fixture(params=NETS)
def case(request):
    torch.manual_seed(0)
    build, shape = NETS[request.param]
    net = build().double()
    # Each task has parameters of its own: different from each other, as after an inner step.
    params = {n: (p + 0.1 * torch.randn(TASKS, *p.shape)).detach().requires_grad_() for n, p in net.named_parameters()}
    return net, params, torch.randn(TASKS, *shape, dtype=torch.float64)


def loop(net, params, x):
    """The reference: one task after the other."""
    return torch.stack([functional_call(net, {n: p[t] for n, p in params.items()}, (x[t],)) for t in range(len(x))])


def derivatives(forward, net, params, x):
    """Outputs, gradients, and the derivative of the gradients along a direction."""
    outputs = forward(net, params, x)
    names = list(params)
    grads = torch.autograd.grad((outputs**3).sum(), [params[n] for n in names], create_graph=True)
    torch.manual_seed(1)  # randn_like would fill in the order of the memory, which is not the same on both sides
    along = sum((g * torch.randn(g.shape, dtype=g.dtype)).sum() for g in grads)
    return outputs, grads, torch.autograd.grad(along, [params[n] for n in names])


@pytest.mark.parametrize("many", [1, 1000], ids=["each task by itself", "all tasks in one product"])
def test_values_gradients_and_second_derivatives_are_those_of_a_loop(case, many, monkeypatch):
    monkeypatch.setattr(batched, "MANY", many)
    for ours, theirs in zip(derivatives(batched.forward, *case), derivatives(loop, *case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_inputs_have_derivatives_too(case):
    net, params, x = case
    x.requires_grad_()
    ours, theirs = (torch.autograd.grad((f(net, params, x) ** 3).sum(), x)[0] for f in (batched.forward, loop))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, 5), (3, 2, 1, 6), (3, 2, 1, 5), (2, 1, 0, 4), (2, 2, 0, 5), (3, 3, 0, 5), (1, 2, 0, 4), (5, 2, 2, 5)],
)
def test_a_convolution_is_twice_differentiable(kernel, stride, padding, size):
    torch.manual_seed(0)
    maps = torch.randn(2, 2, size, size, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(*inputs):
        return batched._convolution(*inputs, stride, padding)

    plain = [nn.functional.conv2d(*each, stride, padding) for each in zip(maps.movedim(4, 2), weight, bias)]
    torch.testing.assert_close(run(maps, weight, bias), torch.stack(plain).movedim(2, 4), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, (maps, weight, bias))
    assert torch.autograd.gradgradcheck(run, (maps, weight, bias))


def norm_inputs():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    return maps, *(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))


def test_normalisation_with_relu_is_twice_differentiable():
    def run(*inputs):
        return batched._NormReLU.apply(*inputs, 1e-2)

    maps, weight, bias = norm_inputs()
    plain = [
        nn.functional.batch_norm(z.flatten(0, 2), None, None, w, b, True, eps=1e-2).relu().view_as(z)
        for z, w, b in zip(maps, weight, bias)
    ]
    torch.testing.assert_close(run(maps, weight, bias), torch.stack(plain), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, (maps, weight, bias))
    assert torch.autograd.gradgradcheck(run, (maps, weight, bias))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_each_gradient_can_be_differentiated_by_itself(wanted):
    maps, weight, bias = norm_inputs()
    kernel = torch.randn(2, 3, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    for inputs, run in (
        ((maps, weight, bias), lambda *given: batched._NormReLU.apply(*given, 1e-2)),
        ((maps, kernel, bias), lambda *given: batched._convolution(*given, 1, 0) ** 2),
    ):

        def gradient(*given, run=run):
            return torch.autograd.grad((run(*given) ** 2).sum(), given[wanted], create_graph=True)

        assert torch.autograd.gradcheck(gradient, inputs)


def test_a_third_derivative_is_refused_rather_than_wrong():
    maps, weight, bias = norm_inputs()
    (first,) = torch.autograd.grad(
        (batched._NormReLU.apply(maps, weight, bias, 1e-2) ** 3).sum(), maps, create_graph=True
    )
    (second,) = torch.autograd.grad((first**2).sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_kernels_are_stored_as_matrices():
    """A kernel's matrix, and after an inner step too, is a view: the products need no copies."""
    net = Conv4(3, 4, "stride")
    learner = MAML(net, 0.1)
    for params in learner.inner_loop(Episodes(*images(), *images()), 1, second_order=True):
        kernel = params["blocks.3.weight"]
        assert kernel.permute(0, 3, 4, 2, 1)[0].is_contiguous()


def images():
    return torch.randn(2, 3, 1, 28, 28), torch.arange(3).repeat(2, 1)


def test_a_net_with_running_statistics_is_refused():
    net = Conv4(3, 4, "stride", norm="running")
    with pytest.raises(ValueError, match="batch statistics"):
        batched.forward(net, batched.expand(net, 2), images()[0])


def test_expanded_parameters_are_held_once_and_sum_their_gradients():
    net = MLP(1, (4,), 1)
    params = batched.expand(net, 5)
    assert all(p.stride(0) == 0 for p in params.values())
    (params["0.weight"] * torch.arange(5.0).view(5, 1, 1)).sum().backward()
    assert torch.equal(net[0].weight.grad, torch.full_like(net[0].weight, 10.0))


@pytest.mark.parametrize("name", ["perceptron", "stride, batch norm", "pool, batch norm"])
def test_the_head_of_the_features_is_the_whole(name):
    build, shape = NETS[name]
    net = build()
    params, x = batched.expand(net, 2), torch.randn(2, *shape)
    z = batched.embed(net, params, x)
    assert z.dim() == 3
    assert torch.allclose(batched.head(net, params, z), batched.forward(net, params, x), atol=1e-5)
    head = dict(net.named_parameters())[batched.head_names(net)[0]]
    assert head.shape == (net.outputs, z.shape[2])


def test_a_net_whose_last_layer_is_unknown_is_refused():
    with pytest.raises(ValueError, match="no layer that is known to be its last"):
        batched.head_names(nn.Bilinear(1, 1, 1))


def test_new_weights_of_a_net_with_batch_norm_are_new_for_each_task():
    net = Conv4(5, 4, "stride")
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    drawn = batched.initialise(net, 2)
    assert torch.equal(drawn["blocks.1.weight"], torch.ones(2, 4))
    assert torch.equal(drawn["blocks.1.bias"], torch.zeros(2, 4))
    assert not torch.equal(*drawn["blocks.0.weight"])
    assert all((p == 7.0).all() for p in net.parameters())
