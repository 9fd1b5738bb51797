"""What meta-learning has to beat: learners that do not learn to learn.

Each is a :class:`Learner` like the others, so that they run on the same tasks through the same code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses
from metabook.learners.gradient import GradientLearner
from metabook.learners.prototypes import ProtoNet, squared_distances
from metabook.nets import MLP, Conv4

__all__ = ["FineTune", "NearestNeighbour", "PretrainedLinearProbe", "PretrainedNearestMean"]


class NearestNeighbour(Learner):
    """The class of the nearest support example in the space of raw inputs; nothing is trained."""

    def predict(self, episodes: Episodes) -> Tensor:
        distances = squared_distances(episodes.query_x.flatten(2), episodes.support_x.flatten(2))
        other_class = episodes.support_y.unsqueeze(1) != torch.arange(episodes.ways, device=episodes.device).unsqueeze(
            1
        )
        # [tasks, queries, 1, support] against [tasks, 1, ways, support]
        return -distances.unsqueeze(2).masked_fill(other_class.unsqueeze(1), torch.inf).amin(3)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


class FineTune(GradientLearner):
    """Train one network on all tasks at once, then fine-tune it on each task's support set.

    Without meta-training it is *fine-tuning from scratch*. With it, it is transfer learning: the
    shared weights minimise the mean loss over all tasks *before* adaptation.

    Parameters
    ----------
    net, inner_lr, steps
        See :class:`~metabook.learners.gradient.GradientLearner`.
    """

    def __init__(self, net: nn.Module, inner_lr: float = 0.1, steps: int = 50) -> None:
        super().__init__(net, inner_lr, steps)

    def loss(self, episodes: Episodes) -> Tensor:
        self._check(episodes)
        outputs = [self.forward_adapted(self.adapt(episodes, 0), x) for x in (episodes.support_x, episodes.query_x)]
        return task_losses(torch.cat(outputs, 1), torch.cat([episodes.support_y, episodes.query_y], 1)).mean()


class PretrainedNearestMean(ProtoNet):
    """Pre-train an ordinary classifier on the training classes; at test, nearest class mean.

    Features are scaled to unit length before the means are taken, and if asked for, centred before that
    (Y. Wang, W.-L. Chao, K. Q. Weinberger, L. van der Maaten, SimpleShot, 2019, https://arxiv.org/abs/1911.04623).

    Parameters
    ----------
    net : Conv4 or MLP
        The embedding; its attribute ``features``, or else ``outputs``, gives its size.
    classes : int
        Number of classes in the training pool.
    centre : bool
        Subtract the mean feature of the training examples, kept as a moving average: over all batches at first, over
        about the last hundred later.
    """

    average: Tensor
    batches: Tensor

    def __init__(self, net: Conv4 | MLP, classes: int, centre: bool = False) -> None:
        super().__init__(net)
        self.classes, self.centre = classes, centre
        features = net.features if isinstance(net, Conv4) else net.outputs
        self.head = nn.Linear(features, classes)
        if centre:
            self.register_buffer("average", torch.zeros(features))
            self.register_buffer("batches", torch.tensor(0))

    def embed(self, x: Tensor) -> Tensor:
        z = super().embed(x)
        return F.normalize(z - self.average if self.centre else z, dim=-1)

    def loss(self, episodes: Episodes) -> Tensor:
        """Cross-entropy of every example of the episodes over the classes of the whole pool.

        Raises
        ------
        ValueError
            If the episodes do not say which classes of the pool theirs are.
        """
        if episodes.classes is None:
            raise ValueError("pre-training needs episodes that name their classes of the pool (Episodes.classes)")
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        y = episodes.classes.gather(1, torch.cat([episodes.support_y, episodes.query_y], dim=1))
        z = self.net(x.flatten(0, 1))
        if self.centre and self.training:
            self.batches += 1
            self.average.lerp_(z.detach().mean(0), max(0.01, 1 / int(self.batches)))
        return F.cross_entropy(self.head(z), y.flatten())


class PretrainedLinearProbe(PretrainedNearestMean):
    r"""Pre-train an ordinary classifier on the training classes; at test, logistic regression on its features.

    .. math:: \min_{W, b}\; \frac{\lambda}{2} \lVert W \rVert^2
              + \sum_i -\log \operatorname{softmax}\bigl(W f(x_i) + b\bigr)_{y_i}

    with a new ``W`` and ``b`` for each task, found by L-BFGS for all tasks at once.

    Parameters
    ----------
    net, classes, centre
        See :class:`PretrainedNearestMean`.
    penalty : float
        The weight lambda.
    """

    def __init__(self, net: Conv4 | MLP, classes: int, centre: bool = False, penalty: float = 1.0) -> None:
        super().__init__(net, classes, centre)
        self.penalty = penalty

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = (z.detach() for z in self.embed_both(episodes))
        weight = support.new_zeros(len(support), support.shape[2], episodes.ways, requires_grad=True)
        bias = support.new_zeros(len(support), 1, episodes.ways, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe", history_size=20
        )

        def objective() -> Tensor:
            optimiser.zero_grad()
            fit = task_losses(support @ weight + bias, episodes.support_y) * support.shape[1]
            total = (fit + self.penalty / 2 * weight.square().sum((1, 2))).sum()
            total.backward()
            return total

        with torch.enable_grad():
            optimiser.step(objective)
        return (query @ weight + bias).detach()
