r"""An agent that chooses among tools, and gets better at it by remembering what worked.

A *toolbox* is a set of tools that the agent has not seen before: of each it can read a description. Requests come one
after another. For each the agent ranks the tools, fills in the arguments of the best one from the request, calls it,
and hears whether that was what was wanted; if not, it tries the next. A solved request goes into its memory, together
with the tool that solved it.

What ranks the tools is a :class:`~metabook.learners.Learner`: the descriptions and the memory are its support set, the
request is the query. So every few-shot learner over texts can be the agent's mind. This module adds two: one that reads
descriptions and similar solved requests in a language model's context, and one that was meta-trained on other tools.

Agents of this kind, with much larger models: T. Schick and others, Toolformer, 2023, https://arxiv.org/abs/2302.04761;
S. Yao and others, ReAct, 2023, https://arxiv.org/abs/2210.03629; N. Shinn and others, Reflexion, 2023,
https://arxiv.org/abs/2303.11366.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.chat.setup import Adapted
from metabook.episodes import Episodes, generator_for
from metabook.learners import Learner, ProtoNet, task_losses
from metabook.learners.prototypes import squared_distances
from metabook.llm.in_context import InContext
from metabook.llm.model import LanguageModel
from metabook.llm.tools import Call, Request, Tool, ToolError, fill
from metabook.training import fit, seed_everything

__all__ = [
    "Agent",
    "Attempt",
    "Described",
    "InContextTools",
    "OverRows",
    "Pool",
    "Stream",
    "ToolTasks",
    "draw_stream",
    "meta_train",
    "reading",
    "standardised",
]


# --- Tools and requests as few-shot tasks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Tools and requests in one table of texts: first the description of each tool, then the requests.

    The inputs of episodes are rows of the table. A row below ``len(tools)`` is a description.

    Parameters
    ----------
    tools : tuple of Tool
    requests : tuple of Request
        Each for one of the tools.
    """

    tools: tuple[Tool, ...]
    requests: tuple[Request, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (*(tool.text for tool in self.tools), *(request.text for request in self.requests))

    def request(self, row: int) -> Request:
        """The request in a row of the table."""
        return self.requests[row - len(self.tools)]

    def rows_for(self, tool: int) -> list[int]:
        """Rows of the requests for a tool."""
        name = self.tools[tool].name
        return [len(self.tools) + n for n, each in enumerate(self.requests) if each.call.tool.name == name]

    def of_domains(self, domains: Sequence[str]) -> list[int]:
        """The tools of some domains."""
        return [number for number, tool in enumerate(self.tools) if tool.domain in domains]


@dataclass(frozen=True)
class Stream:
    """What an agent meets in one episode.

    Parameters
    ----------
    toolbox : tuple of int
        Tools of the pool.
    rows : tuple of int
        Rows of the requests, in the order in which they come.
    """

    toolbox: tuple[int, ...]
    rows: tuple[int, ...]


def draw_stream(pool: Pool, tools: Sequence[int], ways: int, length: int, generator: torch.Generator) -> Stream:
    """Some of the tools at random, and requests for them in random order.

    No two requests of a stream are made from one template: nothing that is asked was worded alike before.

    Parameters
    ----------
    pool : Pool
    tools : sequence of int
        To draw from.
    ways : int
        Tools in the box.
    length : int
        Requests.
    generator : torch.Generator

    Raises
    ------
    ValueError
        If there are too few tools, or templates.
    """
    if not 2 <= ways <= len(tools):
        raise ValueError(f"{ways} tools of {len(tools)} cannot be drawn: at least 2, at most all")
    toolbox = [tools[place] for place in torch.randperm(len(tools), generator=generator)[:ways].tolist()]
    chosen: dict[tuple[int, int], int] = {}
    rows = [(tool, row) for tool in toolbox for row in pool.rows_for(tool)]
    for place in torch.randperm(len(rows), generator=generator).tolist():
        tool, row = rows[place]
        chosen.setdefault((tool, pool.request(row).template), row)
    if len(chosen) < length:
        raise ValueError(f"{ways} tools have {len(chosen)} templates, and {length} requests are wanted")
    return Stream(tuple(toolbox), tuple(chosen.values())[:length])


class ToolTasks:
    """A source of tasks for meta-training: a toolbox, a memory of some solved requests, and queries.

    The support set holds the description of each tool and then the memory, in which a tool may occur several times or
    not at all, as in an agent's life.

    Parameters
    ----------
    pool : Pool
    tools : sequence of int
        Tools to draw from: those of training domains.
    ways, queries : int
    memory : sequence of int
        Sizes of the memory, which take turns from step to step.
    seed : int
    """

    def __init__(
        self,
        pool: Pool,
        tools: Sequence[int],
        ways: int = 8,
        queries: int = 16,
        memory: Sequence[int] = (0, 2, 4, 8, 16),
        seed: int = 0,
    ) -> None:
        self.pool, self.tools, self.ways, self.queries, self.memory, self.seed = (
            pool,
            tools,
            ways,
            queries,
            memory,
            seed,
        )

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        generator = generator_for("tool tasks", self.seed, step)
        size = self.memory[step % len(self.memory)]
        streams = [draw_stream(self.pool, self.tools, self.ways, size + self.queries, generator) for _ in range(tasks)]
        return episodes_of(self.pool, streams, size)


def episodes_of(pool: Pool, streams: Sequence[Stream], memory: int) -> Episodes:
    """Streams as tasks: descriptions and the first ``memory`` requests are the support set, the others the queries."""
    names = [tool.name for tool in pool.tools]
    x, y = [], []
    for stream in streams:
        place = {names[tool]: at for at, tool in enumerate(stream.toolbox)}
        x.append([*stream.toolbox, *stream.rows])
        y.append([*range(len(stream.toolbox)), *(place[pool.request(row).call.tool.name] for row in stream.rows)])
    ways = len(streams[0].toolbox)
    sizes = [ways + memory, len(x[0]) - ways - memory]
    (support_x, query_x), (support_y, query_y) = (torch.tensor(part).split(sizes, 1) for part in (x, y))
    return Episodes(support_x, support_y, query_x, query_y, torch.tensor([stream.toolbox for stream in streams]))


def standardised(table: Tensor, pool: Pool, tools: Sequence[int], *, apart: bool = True) -> Tensor:
    """Features of length one, shifted and scaled by what those of the training tools' texts are.

    Parameters
    ----------
    table : Tensor [texts, width]
        Features of the texts of a pool.
    pool : Pool
    tools : sequence of int
        The training tools.
    apart : bool
        Descriptions and requests each by their own mean: a description is written in another manner than a request,
        and if what is common to all requests is left in, every request is near to every other.

    Returns
    -------
    Tensor [texts, width]
    """
    n = len(pool.tools)
    asked = torch.tensor([row for tool in tools for row in pool.rows_for(tool)])
    told = torch.as_tensor(list(tools))
    deviation = table[asked].std(0).clamp_min(1e-6)
    means = [table[told].mean(0), table[asked].mean(0)] if apart else [table[torch.cat([told, asked])].mean(0)] * 2
    return F.normalize(torch.cat([table[:n] - means[0], table[n:] - means[1]]) / deviation, dim=1)


# --- Minds --------------------------------------------------------------------------------------------------------


class OverRows(Learner):
    """A learner on vectors that is asked about rows of a table.

    Parameters
    ----------
    learner : Learner
    table : Tensor [texts, width]
    """

    def __init__(self, learner: Learner, table: Tensor) -> None:
        super().__init__()
        self.learner, self.table = learner, table

    def predict(self, episodes: Episodes) -> Tensor:
        vectors = replace(episodes, support_x=self.table[episodes.support_x], query_x=self.table[episodes.query_x])
        return self.learner.predict(vectors)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


class Described(ProtoNet):
    r"""Prototypes that begin as a tool's description and move to the requests that it solved.

    The embedding of a request for tool :math:`k` is taken to be normal around :math:`\mu_k`, and :math:`\mu_k` to be
    normal around the embedding :math:`e_k` of the description, of which it is worth :math:`\kappa` requests. After
    :math:`n_k` solved requests

    .. math:: c_k = \frac{\kappa e_k + \sum_i z_i}{\kappa + n_k}, \qquad
              \ell_k = \frac{v}{\kappa + n_k} - \lVert z - c_k \rVert^2 ,

    where the first term of the score takes back how much further away a mean of few lies. The embedding (a low-rank
    change of frozen features, with an own part for descriptions), :math:`\kappa` and :math:`v` are meta-learned.

    Parameters
    ----------
    table : Tensor [texts, width]
        Features of the texts of a pool, of length one.
    descriptions : int
        So many rows at its beginning are descriptions.
    rank : int
        Of the change.
    scale : float
        Length of the embeddings: how sharp the softmax can be.
    """

    table: Tensor

    def __init__(self, table: Tensor, descriptions: int, rank: int = 16, scale: float = 4.0) -> None:
        super().__init__(Adapted(table.shape[1], rank, scale))
        self.told = Adapted(table.shape[1], rank, scale)
        self.descriptions = descriptions
        self.log_worth = nn.Parameter(torch.zeros(()))
        self.spread = nn.Parameter(torch.zeros(()))
        self.register_buffer("table", table, persistent=False)

    @property
    def worth(self) -> float:
        """How many solved requests a description is worth."""
        return float(self.log_worth.detach().exp())

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``[tasks, examples, width]`` of rows ``[tasks, examples]``."""
        u, is_told = self.table[x], (x < self.descriptions).unsqueeze(-1)
        # The part for descriptions comes on top: what both share is learnt from both.
        return self.net(torch.where(is_told, self.told(u) / self.told.scale, u))

    def predict(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]``; the support set must begin with a description of each class."""
        ways = episodes.ways
        z, query = self.embed_both(episodes)
        worth = self.log_worth.exp()
        remembered = F.one_hot(episodes.support_y[:, ways:], ways).to(z.dtype).transpose(1, 2)  # [tasks, ways, n]
        total = worth + remembered.sum(2, keepdim=True)
        c = (worth * z[:, :ways] + remembered @ z[:, ways:]) / total
        return self.spread / total.transpose(1, 2) - squared_distances(query, c)


class InContextTools(Learner):
    """A language model reads the descriptions and the most similar solved requests, and then which tool it would name.

    Parameters
    ----------
    lm : LanguageModel
    pool : Pool
    table : Tensor [texts, width]
        Features of length one that say which requests are similar.
    shown : int
        At most so many solved requests are put into the prompt; the most similar comes last.
    **options
        Of :class:`~metabook.llm.InContext`: ``scoring``, ``calibration``, ``method``.
    """

    def __init__(self, lm: LanguageModel, pool: Pool, table: Tensor, shown: int = 4, **options: str) -> None:
        super().__init__()
        self.lm, self.pool, self.shown, self.options = lm, pool, shown, options
        self.table, self.texts = table, pool.texts

    def asker(self, toolbox: Sequence[int]) -> InContext:
        """What asks about the tools of a toolbox."""
        told = "".join(f"\n- {self.pool.tools[tool].text}" for tool in toolbox)
        return InContext(
            self.lm,
            instruction=f"Name the tool for each request. There are these tools:{told}",
            text_field="Request",
            label_field="Tool",
            **self.options,  # type: ignore[arg-type]
        )

    def nearest(self, rows: Sequence[int], query: int) -> list[int]:
        """Places of the solved requests that are shown for a query, the most similar last."""
        if not rows or not self.shown:
            return []
        return (self.table[list(rows)] @ self.table[query]).argsort(stable=True)[-self.shown :].tolist()

    def predict(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]``; the support set must begin with a description of each class."""
        logits = []
        for task in episodes.split(1):
            toolbox, solved = task.support_x[0, : task.ways].tolist(), task.support_x[0, task.ways :].tolist()
            labels, ask = task.support_y[0, task.ways :].tolist(), self.asker(toolbox)
            names = [self.pool.tools[tool].label for tool in toolbox]
            queries = task.query_x[0].tolist()
            if not solved:  # they share their prompt
                logits.append(ask.scores([], [], names, [self.texts[row] for row in queries]))
                continue
            each = []
            for row in queries:
                shown = self.nearest(solved, row)
                texts, y = [self.texts[solved[at]] for at in shown], [labels[at] for at in shown]
                each.append(ask.scores(texts, y, names, [self.texts[row]]))
            logits.append(torch.cat(each))
        return torch.stack(logits).cpu()

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


def meta_train(
    pool: Pool,
    table: Tensor,
    tools: Sequence[int],
    steps: int = 60,
    *,
    ways: int = 8,
    rank: int = 16,
    lr: float = 3e-3,
    seed: int = 0,
) -> Described:
    """:class:`Described`, meta-trained on toolboxes of training tools.

    Parameters
    ----------
    pool : Pool
    table : Tensor [texts, width]
        Features of the pool's texts, of length one (:func:`standardised`).
    tools : sequence of int
        The training tools.
    steps : int
        Of Adam, each on four toolboxes.
    ways : int
        Tools in a box.
    rank, lr, seed
        Rank of the change of features, learning rate, seed.

    Returns
    -------
    Described
        In evaluation mode, frozen.
    """
    seed_everything(seed)
    learner = Described(table, len(pool.tools), rank)
    source = ToolTasks(pool, tools, ways, seed=seed)
    fit(learner, source, steps=steps, tasks=4, lr=lr, anneal="cosine", seed=seed, progress=False)
    return learner.eval().requires_grad_(False)


# --- The agent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What an agent did with one request.

    Parameters
    ----------
    request : Request
    ranking : tuple of Tool
        The best first.
    calls : tuple of Call
        In the order in which they were made; the last one solved it, if any did.
    solved : bool
    seconds : float
        CPU time of choosing (not of reading features that were computed before).
    remembered : int
        Size of the memory when the request came.
    """

    request: Request
    ranking: tuple[Tool, ...]
    calls: tuple[Call, ...]
    solved: bool
    seconds: float
    remembered: int

    @property
    def at_once(self) -> bool:
        """Whether the first call solved it."""
        return self.solved and len(self.calls) == 1

    @property
    def tool_right(self) -> bool:
        """Whether the first tool that was called is the one that was wanted."""
        return bool(self.calls) and self.calls[0].tool.name == self.request.call.tool.name


@dataclass
class Agent:
    """An agent in one episode: a mind that is shared by all episodes, and a memory that is its own.

    Parameters
    ----------
    mind : Learner
        Over rows of the pool; its support set begins with a description of each tool.
    pool : Pool
    toolbox : sequence of int
        Tools of the pool.
    remembers : bool
        Whether solved requests are kept.
    tries : int
        Calls that the user has patience for.
    """

    mind: Learner
    pool: Pool
    toolbox: Sequence[int]
    remembers: bool = True
    tries: int = 3
    #: Solved requests: row, and place of the tool in the box.
    memory: list[tuple[int, int]] = field(default_factory=list)

    def task(self, row: int) -> Episodes:
        """What the mind is asked: descriptions and memory as the support set, one request as the query."""
        rows, places = zip(*self.memory) if self.memory else ((), ())
        return Episodes(
            torch.tensor([[*self.toolbox, *rows]]),
            torch.tensor([[*range(len(self.toolbox)), *places]]),
            torch.tensor([[row]]),
            torch.zeros(1, 1, dtype=torch.long),  # nobody knows yet
            torch.tensor([list(self.toolbox)]),
        )

    @torch.no_grad()
    def scores(self, row: int) -> Tensor:
        """A score for each tool of the box, ``[tools]``."""
        return self.mind.predict(self.task(row))[0, 0]

    def solve(self, row: int) -> Attempt:
        """Try tools in the order of their scores until the user has what was asked for, or no more patience.

        A tool whose arguments the request does not hold is passed over: that costs no call.
        """
        request, remembered = self.pool.request(row), len(self.memory)
        started = time.process_time()
        order = self.scores(row).argsort(descending=True, stable=True).tolist()
        seconds = time.process_time() - started
        calls: list[Call] = []
        solved = False
        for place in order:
            try:
                call = fill(self.pool.tools[self.toolbox[place]], request.text)
            except ToolError:
                continue
            calls.append(call)
            if solved := call == request.call:  # what the user says on seeing the answer
                if self.remembers:
                    self.memory.append((row, place))
                break
            if len(calls) == self.tries:
                break
        ranking = tuple(self.pool.tools[self.toolbox[place]] for place in order)
        return Attempt(request, ranking, tuple(calls), solved, seconds, remembered)

    def live(self, stream: Stream) -> list[Attempt]:
        """Meet the requests of a stream one after another."""
        return [self.solve(row) for row in stream.rows]


@contextmanager
def reading(lm: LanguageModel) -> Iterator[list[int]]:
    """Inside, each pass of the model adds to the list how many tokens it read."""
    counts: list[int] = []

    def count(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        ids = arguments[0] if arguments else named["input_ids"]
        counts.append(ids.numel())

    hook = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()
