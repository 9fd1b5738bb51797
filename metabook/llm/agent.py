r"""An agent that chooses among tools, and gets better at it by remembering what worked.

A *toolbox* is a set of tools that the agent has not seen before: of each it can read a description. Requests come one
after another. For each the agent ranks the tools, fills in the arguments of the best one from the request, calls it,
and hears whether that was what was wanted; if not, it tries the next, and after a few calls the user does it. The
solved request goes into the agent's memory, together with the tool that solved it.

What ranks the tools is a :class:`~metabook.learners.Learner`: the descriptions and the memory are its support set, the
request is the query. So every few-shot learner over texts can be the agent's mind. This module adds two: one that reads
descriptions and similar solved requests in a language model's context, and one that was meta-trained on other tools.

Agents of this kind, with much larger models: T. Schick and others, Toolformer, 2023, https://arxiv.org/abs/2302.04761;
S. Yao and others, ReAct, 2023, https://arxiv.org/abs/2210.03629; N. Shinn and others, Reflexion, 2023,
https://arxiv.org/abs/2303.11366.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.chat.setup import Adapted
from metabook.episodes import Episodes, generator_for
from metabook.learners import Learner, task_losses
from metabook.llm.in_context import InContext
from metabook.llm.model import LanguageModel
from metabook.llm.sampling import sample
from metabook.llm.tools import Call, Request, Tool, ToolError, fill
from metabook.training import fit, seed_everything

__all__ = [
    "Agent",
    "AnyTool",
    "Attempt",
    "InContextTools",
    "OverRows",
    "Pool",
    "Stream",
    "ToolTasks",
    "WeighedMemory",
    "call_prompt",
    "draw_stream",
    "episodes_of",
    "meta_train",
    "reading",
    "standardised",
    "written_calls",
]


GAIN = 20.0

# --- Tools and requests as few-shot tasks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Tools and requests in one table of texts: each tool described, each tool undocumented, then the requests.

    The inputs of episodes are rows of the table. With ``n`` tools, row ``k`` is the description of tool ``k``, and row
    ``n + k`` what there is to read of it where nobody has written one.

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
        described = (tool.text for tool in self.tools)
        undocumented = (self.label(self.told + row) for row in range(-len(self.tools), 0))
        return (*described, *undocumented, *(request.text for request in self.requests))

    @property
    def told(self) -> int:
        """So many rows at the beginning of the table are about tools."""
        return 2 * len(self.tools)

    def tool(self, row: int) -> Tool:
        """The tool that a row at the beginning of the table is about."""
        return self.tools[row % len(self.tools)]

    def label(self, row: int) -> str:
        """What such a row calls its tool: its name, or ``"travel service 2"`` for one that is undocumented."""
        tool = self.tool(row)
        if row < len(self.tools):
            return tool.label
        own = [each for each in self.tools if each.domain == tool.domain]
        return f"{tool.domain} service {own.index(tool) + 1}"

    def request(self, row: int) -> Request:
        """The request in a row of the table."""
        return self.requests[row - self.told]

    def rows_for(self, tool: int) -> list[int]:
        """Rows of the requests for a tool."""
        name = self.tools[tool].name
        return [self.told + n for n, each in enumerate(self.requests) if each.call.tool.name == name]

    def of_domains(self, domains: Sequence[str]) -> list[int]:
        """The tools of some domains."""
        return [number for number, tool in enumerate(self.tools) if tool.domain in domains]


@dataclass(frozen=True)
class Stream:
    """What an agent meets in one episode.

    Parameters
    ----------
    toolbox : tuple of int
        What is to be read of each tool: rows at the beginning of the pool's table.
    rows : tuple of int
        Rows of the requests, in the order in which they come.
    """

    toolbox: tuple[int, ...]
    rows: tuple[int, ...]


def draw_stream(
    pool: Pool, tools: Sequence[int], ways: int, length: int, generator: torch.Generator, described: float = 1.0
) -> Stream:
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
    described : float
        Share of the tools that have a description, rounded; the others are undocumented.

    Raises
    ------
    ValueError
        If there are too few tools, or templates.
    """
    if not 2 <= ways <= len(tools):
        raise ValueError(f"{ways} tools of {len(tools)} cannot be drawn: at least 2, at most all")
    drawn = [tools[place] for place in torch.randperm(len(tools), generator=generator)[:ways].tolist()]
    chosen: dict[tuple[int, int], int] = {}
    rows = [(tool, row) for tool in drawn for row in pool.rows_for(tool)]
    for place in torch.randperm(len(rows), generator=generator).tolist():
        tool, row = rows[place]
        chosen.setdefault((tool, pool.request(row).template), row)
    if len(chosen) < length:
        raise ValueError(f"{ways} tools have {len(chosen)} templates, and {length} requests are wanted")
    written = torch.randperm(ways, generator=generator) < round(described * ways)
    toolbox = (tool if there else tool + len(pool.tools) for tool, there in zip(drawn, written.tolist()))
    return Stream(tuple(toolbox), tuple(chosen.values())[:length])


class ToolTasks:
    """A source of tasks for meta-training: a toolbox, a memory of some solved requests, and queries.

    The support set holds what is to be read of each tool and then the memory, in which a tool may occur several times
    or not at all, as in an agent's life.

    Parameters
    ----------
    pool : Pool
    tools : sequence of int
        Tools to draw from: those of training domains.
    ways, queries : int
    memory : sequence of int
        Sizes of the memory, which take turns from step to step.
    described : float
        Share of the tools that have a description.
    seed : int
    """

    def __init__(
        self,
        pool: Pool,
        tools: Sequence[int],
        ways: int = 8,
        queries: int = 16,
        memory: Sequence[int] = (0, 2, 4, 8, 16),
        described: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.pool, self.tools, self.ways, self.queries = pool, tools, ways, queries
        self.memory, self.described, self.seed = memory, described, seed

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        generator = generator_for("tool tasks", self.seed, step)
        size = self.memory[step % len(self.memory)]
        streams = [
            draw_stream(self.pool, self.tools, self.ways, size + self.queries, generator, self.described)
            for _ in range(tasks)
        ]
        return episodes_of(self.pool, streams, size)


def episodes_of(pool: Pool, streams: Sequence[Stream], memory: int) -> Episodes:
    """Streams as tasks: descriptions and the first ``memory`` requests are the support set, the others the queries."""
    x, y = [], []
    for stream in streams:
        place = {pool.tool(row).name: at for at, row in enumerate(stream.toolbox)}
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
        and what is common to all requests would make them nearer to one another than to any description.

    Returns
    -------
    Tensor [texts, width]
    """
    asked = torch.tensor([row for tool in tools for row in pool.rows_for(tool)])
    told = torch.as_tensor([*tools, *(tool + len(pool.tools) for tool in tools)])
    deviation = table[asked].std(0).clamp_min(1e-6)
    means = [table[told].mean(0), table[asked].mean(0)] if apart else [table[torch.cat([told, asked])].mean(0)] * 2
    return F.normalize(torch.cat([table[: pool.told] - means[0], table[pool.told :] - means[1]]) / deviation, dim=1)


# --- Minds --------------------------------------------------------------------------------------------------------


class AnyTool(Learner):
    """Tools in a random order, another one for each request: what chance is worth."""

    def predict(self, episodes: Episodes) -> Tensor:
        generator = generator_for("any tool", episodes.query_x.tolist())
        return torch.rand(*episodes.query_x.shape, episodes.ways, generator=generator)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


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


class WeighedMemory(Learner):
    r"""Descriptions and solved requests as evidence for their tools, with weights that are meta-learned.

    .. math:: p(k \mid x) \propto \kappa_k\, e^{s_0\, u \cdot e_k} + \sum_{i:\, y_i = k} e^{s\, u \cdot u_i},
              \qquad \log \kappa_k = a + w \cdot e_k

    where :math:`u` is the embedding of the request, :math:`e_k` that of the description of tool :math:`k`, and
    :math:`u_i` that of a solved request. A large :math:`s` listens to the most similar request alone. What a
    description is worth, :math:`\kappa_k`, is read from the description. Without the first term this is a Matching
    Network (O. Vinyals and others, 2016, https://arxiv.org/abs/1606.04080).

    Parameters
    ----------
    table : Tensor [texts, width]
        Features of the texts of a pool, of length one.
    told : int
        So many rows at its beginning are about tools.
    rank : int
        Of a low-rank change of the features, which is meta-learned as well; 0 leaves them as they are.
    sharpness : float
        Both :math:`s` before training.
    """

    table: Tensor

    def __init__(self, table: Tensor, told: int, rank: int = 0, sharpness: float = 10.0) -> None:
        super().__init__()
        self.told = told
        self.net = Adapted(table.shape[1], rank, scale=1.0) if rank else nn.Identity()
        self.worth = nn.Linear(table.shape[1], 1, bias=False)
        nn.init.zeros_(self.worth.weight)
        # In units of GAIN: at the learning rate of the matrices, single numbers would hardly move.
        self.offset = nn.Parameter(torch.zeros(()))
        self.log_sharpness = nn.Parameter(torch.full((2,), math.log(sharpness) / GAIN))
        self.register_buffer("table", table, persistent=False)

    @property
    def sharpness(self) -> Tensor:
        """Both :math:`s`: of descriptions, of solved requests."""
        return (GAIN * self.log_sharpness).exp()

    def log_worth(self, rows: Tensor) -> Tensor:
        r""":math:`\log \kappa` of the descriptions in some rows."""
        return GAIN * self.offset + self.worth(self.table[rows]).squeeze(-1)

    def predict(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]``; the support set must begin with a description of each class."""
        ways, (s_told, s_solved) = episodes.ways, self.sharpness
        told, solved = episodes.support_x[:, :ways], episodes.support_x[:, ways:]
        e, z, u = (self.net(self.table[rows]) for rows in (told, solved, episodes.query_x))
        told_evidence = s_told * u @ e.mT + self.log_worth(told).unsqueeze(1)
        others = episodes.support_y[:, ways:].unsqueeze(1) != torch.arange(ways).unsqueeze(1)  # [tasks, ways, n]
        solved_evidence = (s_solved * u @ z.mT).unsqueeze(2).masked_fill(others.unsqueeze(1), -torch.inf)
        return torch.cat([told_evidence.unsqueeze(3), solved_evidence], 3).logsumexp(3)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()


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
        told = "".join(f"\n- {self.texts[row]}" for row in toolbox)
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
            names = [self.pool.label(row) for row in toolbox]
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
    steps: int = 100,
    *,
    ways: int = 8,
    rank: int = 0,
    lr: float = 3e-3,
    seed: int = 0,
) -> WeighedMemory:
    """:class:`WeighedMemory`, meta-trained on toolboxes of training tools.

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
    WeighedMemory
        In evaluation mode, frozen.
    """
    seed_everything(seed)
    learner = WeighedMemory(table, pool.told, rank)
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
    tried : tuple of (Tool, Call or None)
        In this order; no call where the request did not hold the arguments. The last one solved it, if any did.
    solved : bool
    seconds : float
        CPU time of choosing (not of reading features that were computed before).
    remembered : int
        Size of the memory when the request came.
    """

    request: Request
    tried: tuple[tuple[Tool, Call | None], ...]
    solved: bool
    seconds: float
    remembered: int

    @property
    def at_once(self) -> bool:
        """Whether the first call solved it."""
        return self.solved and len(self.tried) == 1

    @property
    def tool_right(self) -> bool:
        """Whether the first tool that was tried is the one that was wanted."""
        return bool(self.tried) and self.tried[0][0].name == self.request.call.tool.name


@dataclass
class Agent:
    """An agent in one episode: a mind that is shared by all episodes, and a memory that is its own.

    Parameters
    ----------
    mind : Learner
        Over rows of the pool; its support set begins with a description of each tool.
    pool : Pool
    toolbox : sequence of int
        What is to be read of each tool: rows at the beginning of the pool's table.
    remembers : bool
        Whether requests are kept with the tool that solved them: one that the agent found, or in the end the user.
    tries : int
        Calls that the user has patience for.
    checks : bool
        Pass over tools for whose parameters the request holds nothing of the right type. Without, trying one is a
        call that fails.
    """

    mind: Learner
    pool: Pool
    toolbox: Sequence[int]
    remembers: bool = True
    tries: int = 3
    checks: bool = False
    #: Solved requests: row of each, and place of its tool in the box.
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
        """Try tools in the order of their scores until the user has what was asked for, or no more patience."""
        request, remembered = self.pool.request(row), len(self.memory)
        started = time.process_time()
        order = self.scores(row).argsort(descending=True, stable=True).tolist()
        seconds = time.process_time() - started
        tried: list[tuple[Tool, Call | None]] = []
        solved = False
        for place in order:
            tool = self.pool.tool(self.toolbox[place])
            try:
                call = fill(tool, request.text)
            except ToolError:
                call = None
            if call is None and self.checks:
                continue
            tried.append((tool, call))
            solved = call == request.call  # what the user says on seeing the answer
            if solved or len(tried) == self.tries:
                break
        self.remember(row)
        return Attempt(request, tuple(tried), solved, seconds, remembered)

    def remember(self, row: int) -> None:
        """Keep a request and its tool, if this agent remembers: after it was solved, by whomever."""
        if self.remembers:
            wanted = self.pool.request(row).call.tool.name
            self.memory.append((row, [self.pool.tool(each).name for each in self.toolbox].index(wanted)))

    def live(self, stream: Stream, every: int = 1) -> list[Attempt]:
        """Meet the requests of a stream one after another; only each ``every``-th is left to the agent.

        The others are solved by the user while the agent looks on: for minds that take their time.
        """
        attempts = []
        for number, row in enumerate(stream.rows):
            if number % every == 0:
                attempts.append(self.solve(row))
            else:
                self.remember(row)
        return attempts


def call_prompt(tool: Tool, text: str, demonstrations: Sequence[Request]) -> str:
    """Text after which a language model is to write the call of a tool: some solved requests, and this one.

    The call is begun, ``name(``: what is left to write are the arguments.
    """
    solved = [f"{_asked_of(each.call.tool, each.text)} {each.call}\n\n" for each in demonstrations]
    return "".join(["Write the call of the tool.\n\n", *solved, f"{_asked_of(tool, text)} {tool.name}("])


def _asked_of(tool: Tool, text: str) -> str:
    return f"Request: {text}\nTool: {tool.name} with {', '.join(tool.parameters)}\nCall:"


def written_calls(lm: LanguageModel, requests: Sequence[Request], demonstrations: Sequence[Request]) -> list[str]:
    """What a language model writes as the calls of the right tools, the most probable token each time.

    The result is text from a model: :func:`~metabook.llm.tools.parse_call` reads it, and nothing else may.

    Parameters
    ----------
    lm : LanguageModel
    requests : sequence of Request
    demonstrations : sequence of Request
        For other tools; shown with their calls.

    Returns
    -------
    list of str
    """
    prompts = [call_prompt(each.call.tool, each.text, demonstrations) for each in requests]
    made = sample(lm, prompts, 32, temperature=0)
    return [f"{each.call.tool.name}({texts[0].strip()}" for each, texts in zip(requests, made)]


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
