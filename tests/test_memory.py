import torch
from torch import nn

from metabook.memory import peak_bytes, saved_bytes

N = 1000  # float64: 8 bytes each


def leaf():
    return torch.rand(N, dtype=torch.float64, requires_grad=True)


def test_what_one_operation_keeps():
    x = leaf()
    assert saved_bytes(lambda: x.exp()) == 8 * N  # its result


def test_a_chain_keeps_every_link():
    x = leaf()
    assert saved_bytes(lambda: x.exp().exp().exp()) == 3 * 8 * N


def test_shared_memory_counts_once():
    x = leaf()
    assert saved_bytes(lambda: (x * x, x.view(10, 100) * x.view(10, 100))) == 8 * N
    assert saved_bytes(lambda: x[:1].expand(50) * x[:1].expand(50)) == 8 * N  # all of the memory behind the view


def test_what_was_let_go_does_not_count():
    x = leaf()

    def one_after_the_other():
        for _ in range(5):
            x.exp().sum().backward()

    assert saved_bytes(one_after_the_other) == 8 * N
    kept = []
    assert saved_bytes(lambda: [kept.append(x.exp()) for _ in range(5)]) == 5 * 8 * N


def test_nothing_is_kept_without_gradients():
    x = leaf()
    with torch.no_grad():
        assert saved_bytes(lambda: x.exp().exp()) == 0


def test_the_graph_of_a_gradient_counts():
    net = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    x = torch.rand(50, 20)

    def backward(create_graph):
        torch.autograd.grad(net(x).square().mean(), list(net.parameters()), create_graph=create_graph)

    assert saved_bytes(lambda: backward(True)) > saved_bytes(lambda: backward(False)) > 0


def test_gradients_are_what_they_were():
    x = leaf()
    saved_bytes(lambda: x.exp().sum().backward())
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_the_peak_counts_what_is_alive_at_one_time():
    x = torch.rand(N, dtype=torch.float64)
    assert peak_bytes(lambda: x + x) == 8 * N  # x was there before
    assert peak_bytes(lambda: (x + x) * (x - x)) == 3 * 8 * N  # two terms and their product
    assert peak_bytes(lambda: x.exp().exp().exp().exp()) == 2 * 8 * N  # each link goes when the next one is made


def test_views_and_changes_in_place_make_no_new_memory():
    x = torch.rand(N, dtype=torch.float64)
    assert peak_bytes(lambda: (x.view(10, 100).T[:5], x.add_(1))) == 0
    assert peak_bytes(lambda: (x + 1).view(10, 100).add_(1).T[:5]) == 8 * N


def test_a_graph_that_is_kept_counts_and_the_backward_pass_too():
    x = leaf()

    def chain(gradients):
        with torch.set_grad_enabled(gradients):
            y = x.exp().exp().exp()
            return y.sum().backward() if gradients else y

    assert peak_bytes(lambda: chain(True)) >= 4 * 8 * N > peak_bytes(lambda: chain(False))
