"""The interface that every learner of the book shares, and the loss of a task."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes

__all__ = ["Learner", "task_losses"]


def task_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each task: cross-entropy for class targets, squared error for real ones.

    Parameters
    ----------
    outputs : Tensor [tasks, examples, ways]
        Logits, or predicted values ``[tasks, examples, outputs]``.
    targets : Tensor [tasks, examples]
        Classes (int64), or values ``[tasks, examples, outputs]`` (float).

    Returns
    -------
    Tensor [tasks]
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets, reduction="none").flatten(1).mean(1)
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


class Learner(nn.Module):
    """Something that learns to learn: two methods, and one honest flag.

    A learner holds what is shared by all tasks as its parameters. :meth:`predict` adapts to the
    support set of each task and answers its queries; :meth:`loss` says how good that is, as a
    scalar to minimise over many tasks.
    """

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query may depend on the other queries of its task."""
        return any(getattr(module, "batch_statistics", False) for module in self.modules())

    def loss(self, episodes: Episodes) -> Tensor:
        """The meta-training objective: a scalar, the mean over the tasks."""
        raise NotImplementedError

    def predict(self, episodes: Episodes) -> Tensor:
        """Adapt to each task's support set and answer its queries.

        Returns
        -------
        Tensor [tasks, queries, ways]
            Logits; for regression the values ``[tasks, queries, outputs]``.
        """
        raise NotImplementedError

    def accumulate_gradients(self, episodes: Episodes) -> Tensor:
        """Put the outer update's gradient into ``.grad`` and return the loss (detached).

        The one hook for methods whose outer update is not the gradient of a loss.
        """
        loss = self.loss(episodes)
        loss.backward()
        return loss.detach()
