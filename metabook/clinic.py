"""The clinic: errors that published listings of meta-learning make, each beside its repair and a check that finds it.

**Deliberately wrong code.** What has a docstring that begins with "Wrong" is an exhibit of the book's chapter
``40-code/clinic`` and must not be used for anything else. :data:`EXHIBITS` says which is which; nothing else in the
package imports this module. The checks are short, need no data, and are meant to be copied into other test suites.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metabook.batched import expand, forward
from metabook.data import Sinusoids
from metabook.episodes import Episodes, LabelledData, generator_for
from metabook.learners import MAML, Learner, ProtoNet, Reptile, task_losses
from metabook.learners.prototypes import class_means, squared_distances
from metabook.nets import MLP
from metabook.rl import MAMLRL, CategoricalPolicy, EnvTasks, GaussianPolicy, Tasks
from metabook.rl.maml_rl import surrogate
from metabook.theory import two_steps
from metabook.training import ci95, fit, seed_everything

__all__ = ["EXHIBITS", "Cost", "Exhibit", "Shown", "TrainedBy", "cost", "listing"]


# --- The outer gradient of MAML -----------------------------------------------------------------------------------


def maml_loss(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """MAML: the mean over tasks of the query loss after one inner step."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=True)
    params = {name: p - alpha * g for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.query_x), episodes.query_y).mean()


def steps_on_a_copy(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the copy's parameters are leaves, so nothing leads from the loss to ``net``."""
    losses = []
    for task in episodes.split(1):
        clone = copy.deepcopy(net)
        inner = torch.optim.SGD(clone.parameters(), lr=alpha)
        task_losses(clone(task.support_x), task.support_y).sum().backward()
        inner.step()
        losses.append(task_losses(clone(task.query_x), task.query_y))
    return torch.cat(losses).mean()


def data_updates(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: ``p.data`` moves the shared weights behind autograd's back, one task after the other."""
    losses = []
    for task in episodes.split(1):
        loss = task_losses(net(task.support_x), task.support_y).sum()
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= alpha * g
        losses.append(task_losses(net(task.query_x), task.query_y))
    return torch.cat(losses).mean()


def no_create_graph(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the inner gradient is a constant, so this is first-order MAML under MAML's name."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    params = {name: p - alpha * g for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.query_x), episodes.query_y).mean()


def fomaml_loss(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """First-order MAML: the inner gradient is a constant, the path from the new weights to the old ones stays."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    params = {name: p - alpha * g.detach() for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.query_x), episodes.query_y).mean()


def detached_weights(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the adapted weights are detached, and made leaves so that ``backward`` does not complain."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    params = {name: (p - alpha * g).detach().requires_grad_() for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.query_x), episodes.query_y).mean()


def joint_listing(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: a descent through the tasks, then the gradient of their summed loss where it ended."""
    inner = torch.optim.SGD(net.parameters(), lr=alpha)
    for task in episodes.split(1):
        inner.zero_grad()
        task_losses(net(task.support_x), task.support_y).sum().backward()
        inner.step()
    inner.zero_grad()
    total = task_losses(net(episodes.support_x), episodes.support_y).sum()
    total.backward()
    return total.detach()


def wandering_listing(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the weights wander from task to task, and gradients from all along the way are added up."""
    params, total = list(net.parameters()), torch.zeros(())
    for task in episodes.split(1):
        summed = (net(task.support_x) - task.support_y).square().sum()
        with torch.no_grad():
            for p, g in zip(params, torch.autograd.grad(summed, params)):
                p.sub_(alpha * g)
        outer = (net(task.support_x) - task.support_y).square().sum()
        outer.backward()
        total = total + outer.detach()
    return total


# --- What the outer and the inner loss are of ---------------------------------------------------------------------


def support_as_query(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the adapted weights are judged by the examples that they adapted to."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=True)
    params = {name: p - alpha * g for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.support_x), episodes.support_y).mean()


def query_of_another_task(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the weights adapt to one task and are judged by another, drawn for validation."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=True)
    params = {name: p - alpha * g for (name, p), g in zip(params.items(), grads)}
    other_x, other_y = episodes.query_x.roll(1, 0), episodes.query_y.roll(1, 0)
    return task_losses(forward(net, params, other_x), other_y).mean()


def sum_over_tasks(net: nn.Module, episodes: Episodes, alpha: float = 0.01) -> Tensor:
    """Wrong: the outer gradient grows with the number of tasks."""
    params = expand(net, len(episodes))
    losses = task_losses(forward(net, params, episodes.support_x), episodes.support_y)
    grads = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=True)
    params = {name: p - alpha * g for (name, p), g in zip(params.items(), grads)}
    return task_losses(forward(net, params, episodes.query_x), episodes.query_y).sum()


def rate_copied(net: nn.Module, episodes: Episodes, published: float = 0.4) -> Tensor:
    """Wrong: the published rate is for a loss summed over the classes, this one is a mean."""
    return maml_loss(net, episodes, published)


def rate_converted(net: nn.Module, episodes: Episodes, published: float = 0.4) -> Tensor:
    """A rate for the summed loss divided by the shots, as one for the mean over all examples."""
    return maml_loss(net, episodes, published * episodes.ways)


# --- Prototypical Networks and batch normalisation ----------------------------------------------------------------


def protonet_loss(net: nn.Module, episodes: Episodes) -> Tensor:
    """Cross-entropy of a softmax over negative squared distances to the prototypes."""
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    z = net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    support, query = z.tensor_split([episodes.support_x.shape[1]], 1)
    distances = squared_distances(query, class_means(support, episodes.support_y, episodes.ways))
    return task_losses(-distances, episodes.query_y).mean()


def softmax_twice(net: nn.Module, episodes: Episodes) -> Tensor:
    """Wrong: cross-entropy takes logits and applies its own softmax."""
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    z = net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    support, query = z.tensor_split([episodes.support_x.shape[1]], 1)
    distances = squared_distances(query, class_means(support, episodes.support_y, episodes.ways))
    return task_losses((-distances).softmax(2), episodes.query_y).mean()


def unsquared_distance(net: nn.Module, episodes: Episodes) -> Tensor:
    """Wrong: the distance itself; the classifier is not linear in the embedding, nor the mean its best centre."""
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    z = net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    support, query = z.tensor_split([episodes.support_x.shape[1]], 1)
    distances = squared_distances(query, class_means(support, episodes.support_y, episodes.ways))
    return task_losses(-distances.clamp_min(1e-12).sqrt(), episodes.query_y).mean()


def answer_in_train_mode(learner: ProtoNet, episodes: Episodes) -> Tensor:
    """Wrong where the answer is called inductive: the statistics are those of all queries."""
    learner.train()
    return learner.predict(episodes)


def answer_in_eval_mode(learner: ProtoNet, episodes: Episodes) -> Tensor:
    """Running statistics: the answer to a query depends on the support and on that query."""
    learner.eval()
    return learner.predict(episodes)


def embed_with_lost_buffers(net: nn.Module, x: Tensor) -> Tensor:
    """Wrong: the running statistics are updated in clones that nobody keeps."""
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    return functional_call(net, (dict(net.named_parameters()), buffers), (x,))


def embed_with_own_buffers(net: nn.Module, x: Tensor) -> Tensor:
    """The net's own buffers are updated in training mode."""
    buffers = dict(net.named_buffers())
    return functional_call(net, (dict(net.named_parameters()), buffers), (x,))


# --- Reptile ------------------------------------------------------------------------------------------------------


class TaskTraining:
    """Reptile's inner loop: a copy of the net for each task, trained on it by Adam without momentum.

    Parameters
    ----------
    lr : float
    steps : int
    """

    def __init__(self, lr: float = 0.01, steps: int = 5) -> None:
        self.lr, self.steps = lr, steps
        self.last: torch.optim.Optimizer | None = None

    def optimiser(self, phi: list[Tensor]) -> torch.optim.Optimizer:
        """A new one for each task, whose steps depend on no earlier gradient's direction."""
        return torch.optim.Adam(phi, self.lr, betas=(0.0, 0.999))

    def __call__(self, net: nn.Module, episodes: Episodes) -> dict[str, Tensor]:
        """Each task's weights after training on its support set, ``[tasks, ...]`` by name."""
        phi = {name: p.detach().clone().requires_grad_() for name, p in expand(net, len(episodes)).items()}
        inner = self.optimiser(list(phi.values()))
        for _ in range(self.steps):
            inner.zero_grad()
            task_losses(forward(net, phi, episodes.support_x), episodes.support_y).sum().backward()
            inner.step()
        return {name: p.detach() for name, p in phi.items()}


class MomentumTraining(TaskTraining):
    def optimiser(self, phi: list[Tensor]) -> torch.optim.Optimizer:
        """Wrong: Adam's default of 0.9 for its first rate."""
        return torch.optim.Adam(phi, self.lr)


class LeakingTraining(TaskTraining):
    def optimiser(self, phi: list[Tensor]) -> torch.optim.Optimizer:
        """Wrong: one optimiser for all tasks, whose state survives from task to task."""
        inner = torch.optim.Adam(phi, self.lr, betas=(0.0, 0.999))
        if self.last is not None:
            inner.load_state_dict(self.last.state_dict())
        self.last = inner
        return inner


def reptile_step(theta: Tensor, phi: Tensor) -> Tensor:
    """What the outer loop subtracts, times its rate: minus the mean way to the tasks' weights ``[tasks, ...]``."""
    return (theta - phi).mean(0)


def reptile_sum(theta: Tensor, phi: Tensor) -> Tensor:
    """Wrong: the sum is as many times too long as there are tasks."""
    return (theta - phi).sum(0)


def reptile_away(theta: Tensor, phi: Tensor) -> Tensor:
    """Wrong: the direction itself, where the optimiser subtracts: away from every task."""
    return (phi - theta).mean(0)


def linear_rate(done: float) -> float:
    """The outer rate, as a part of the first one, after a share ``done`` of the updates."""
    return 1.0 - done


def constant_rate(done: float) -> float:
    """Wrong: the last tasks have as much say as the first."""
    return 1.0


# --- Data ---------------------------------------------------------------------------------------------------------


def classes_without_replacement(classes: int, ways: int, generator: torch.Generator) -> Tensor:
    """The classes of a task, all different."""
    return torch.randperm(classes, generator=generator)[:ways]


def classes_with_replacement(classes: int, ways: int, generator: torch.Generator) -> Tensor:
    """Wrong: a class can stand in a task under two labels."""
    return torch.randint(classes, (ways,), generator=generator)


def images_rotated(pool: LabelledData) -> LabelledData:
    """Wrong: every image is turned by itself, so each of the three new classes holds all four orientations."""
    generator, turned = generator_for("turns"), pool
    for quarter in (1, 2, 3):
        turns = torch.randint(4, (len(pool.x),), generator=generator).tolist()
        x = torch.stack([torch.rot90(image, k, (1, 2)) for image, k in zip(pool.x, turns)])
        names = tuple(f"{name}@{90 * quarter}" for name in pool.names)
        turned = turned + LabelledData(x, pool.y, names, pool.groups)
    return turned


def classes_rotated(pool: LabelledData) -> LabelledData:
    """All images of a new class are turned by the same angle."""
    turned = pool
    for quarter in (1, 2, 3):
        x = torch.rot90(pool.x, quarter, (2, 3))
        names = tuple(f"{name}@{90 * quarter}" for name in pool.names)
        turned = turned + LabelledData(x, pool.y, names, pool.groups)
    return turned


def split_by_alphabet(pool: LabelledData, seed: int = 0) -> tuple[LabelledData, LabelledData]:
    """Two halves: whole alphabets go to one side."""
    groups = sorted(set(pool.groups))
    order = torch.randperm(len(groups), generator=generator_for("split", seed)).tolist()
    parts = order[: len(order) // 2], order[len(order) // 2 :]
    train, test = (pool.in_groups([groups[i] for i in part]) for part in parts)
    return train, test


def split_by_character(pool: LabelledData, seed: int = 0) -> tuple[LabelledData, LabelledData]:
    """Wrong for new alphabets: the letters of one alphabet stand on both sides."""
    order = torch.randperm(len(pool), generator=generator_for("split", seed)).tolist()
    parts = order[: len(order) // 2], order[len(order) // 2 :]
    train, test = (pool.select(part) for part in parts)
    return train, test


def split_unseeded(pool: LabelledData, seed: int = 0) -> tuple[LabelledData, LabelledData]:
    """Wrong: another split in every run, so a saved learner is tested on what it was trained on."""
    groups = sorted(set(pool.groups))
    order = torch.randperm(len(groups)).tolist()
    parts = order[: len(order) // 2], order[len(order) // 2 :]
    train, test = (pool.in_groups([groups[i] for i in part]) for part in parts)
    return train, test


# --- The report ---------------------------------------------------------------------------------------------------


def chosen_on_validation(validation: np.ndarray, test: np.ndarray) -> int:
    """Which checkpoint is reported, from scores ``[checkpoints, tasks]``."""
    return int(validation.mean(1).argmax())


def chosen_on_test(validation: np.ndarray, test: np.ndarray) -> int:
    """Wrong: the best of several noisy test results is too good."""
    return int(test.mean(1).argmax())


def half_width(scores: np.ndarray) -> float:
    """The larger of the 95 % intervals over tasks and over seeds, from scores ``[seeds, tasks]``."""
    return max(ci95(scores.mean(0)), ci95(scores.mean(1)))


def standard_deviation(scores: np.ndarray) -> float:
    """Wrong after a plus-minus sign: how much tasks differ, which more tasks do not change."""
    return float(scores.mean(0).std(ddof=1))


def one_seed(scores: np.ndarray) -> float:
    """Wrong as the precision of a method: says nothing of another training run."""
    return ci95(scores[0])


# --- Policies -----------------------------------------------------------------------------------------------------


def policy_maml_loss(policy: CategoricalPolicy, tasks: Tasks, alpha: float = 0.1, **settings: Any) -> Tensor:
    """MAML for policies: the outer loss on trajectories of the updated policies, the sampling term in the inner one."""
    learner, params = MAMLRL(policy, alpha, **settings), expand(policy, len(tasks))
    seen = learner.collect(params, tasks)
    log_probs, gain = learner.log_probs(params, seen), learner.advantages(seen)
    inner = surrogate(log_probs, gain, seen.alive, past=learner.past)
    grads = torch.autograd.grad(inner.sum(), list(params.values()), create_graph=True)
    params = {name: p + alpha * g for (name, p), g in zip(params.items(), grads)}
    seen = learner.collect(params, tasks, stream=1)
    return learner.losses(params, seen).mean()


def reused_trajectories(policy: CategoricalPolicy, tasks: Tasks, alpha: float = 0.1, **settings: Any) -> Tensor:
    """Wrong: the updated policies are judged by what the policy before the update did."""
    learner, params = MAMLRL(policy, alpha, **settings), expand(policy, len(tasks))
    seen = learner.collect(params, tasks)
    log_probs, gain = learner.log_probs(params, seen), learner.advantages(seen)
    inner = surrogate(log_probs, gain, seen.alive, past=learner.past)
    grads = torch.autograd.grad(inner.sum(), list(params.values()), create_graph=True)
    params = {name: p + alpha * g for (name, p), g in zip(params.items(), grads)}
    return learner.losses(params, seen).mean()


def sampling_term_dropped(policy: CategoricalPolicy, tasks: Tasks, alpha: float = 0.1, **settings: Any) -> Tensor:
    """Wrong as a gradient: the loss of plain policy gradient has the right first derivative only."""
    learner, params = MAMLRL(policy, alpha, **settings), expand(policy, len(tasks))
    seen = learner.collect(params, tasks)
    log_probs, gain = learner.log_probs(params, seen), learner.advantages(seen)
    inner = (log_probs * gain * seen.alive).sum(2).mean(1)
    grads = torch.autograd.grad(inner.sum(), list(params.values()), create_graph=True)
    params = {name: p + alpha * g for (name, p), g in zip(params.items(), grads)}
    seen = learner.collect(params, tasks, stream=1)
    return learner.losses(params, seen).mean()


# --- Self-training ------------------------------------------------------------------------------------------------

Pair = tuple[str, str]  # a question and an answer


def restarted(base: Any, train: Callable[[Any, list[Pair]], Any], collect: Callable[[Any], list[Pair]]) -> Any:
    """Three rounds of self-training, each from the base model, on all that was kept so far."""
    model = base
    kept: list[Pair] = []
    for _ in range(3):
        kept = kept + collect(model)
        model = train(base, kept)
    return model


def carried_on(base: Any, train: Callable[[Any, list[Pair]], Any], collect: Callable[[Any], list[Pair]]) -> Any:
    """Wrong: each round goes on from the last round's weights, and what was wrong in them stays."""
    model = base
    kept: list[Pair] = []
    for _ in range(3):
        kept = kept + collect(model)
        model = train(model, kept)
    return model


def exact_verdict(question: str, answers: Sequence[str], solve: Callable[[str], str]) -> Pair | None:
    """The pair to train on, if an answer is the one that can be computed."""
    truth = solve(question)
    return (question, truth) if truth in answers else None


def own_verdict(question: str, answers: Sequence[str], solve: Callable[[str], str]) -> Pair | None:
    """Wrong without a check from outside: the model's favourite answer is taken for right."""
    favourite = max(answers, key=answers.count)
    return (question, favourite) if answers.count(favourite) > len(answers) / 2 else None


def held_out_score(model: Callable[[str], str], kept: Sequence[Pair], held_out: Sequence[Pair]) -> float:
    """Accuracy on tasks that the loop has never seen."""
    return sum(model(question) == answer for question, answer in held_out) / len(held_out)


def own_score(model: Callable[[str], str], kept: Sequence[Pair], held_out: Sequence[Pair]) -> float:
    """Wrong: the tasks that passed the filter were solved already, and were trained on."""
    return sum(model(question) == answer for question, answer in kept) / len(kept)


def gain_of_the_loop(base: float, demonstrations: float, loop: float) -> float:
    """What the loop adds to training on the demonstrations for as many steps."""
    return loop - demonstrations


def gain_over_base(base: float, demonstrations: float, loop: float) -> float:
    """Wrong as the gain of the loop: holds all that the demonstrations alone would have brought."""
    return loop - base


# --- Prompts ----------------------------------------------------------------------------------------------------------


def order_of_the_task(labels: Tensor, task: int) -> Tensor:
    """In which order the examples of a task stand in its prompt: of each task its own, and always the same."""
    return torch.randperm(len(labels), generator=generator_for("order of the examples", task))


def class_by_class(labels: Tensor, task: int) -> Tensor:
    """Wrong: the last class is always the one that the model has just read."""
    return labels.argsort(stable=True)


def prompt_for_validation(score: Callable[..., float], prompts: Sequence[str], validation: Any, test: Any) -> str:
    """The prompt, or the number of shots, that is best on the validation tasks."""
    return max(prompts, key=lambda prompt: score(prompt, validation))


def prompt_for_test(score: Callable[..., float], prompts: Sequence[str], validation: Any, test: Any) -> str:
    """Wrong: best on the very tasks whose accuracy is reported."""
    return max(prompts, key=lambda prompt: score(prompt, test))


def lead(ours: tuple[float, int], theirs: tuple[float, int]) -> float:
    """Difference of two accuracies, each given with its number of classes to choose from."""
    if ours[1] != theirs[1]:
        raise ValueError(f"a choice among {ours[1]} is compared with one among {theirs[1]}: measure both on the same")
    return ours[0] - theirs[0]


def lead_whatever_the_ways(ours: tuple[float, int], theirs: tuple[float, int]) -> float:
    """Wrong: five classes to choose from are easier than seventy-seven."""
    return ours[0] - theirs[0]


# --- Checks -------------------------------------------------------------------------------------------------------


def practice() -> tuple[nn.Module, Episodes]:
    """A small net and three regression tasks in double precision: the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        x, y = torch.randn(2, 3, 9, 1, dtype=torch.float64)
    return net, Episodes(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def check_meta_gradient(loss: Callable[..., Tensor]) -> None:
    """What ``backward`` leaves in ``.grad`` is the slope of the loss along any direction."""
    net, episodes = practice()
    generator = torch.Generator().manual_seed(1)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in net.parameters()]

    def moved(h: float) -> tuple[nn.Module, Tensor]:
        other = copy.deepcopy(net)
        for p, each in zip(other.parameters(), v):
            p.data += h * each
        return other, loss(other, episodes, 0.1)

    difference = (moved(1e-5)[1] - moved(-1e-5)[1]).item() / 2e-5
    here, value = moved(0.0)
    if value.requires_grad:
        value.backward()
    found = sum(float((p.grad * each).sum()) for p, each in zip(here.parameters(), v) if p.grad is not None)
    assert math.isclose(found, difference, rel_tol=1e-5), f"slope {found:.4f}, by differences {difference:.4f}"


def check_first_order(loss: Callable[..., Tensor]) -> None:
    """The gradient is the mean over tasks of the query gradient at the adapted weights."""
    net, episodes = practice()
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for task in episodes.split(1):
        clone = copy.deepcopy(net)
        sgd = torch.optim.SGD(clone.parameters(), lr=0.1)
        F.mse_loss(clone(task.support_x), task.support_y).backward()
        sgd.step()
        sgd.zero_grad()
        F.mse_loss(clone(task.query_x), task.query_y).backward()
        expected = [e + p.grad / len(episodes) for e, p in zip(expected, clone.parameters()) if p.grad is not None]
    loss(net, episodes, 0.1).backward()
    for p, e in zip(net.parameters(), expected):
        assert p.grad is not None, "the shared weights have no gradient"
        assert torch.allclose(p.grad, e), "the gradient is not that at the adapted weights"


def check_weights_stay(loss: Callable[..., Tensor]) -> None:
    """Computing the loss and its gradient moves no shared weight: that is the outer optimiser's business."""
    net, episodes = practice()
    before = copy.deepcopy(net.state_dict())
    loss(net, episodes, 0.1)
    shift = max(float((p - before[name]).abs().max()) for name, p in net.state_dict().items())
    assert shift == 0, f"a shared weight moved by {shift:.4f}"


def check_queries_count(loss: Callable[..., Tensor]) -> None:
    """Other answers to the queries give another loss."""
    net, episodes = practice()
    other = replace(episodes, query_y=episodes.query_y + 1)
    change = (loss(net, other, 0.1) - loss(net, episodes, 0.1)).item()
    assert abs(change) > 1e-6, "the loss does not depend on the query targets"


def check_mean_over_tasks(loss: Callable[..., Tensor]) -> None:
    """The loss of several tasks is the mean of their losses one by one."""
    net, episodes = practice()
    together = loss(net, episodes, 0.1).item()
    alone = sum(loss(net, task, 0.1).item() for task in episodes.split(1)) / len(episodes)
    assert math.isclose(together, alone, rel_tol=1e-9), f"{together:.4f} together, mean {alone:.4f} one by one"


def check_published_step(loss: Callable[..., Tensor]) -> None:
    """At the published rate, the inner step is that of the published code: of the loss's sum over K examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, shots = nn.Sequential(nn.Linear(2, 3)).double(), 2
        x, y = torch.randn(1, 12, 2, dtype=torch.float64), torch.arange(3).repeat(1, 4)
    episodes = Episodes(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])
    params = dict(net.named_parameters())
    theirs = F.cross_entropy(net(x[0, :6]), y[0, :6], reduction="sum") / shots
    grads = torch.autograd.grad(theirs, list(params.values()))
    adapted = {name: p - 0.4 * g for (name, p), g in zip(params.items(), grads)}
    expected = F.cross_entropy(functional_call(net, adapted, (x[0, 6:],)), y[0, 6:]).item()
    found = loss(net, episodes, 0.4).item()
    assert math.isclose(found, expected, rel_tol=1e-9), f"query loss {found:.4f}, of the published step {expected:.4f}"


def on_a_line(support: Sequence[float], query: float) -> Episodes:
    """A task with points on a line: a support point for each class, and a query of class 0."""
    x, y = torch.tensor(support).view(1, -1, 1), torch.arange(len(support)).view(1, -1)
    return Episodes(x, y, torch.tensor([[[query]]]), torch.tensor([[0]]))


def check_sure_answer(loss: Callable[..., Tensor]) -> None:
    """An answer that is right beyond doubt costs nothing."""
    found = loss(nn.Identity(), on_a_line([0.0, 100.0], 0.0)).item()
    assert found < 1e-6, f"the loss of a sure and right answer is {found:.4f}"


def check_squared_distance(loss: Callable[..., Tensor]) -> None:
    """At distances 1 and 2 the odds are exp(4 - 1)."""
    found, expected = loss(nn.Identity(), on_a_line([0.0, 3.0], 1.0)).item(), math.log1p(math.exp(-3))
    assert math.isclose(found, expected, rel_tol=1e-5), f"loss {found:.4f}, not {expected:.4f}"


def check_queries_are_separate(answer: Callable[..., Tensor]) -> None:
    """The answer to a query is the same when the other queries leave."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = ProtoNet(nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4)))
        x, y = torch.randn(1, 12, 3), torch.arange(2).repeat(1, 6)
    several = Episodes(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
    alone = replace(several, query_x=several.query_x[:, :1], query_y=several.query_y[:, :1])
    gap = (answer(learner, several)[:, :1] - answer(learner, alone)).abs().max().item()
    assert gap < 1e-5, f"a logit of the first query changes by {gap:.4f} when the others leave"


def check_statistics_arrive(embed: Callable[..., Tensor]) -> None:
    """After many passes over a batch in training mode, evaluation mode normalises that batch."""
    net, x = nn.BatchNorm1d(2), 5 + 3 * torch.arange(40.0).view(20, 2)
    for _ in range(100):
        embed(net.train(), x)
    mean = embed(net.eval(), x).mean().item()
    assert abs(mean) < 0.1, f"in evaluation mode the batch has mean {mean:.1f}, not 0"


def check_reptile_step(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One outer step at rate 1 lands on the mean of the tasks' weights."""
    theta, phi = torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 2.0], [4.0, 0.0], [0.0, 4.0]])
    landed = theta - step(theta, phi)
    assert torch.allclose(landed, phi.mean(0)), f"landed on {landed.tolist()}, not on {phi.mean(0).tolist()}"


def check_no_momentum(training: type[TaskTraining]) -> None:
    """Each inner step is the gradient over the root of the mean square: the last direction has no say."""
    net, episodes = practice()
    phi = {name: p.detach().clone() for name, p in expand(net, len(episodes)).items()}
    square = {name: torch.zeros_like(p) for name, p in phi.items()}
    for step in (1, 2, 3):
        phi = {name: p.requires_grad_() for name, p in phi.items()}
        losses = task_losses(forward(net, phi, episodes.support_x), episodes.support_y)
        for name, g in zip(phi, torch.autograd.grad(losses.sum(), list(phi.values()))):
            square[name] = 0.999 * square[name] + 0.001 * g.square()
            phi[name] = phi[name].detach() - 0.1 * g / ((square[name] / (1 - 0.999**step)).sqrt() + 1e-8)
    found = training(0.1, 3)(net, episodes)
    gap = max(float((found[name] - p).abs().max()) for name, p in phi.items())
    assert gap < 1e-6, f"after three inner steps a weight is off by {gap:.4f}"


def check_no_memory(training: type[TaskTraining]) -> None:
    """Training on the same tasks from the same weights again ends in the same place."""
    net, episodes = practice()
    train = training(0.1, 3)
    first, again = train(net, episodes), train(net, episodes)
    gap = max(float((again[name] - p).abs().max()) for name, p in first.items())
    assert gap == 0, f"the second time a weight ends {gap:.4f} away from the first"


def check_rate_falls(rate: Callable[[float], float]) -> None:
    """The last of a hundred updates is short."""
    assert rate(0.99) <= 0.05 * rate(0.0), f"the last rate is {rate(0.99) / rate(0.0):.0%} of the first"


def check_classes_differ(draw: Callable[[int, int, torch.Generator], Tensor]) -> None:
    """No class stands twice in a task."""
    generator = torch.Generator().manual_seed(0)
    repeated = sum(len(set(draw(6, 5, generator).tolist())) < 5 for _ in range(100))
    assert repeated == 0, f"a class stands twice in {repeated} of 100 tasks"


def small_pool() -> LabelledData:
    """Six classes of two alphabets; the drawings of a class are all the same and not symmetrical."""
    x = torch.zeros(6, 8, 1, 4, 4, dtype=torch.uint8)
    for c in range(6):
        x[c, :, :, 0, : c % 3 + 1] = 255
        x[c, :, :, c // 3 + 1, 0] = 255
    names = tuple(f"letter {c}" for c in range(6))
    return LabelledData(x.flatten(0, 1), torch.arange(6).repeat_interleave(8), names, ("a",) * 3 + ("b",) * 3)


def check_one_angle_a_class(rotate: Callable[[LabelledData], LabelledData]) -> None:
    """Where the drawings of a class were all the same, those of a turned class are too."""
    turned = rotate(small_pool())
    mixed = sum(len(turned.x[turned.y == c].unique(dim=0)) > 1 for c in range(len(turned)))
    assert mixed == 0, f"{mixed} of {len(turned)} classes hold drawings at several angles"


def check_alphabets_apart(split: Callable[..., tuple[LabelledData, LabelledData]]) -> None:
    """No alphabet stands on both sides of the split."""
    train, test = split(small_pool())
    common = sorted(set(train.groups) & set(test.groups))
    assert not common, f"on both sides: {', '.join(common)}"


def check_split_repeats(split: Callable[..., tuple[LabelledData, LabelledData]]) -> None:
    """The same call gives the same split, whatever was drawn before."""
    splits = {split(small_pool())[1].names for _ in range(20)}
    assert len(splits) == 1, f"{len(splits)} different test sets in twenty calls"


def check_choice_is_blind(choose: Callable[[np.ndarray, np.ndarray], int]) -> None:
    """Other test results do not change what is chosen."""
    random = np.random.default_rng(0)
    validation = random.random((4, 10))
    choices = {choose(validation, random.random((4, 10))) for _ in range(20)}
    assert len(choices) == 1, f"{len(choices)} different choices for twenty test results"


def check_more_tasks_help(half: Callable[[np.ndarray], float]) -> None:
    """Four times the tasks make the interval half as wide."""
    scores = np.random.default_rng(0).random((1, 50)).repeat(3, 0)
    ratio = half(np.tile(scores, 4)) / half(scores)
    assert abs(ratio - 0.5) < 0.05, f"with four times the tasks it is {ratio:.2f} times as wide"


def check_seeds_count(half: Callable[[np.ndarray], float]) -> None:
    """Where the seeds differ and the tasks do not, the interval is that over seeds."""
    scores = np.array([[0.7], [0.8], [0.9]]) + np.array([-0.001, 0.001]).repeat(50)
    assert half(scores) >= ci95(scores.mean(1)), f"± {half(scores):.4f}, though seeds differ by 0.1"


def check_policy_gradient(loss: Callable[..., Tensor]) -> None:
    """On a problem of two steps, the mean of the estimated meta-gradients is the exact one, up to standard errors."""
    rewards = torch.tensor([[[0.0, 1.0], [2.0, -1.0], [-2.0, 3.0]], [[1.0, 0.0], [-2.0, 1.0], [2.0, 0.0]]])
    table = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.3, -0.5, 0.2], [-0.3, 0.4, 0.1]]))
    policy, plain = CategoricalPolicy(table), {"trajectories": 1000, "discount": 1.0, "normalise": False}

    def estimate(seed: int) -> Tensor:
        minus_return = loss(policy, two_steps.two_step_tasks(rewards, seed), 1.0, **plain)
        return -torch.autograd.grad(minus_return, table.weight)[0]

    exact = two_steps.meta_gradient(table.weight.detach(), rewards, 1.0)
    # The two rows mirror each other. The limit is Student's, at 0.1 % for three numbers and 40 repetitions.
    off = two_steps.deviation(two_steps.repeated(estimate, 40), exact)[0].abs().max().item()
    assert off < 4.0, f"a component is {off:.0f} standard errors away from the exact gradient"


def check_rounds_restart(rounds: Callable[..., Any]) -> None:
    """The last model is the base model, trained once."""

    def train(history: tuple[int, ...], pairs: list[Pair]) -> tuple[int, ...]:
        return (*history, len(pairs))  # the weights remember every training

    history = rounds((), train, lambda model: [("1 + 1", "2")])
    assert len(history) == 1, f"the last model has been trained {len(history)} times in a row"


def check_errors_are_refused(verdict: Callable[..., Pair | None]) -> None:
    """An answer that is given often and is wrong is not kept; one that is right is."""
    assert verdict("1 + 1", ["2", "2", "3"], lambda question: "2") == ("1 + 1", "2")
    kept = verdict("1 + 1", ["3", "3", "3"], lambda question: "2")
    assert kept is None, f"keeps {kept[0]} = {kept[1]}, which was answered three times of three"


def check_memory_scores_nothing(score: Callable[..., float]) -> None:
    """A model that knows by heart what it was trained on, and nothing else, has the score zero."""
    kept = [("1 + 1", "2"), ("1 + 2", "3")]
    found = score(dict(kept).get, kept, [("2 + 2", "4"), ("3 + 2", "5")])
    assert found == 0, f"a model that knows nothing new has the score {found:.0%}"


def check_demonstrations_count(gain: Callable[..., float]) -> None:
    """Where the demonstrations alone bring as much, the loop has gained nothing."""
    found = gain(base=0.0, demonstrations=0.8, loop=0.8)
    assert found == 0, f"a gain of {found:.0%}, though the demonstrations alone bring as much"


def check_every_class_is_last(order: Callable[[Tensor, int], Tensor]) -> None:
    """Over many tasks, the example that stands last is of each class about equally often."""
    labels = torch.arange(4).repeat(2)
    last = torch.stack([labels[order(labels, task)][-1] for task in range(400)]).bincount(minlength=4)
    assert last.min() >= 50, f"in 400 tasks the four classes stand last {last.tolist()} times"
    again = [order(labels, task).tolist() for task in (0, 1)]
    assert again == [order(labels, task).tolist() for task in (0, 1)], "the order of a task is not repeatable"


def check_prompt_is_blind(choose: Callable[..., str]) -> None:
    """Other test tasks do not change which prompt is chosen."""
    accuracy = {("a", "validation"): 0.9, ("a", "test 1"): 0.7, ("a", "test 2"): 0.8}
    accuracy |= {("b", "validation"): 0.8, ("b", "test 1"): 0.8, ("b", "test 2"): 0.7}
    tests = ("test 1", "test 2")
    chosen = [choose(lambda prompt, tasks: accuracy[prompt, tasks], ("a", "b"), "validation", test) for test in tests]
    assert chosen[0] == chosen[1], f"prompt {chosen[0]} for some test tasks, {chosen[1]} for others"


def check_same_choice(compare: Callable[..., float]) -> None:
    """Accuracies are compared only if they are of a choice among as many classes."""
    assert math.isclose(compare((0.9, 5), (0.8, 5)), 0.1)
    with suppress(ValueError):
        found = compare((0.9, 5), (0.8, 77))
        raise AssertionError(f"5 classes are {found:.0%} better than 77")


# --- The collection -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exhibit:
    """An error, its repair, and the check that tells them apart.

    Parameters
    ----------
    title : str
        The error in a few words.
    symptom : str
        What one sees of it.
    broken, fixed : callable
        Take the same arguments.
    check : callable
        ``check(broken)`` raises AssertionError, ``check(fixed)`` does not.
    method : str, optional
        The method that differs, where ``broken`` and ``fixed`` are classes.
    """

    title: str
    symptom: str
    broken: Callable[..., Any]
    fixed: Callable[..., Any]
    check: Callable[..., None]
    method: str = ""

    def diff(self) -> str:
        """The listing, its wrong lines marked with a minus and the right ones with a plus."""
        parts = [getattr(each, self.method) if self.method else each for each in (self.broken, self.fixed)]
        wrong, right = (_source(part).splitlines() for part in parts)
        return "\n".join(list(difflib.unified_diff(wrong, right, n=1000, lineterm=""))[3:])

    def verdict(self) -> str:
        """What the check says of the broken version.

        Raises
        ------
        AssertionError
            If the check finds fault with the fixed version.
        LookupError
            If it finds none with the broken one.
        """
        self.check(self.fixed)
        try:
            self.check(self.broken)
        except AssertionError as error:
            return f"{self.check.__name__}: {error}"
        raise LookupError(f"{self.check.__name__} finds no fault with {self.broken.__name__}")

    def show(self) -> Shown:
        """The diff and the verdict, for a notebook."""
        return Shown([("diff", self.diff()), ("text", self.verdict())])


EXHIBITS = {
    "copy": Exhibit(
        "inner steps on a copy",
        "the weights never move",
        steps_on_a_copy,
        maml_loss,
        check_meta_gradient,
    ),
    "data": Exhibit(
        "inner steps through p.data",
        "weights move before the outer step",
        data_updates,
        maml_loss,
        check_weights_stay,
    ),
    "graph": Exhibit(
        "create_graph missing",
        "none: the loss is the same",
        no_create_graph,
        maml_loss,
        check_meta_gradient,
    ),
    "detached": Exhibit(
        "FOMAML by detaching the weights",
        "the weights never move",
        detached_weights,
        fomaml_loss,
        check_first_order,
    ),
    "joint": Exhibit(
        "first listing: joint training",
        "none: the loss falls",
        joint_listing,
        maml_loss,
        check_weights_stay,
    ),
    "wandering": Exhibit(
        "second listing: wandering weights",
        "none: the loss falls",
        wandering_listing,
        maml_loss,
        check_weights_stay,
    ),
    "support": Exhibit(
        "support reused as query",
        "a training loss that is too good",
        support_as_query,
        maml_loss,
        check_queries_count,
    ),
    "other": Exhibit(
        "queries of a validation task",
        "adaptation helps less",
        query_of_another_task,
        maml_loss,
        check_mean_over_tasks,
    ),
    "sum": Exhibit(
        "outer loss summed over tasks",
        "none with Adam; SGD takes longer steps",
        sum_over_tasks,
        maml_loss,
        check_mean_over_tasks,
    ),
    "rate": Exhibit(
        "inner rate of another reduction",
        "adaptation is too weak or too strong",
        rate_copied,
        rate_converted,
        check_published_step,
    ),
    "softmax": Exhibit(
        "softmax before cross-entropy",
        "the loss has a floor above zero",
        softmax_twice,
        protonet_loss,
        check_sure_answer,
    ),
    "unsquared": Exhibit(
        "distance not squared",
        "none",
        unsquared_distance,
        protonet_loss,
        check_squared_distance,
    ),
    "train mode": Exhibit(
        "batch statistics called inductive",
        "answers depend on the other queries",
        answer_in_train_mode,
        answer_in_eval_mode,
        check_queries_are_separate,
    ),
    "lost": Exhibit(
        "running statistics lost",
        "good in training mode, poor in evaluation mode",
        embed_with_lost_buffers,
        embed_with_own_buffers,
        check_statistics_arrive,
    ),
    "reptile sum": Exhibit(
        "Reptile: sum, not mean",
        "outer steps too long",
        reptile_sum,
        reptile_step,
        check_reptile_step,
    ),
    "reptile sign": Exhibit(
        "Reptile: sign flipped",
        "the loss grows",
        reptile_away,
        reptile_step,
        check_reptile_step,
    ),
    "reptile rate": Exhibit(
        "Reptile: outer rate not annealed",
        "the last tasks weigh most",
        constant_rate,
        linear_rate,
        check_rate_falls,
    ),
    "momentum": Exhibit(
        "Reptile: inner Adam with momentum",
        "none",
        MomentumTraining,
        TaskTraining,
        check_no_momentum,
        "optimiser",
    ),
    "memory": Exhibit(
        "Reptile: Adam's state kept",
        "a task's result depends on earlier tasks",
        LeakingTraining,
        TaskTraining,
        check_no_memory,
        "optimiser",
    ),
    "replacement": Exhibit(
        "class twice in a task",
        "queries that nobody can answer",
        classes_with_replacement,
        classes_without_replacement,
        check_classes_differ,
    ),
    "rotation": Exhibit(
        "images rotated, not classes",
        "support and query at different angles",
        images_rotated,
        classes_rotated,
        check_one_angle_a_class,
    ),
    "alphabet": Exhibit(
        "split by character",
        "none: the test may be too good",
        split_by_character,
        split_by_alphabet,
        check_alphabets_apart,
    ),
    "unseeded": Exhibit(
        "split not seeded",
        "the test set changes from run to run",
        split_unseeded,
        split_by_alphabet,
        check_split_repeats,
    ),
    "chosen": Exhibit(
        "checkpoint chosen on test",
        "new tasks give less than was reported",
        chosen_on_test,
        chosen_on_validation,
        check_choice_is_blind,
    ),
    "deviation": Exhibit(
        "± is a standard deviation",
        "more tasks do not make it smaller",
        standard_deviation,
        half_width,
        check_more_tasks_help,
    ),
    "one seed": Exhibit(
        "one seed",
        "another seed may fall outside the interval",
        one_seed,
        half_width,
        check_seeds_count,
    ),
    "reused": Exhibit(
        "trajectories from before the update",
        "adaptation helps less",
        reused_trajectories,
        policy_maml_loss,
        check_policy_gradient,
    ),
    "sampling": Exhibit(
        "sampling term dropped",
        "none",
        sampling_term_dropped,
        policy_maml_loss,
        check_policy_gradient,
    ),
    "carried on": Exhibit(
        "self-training that carries on",
        "errors stay; a bad verifier ends in collapse",
        carried_on,
        restarted,
        check_rounds_restart,
    ),
    "own judge": Exhibit(
        "the model as its own judge",
        "it becomes sure, not right",
        own_verdict,
        exact_verdict,
        check_errors_are_refused,
    ),
    "own tasks": Exhibit(
        "scored on its own tasks",
        "accuracy too high",
        own_score,
        held_out_score,
        check_memory_scores_nothing,
    ),
    "no control": Exhibit(
        "no control of equal training",
        "format is reported as evolution",
        gain_over_base,
        gain_of_the_loop,
        check_demonstrations_count,
    ),
    "grouped": Exhibit(
        "examples class by class",
        "one label is answered too often",
        class_by_class,
        order_of_the_task,
        check_every_class_is_last,
    ),
    "prompt": Exhibit(
        "prompt chosen on test",
        "new tasks give less than was reported",
        prompt_for_test,
        prompt_for_validation,
        check_prompt_is_blind,
    ),
    "ways": Exhibit(
        "5 ways compared with all",
        "a small model beats a published one",
        lead_whatever_the_ways,
        lead,
        check_same_choice,
    ),
}
"""The errors, in the chapter's order, by a short name."""


# --- For the chapter: to show, to train, to compare ---------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Source text that a notebook shows with its syntax coloured.

    Parameters
    ----------
    parts : sequence of pairs
        Language and text of each block.
    """

    parts: Sequence[tuple[str, str]]

    def __repr__(self) -> str:
        return "\n\n".join(text for _, text in self.parts)

    def _repr_markdown_(self) -> str:
        return "\n\n".join(f"```{language}\n{text}\n```" for language, text in self.parts)


def _source(thing: Callable[..., Any]) -> str:
    return textwrap.dedent(inspect.getsource(thing)).strip()


def listing(*things: Callable[..., Any]) -> Shown:
    """The source of some functions or classes of this module."""
    return Shown([("python", "\n\n\n".join(_source(thing) for thing in things))])


class TrainedBy(Learner):
    """Predicts as another learner does, but takes its outer gradient from an exhibit.

    Parameters
    ----------
    learner : Learner
        Its ``net`` is trained.
    exhibit : callable
        ``exhibit(net, episodes)`` returns a loss; one that requires no gradient has filled ``.grad`` already.
    """

    def __init__(self, learner: Learner, exhibit: Callable[[Any, Episodes], Tensor]) -> None:
        super().__init__()
        self.learner, self.exhibit = learner, exhibit

    def loss(self, episodes: Episodes) -> Tensor:
        return self.exhibit(self.learner.net, episodes)

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        loss = self.loss(episodes)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def predict(self, episodes: Episodes) -> Tensor:
        return self.learner.predict(episodes)


def joint_training(net: nn.Module, episodes: Episodes) -> Tensor:
    """No error, but another method: the query loss before any inner step."""
    return task_losses(forward(net, expand(net, len(episodes)), episodes.query_x), episodes.query_y).mean()


def train_on_curves(
    exhibit: Callable[[Any, Episodes], Tensor], seeds: Sequence[int], steps: int, test: Episodes, **settings: Any
) -> tuple[np.ndarray, list[list[float]]]:
    """Train nets by an exhibit on sinusoids with five support points.

    Parameters
    ----------
    exhibit : callable
    seeds : sequence of int
    steps : int
        Updates.
    test : Episodes
        The tasks on which the nets are judged, and whose device they are trained on.
    **settings
        Of :func:`metabook.fit`, where they differ from those below.

    Returns
    -------
    errors : ndarray [3, seeds, tasks]
        Squared errors after 0, 1 and 5 inner steps.
    losses : list
        Training losses of each seed; none where training stopped because a loss was no number any more.
    """
    settings = {"tasks": 5, "lr": 1e-2, "anneal": "cosine", "progress": False, **settings}
    errors: list[np.ndarray] = []
    losses: list[list[float]] = []
    for seed in seeds:
        seed_everything(seed)
        maml = MAML(MLP(), inner_lr=0.01, steps=1).to(test.device)
        source = Sinusoids(5, 10, seed=seed, device=test.device)
        losses.append([])
        with suppress(FloatingPointError):
            losses[-1] = fit(TrainedBy(maml, exhibit), source, steps=steps, seed=seed, **settings).losses
        path = maml.trajectory(test, 5)[[0, 1, 5]]
        errors.append((path - test.query_y).square().mean((2, 3)).double().cpu().numpy())
    return np.stack(errors, 1), losses


def train_on_goals(
    exhibit: Callable[..., Tensor], seeds: Sequence[int], steps: int, test: Tasks, past: float = 0.0, **settings: Any
) -> np.ndarray:
    """Train policies by an exhibit on 2-D navigation, with half the horizon, as the chapter on MAML for policies does.

    Parameters
    ----------
    exhibit : callable
    seeds : sequence of int
    steps : int
        Updates.
    test : Tasks
        The goals on which the policies are judged.
    past : float
        Of :func:`metabook.rl.maml_rl.surrogate`.
    **settings
        Of :func:`metabook.fit`, where they differ from those below.

    Returns
    -------
    ndarray [4, seeds, tasks]
        Minus the returns after 0 to 3 updates: like an error, the less the better.
    """
    settings = {"tasks": 10, "lr": 3e-3, "clip": 1.0, "anneal": "cosine", "progress": False, **settings}
    scores = []
    for seed in seeds:
        seed_everything(seed)
        learner = MAMLRL(GaussianPolicy(MLP(2, (64, 64), 2, "tanh"), std=0.3))
        by_exhibit = TrainedBy(learner, partial(exhibit, past=past, trajectories=10))
        source: Any = EnvTasks("metabook/Navigation-v0", seed=seed, horizon=50)
        fit(by_exhibit, source, steps=steps, seed=seed, **settings)
        learner.later_lr = 0.05
        scores.append(-learner.returns(test, 3).T.double().cpu().numpy())
    return np.stack(scores, 1)


def reptile(
    net: nn.Module, episodes: Episodes, train: TaskTraining, step: Callable[[Tensor, Tensor], Tensor] = reptile_step
) -> Tensor:
    """Fill ``.grad`` with what Reptile's outer loop subtracts; returns its root mean square, for want of a loss."""
    phi = train(net, episodes)
    for name, p in net.named_parameters():
        p.grad = step(p.detach(), phi[name])
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).square().mean().sqrt()


def train_reptile(
    seeds: Sequence[int],
    steps: int,
    test: Episodes,
    inner_lr: float,
    inner_steps: int,
    training: type[TaskTraining] = TaskTraining,
    step: Callable[[Tensor, Tensor], Tensor] = reptile_step,
    **settings: Any,
) -> np.ndarray:
    """Train nets by Reptile on sinusoids with ten support points.

    Parameters
    ----------
    seeds : sequence of int
    steps : int
        Updates.
    test : Episodes
        The tasks on which the nets are judged, and whose device they are trained on.
    inner_lr, inner_steps : float, int
        The inner loop, in training and on the test tasks.
    training, step
        Exhibits, or their repairs: how a task is trained on, and what the outer loop subtracts.
    **settings
        Of :func:`metabook.fit`, where they differ from those below.

    Returns
    -------
    ndarray [seeds, tasks]
        Squared errors after the inner steps.
    """
    settings = {"tasks": 5, "lr": 1.0, "optimiser": "sgd", "anneal": "linear", "progress": False, **settings}
    errors = []
    for seed in seeds:
        seed_everything(seed)
        learner = Reptile(MLP(), inner_lr, inner_steps).to(test.device)
        exhibit = partial(reptile, train=training(inner_lr, inner_steps), step=step)
        with suppress(FloatingPointError):
            source = Sinusoids(10, 1, seed=seed, device=test.device)
            fit(TrainedBy(learner, exhibit), source, steps=steps, seed=seed, **settings)
        with torch.no_grad():
            wrong = learner.predict(test) - test.query_y
        errors.append(wrong.square().mean((1, 2)).double().cpu().numpy())
    return np.stack(errors)


@dataclass(frozen=True)
class Cost:
    """A mean difference with the half-width of its 95 % interval, the larger of those over tasks and over seeds."""

    mean: float
    half: float

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half

    def words(self, unit: str = "") -> str:
        """The cost in words, with a unit such as ``" points"``."""
        if not math.isfinite(self.mean):
            return "diverges"
        if abs(self.mean) >= 1000:
            return f"{self.mean:+.0e}{unit}"
        if abs(self.mean) + self.half < 0.005:
            return "none (within 0.005 of zero)"
        return f"{self.mean:+.2f} ± {self.half:.2f}{unit}" + ("" if self.resolved else " (not resolved)")

    def __str__(self) -> str:
        return self.words()


def cost(broken: np.ndarray, fixed: np.ndarray, scale: float = 1.0) -> Cost:
    """How much the broken version's scores exceed the fixed one's, pair by pair.

    Parameters
    ----------
    broken, fixed : ndarray [seeds, tasks]
        With the same seeds and on the same tasks. Where one of ``broken`` is not finite, so is the cost.
    scale : float
        For instance -100: percentage points of accuracy that are lost.
    """
    with np.errstate(invalid="ignore"):
        difference = scale * (broken - fixed)
    if not np.isfinite(difference).all():
        return Cost(math.inf, math.inf)
    return Cost(float(difference.mean()), half_width(difference))
