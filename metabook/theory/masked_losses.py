r"""Self-supervision and masked losses: the closed forms of the chapter of that name.

Two quadratic losses added, reductions of masked losses, entropies of small joint distributions, the loss averaged over
orders, conditionals that belong to no joint, and estimators that weight by the probability of a mask.

A sequence has :math:`D` tokens of :math:`V` symbols. A *joint* is its distribution as a table, Tensor ``[V] * D``. The
:math:`2^D` sets of hidden tokens are numbered: token :math:`j` is hidden in set :math:`s` if bit :math:`j` of :math:`s`
is 1 (:func:`hidden_sets`). All is computed in the dtype of what is given; the chapter uses float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = [
    "best_mask_probabilities",
    "conditional",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "entropy_table",
    "gibbs_joint",
    "hajek",
    "hajek_variance",
    "hidden_sets",
    "hmm_joint",
    "horvitz_thompson",
    "horvitz_thompson_variance",
    "joint_of_conditionals",
    "macro_mean",
    "macro_minus_micro",
    "mask_probabilities",
    "minimiser",
    "minimiser_limit",
    "minimiser_slope",
    "order_agnostic",
    "order_losses",
    "order_weight",
    "random_rate_weight",
    "shard_loss",
    "token_losses",
    "weight_gradient",
    "weighted_mean",
]

# --- Two losses added ---------------------------------------------------------------------------------------------


def minimiser(A: Tensor, a: Tensor, C: Tensor, c: Tensor, weight: float) -> Tensor:
    r"""Where a supervised and a weighted self-supervised bowl have their common minimum.

    .. math:: \theta^*(\lambda) = (A + \lambda C)^{-1} (A a + \lambda C c)

    Parameters
    ----------
    A, C : Tensor [d, d]
        Curvatures, symmetric and positive semidefinite; their weighted sum is invertible.
    a, c : Tensor [d]
        Minima of the supervised and of the self-supervised loss.
    weight : float
        :math:`\lambda`.

    Returns
    -------
    Tensor [d]
    """
    return torch.linalg.solve(A + weight * C, A @ a + weight * C @ c)


def minimiser_slope(A: Tensor, a: Tensor, C: Tensor, c: Tensor, weight: float) -> Tensor:
    r"""Derivative of :func:`minimiser` by the weight, by the implicit function theorem.

    .. math:: \frac{d\theta^*}{d\lambda} = -(A + \lambda C)^{-1} C (\theta^* - c)
    """
    return -torch.linalg.solve(A + weight * C, C @ (minimiser(A, a, C, c, weight) - c))


def minimiser_limit(A: Tensor, a: Tensor, C: Tensor, c: Tensor) -> Tensor:
    r"""Limit of :func:`minimiser` as the weight goes to 0, for a supervised loss with a flat valley (singular ``A``).

    The least self-supervised loss among all minima of the supervised one. With the columns of :math:`Z` spanning the
    null space of :math:`A`,

    .. math:: \theta = a + Z (Z^\top C Z)^{-1} Z^\top C (c - a).
    """
    values, vectors = torch.linalg.eigh(A)
    Z = vectors[:, values < 1e-10 * values.max()]
    return a + Z @ torch.linalg.solve(Z.T @ C @ Z, Z.T @ (C @ (c - a)))


# --- Reductions ---------------------------------------------------------------------------------------------------


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted mean :math:`\sum_j w_j \ell_j / \sum_j w_j`; 0, with zero gradient, where all weights are 0.

    Parameters
    ----------
    losses, weights : Tensor [...]
        Of one shape. A loss whose weight is 0 may be anything, infinite too: it is not read.
    """
    weights = weights.to(losses.dtype)
    total = weights.sum()
    kept = torch.where(weights != 0, losses, torch.zeros_like(losses))
    return (weights * kept).sum() / torch.where(total != 0, total, torch.ones_like(total))


def macro_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean over groups of each group's :func:`weighted_mean`.

    Parameters
    ----------
    losses, weights : Tensor [groups, tokens]
        Every group has a positive weight.
    """
    return torch.stack([weighted_mean(*group) for group in zip(losses, weights, strict=True)]).mean()


def macro_minus_micro(counts: Tensor, means: Tensor) -> Tensor:
    r"""What the mean of group means is larger by than the mean over all tokens.

    .. math:: -\frac{\operatorname{Cov}(n_b, \bar\ell_b)}{\bar n}

    Parameters
    ----------
    counts : Tensor [groups]
        Hidden tokens, or the sum of the weights, of each group.
    means : Tensor [groups]
        Mean loss of each group.
    """
    covariance = (counts * means).mean() - counts.mean() * means.mean()
    return -covariance / counts.mean()


def shard_loss(losses: Tensor, weights: Tensor, total: Tensor | float, shards: int = 1) -> Tensor:
    r"""Loss of one shard, such that the shards together give the gradient of the mean over all tokens.

    .. math:: \frac{R}{W} \sum_{j \in \text{shard}} w_j \ell_j

    Parameters
    ----------
    losses, weights : Tensor [...]
        Of this shard.
    total : Tensor or float
        Sum of the weights of *all* shards, :math:`W`.
    shards : int
        :math:`R`: 1 where the gradients of shards are added (gradient accumulation), the number of processes where
        they are averaged (``DistributedDataParallel``).
    """
    return shards * (weights * losses).sum() / total


# --- Entropies of a small joint -----------------------------------------------------------------------------------


def hidden_sets(tokens: int) -> Tensor:
    """All sets of hidden tokens, bool ``[2**tokens, tokens]``; row ``s`` has the bits of ``s``."""
    return (torch.arange(2**tokens).unsqueeze(1) >> torch.arange(tokens)) % 2 == 1


def hmm_joint(start: Tensor, transition: Tensor, emission: Tensor, tokens: int) -> Tensor:
    """Joint distribution of the symbols that a hidden Markov model emits.

    Parameters
    ----------
    start : Tensor [states]
    transition : Tensor [states, states]
        Rows sum to 1.
    emission : Tensor [states, V]
        Rows sum to 1.
    tokens : int
        Length of a sequence.

    Returns
    -------
    Tensor [V] * tokens
    """
    forward = start.unsqueeze(1) * emission  # [states, V]: state and symbol now
    forward = forward.T  # [V, states]
    for _ in range(tokens - 1):
        forward = torch.einsum("...h,hg,gv->...vg", forward, transition, emission)
    return forward.sum(-1)


def _marginal(joint: Tensor, keep: Collection[int]) -> Tensor:
    gone = [j for j in range(joint.ndim) if j not in keep]
    return joint.sum(gone, keepdim=True) if gone else joint


def conditional(joint: Tensor, j: int, visible: Collection[int]) -> Tensor:
    r"""Distribution of token ``j`` given the visible ones, :math:`p(x_j \mid x_V)`.

    Returns
    -------
    Tensor
        As many dimensions as the joint, of size 1 where a token is neither ``j`` nor visible.
    """
    return _marginal(joint, {j, *visible}) / _marginal(joint, set(visible))


def entropy(joint: Tensor) -> Tensor:
    """Entropy of a distribution, in nats."""
    return -torch.special.xlogy(joint, joint).sum()


def conditional_entropy(joint: Tensor, j: int, visible: Collection[int]) -> Tensor:
    r"""Entropy of token ``j`` given the visible ones, :math:`H(X_j \mid X_V) = H(X_j, X_V) - H(X_V)`."""
    return entropy(_marginal(joint, {j, *visible})) - entropy(_marginal(joint, set(visible)))


def cross_entropy(joint: Tensor, log_q: Tensor) -> Tensor:
    r"""Expected loss of a predictor, :math:`\mathbb E_p[-\log q]`, under the joint.

    Parameters
    ----------
    joint : Tensor [V] * D
    log_q : Tensor
        A table that can be broadcast to the joint, such as the logarithm of a :func:`conditional`.
    """
    return -(joint * log_q).sum()


def entropy_table(joint: Tensor) -> Tensor:
    r"""Least expected loss of each hidden token in each set, ``[2**D, D]``: :math:`H(X_j \mid X_V)`; 0 if visible."""
    table = joint.new_zeros(2**joint.ndim, joint.ndim)
    for s, hidden in enumerate(hidden_sets(joint.ndim).tolist()):
        visible = [j for j in range(joint.ndim) if not hidden[j]]
        for j in set(range(joint.ndim)) - set(visible):
            table[s, j] = conditional_entropy(joint, j, visible)
    return table


def token_losses(log_q: Tensor, symbols: int) -> Tensor:
    r"""Loss :math:`-\log q(x_j \mid x_V)` of each token, for every sequence and every set of hidden tokens.

    Parameters
    ----------
    log_q : Tensor [(symbols + 1) ** D, D, symbols]
        A model's log-probabilities for every context: symbols are digits to the base ``symbols + 1``, the first token
        being the most significant one, and the digit ``symbols`` stands for a hidden token.
    symbols : int
        :math:`V`.

    Returns
    -------
    Tensor [symbols ** D, 2 ** D, D]
        0 where the token is visible. Sequences are in the order of a flattened joint.
    """
    tokens = log_q.shape[1]
    x = torch.cartesian_prod(*[torch.arange(symbols)] * tokens).view(-1, 1, tokens)
    hidden = hidden_sets(tokens)
    place = (symbols + 1) ** torch.arange(tokens - 1, -1, -1)
    context = (torch.where(hidden, symbols, x) * place).sum(2)  # [sequences, sets]
    losses = -log_q[context].gather(3, x.expand(-1, len(hidden), -1).unsqueeze(3)).squeeze(3)
    return losses * hidden


# --- Orders -------------------------------------------------------------------------------------------------------


def order_losses(losses: Tensor) -> Tensor:
    r"""Negative log-likelihood of a sequence under each order, :math:`-\log q_\sigma(x)`.

    Parameters
    ----------
    losses : Tensor [..., 2**D, D]
        Loss of each token in each hidden set.

    Returns
    -------
    Tensor [..., D!]
    """
    tokens = losses.shape[-1]
    totals = []
    for order in itertools.permutations(range(tokens)):
        hidden, total = 2**tokens - 1, losses.new_zeros(losses.shape[:-2])
        for j in order:
            total = total + losses[..., hidden, j]
            hidden -= 2**j
        totals.append(total)
    return torch.stack(totals, -1)


def order_weight(tokens: int, hidden: int) -> float:
    r"""Weight of a hidden token's loss in the mean over orders, :math:`1 / (k \binom Dk)` if k tokens are hidden."""
    return 1 / (hidden * math.comb(tokens, hidden))


def random_rate_weight(tokens: int, hidden: int) -> float:
    r"""Weight of a hidden token's loss for the rate r uniform on 0 to 1 and the loss divided by r.

    .. math:: \int_0^1 \frac1r\, r^k (1 - r)^{D - k}\, dr = \mathrm B(k, D - k + 1)
    """
    return math.exp(math.lgamma(hidden) + math.lgamma(tokens - hidden + 1) - math.lgamma(tokens + 1))


def order_agnostic(losses: Tensor) -> Tensor:
    r"""Mean of :func:`order_losses` over all orders, without enumerating them (Uria et al., 2014).

    .. math:: D\, \mathbb E_{k}\, \mathbb E_{|S| = k}\, \frac1k \sum_{j \in S} \ell_j(S),

    where the number of hidden tokens is uniform on :math:`1, \dots, D` and S is a uniform set of that size.

    Parameters
    ----------
    losses : Tensor [..., 2**D, D]

    Returns
    -------
    Tensor [...]
    """
    hidden = hidden_sets(losses.shape[-1])
    weights = [0.0, *(order_weight(hidden.shape[1], k) for k in range(1, hidden.shape[1] + 1))]
    by_set = torch.tensor(weights, dtype=losses.dtype)[hidden.sum(1)].unsqueeze(1) * hidden
    return (losses * by_set).sum((-2, -1))


# --- Conditionals without a joint ---------------------------------------------------------------------------------


def joint_of_conditionals(first: Tensor, second: Tensor) -> Tensor:
    r"""The joint of two tokens that has the given conditionals (Arnold and Press, 1989).

    Its ratio :math:`q(x_1 \mid x_2) / q(x_2 \mid x_1) = p(x_1) / p(x_2)` must be a product of a function of
    :math:`x_1` and a function of :math:`x_2`.

    Parameters
    ----------
    first : Tensor [V, V]
        ``q(x_1 | x_2)``, positive; columns sum to 1.
    second : Tensor [V, V]
        ``q(x_2 | x_1)``, positive; rows sum to 1.

    Returns
    -------
    Tensor [V, V]

    Raises
    ------
    ValueError
        If no joint has these conditionals.
    """
    ratio = first.log() - second.log()
    rest = ratio - ratio[:, :1] - ratio[:1] + ratio[0, 0]
    if rest.abs().max() > 1e-9:
        raise ValueError(f"no joint has these conditionals: the log ratios differ by {float(rest.abs().max()):.2g}")
    return ratio[:, :1].softmax(0) * second


def gibbs_joint(first: Tensor, second: Tensor, last: int) -> Tensor:
    """What sampling the two tokens in turn ends in, as it is seen after each draw of token ``last`` (1 or 2).

    Parameters
    ----------
    first, second : Tensor [V, V]
        As for :func:`joint_of_conditionals`.
    last : int

    Returns
    -------
    Tensor [V, V]
    """
    if last == 1:
        return gibbs_joint(second.T, first.T, 2).T
    step = torch.einsum("ij,ik->jk", first, second)  # from x_2 to the next x_2
    size = len(step)
    system = torch.cat([step.T - torch.eye(size, dtype=step.dtype), torch.ones(1, size, dtype=step.dtype)])
    target = torch.zeros(size + 1, dtype=step.dtype)
    target[-1] = 1
    stationary = torch.linalg.lstsq(system, target.unsqueeze(1)).solution[:, 0]
    return (first @ stationary).unsqueeze(1) * second


# --- Weighting by the probability of a mask -----------------------------------------------------------------------


def mask_probabilities(p: Tensor) -> Tensor:
    r"""Probability of each set of hidden tokens, ``[2**D]``, if token ``j`` is hidden independently with ``p[j]``."""
    hidden = hidden_sets(len(p))
    return torch.where(hidden, p, 1 - p).prod(1)


def horvitz_thompson(losses: Tensor, p: Tensor) -> Tensor:
    r"""Estimate of the mean loss from each mask (Horvitz and Thompson, 1952).

    .. math:: \frac1D \sum_j \frac{m_j}{p_j} \ell_j

    Parameters
    ----------
    losses : Tensor [D] or [2**D, D]
        One loss a token, or one for each mask, since a prediction depends on what is visible.
    p : Tensor [D]
        Probability that a token is hidden.

    Returns
    -------
    Tensor [2**D]
    """
    return (hidden_sets(len(p)) / p * losses).mean(1)


def horvitz_thompson_variance(losses: Tensor, p: Tensor) -> Tensor:
    r"""Variance of :func:`horvitz_thompson` for independent masks and losses ``[D]``.

    .. math:: \frac{1}{D^2} \sum_j \frac{1 - p_j}{p_j} \ell_j^2
    """
    return ((1 - p) / p * losses**2).sum() / len(p) ** 2


def hajek(losses: Tensor, p: Tensor) -> Tensor:
    r"""The same weights divided by their own sum (Hájek, 1971); ``nan`` for the empty mask.

    .. math:: \sum_j \frac{m_j}{p_j} \ell_j \Bigm/ \sum_j \frac{m_j}{p_j}

    Parameters and return value are those of :func:`horvitz_thompson`.
    """
    weights = hidden_sets(len(p)) / p
    return (weights * losses).sum(1) / weights.sum(1)


def hajek_variance(losses: Tensor, p: Tensor) -> Tensor:
    r"""Leading term, for many tokens, of the variance of :func:`hajek` with losses ``[D]``.

    .. math:: \frac{1}{D^2} \sum_j \frac{1 - p_j}{p_j} (\ell_j - \bar\ell)^2
    """
    return horvitz_thompson_variance(losses - losses.mean(), p)


def best_mask_probabilities(losses: Tensor, budget: float) -> Tensor:
    r"""Probabilities of least :func:`horvitz_thompson_variance` with the sum ``budget``: proportional to the loss.

    Raises
    ------
    ValueError
        If a probability would be larger than 1.
    """
    p = budget * losses.abs() / losses.abs().sum()
    if p.max() > 1:
        raise ValueError(f"a token would have to be hidden with probability {float(p.max()):.2f}")
    return p


def weight_gradient(validation: Tensor, tokens: Tensor, rate: float) -> Tensor:
    r"""How the validation loss after one step changes with the weight of each token, at weights 0 (Ren et al., 2018).

    .. math:: \frac{\partial}{\partial w_j} \mathcal L_{\text{val}}\Bigl(\theta - \alpha \sum_i w_i
              \nabla\ell_i(\theta)\Bigr)\Big|_{w = 0} = -\alpha\, \nabla\mathcal L_{\text{val}}^\top \nabla\ell_j

    Parameters
    ----------
    validation : Tensor [d]
        Gradient of the validation loss at the parameters before the step.
    tokens : Tensor [n, d]
        Gradient of each token's loss there.
    rate : float
        :math:`\alpha`.

    Returns
    -------
    Tensor [n]
    """
    return -rate * tokens @ validation
