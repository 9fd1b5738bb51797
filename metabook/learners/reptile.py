"""Reptile: move the initialisation towards the weights that each task's training ends in.

A. Nichol, J. Achiam, J. Schulman. On First-Order Meta-Learning Algorithms. 2018, https://arxiv.org/abs/1803.02999
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metabook import batched
from metabook.batched import Parameters
from metabook.episodes import Episodes
from metabook.learners.base import task_losses
from metabook.learners.gradient import GradientLearner

__all__ = ["Reptile"]


class Reptile(GradientLearner):
    r"""Reptile: the mean over tasks of the way that training on each task went is the outer step.

    .. math:: \theta \leftarrow \theta + \epsilon\, \frac1T \sum_\tau (\phi_\tau - \theta),

    where :math:`\phi_\tau` are the weights after some steps on minibatches of task :math:`\tau`. The negative mean
    difference takes the place of a gradient, so that gradient descent with the rate :math:`\epsilon`, annealed to
    zero, is the algorithm of the paper: ``fit(..., optimiser="sgd", lr=1.0, anneal="linear")``. It trains on the
    support *and* the query examples of a training task: Reptile has no use for a split.

    Transductive when the net normalises with batch statistics.

    Parameters
    ----------
    net : Module
        See :class:`~metabook.learners.gradient.GradientLearner`.
    inner_lr : float
        Step size of the inner optimiser.
    steps : int
        Inner steps in training.
    batch : int, optional
        Examples of each inner minibatch in training, drawn without replacement until all were used; None: all examples
        in each step.
    eval_steps : int, optional
        Inner steps of :meth:`predict`, each on the whole support set; by default ``steps``.
    adam : bool
        Inner steps are Adam's with :math:`\beta_1 = 0` (no momentum, which would leak from step to step) and
        :math:`\beta_2 = 0.999`, as in the paper; its state starts anew in every task. False: plain gradient descent.
    """

    def __init__(
        self,
        net: nn.Module,
        inner_lr: float = 1e-3,
        steps: int = 5,
        batch: int | None = 10,
        eval_steps: int | None = None,
        adam: bool = True,
    ) -> None:
        super().__init__(net, inner_lr, steps)
        for name, value in (("batch", batch), ("eval_steps", eval_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.batch, self.eval_steps, self.adam = batch, eval_steps, adam

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        if not self.adam:
            return super().update(params, grads, step, state)
        for name, g in grads.items():  # the mean square of the gradients so far
            state[name] = 0.999 * state.get(name, torch.zeros_like(g)) + 0.001 * g.square()
        unbiased = 1 - 0.999 ** (step + 1)
        return {
            name: p - self.inner_lr * grads[name] / ((state[name] / unbiased).sqrt() + 1e-8)
            for name, p in params.items()
        }

    def loss(self, episodes: Episodes) -> Tensor:
        """The loss on all examples *before* adaptation, mean over tasks: a report, not what is minimised."""
        x, y = _all_examples(episodes)
        return task_losses(self.forward_adapted(batched.expand(self.net, len(episodes)), x), y).mean()

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        """Put the mean over the tasks of ``theta - phi`` into ``.grad``; return the loss of the last step."""
        self._check(episodes)
        total = torch.zeros((), device=episodes.device)
        for part in episodes.split(self._chunk(episodes)):
            share = len(part) / len(episodes)
            phi, last = self._train(part)
            for name, p in self.net.named_parameters():
                step = share * (p.detach() - phi[name].mean(0))
                p.grad = step if p.grad is None else p.grad + step
            total += share * last
        return total

    def predict(self, episodes: Episodes) -> Tensor:
        return self._predict_after(episodes, self.eval_steps or self.steps)

    def _train(self, episodes: Episodes) -> tuple[Parameters, Tensor]:
        """The weights of each task after ``steps`` minibatches, and the mean loss at the last of these."""
        x, y = _all_examples(episodes)
        batches = self._minibatches(x.shape[1])
        reported: list[Tensor] = []

        def losses(params: Parameters, step: int) -> Tensor:
            loss = task_losses(self.forward_adapted(params, x[:, batches[step]]), y[:, batches[step]])
            reported.append(loss.detach().mean())
            return loss

        with torch.no_grad():
            *_, phi = self.descend(batched.expand(self.net, len(episodes)), losses, self.steps)
        return phi, reported[-1]

    def _minibatches(self, examples: int) -> list[Tensor]:
        """Row numbers of each step's examples: shuffled, and shuffled again when too few are left for a whole batch."""
        if self.batch is None or self.batch >= examples:
            return [torch.arange(examples)] * self.steps
        each = examples // self.batch  # whole batches of one shuffle
        rows: list[Tensor] = []
        while len(rows) < self.steps:
            rows += torch.randperm(examples)[: each * self.batch].split(self.batch)
        return rows[: self.steps]


def _all_examples(episodes: Episodes) -> tuple[Tensor, Tensor]:
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    return x, torch.cat([episodes.support_y, episodes.query_y], 1)
