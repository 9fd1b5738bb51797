"""What the gradient family shares: adaptation by gradient descent on the support set, all tasks side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from metabook import batched
from metabook.batched import Parameters
from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses

__all__ = ["GradientLearner", "Parameters"]

_CHUNK = {"cpu": 2**16, "cuda": 2**22, "mps": 2**20}


class GradientLearner(Learner):
    """A learner that adapts by gradient descent on the support set, all tasks side by side.

    Parameters
    ----------
    net : Module
        Maps inputs to logits or values, and holds the shared initialisation. Nets with running
        statistics are refused: in the inner loop they would mix the tasks and the steps.
    inner_lr : float
        Step size of the inner loop, for the *mean* loss over a task's support set.
    steps : int
        Inner steps.

    Attributes
    ----------
    chunk : int, optional
        Tasks that are adapted at a time, which bounds the memory and changes no result. None (the default): as many
        as the sizes of the inputs and the device suggest.

    Raises
    ------
    ValueError
        For a net with running statistics, no inner steps, or an inner rate that is not positive.
    """

    chunk: int | None = None
    inner_lr: float | Tensor

    def __init__(self, net: nn.Module, inner_lr: float, steps: int) -> None:
        super().__init__()
        if any(getattr(module, "track_running_stats", False) for module in net.modules()):
            raise ValueError("the inner loop needs batch statistics: build the net with norm='batch' or norm='none'")
        if steps < 1 or inner_lr <= 0:
            raise ValueError(
                f"at least one inner step and a positive inner rate are needed, not {steps} and {inner_lr}"
            )
        self.net, self.inner_lr, self.steps = net, inner_lr, steps

    def forward_adapted(self, params: Parameters, x: Tensor) -> Tensor:
        """Run every task's inputs ``[tasks, examples, ...]`` through that task's parameters."""
        return batched.forward(self.net, params, x)

    def descend(
        self, params: Parameters, losses: Callable[[Parameters, int], Tensor], steps: int, second_order: bool = False
    ) -> Iterator[Parameters]:
        """Yield ``params`` after 0, 1, ..., ``steps`` steps down ``losses(params, step) [tasks]``."""
        recording = torch.is_grad_enabled()
        state: Parameters = {}  # of the inner optimiser: new for each task
        yield params
        for step in range(steps):
            with torch.enable_grad():
                if not recording:  # nobody differentiates through this loop: let each step's graph go
                    params = {name: p.detach().requires_grad_() for name, p in params.items()}
                # A task's loss depends on its own copy of the parameters alone, so the gradient of
                # the sum holds each task's own gradient.
                total = losses(params, step).sum()
                grads = torch.autograd.grad(total, list(params.values()), create_graph=second_order)
            params = self.update(params, dict(zip(params, grads, strict=True)), step, state)
            yield params

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        """The parameters after inner step number ``step``: here plain gradient descent, which keeps no ``state``."""
        if isinstance(self.inner_lr, Tensor):  # a rate that is learnt
            return {name: p - self.inner_lr * grads[name] for name, p in params.items()}
        return {name: torch.add(p, grads[name], alpha=-self.inner_lr) for name, p in params.items()}

    def inner_loop(self, episodes: Episodes, steps: int, second_order: bool = False) -> Iterator[Parameters]:
        """Yield the tasks' parameters after 0, 1, ..., ``steps`` steps.

        Where gradients are recorded, all of them lead back to the shared initialisation. With
        ``second_order`` the inner gradients are themselves differentiable.
        """
        self._check(episodes)
        params = batched.expand(self.net, len(episodes))

        def losses(params: Parameters, step: int) -> Tensor:
            return task_losses(self.forward_adapted(params, episodes.support_x), episodes.support_y)

        yield from self.descend(params, losses, steps, second_order)

    def adapt(self, episodes: Episodes, steps: int | None = None, second_order: bool = False) -> Parameters:
        """The tasks' parameters after ``steps`` inner steps (default: the learner's own number).

        Returns
        -------
        dict of str to Tensor [tasks, ...]
        """
        *_, params = self.inner_loop(episodes, self.steps if steps is None else steps, second_order)
        return params

    def predict(self, episodes: Episodes) -> Tensor:
        return self._predict_after(episodes, self.steps)

    def trajectory(self, episodes: Episodes, steps: int | None = None) -> Tensor:
        """Predictions for the queries after 0, 1, ..., ``steps`` inner steps.

        Returns
        -------
        Tensor [steps + 1, tasks, queries, ways]
        """
        with torch.no_grad():
            loop = self.inner_loop(episodes, self.steps if steps is None else steps)
            return torch.stack([self.forward_adapted(params, episodes.query_x) for params in loop])

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        """The meta-gradient, summed over chunks of the tasks: the graph of one chunk is all that is held."""
        chunk = self._chunk(episodes)
        if chunk >= len(episodes):
            return super().accumulate_gradients(episodes)
        total = torch.zeros((), device=episodes.device)
        for part in episodes.split(chunk):
            loss = self.loss(part) * (len(part) / len(episodes))
            loss.backward()
            total += loss.detach()
        return total

    def _predict_after(self, episodes: Episodes, steps: int) -> Tensor:
        parts = episodes.split(self._chunk(episodes))
        return torch.cat([self.forward_adapted(self.adapt(part, steps), part.query_x) for part in parts])

    def _chunk(self, episodes: Episodes) -> int:
        if self.chunk:
            return self.chunk
        # How much a task holds, in numbers of its inputs. Where torch's own kernels run, they hold a fourth.
        held = sum(
            x[0].numel() / (4 if x.shape[1] >= batched.MANY else 1) for x in (episodes.support_x, episodes.query_x)
        )
        chunks = math.ceil(len(episodes) / max(1, _CHUNK[episodes.device.type] // held))
        return math.ceil(len(episodes) / max(1, chunks))  # of about the same size

    def _check(self, episodes: Episodes) -> None:
        outputs = getattr(self.net, "outputs", episodes.ways)
        if outputs != episodes.ways:
            raise ValueError(f"the net has {outputs} outputs, but the tasks have {episodes.ways} ways")
