r"""What can go wrong with a learner that others feed, and what can be done: poisoned supports, loops, and leaks.

- A *poisoned* support set: :func:`flip_at_random`, :func:`flip_together`, :func:`worst_flips`, and a defence,
  :class:`RobustPrototypes`.
- A loop that trains on its own labels: :func:`self_train`.
- *Membership inference*, whether an example was in a support set: :func:`leak`, and a defence
  with a guarantee, :class:`NoisyPrototypes` with :func:`gaussian_scale`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from scipy import optimize, stats
from torch import Tensor, nn

from metabook.calibration import class_nll
from metabook.chat import UnbiasedPrototypes
from metabook.episodes import Episodes, generator_for
from metabook.learners import Learner, ProtoNet
from metabook.learners.prototypes import squared_distances

__all__ = [
    "CENTRES",
    "LOOPS",
    "NoisyPrototypes",
    "RobustPrototypes",
    "ask_again",
    "centres",
    "flip_at_random",
    "flip_together",
    "gaussian_delta",
    "gaussian_scale",
    "leak",
    "margins",
    "membership_auc",
    "self_train",
    "worst_flips",
]

CENTRES = ("mean", "median", "geometric")
LOOPS = ("none", "own", "verified")

# --- Poisoned support sets ----------------------------------------------------------------------------------------


def flip_at_random(episodes: Episodes, flips: int, seed: int = 0) -> Episodes:
    """The episodes with ``flips`` support labels of each task replaced by another class, drawn uniformly.

    Parameters
    ----------
    episodes : Episodes
        Of classes.
    flips : int
        Fewer than the examples of a class, so that none can lose them all.
    seed : int

    Returns
    -------
    Episodes

    Raises
    ------
    ValueError
        If a class could lose all of its examples.
    """
    _check_flips(episodes, flips)
    generator = generator_for("flips", seed)
    y = episodes.support_y.clone()
    where = torch.rand(y.shape, generator=generator).topk(flips, dim=1).indices
    shift = torch.randint(1, episodes.ways, where.shape, generator=generator)
    return replace(episodes, support_y=y.scatter(1, where, (y.gather(1, where) + shift) % episodes.ways))


def flip_together(episodes: Episodes, flips: int) -> Episodes:
    """The episodes with ``flips`` examples of each task's class 0 labelled as class 1.

    Raises
    ------
    ValueError
        If class 0 could lose all of its examples.
    """
    _check_flips(episodes, flips)
    of_first = (episodes.support_y == 0) & ((episodes.support_y == 0).cumsum(1) <= flips)
    return replace(episodes, support_y=episodes.support_y.masked_fill(of_first, 1))


def worst_flips(learner: Learner, episodes: Episodes, flips: int, chunk: int = 8) -> list[Tensor]:
    """The support labels after 0, 1, ..., ``flips`` changes by an attacker who can run the learner.

    One label at a time: of all changes of one example to one other class, the one after which the learner's loss on
    the queries is largest. Such a greedy search is no upper bound of what an attacker can do. Give other queries to it
    than those that the learner is judged by.

    Parameters
    ----------
    learner : Learner
        The one that is attacked.
    episodes : Episodes
        Of classes; the queries are the attacker's.
    flips : int
        Fewer than the examples of a class.
    chunk : int
        Tasks attacked at a time, which bounds the memory and changes nothing.

    Returns
    -------
    list of Tensor [tasks, examples]

    Raises
    ------
    ValueError
        If a class could lose all of its examples.
    """
    _check_flips(episodes, flips)
    paths = []
    for part in episodes.split(chunk):
        path, touched = [part.support_y], torch.zeros_like(part.support_y, dtype=torch.bool)
        for _ in range(flips):
            losses = _losses_of_flips(learner, replace(part, support_y=path[-1]))  # [tasks, examples, shifts]
            best = losses.masked_fill(touched.unsqueeze(2), -torch.inf).flatten(1).argmax(1)
            tasks, example, shift = torch.arange(len(best)), best // losses.shape[2], best % losses.shape[2]
            y = path[-1].clone()
            y[tasks, example] = (y[tasks, example] + shift + 1) % part.ways
            touched[tasks, example] = True
            path.append(y)
        paths.append(path)
    return [torch.cat(step) for step in zip(*paths)]


def _check_flips(episodes: Episodes, flips: int) -> None:
    fewest = int(F.one_hot(episodes.support_y, episodes.ways).sum(1).min())
    if not 0 <= flips < fewest:
        raise ValueError(f"{flips} flips could leave a class of {fewest} examples with none: flip fewer")


@torch.no_grad()
def _losses_of_flips(learner: Learner, episodes: Episodes) -> Tensor:
    """The loss on the queries after each single change of a label, ``[tasks, examples, ways - 1]``."""
    tasks, examples = episodes.support_y.shape
    shifts = episodes.ways - 1
    step = torch.arange(1, episodes.ways).repeat(examples).unsqueeze(1)  # [changes, 1]
    place = torch.arange(examples).repeat_interleave(shifts).unsqueeze(1)
    here = torch.arange(examples) == place  # [changes, examples]
    y = (episodes.support_y.unsqueeze(1) + here * step) % episodes.ways  # [tasks, changes, examples]
    many = {name: value.repeat_interleave(len(here), 0) for name, value in vars(episodes).items() if value is not None}
    logits = learner.predict(replace(episodes, **(many | {"support_y": y.flatten(0, 1)})))
    losses = F.cross_entropy(logits.transpose(1, 2), many["query_y"], reduction="none").mean(1)
    return losses.view(tasks, examples, shifts)


def margins(z: Tensor, y: Tensor, ways: int, spread: float = 0.0) -> Tensor:
    r"""How much nearer each support example is to its own class than to the next one, judged by the others.

    An example is taken out, the means :math:`c_k` of the :math:`K_k` that are left are computed, and

    .. math:: m_i = \min_{k \ne y_i} \bigl(\lVert z_i - c_k \rVert^2 - s / K_k\bigr)
              - \bigl(\lVert z_i - c_{y_i} \rVert^2 - s / K_{y_i}\bigr)

    with the spread :math:`s` of :class:`~metabook.chat.UnbiasedPrototypes`. The only example of a class has an infinite
    margin: there is nothing to judge it by. To leave out those with a small margin is the editing of D. L. Wilson,
    Asymptotic Properties of Nearest Neighbor Rules Using Edited Data, IEEE Transactions on Systems, Man, and
    Cybernetics, 1972, with means in the place of neighbours.

    Parameters
    ----------
    z : Tensor [tasks, examples, features]
    y : Tensor [tasks, examples]
    ways : int
    spread : float

    Returns
    -------
    Tensor [tasks, examples]
        In squared units of ``z``.
    """
    members = F.one_hot(y, ways).to(z.dtype)  # [tasks, examples, ways]
    count = members.sum(1)  # [tasks, ways]
    sums = members.transpose(1, 2) @ z
    of_others = squared_distances(z, sums / count.unsqueeze(2).clamp_min(1)) - spread / count.clamp_min(1).unsqueeze(1)
    others = of_others.masked_fill((members > 0) | (count == 0).unsqueeze(1), torch.inf).amin(2)
    left = (count.gather(1, y) - 1).clamp_min(1)  # [tasks, examples]
    mean = (sums.gather(1, y.unsqueeze(2).expand_as(z)) - z) / left.unsqueeze(2)
    own = (z - mean).square().sum(2) - spread / left
    return (others - own).masked_fill(count.gather(1, y) == 1, torch.inf)


class RobustPrototypes(UnbiasedPrototypes):
    r"""Prototypes that a few wrong support labels move little.

    Parameters
    ----------
    net : Module
        The embedding.
    spread : float
        See :class:`~metabook.chat.UnbiasedPrototypes`: wrong labels make classes of different sizes.
    centre : {"mean", "median", "geometric"}
        What stands for a class: the mean of its embeddings, the median of each coordinate, or the point with the least
        sum of distances to them (found by Weiszfeld's iteration).
    slack : float, optional
        Leave out the examples whose margin (:func:`margins`) is below ``-slack`` first, unless none of their class were
        left. Choose it so that few right labels are lost.

    Raises
    ------
    ValueError
        For another centre.
    """

    def __init__(self, net: nn.Module, spread: float = 0.0, centre: str = "mean", slack: float | None = None) -> None:
        if centre not in CENTRES:
            raise ValueError(f"centre must be one of {', '.join(CENTRES)}, not {centre!r}")
        super().__init__(net, spread)
        self.centre, self.slack = centre, slack

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = self.embed_both(episodes)
        y, ways = episodes.support_y, episodes.ways
        members = F.one_hot(y, ways).to(support.dtype).transpose(1, 2)  # [tasks, ways, examples]
        if self.slack is not None:
            kept = members * (margins(support, y, ways, self.spread) >= -self.slack).unsqueeze(1)
            members = kept.where(kept.sum(2, keepdim=True) > 0, members)
        distances = squared_distances(query, centres(support, members, self.centre))
        return self.spread / members.sum(2).unsqueeze(1) - distances


def centres(z: Tensor, members: Tensor, kind: str = "mean", steps: int = 30) -> Tensor:
    """The centre of each class, ``[tasks, ways, features]``.

    Parameters
    ----------
    z : Tensor [tasks, examples, features]
    members : Tensor [tasks, ways, examples]
        1 where the example belongs to the class, otherwise 0.
    kind : {"mean", "median", "geometric"}
    steps : int
        Of Weiszfeld's iteration.
    """
    if kind == "median":
        each = z.unsqueeze(1).where(members.unsqueeze(3) > 0, torch.nan)  # [tasks, ways, examples, features]
        return each.nanquantile(0.5, dim=2)
    weights = members
    for _ in range(steps if kind == "geometric" else 0):
        found = weights @ z / weights.sum(2, keepdim=True)
        weights = members / squared_distances(found, z).clamp_min(1e-12).sqrt()
    return weights @ z / weights.sum(2, keepdim=True)


# --- A loop on its own labels -------------------------------------------------------------------------------------


def self_train(
    episodes: Episodes,
    rounds: int,
    batch: int,
    labels: str = "own",
    anchored: bool = True,
    spread: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Prototypes that are made anew in each round from what the last ones said about new, unlabelled examples.

    Parameters
    ----------
    episodes : Episodes
        Of embeddings. The loop starts with the prototypes of the support set. The queries, in random order, are first
        its unlabelled examples, whose true labels are read by the verifier alone; those that are left judge it.
    rounds, batch : int
        Rounds, and new examples a round.
    labels : {"none", "own", "verified"}
        What a batch adds: nothing (no loop), all of the learner's own labels, or those of them that are right.
    anchored : bool
        Put the support set into each round. Otherwise a round has its own batch alone, and one that has no example of a
        class loses the class.
    spread : float
        See :class:`~metabook.chat.UnbiasedPrototypes`: a class that collects more labels looks nearer, and then
        collects more.
    seed : int
        Of the order.

    Returns
    -------
    accuracy, classes : Tensor [tasks, rounds + 1]
        On the queries that are left; and how many classes there still are.

    Raises
    ------
    ValueError
        For other labels, or too few queries.
    """
    z, truth, used = episodes.query_x, episodes.query_y, rounds * batch
    if labels not in LOOPS:
        raise ValueError(f"labels must be one of {', '.join(LOOPS)}, not {labels!r}")
    if used >= truth.shape[1]:
        raise ValueError(f"{rounds} rounds of {batch} leave none of {truth.shape[1]} queries to judge by")
    order = torch.rand(truth.shape, generator=generator_for("stream", seed)).argsort(1)
    z, truth = z.gather(1, order.unsqueeze(2).expand_as(z)), truth.gather(1, order)
    start = _collect(episodes.support_x, episodes.support_y, episodes.ways)
    sums, count = start
    right, alive = [], []
    for end in range(0, used + 1, batch):
        if end and labels != "none":
            new, true = z[:, end - batch : end], truth[:, end - batch : end]
            said = _nearest(new, sums, count, spread)
            found = _collect(new, said, episodes.ways, said == true if labels == "verified" else None)
            if anchored:
                found = found[0] + start[0], found[1] + start[1]
            empty = (found[1].sum(1) == 0).unsqueeze(1)  # a round that keeps nothing changes nothing
            sums, count = sums.where(empty.unsqueeze(2), found[0]), count.where(empty, found[1])
        right.append((_nearest(z[:, used:], sums, count, spread) == truth[:, used:]).double().mean(1))
        alive.append((count > 0).sum(1).double())
    return torch.stack(right, 1), torch.stack(alive, 1)


def _collect(z: Tensor, y: Tensor, ways: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum and number of each class's embeddings, ``[tasks, ways, features]`` and ``[tasks, ways]``."""
    members = F.one_hot(y, ways).to(z.dtype)
    if kept is not None:
        members = members * kept.unsqueeze(2)
    return members.transpose(1, 2) @ z, members.sum(1)


def _nearest(z: Tensor, sums: Tensor, count: Tensor, spread: float) -> Tensor:
    number = count.clamp_min(1)
    distances = squared_distances(z, sums / number.unsqueeze(2)) - spread / number.unsqueeze(1)
    return distances.masked_fill((count == 0).unsqueeze(1), torch.inf).argmin(2)


# --- Who was in the support set -----------------------------------------------------------------------------------


def membership_auc(members: Tensor, others: Tensor) -> Tensor:
    """The probability that a member has the smaller loss than another example; ties count half.

    It is the area under the ROC curve of the attack that calls an example a member if its loss is below a threshold
    (S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, Privacy Risk in Machine Learning, CSF 2018,
    https://arxiv.org/abs/1709.01604).

    Parameters
    ----------
    members : Tensor [..., n]
        Losses of examples that were in the support set.
    others : Tensor [..., m]
        Losses of examples that were not.

    Returns
    -------
    Tensor [...]
    """
    one, other = members.unsqueeze(-1), others.unsqueeze(-2)
    return ((one < other).double() + (one == other).double() / 2).mean((-2, -1))


def ask_again(episodes: Episodes) -> Episodes:
    """The episodes with the support examples put before the queries: what the attacker asks the adapted learner."""
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    return replace(episodes, query_x=x, query_y=torch.cat([episodes.support_y, episodes.query_y], 1))


def leak(logits: Tensor, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """What an adapted learner gives away of its support set, and what it is worth.

    Members are compared with queries of their own class only, so that a class which is easy as a whole gives nothing
    away.

    Parameters
    ----------
    logits : Tensor [tasks, support + queries, ways]
        For ``ask_again(episodes)``.
    episodes : Episodes
        As a sampler draws them: ordered by shot, then class.

    Returns
    -------
    auc, accuracy : Tensor [tasks]
        :func:`membership_auc`, the mean over the classes; accuracy on the queries.

    Raises
    ------
    ValueError
        If the examples are in another order.
    """
    ways = episodes.ways
    for y in (episodes.support_y, episodes.query_y):
        if not torch.equal(y, torch.arange(ways).repeat(y.shape[1] // ways).expand_as(y)):
            raise ValueError("the examples of each task must be ordered by shot, then class, as a sampler draws them")
    ours, theirs = logits.split([episodes.support_y.shape[1], episodes.query_y.shape[1]], dim=1)
    losses = (class_nll(ours, episodes.support_y), class_nll(theirs, episodes.query_y))
    members, others = (each.unflatten(1, (-1, ways)).transpose(1, 2) for each in losses)  # [tasks, ways, shots]
    accuracy = (theirs.argmax(2) == episodes.query_y).double().mean(1)
    return membership_auc(members, others).mean(1), accuracy


class NoisyPrototypes(ProtoNet):
    """Prototypes that are released with normal noise on each coordinate.

    Parameters
    ----------
    net : Module
    scale : float
        Standard deviation of the noise.
    seed : int
        Of the noise; the same for every call.
    """

    def __init__(self, net: nn.Module, scale: float, seed: int = 0) -> None:
        super().__init__(net)
        self.scale, self.seed = scale, seed

    def predict(self, episodes: Episodes) -> Tensor:
        support, query = self.embed_both(episodes)
        members = F.one_hot(episodes.support_y, episodes.ways).to(support.dtype).transpose(1, 2)
        exact = centres(support, members)
        noise = torch.randn(exact.shape, generator=generator_for("noise", self.seed)).to(exact)
        return -squared_distances(query, exact + self.scale * noise)


def gaussian_delta(sensitivity: float, scale: float, epsilon: float) -> float:
    r"""The smallest delta for which normal noise gives (epsilon, delta)-differential privacy.

    .. math:: \delta = \Phi\Bigl(\frac{\Delta}{2\sigma} - \frac{\varepsilon\sigma}{\Delta}\Bigr)
              - e^\varepsilon\, \Phi\Bigl(-\frac{\Delta}{2\sigma} - \frac{\varepsilon\sigma}{\Delta}\Bigr)

    B. Balle, Y.-X. Wang, Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
    Denoising, ICML 2018, https://arxiv.org/abs/1805.06530

    Parameters
    ----------
    sensitivity : float
        The largest distance by which the exchange of one example can move what is released.
    scale : float
        Standard deviation of the noise on each coordinate.
    epsilon : float
    """
    half, rest = sensitivity / (2 * scale), epsilon * scale / sensitivity
    return float(stats.norm.cdf(half - rest) - math.exp(epsilon) * stats.norm.cdf(-half - rest))


def gaussian_scale(sensitivity: float, epsilon: float, delta: float) -> float:
    """The least noise with which a release is (epsilon, delta)-differentially private: :func:`gaussian_delta` solved.

    Raises
    ------
    ValueError
        If epsilon or the sensitivity is not positive, or delta not between 0 and 1.
    """
    if sensitivity <= 0 or epsilon <= 0 or not 0 < delta < 1:
        raise ValueError(f"sensitivity {sensitivity}, epsilon {epsilon} and delta {delta}: positive, and delta below 1")

    def too_much(log_scale: float) -> float:
        return gaussian_delta(1.0, math.exp(log_scale), epsilon) - delta

    return sensitivity * math.exp(optimize.brentq(too_much, -20.0, 20.0, xtol=1e-12))
