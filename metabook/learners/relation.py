"""Relation Networks: how much a query resembles a class is a network's judgement too.

F. Sung, Y. Yang, L. Zhang, T. Xiang, P. H. S. Torr, T. M. Hospedales. Learning to Compare: Relation Network for
Few-Shot Learning. CVPR 2018, https://arxiv.org/abs/1711.06025
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners.prototypes import ProtoNet

__all__ = ["RelationNet"]


class RelationNet(ProtoNet):
    r"""Compare by a learned *relation score* instead of a fixed distance.

    .. math:: r_k(x) = \sigma\bigl(g(\textstyle\sum_{i:\, y_i = k} f(x_i),\; f(x))\bigr),\qquad
              L = \operatorname{mean}_{x, k}\; \bigl(r_k(x) - [y = k]\bigr)^2 .

    Parameters
    ----------
    net : Module
        The embedding f, ``[examples, ...] -> [examples, channels, ...]``: feature maps of images, vectors of others.
    relation : Module
        The score g before its sigmoid, ``[pairs, 2 * channels, ...] -> [pairs, 1]``: a class's features first.
    combine : {"sum", "mean"}
        Of the features of a class. The sum is the paper's: its size grows with the shots, so the learner serves only
        the number of shots that it was trained with. The mean is the same at one shot and serves any number.

    Raises
    ------
    ValueError
        For another way to combine them.
    """

    def __init__(self, net: nn.Module, relation: nn.Module, combine: str = "sum") -> None:
        if combine not in ("sum", "mean"):
            raise ValueError(f"combine must be 'sum' or 'mean', not {combine!r}")
        super().__init__(net)
        self.relation, self.combine = relation, combine

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores before the sigmoid, ``[tasks, queries, ways]``: their order is that of the relation scores."""
        support, query = self.embed_both(episodes)  # [tasks, examples, channels, ...]
        members = F.one_hot(episodes.support_y, episodes.ways).to(support.dtype).mT
        if self.combine == "mean":
            members = members / members.sum(2, keepdim=True)
        classes = (members @ support.flatten(2)).unflatten(2, support.shape[2:])  # [tasks, ways, channels, ...]
        shape = (*query.shape[:2], episodes.ways, *query.shape[2:])
        pairs = torch.cat([classes.unsqueeze(1).expand(shape), query.unsqueeze(2).expand(shape)], 3)
        if self.transductive:  # each task is normalised by itself
            return torch.stack([self.relation(task.flatten(0, 1)).view(shape[1:3]) for task in pairs])
        return self.relation(pairs.flatten(0, 2)).view(shape[:3])

    def loss(self, episodes: Episodes) -> Tensor:
        """The paper's: the squared error of the scores, the mean over queries and classes."""
        wanted = F.one_hot(episodes.query_y, episodes.ways)
        scores = self.predict(episodes).sigmoid()
        return F.mse_loss(scores, wanted.to(scores.dtype))
