import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metabook import Episodes, EpisodeSampler, evaluate
from metabook.learners import MAML, task_losses
from metabook.nets import MLP, Conv4
from metabook.peers import learn2learn_algorithms

NETS = {
    "stride, batch norm": lambda: Conv4(3, 4, "stride", "batch"),
    "pool, batch norm": lambda: Conv4(3, 4, "pool", "batch"),
    "stride, no norm": lambda: Conv4(3, 4, "stride", "none"),
}


@pytest.fixture
def episodes(make_pool):
    return EpisodeSampler(make_pool(classes=6, instances=8, dtype=torch.float64), 3, 1, 2).sample(4)


def meta_gradient(learner, episodes):
    learner.zero_grad()
    learner.loss(episodes).backward()
    return [p.grad.clone() for p in learner.parameters()]


def learn2learn_gradient(net, episodes, inner_lr, steps, first_order):
    """The meta-gradient as a user of learn2learn would take it, one task after the other."""
    net.zero_grad()
    meta = learn2learn_algorithms().MAML(net, lr=inner_lr, first_order=first_order)
    for task in range(len(episodes)):
        clone = meta.clone()
        for _ in range(steps):
            clone.adapt(criterion(clone(episodes.support_x[task]), episodes.support_y[task]))
        (criterion(clone(episodes.query_x[task]), episodes.query_y[task]) / len(episodes)).backward()
    return [p.grad.clone() for p in net.parameters()]


def criterion(outputs, targets):
    return F.mse_loss(outputs, targets) if targets.is_floating_point() else F.cross_entropy(outputs, targets)


def largest_difference(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("net", NETS)
def test_meta_gradient_is_learn2learns(net, steps, first_order, episodes):
    net = NETS[net]().double()
    ours = meta_gradient(MAML(net, 0.3, steps, first_order), episodes)
    theirs = learn2learn_gradient(net, episodes, 0.3, steps, first_order)
    assert largest_difference(ours, theirs) <= 1e-10
    assert largest_difference(ours, [torch.zeros_like(g) for g in ours]) > 1e-3, "the comparison is of something"


@pytest.mark.parametrize("net", NETS)
def test_second_order_meta_gradient_is_the_slope_of_the_loss(net, episodes):
    learner = MAML(NETS[net]().double(), 0.3, steps=2)
    direction = [torch.randn_like(p) for p in learner.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(meta_gradient(learner, episodes), direction, strict=True))

    def loss_at(distance):
        params = {n: p + distance * d for (n, p), d in zip(learner.net.named_parameters(), direction, strict=True)}
        total = 0.0
        for task in range(len(episodes)):
            adapted = params
            for _ in range(2):
                loss = criterion(
                    functional_call(learner.net, adapted, episodes.support_x[task]), episodes.support_y[task]
                )
                grads = torch.autograd.grad(loss, list(adapted.values()))
                adapted = {n: p - 0.3 * g for (n, p), g in zip(adapted.items(), grads, strict=True)}
            outputs = functional_call(learner.net, adapted, episodes.query_x[task])
            total += criterion(outputs, episodes.query_y[task]).item()
        return total / len(episodes)

    h = 1e-8  # the loss bends sharply where a batch of six is normalised
    central = (loss_at(h) - loss_at(-h)) / (2 * h)
    assert slope == pytest.approx(central, rel=1e-4)


def test_the_first_order_flag_changes_the_gradient_and_not_the_loss(episodes):
    net = NETS["stride, no norm"]().double()
    second, first = MAML(net, 0.3, 2), MAML(net, 0.3, 2, first_order=True)
    assert second.loss(episodes).item() == first.loss(episodes).item()
    assert largest_difference(meta_gradient(second, episodes), meta_gradient(first, episodes)) > 1e-4


def test_a_quadratic_by_hand():
    """The net is a single number w, so L = (w - c)^2 and everything can be written down.

    Inner step: w' = w - 2 a (w - s). Outer: (w' - q)^2, whose slope is 2 (w' - q) (1 - 2 a), and
    2 (w' - q) in the first-order approximation.
    """

    class Constant(nn.Module):
        outputs = 1

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))

        def forward(self, x):
            return self.w.expand(*x.shape[:-1], 1)

    w, a, s, q = 0.7, 0.1, 2.0, -1.0
    x, target = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    task = Episodes(x, s * target, x, q * target)
    adapted = w - 2 * a * (w - s)
    second, first = (meta_gradient(MAML(Constant(), a, 1, order), task)[0].item() for order in (False, True))
    assert second == pytest.approx(2 * (adapted - q) * (1 - 2 * a), rel=1e-12)
    assert first == pytest.approx(2 * (adapted - q), rel=1e-12)


def test_prediction_takes_eval_steps_and_leaves_no_trace(episodes):
    net = NETS["stride, batch norm"]().double()
    before = [p.clone() for p in net.parameters()]
    learner = MAML(net, 0.3, steps=1, eval_steps=4)
    with torch.no_grad():
        predicted = learner.predict(episodes)
    assert torch.allclose(predicted, learner.trajectory(episodes, 4)[-1], atol=1e-12)
    assert not predicted.requires_grad
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(net.parameters(), before, strict=True))


def test_trajectory_starts_at_the_shared_initialisation(episodes):
    learner = MAML(NETS["stride, no norm"]().double(), 0.3, steps=3)
    path = learner.trajectory(episodes)
    assert path.shape == (4, 4, 6, 3)
    with torch.no_grad():
        assert torch.allclose(path[0], learner.net(episodes.query_x.flatten(0, 1)).view(4, 6, 3), atol=1e-12)


def test_adaptation_helps_on_the_support_set(episodes):
    learner = MAML(NETS["stride, no norm"]().double(), 0.1, steps=20)
    with torch.no_grad():
        before, after = (
            task_losses(learner.forward_adapted(learner.adapt(episodes, n), episodes.support_x), episodes.support_y)
            for n in (0, 20)
        )
    assert (after < before).all()


def test_impossible_settings_are_refused(make_pool):
    with pytest.raises(ValueError, match="norm='batch'"):
        MAML(Conv4(5, norm="running"))
    with pytest.raises(ValueError, match="at least one inner step"):
        MAML(MLP(), steps=0)
    with pytest.raises(ValueError, match="eval_steps"):
        MAML(MLP(), eval_steps=0)
    source = EpisodeSampler(make_pool(classes=6, instances=8), 3, 1, 1)
    with pytest.raises(ValueError, match="the net has 5 outputs, but the tasks have 3 ways"):
        evaluate(MAML(Conv4(5, 4, "stride")), source, tasks=2)


def test_the_inner_rate_may_be_a_parameter_that_is_trained(episodes):
    net = NETS["stride, no norm"]().double()
    fixed, learned = MAML(net, 0.3, 2), MAML(net, 0.3, 2)
    learned.inner_lr = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(learned.loss(episodes), fixed.loss(episodes), rtol=0, atol=1e-12)
    learned.loss(episodes).backward()
    h = 1e-6
    above, below = (MAML(net, 0.3 + sign * h, 2).loss(episodes).item() for sign in (1, -1))
    assert learned.inner_lr.grad.item() == pytest.approx((above - below) / (2 * h), rel=1e-4)
