"""Closed forms of the chapter on self-supervision and masked losses.

A joint distribution of ``n`` tokens from a vocabulary of ``V`` is a tensor ``[V] * n`` that sums to one. Entropies are
in nats. A Markov chain is given by its transition matrix ``[V, V]``, whose rows sum to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product

import torch
from torch import Tensor

__all__ = [
    "chain_posterior",
    "conditional",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "expectation_over_masks",
    "horvitz_thompson",
    "horvitz_thompson_variance",
    "log_odds_ratio",
    "minimiser",
    "minimiser_slope",
    "order_agnostic_entropy",
    "self_normalised",
    "stationary",
    "weighted_mean",
]


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """``sum w l / sum w`` over all dimensions: the masked loss that does not depend on how much is masked.

    Raises
    ------
    ValueError
        If the weights sum to zero: nothing is masked, and there is no mean.
    """
    total = weights.sum()
    if total == 0:
        raise ValueError("no token is masked: draw the mask again, or leave the batch out")
    return (weights * losses).sum() / total


# --- Supervised and self-supervised loss together -----------------------------------------------------------------


def minimiser(A: Tensor, a: Tensor, B: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """Minimum of ``(x - a)' A (x - a) / 2 + weight (x - b)' B (x - b) / 2``, ``[d]``."""
    return torch.linalg.solve(A + weight * B, A @ a + weight * B @ b)


def minimiser_slope(A: Tensor, a: Tensor, B: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """Derivative of :func:`minimiser` by the weight, ``[d]``."""
    return torch.linalg.solve(A + weight * B, B @ (b - minimiser(A, a, B, b, weight)))


# --- Entropies of a small joint distribution ----------------------------------------------------------------------


def entropy(p: Tensor) -> Tensor:
    """Entropy of a distribution given as a tensor of any shape."""
    return -torch.special.xlogy(p, p).sum()


def conditional(p: Tensor, token: int, observed: Sequence[int] | None = None) -> Tensor:
    """Probability of one token given the observed ones, all others summed out.

    Parameters
    ----------
    p : Tensor [V] * n
    token : int
    observed : sequence of int, optional
        By default all other tokens.

    Returns
    -------
    Tensor [V] * n with size 1 where a token is neither the one nor observed
        Sums to one along ``token``.
    """
    seen = [i for i in range(p.dim()) if i != token] if observed is None else list(observed)
    hidden = [i for i in range(p.dim()) if i != token and i not in seen]
    margin = p.sum(hidden, keepdim=True) if hidden else p
    return margin / margin.sum(token, keepdim=True)


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Expected ``-log q`` under ``p``; ``q`` is a conditional that broadcasts against ``p``."""
    return -(p * q.log()).sum()


def conditional_entropy(p: Tensor, token: int, observed: Sequence[int] | None = None) -> Tensor:
    """``H(x_token | observed)``: what a masked loss cannot go below."""
    return cross_entropy(p, conditional(p, token, observed))


def order_agnostic_entropy(p: Tensor) -> Tensor:
    """``n`` times the mean loss of a masked token, when the number of masked tokens is uniform in ``1 .. n``.

    With the true conditionals this is the entropy of the joint distribution (Uria, Murray and Larochelle, "A Deep and
    Tractable Density Estimator", ICML 2014).
    """
    n, total = p.dim(), p.new_zeros(())
    for size in range(1, n + 1):
        sets = list(combinations(range(n), size))
        for masked in sets:
            seen = [i for i in range(n) if i not in masked]
            mean = torch.stack([conditional_entropy(p, j, seen) for j in masked]).mean()
            total = total + mean / len(sets) / n
    return n * total


def log_odds_ratio(q: Tensor) -> Tensor:
    """Of a ``[2, 2]`` table; the same for a joint distribution and for both of its conditionals."""
    return (q[0, 0] * q[1, 1] / (q[0, 1] * q[1, 0])).log()


# --- Masks that are drawn -----------------------------------------------------------------------------------------


def expectation_over_masks(estimator: Callable[[Tensor], Tensor], probability: Tensor) -> Tensor:
    """Exact expectation of ``estimator(mask)`` over independent masks, by going through all ``2 ** n``."""
    total = probability.new_zeros(())
    for bits in product((0.0, 1.0), repeat=len(probability)):
        mask = probability.new_tensor(bits)
        total = total + (mask * probability + (1 - mask) * (1 - probability)).prod() * estimator(mask)
    return total


def horvitz_thompson(losses: Tensor, mask: Tensor, probability: Tensor) -> Tensor:
    """Mean loss of all tokens, estimated from the masked ones, each weighted by one over its probability.

    D. G. Horvitz, D. J. Thompson. A Generalization of Sampling Without Replacement From a Finite Universe. JASA 1952.
    """
    return (mask * losses / probability).mean()


def horvitz_thompson_variance(losses: Tensor, probability: Tensor) -> Tensor:
    """Variance of :func:`horvitz_thompson` over independent masks."""
    return (losses.square() * (1 - probability) / probability).sum() / len(losses) ** 2


def self_normalised(losses: Tensor, mask: Tensor, probability: Tensor) -> Tensor:
    """The same with the weights made to sum to one: not quite unbiased, and exact for equal losses (0 for no mask)."""
    weights = mask / probability
    return (weights * losses).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


# --- A language whose optimum is known ----------------------------------------------------------------------------


def stationary(P: Tensor) -> Tensor:
    """The distribution ``[V]`` that a step with ``P`` does not change."""
    V = len(P)
    system = torch.cat([P.T - torch.eye(V, dtype=P.dtype), P.new_ones(1, V)])
    return torch.linalg.lstsq(system, torch.cat([P.new_zeros(V), P.new_ones(1)]).unsqueeze(1)).solution.squeeze(1)


def chain_posterior(P: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Exact probability of every token given all tokens that are not masked (and are not the token itself).

    In a chain only the nearest observed token on either side matters, at distances ``a`` and ``b``: the probability of
    ``v`` is proportional to ``P^a[left, v] P^b[v, right]``.

    Parameters
    ----------
    P : Tensor [V, V]
        The first token has the stationary distribution.
    tokens : Tensor [sequences, n], int64
    mask : Tensor [sequences, n], bool
        True where a token is hidden.

    Returns
    -------
    Tensor [sequences, n, V]
    """
    sequences, n = tokens.shape
    seen = torch.nn.functional.one_hot(tokens, len(P)).to(P.dtype)
    # What an observed token says, and what a hidden one says: nothing.
    evidence = torch.where(mask.unsqueeze(-1), torch.ones_like(seen), seen)
    forward = [stationary(P).expand(sequences, -1)]  # of token j, from those before it
    backward = [P.new_ones(sequences, len(P))]  # likelihood of those after token j, up to a factor
    for j in range(n - 1):
        forward.append(_normalised(forward[-1] * evidence[:, j]) @ P)
        backward.append(_normalised((backward[-1] * evidence[:, n - 1 - j]) @ P.T))
    return _normalised(torch.stack(forward, 1) * torch.stack(backward[::-1], 1))


def _normalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)
