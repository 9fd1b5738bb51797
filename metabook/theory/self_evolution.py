r"""Self-evolution with finite pools: what the chapter of that name adds to :mod:`metabook.theory.across_tasks`.

A model answers a question with the probabilities :math:`p_t`, Tensor ``[answers]``, of which the first is the right
one's. A round draws :math:`m` answers, keeps some of them, with the shares :math:`q_t`, and trains on those:

.. math:: p_{t+1} = (1 - \eta)\, s_t + \eta\, q_t, \qquad
    s_t = p_0 \text{ (from the base model)} \quad \text{or} \quad s_t = p_t \text{ (cumulatively)}.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["majority", "simulate", "solved", "spread"]


def spread(diversity: float, eta: float, size: int, rounds: int, *, cumulative: bool) -> Tensor:
    r"""Expected squared distance from the base model without a verifier, ``[rounds + 1]``.

    With the diversity :math:`V_0` of the base model's answers,

    .. math::
        G_{t+1} = G_t + \tfrac{\eta^2}{m} (V_0 - G_t) \text{ cumulatively, otherwise} \quad
        G_{t+1} = \eta^2 \bigl(G_t + \tfrac1m (V_0 - G_t)\bigr).

    Parameters
    ----------
    diversity : float
        :math:`V_0`, the probability that two of the base model's answers differ.
    eta : float
        How far a round's training goes towards its pool, between 0 and 1.
    size, rounds : int
    cumulative : bool
        Start a round from the last one's model instead of the base model.
    """
    values = [0.0]
    for _ in range(rounds):
        drift = eta**2 / size * (diversity - values[-1])
        values.append(values[-1] * (1.0 if cumulative else eta**2) + drift)
    return torch.tensor(values, dtype=torch.float64)


def solved(p: Tensor, samples: int) -> Tensor:
    r"""Expected share of tasks with at least one right answer among several.

    .. math:: \frac1n \sum_{i=1}^n \bigl(1 - (1 - p_i)^k\bigr) \le 1 - (1 - \bar p)^k

    Parameters
    ----------
    p : Tensor [tasks]
        Probability of a right answer to each.
    samples : int
        :math:`k`.
    """
    return (1 - (1 - p) ** samples).mean()


def majority(p: Tensor | float) -> Tensor | float:
    r"""Share of right answers where the most frequent of three counts as right, and there are two answers.

    .. math:: p \to p^3 + 3 p^2 (1 - p)

    The fixed points are 0, 1/2 and 1; the slopes there are 0, 3/2 and 0.
    """
    return p * p * (3 - 2 * p)


def simulate(
    base: Tensor,
    eta: float,
    size: int,
    rounds: int,
    *,
    cumulative: bool,
    tpr: float = 1.0,
    fpr: float = 1.0,
    runs: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Many runs of the loop, ``[rounds + 1, runs, answers]``.

    Parameters
    ----------
    base : Tensor [answers]
        The base model's probabilities; the first answer is the right one.
    eta : float
        How far a round's training goes towards its pool, between 0 and 1.
    size, rounds : int
        Answers drawn a round; rounds.
    cumulative : bool
        Start a round from the last one's model instead of the base model.
    tpr, fpr : float
        With what probability a right and a wrong answer are kept; both 1: no verifier. A round that keeps nothing
        trains on nothing, and gives the model that it starts from.
    runs : int
    generator : torch.Generator, optional
    """
    p = base.double().expand(runs, -1)
    chance = torch.full_like(base, fpr, dtype=torch.float64)
    chance[0] = tpr
    path = [p]
    for _ in range(rounds):
        drawn = torch.multinomial(p, size, replacement=True, generator=generator)  # [runs, size]
        kept = torch.rand(drawn.shape, dtype=torch.float64, generator=generator) < chance[drawn]
        counts = torch.zeros_like(p).scatter_add(1, drawn, kept.double())
        total = counts.sum(1, keepdim=True)
        start = p if cumulative else path[0]
        p = torch.where(total > 0, (1 - eta) * start + eta * counts / total.clamp_min(1), start)
        path.append(p)
    return torch.stack(path)
