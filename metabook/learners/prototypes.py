"""Prototypical Networks: a class is the mean of its examples' embeddings.

J. Snell, K. Swersky, R. Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017,
https://arxiv.org/abs/1703.05175
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses

__all__ = ["ProtoNet", "class_means", "squared_distances"]


def class_means(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Mean embedding of each class, ``[tasks, n, d]`` and ``[tasks, n]`` to ``[tasks, ways, d]``."""
    members = F.one_hot(y, ways).to(z.dtype).transpose(1, 2)  # [tasks, ways, n]
    return members @ z / members.sum(2, keepdim=True)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, ``[tasks, n, d]`` and ``[tasks, m, d]`` to ``[tasks, n, m]``.

    Expanded into inner products: no ``[tasks, n, m, d]`` intermediate, and unlike the distance
    itself it is differentiable where two points coincide.
    """
    return a.square().sum(2, keepdim=True) - 2 * a @ b.transpose(1, 2) + b.square().sum(2).unsqueeze(1)


class ProtoNet(Learner):
    r"""Classify a query by the nearest class mean in a learned embedding :math:`f`.

    .. math:: p(y = k \mid x) \propto \exp\bigl(-\lVert f(x) - c_k \rVert^2\bigr),\qquad
              c_k = \frac1K \sum_{(x_i, y_i):\, y_i = k} f(x_i).

    Inductive, unless the net normalises with batch statistics in evaluation too.

    Parameters
    ----------
    net : Module
        The embedding, ``[examples, ...] -> [examples, features]``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``[tasks, examples, features]`` of inputs ``[tasks, examples, ...]``."""
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def predict(self, episodes: Episodes) -> Tensor:
        # One pass for support and queries: in training both share the batch's statistics.
        z = self.embed(torch.cat([episodes.support_x, episodes.query_x], dim=1))
        support, query = z.split([episodes.support_x.shape[1], episodes.query_x.shape[1]], dim=1)
        return -squared_distances(query, class_means(support, episodes.support_y, episodes.ways))

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()
