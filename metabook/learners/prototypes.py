"""Prototypical Networks: a class is the mean of its examples' embeddings.

J. Snell, K. Swersky, R. Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017,
https://arxiv.org/abs/1703.05175
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

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
    in_turn : bool
        In meta-training, let every drawn example of a class in turn be its only support example,
        and all others queries: many one-shot losses for the price of one pass through the net.
    views : int
        In evaluation, take the mean embedding of so many views of each picture: itself, and itself under fixed small
        affine maps (:func:`metabook.data.affine_views`). It costs as many passes through the net.
    """

    def __init__(self, net: nn.Module, in_turn: bool = False, views: int = 1) -> None:
        super().__init__()
        self.net, self.in_turn, self.views = net, in_turn, views

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``[tasks, examples, features]`` of inputs ``[tasks, examples, ...]``.

        Pictures larger than the net's are scaled down as the data sets do it: Omniglot's 105 x 105 drawings can be
        given as they are.
        """
        size = getattr(self.net, "size", None)
        if size is not None and x.dim() == 5 and x.shape[-1] > size:
            from metabook.data.images import resized  # here: learners on other inputs need no image library

            x = resized(x, size)
        if self.views > 1 and not self.training:
            from metabook.data import affine_views

            views = [view.unflatten(0, x.shape[:2]) for view in affine_views(x.flatten(0, 1), self.views)]
            return torch.stack([self._embed(view) for view in views]).mean(0)
        return self._embed(x)

    def _embed(self, x: Tensor) -> Tensor:
        if self.transductive:
            return vmap(self.net)(x)  # each task is normalised by itself: tasks must not see each other
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def embed_both(self, episodes: Episodes) -> tuple[Tensor, ...]:
        """Embeddings of support set and queries, in one pass: in training both share the batch's statistics."""
        z = self.embed(torch.cat([episodes.support_x, episodes.query_x], dim=1))
        return z.split([episodes.support_x.shape[1], episodes.query_x.shape[1]], dim=1)

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = self.embed_both(episodes)
        return -squared_distances(query, class_means(support, episodes.support_y, episodes.ways))

    def loss(self, episodes: Episodes) -> Tensor:
        if self.in_turn:
            return self._loss_in_turn(episodes)
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _loss_in_turn(self, episodes: Episodes) -> Tensor:
        y = torch.cat([episodes.support_y, episodes.query_y], dim=1)
        z = self.embed(torch.cat([episodes.support_x, episodes.query_x], dim=1))
        ways, turns = episodes.ways, y.shape[1] // episodes.ways
        # Sorted by class: example t of class c stands at [c, t]. Every class needs as many examples.
        z = z.gather(1, y.argsort(dim=1, stable=True).unsqueeze(-1).expand_as(z)).unflatten(1, (ways, turns))
        flat = z.flatten(1, 2)
        distances = squared_distances(flat, flat).unflatten(1, (ways, turns)).unflatten(3, (ways, turns))
        # [task, true class, query, class, support]: the logits of a query are those of one support index.
        log_p = (-distances).log_softmax(dim=3).diagonal(dim1=1, dim2=3)  # [task, query, support, true class]
        others = ~torch.eye(turns, dtype=torch.bool, device=z.device)
        return -log_p[:, others].mean()
