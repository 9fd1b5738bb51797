"""A small transformer that learns in its context: the support set is its input, and no weight changes in a task.

S. Garg, D. Tsipras, P. Liang, G. Valiant, What Can Transformers Learn In-Context? A Case Study of Simple Function
Classes, NeurIPS 2022, https://arxiv.org/abs/2208.01066; E. Akyürek, D. Schuurmans, J. Andreas, T. Ma, D. Zhou, What
Learning Algorithm Is In-Context Learning?, ICLR 2023, https://arxiv.org/abs/2211.15661; J. von Oswald and others,
Transformers Learn In-Context by Gradient Descent, ICML 2023, https://arxiv.org/abs/2212.07677
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.episodes import Episodes
from metabook.learners.base import Learner, task_losses

__all__ = ["InContextTransformer"]


class InContextTransformer(Learner):
    """Read the support points one after the other, and answer each query from those read so far.

    A support point is one token, made of input and value; a query is a token without a value. A support token attends
    to those before it; a query to a number of support tokens and to itself, never to another query. There are no
    positions, since the points of a task have no order, and no layer norms, since a value has to come through at its
    size. (Garg and others give input and value a token each, in the architecture of GPT-2.)

    Parameters
    ----------
    inputs, outputs : int
        Numbers of an input, and of a value.
    width, depth, heads : int
        Of the transformer.

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """

    def __init__(self, inputs: int = 1, outputs: int = 1, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        super().__init__()
        self.inputs, self.outputs, self.width, self.depth, self.heads = inputs, outputs, width, depth, heads
        self.read = nn.Linear(inputs + outputs + 1, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.answer = nn.Linear(width, outputs)

    def predict(self, episodes: Episodes) -> Tensor:
        queries = episodes.query_x.shape[1]
        return self._answers(episodes, torch.full((queries,), episodes.support_x.shape[1]))

    def by_points(self, episodes: Episodes) -> Tensor:
        """Predictions after the first 0, 1, ..., all support points, ``[tasks, points + 1, queries, outputs]``."""
        lengths, queries = episodes.support_x.shape[1] + 1, episodes.query_x.shape[1]
        repeated = Episodes(
            episodes.support_x,
            episodes.support_y,
            episodes.query_x.repeat(1, lengths, 1),
            episodes.query_y.repeat(1, lengths, 1),
        )
        answers = self._answers(repeated, torch.arange(lengths).repeat_interleave(queries))
        return answers.unflatten(1, (lengths, queries))

    def loss(self, episodes: Episodes) -> Tensor:
        """Mean squared error of the queries, of which the first sees no support point, the next one, and so on.

        After the query that sees all it begins anew. So with one query more than support points each number of points
        is trained, as in a language model, where each token is predicted from those before it.
        """
        queries, lengths = episodes.query_x.shape[1], episodes.support_x.shape[1] + 1
        return task_losses(self._answers(episodes, torch.arange(queries) % lengths), episodes.query_y).mean()

    def _answers(self, episodes: Episodes, seen: Tensor) -> Tensor:
        """Answer each query from the first ``seen [queries]`` support points."""
        inputs = episodes.support_x.shape[-1]
        if not episodes.regression or (inputs, episodes.ways) != (self.inputs, self.outputs):
            raise ValueError(f"this transformer maps {self.inputs} numbers to {self.outputs}; the tasks are others")
        tokens = torch.cat(
            [
                _tokens(episodes.support_x, episodes.support_y, 0.0),
                _tokens(episodes.query_x, torch.zeros_like(episodes.query_y), 1.0),
            ],
            1,
        )
        mask = visible(episodes.support_x.shape[1], seen).to(tokens.device)
        state = self.read(tokens)
        for block in self.blocks:
            state = block(state, mask)
        return self.answer(state[:, episodes.support_x.shape[1] :])


def visible(points: int, seen: Tensor) -> Tensor:
    """Which token may attend to which: ``[points + queries, points + queries]``, support tokens first.

    Parameters
    ----------
    points : int
        Support tokens; each sees itself and those before it.
    seen : Tensor [queries]
        How many support tokens each query sees, beside itself.
    """
    queries = len(seen)
    support = torch.cat([torch.ones(points, points).tril(), torch.zeros(points, queries)], 1).bool()
    asked = torch.cat([torch.arange(points) < seen.unsqueeze(1), torch.eye(queries).bool()], 1)
    return torch.cat([support, asked])


def _tokens(x: Tensor, y: Tensor, query: float) -> Tensor:
    return torch.cat([x, y, torch.full_like(y[..., :1], query)], -1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, state: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in self.mix(state).chunk(3, 2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        state = state + self.out(attended.transpose(1, 2).flatten(2))
        return state + self.think(state)
