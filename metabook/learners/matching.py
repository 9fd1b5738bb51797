"""Matching Networks: a class is as probable as the support examples that the query attends to say.

O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra. Matching Networks for One Shot Learning. NeurIPS
2016, https://arxiv.org/abs/1606.04080
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners.prototypes import ProtoNet

__all__ = ["MatchingNet"]


class MatchingNet(ProtoNet):
    r"""Weigh the labels of the support set by the attention that a query pays to each of its examples.

    .. math:: p(y = k \mid x) = \sum_i a(x, x_i)\, [y_i = k],\qquad
              a(x, x_i) = \operatorname{softmax}_i \bigl(s \cos(f(x), f(x_i))\bigr).

    A differentiable nearest neighbour, and the bridge to prototypes: with one example a class both compare a query with
    single examples; with more, ``MatchingNet`` averages similarities where ``ProtoNet`` averages embeddings. (Without
    the paper's full context embeddings, LSTMs that read the support set in an arbitrary order.)

    Parameters
    ----------
    net : Module
        The embedding, ``[examples, ...] -> [examples, features]``.
    sharpness : float
        The factor s of the cosine, which lies between -1 and 1: with the paper's s = 1 no class of five could be given
        a probability of more than 0.65.
    """

    def __init__(self, net: nn.Module, sharpness: float = 10.0) -> None:
        super().__init__(net)
        self.sharpness = sharpness

    def predict(self, episodes: Episodes) -> Tensor:
        """The logarithms of the classes' probabilities, ``[tasks, queries, ways]``."""
        support, query = (F.normalize(z, dim=2) for z in self.embed_both(episodes))
        attention = (self.sharpness * query @ support.mT).log_softmax(2)  # [tasks, queries, support]
        other = F.one_hot(episodes.support_y, episodes.ways).mT.unsqueeze(1) == 0  # [tasks, 1, ways, support]
        return attention.unsqueeze(2).masked_fill(other, -float("inf")).logsumexp(3)
