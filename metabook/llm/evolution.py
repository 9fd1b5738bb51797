"""A language model that makes its own training data: propose tasks, solve them, verify, keep, train, and again.

The loop is that of expert iteration, with a language model as both the author of the tasks and the one who solves
them: E. Zelikman, Y. Wu, J. Mu, N. D. Goodman, STaR, 2022, https://arxiv.org/abs/2203.14465; A. Singh and others,
Beyond Human Data (ReST-EM), 2024, https://arxiv.org/abs/2312.06585, which both train anew from the base model in each
round; Y. Wang and others, Self-Instruct, 2023, https://arxiv.org/abs/2212.10560, for tasks that the model proposes.

What makes it work or fail is the verifier, and what makes it look better than it is are missing controls.
:func:`evolve` runs the loop and its controls by the same code: see ``pool`` of :class:`Settings`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from metabook.episodes import generator_for
from metabook.files import UserError
from metabook.llm.adapters import Adapter
from metabook.llm.domains import Domain
from metabook.llm.model import LanguageModel
from metabook.llm.sampling import sample
from metabook.storage import read_tensors, write_bytes, write_tensors

__all__ = ["POOLS", "VERDICTS", "Evolution", "Round", "Settings", "evolve", "judge", "train"]

#: What an adapter can be trained on beside the demonstrations; "demonstrations" adds nothing.
POOLS = ("verified", "unverified", "truth", "demonstrations")
#: What can become of a proposal; "surplus" is new as well, but more than was asked for.
VERDICTS = ("malformed", "demonstration", "held out", "duplicate", "new", "surplus")
QUESTION_TOKENS, ANSWER_TOKENS = 20, 12
LOGGED = 200  # characters of a proposal that the log keeps

Pair = tuple[str, str]  # a question and an answer
Propose = Callable[[int], Sequence[str]]
Entry = dict[str, Any]  # of the log: what became of one proposal


@dataclass(frozen=True)
class Settings:
    """How :func:`evolve` runs.

    Parameters
    ----------
    pool : {"verified", "unverified", "truth", "demonstrations"}
        What is trained on beside the demonstrations. Verified: proposals with an answer that the domain found right;
        the other three are controls. Unverified: every well-formed proposal with the first answer given to it. Truth:
        questions from the domain's generator with exact answers, as many as another run kept. Demonstrations: nothing.
    rounds : int
    tasks : int
        New tasks a round, if the model proposes so many.
    tries : int
        At most ``tries * tasks`` proposals are asked for in a round.
    samples : int
        Answers to each new task.
    demonstrations, held_out : int
        Solved examples that are given; tasks on which the model is judged.
    steps, batch, lr
        Of the training in each round.
    rank, first_layer : int
        Of the adapter: its rank, and the lowest decoder layer that has one.
    cumulative : bool
        Go on with the last round's weights, instead of starting from the base model in every round.
    own_proposals : bool
        Let the trained model propose the tasks of later rounds, instead of the base model.
    temperature : float
        Of proposals and answers.
    seed : int
        Of the demonstrations and of everything drawn at random. The held-out tasks are the same for all seeds.
    split : str
        Another name gives other held-out tasks: settings are chosen on ``"validation"``.

    Raises
    ------
    ValueError
        For another pool, or a number that is too small.
    """

    pool: str = "verified"
    rounds: int = 2
    tasks: int = 64
    tries: int = 6
    samples: int = 4
    demonstrations: int = 8
    held_out: int = 200
    steps: int = 12
    batch: int = 16
    lr: float = 1e-3
    rank: int = 8
    first_layer: int = 10
    cumulative: bool = False
    own_proposals: bool = False
    temperature: float = 1.0
    seed: int = 0
    split: str = "test"

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {self.pool!r}")
        for name in ("rounds", "tasks", "tries", "samples", "demonstrations", "held_out", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Round:
    """What one round kept and what the model could do after it; number 0 is the base model.

    Parameters
    ----------
    number : int
    plain, shown : list of int
        For each held-out task, 1 if its answer was right: asked alone, and with the demonstrations before it.
    verdicts : dict
        How many proposals met each of :data:`VERDICTS`.
    questions : list of str
        The new tasks.
    right : list of int
        For each of them, how many of its sampled answers were right.
    kept : list of (question, answer)
        What the round added to the training data.
    loss : float
        Mean training loss of the round's last quarter of steps; 0 for the base model.
    cpu_seconds : float
    """

    number: int
    plain: list[int]
    shown: list[int]
    verdicts: dict[str, int] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    kept: list[Pair] = field(default_factory=list)
    loss: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Evolution:
    """A finished run: its settings, its rounds from 0 on, and the adapter as the last round left it."""

    domain: str
    settings: Settings
    rounds: list[Round]
    adapter: Adapter

    @property
    def sizes(self) -> list[int]:
        """How many pairs each round kept: what a control of equal size needs."""
        return [len(each.kept) for each in self.rounds[1:]]


def evolve(
    lm: LanguageModel,
    domain: Domain,
    settings: Settings | None = None,
    *,
    sizes: Sequence[int] = (),
    propose: Propose | None = None,
    base: Round | None = None,
    adapter: Adapter | None = None,
    folder: Path | str | None = None,
    progress: bool = False,
) -> Evolution:
    """Run the loop, or one of its controls.

    A round: the model proposes tasks; those that are malformed or known, or whose key is that of a held-out task, go;
    it answers each of the others several times, with the demonstrations before its eyes as long as it is untrained; the
    domain says which answers are right; what the pool keeps joins what earlier rounds kept; an adapter is trained on
    that and the demonstrations, questions asked alone, from the base model's weights; it is judged on held-out tasks.

    Every draw is a function of the seed and the round. With a folder, each round is kept there as it ends, and a run
    that was killed goes on at its round when it is started again with the same arguments.

    Parameters
    ----------
    lm : LanguageModel
    domain : Domain
    settings : Settings, optional
    sizes : sequence of int
        For the pool "truth": how many tasks each round gets (:attr:`Evolution.sizes` of the run to compare with).
    propose : callable, optional
        Given a number, so many texts that are to become tasks; the model itself unless given.
    base : Round, optional
        Round 0 of another run on the same held-out tasks with the same demonstrations; it is not measured again.
    adapter : Adapter, optional
        One to train, reset at the start; a new one unless given (it then stays in the model).
    folder : path, optional
        Gets ``round-N.json``, ``round-N.safetensors`` (the adapter), and the log of all proposals, ``round-N.jsonl``.
    progress : bool
        Show progress bars.

    Returns
    -------
    Evolution

    Raises
    ------
    ValueError
        If the pool is "truth" and there is not a size for every round.
    UserError
        If the folder holds a run with other arguments.
    """
    loop = _Loop(lm, domain, settings or Settings(), list(sizes), propose, adapter, progress)
    shelf = None if folder is None else _Shelf(Path(folder), loop)
    rounds: list[Round] = []
    for number in tqdm(range(loop.settings.rounds + 1), disable=not progress, unit="round", desc=domain.name):
        done = shelf.take(number, loop.adapter) if shelf else None
        if done is None:
            done, log = (base, []) if number == 0 and base is not None else loop.run(number, rounds)
            if shelf:
                shelf.put(done, loop.adapter, log)
        rounds.append(done)
    return Evolution(domain.name, loop.settings, rounds, loop.adapter)


class _Loop:
    """One run: what is given, and what a round does."""

    def __init__(
        self,
        lm: LanguageModel,
        domain: Domain,
        settings: Settings,
        sizes: list[int],
        propose: Propose | None,
        adapter: Adapter | None,
        progress: bool,
    ) -> None:
        if settings.pool == "truth" and len(sizes) < settings.rounds:
            raise ValueError(f"the pool truth needs a size for each of {settings.rounds} rounds, not {len(sizes)}")
        self.lm, self.domain, self.settings, self.sizes = lm, domain, settings, sizes
        self.propose, self.progress = propose, progress
        self.held_out = domain.tasks(settings.held_out, generator_for("held out", domain.name, settings.split))
        self.known = frozenset(map(domain.key, self.held_out))
        given = domain.tasks(settings.demonstrations, self.generator("demonstrations"), self.known)
        self.demonstrations = tuple((question, domain.answer(question) or "") for question in given)
        layers = range(min(settings.first_layer, lm.depth - 1), lm.depth)
        self.adapter = adapter or Adapter(lm, settings.rank, layers=list(layers), seed=settings.seed)
        self.adapter.reset(settings.seed)

    def generator(self, *keys: Any) -> torch.Generator:
        return generator_for("evolution", self.domain.name, self.settings.seed, *keys)

    def title(self, text: str) -> str | None:
        return text if self.progress else None

    def run(self, number: int, before: list[Round]) -> tuple[Round, list[Entry]]:
        """Round ``number``, after those ``before`` it, and the log of its proposals."""
        started, settings = time.process_time(), self.settings
        if number == 0:
            plain, shown = self.scores()
            return Round(0, plain, shown, cpu_seconds=time.process_time() - started), []
        pool = [*self.demonstrations, *(pair for each in before for pair in each.kept)]
        log: list[Entry] = []
        kept: list[Pair] = []
        if settings.pool == "truth":
            known = self.known | {self.domain.key(question) for question, _ in pool}
            drawn = self.domain.tasks(self.sizes[number - 1], self.generator("truth", number), known)
            kept = [(question, self.domain.answer(question) or "") for question in drawn]
        elif settings.pool != "demonstrations":
            log = self.proposals(number, before)
            self.solve(number, [entry for entry in log if entry["verdict"] == "new"])
            kept = [pair for entry in log if (pair := self.keep(entry)) is not None]
        if not settings.cumulative:
            self.adapter.reset(settings.seed)
        losses = train(
            self.adapter,
            self.domain,
            [*pool, *kept],
            steps=settings.steps,
            batch=settings.batch,
            lr=settings.lr,
            generator=self.generator("training", number),
            progress=self.progress,
        )
        with self.adapter.active():
            plain, shown = self.scores()
        new = [entry for entry in log if entry["verdict"] == "new"]
        done = Round(
            number,
            plain,
            shown,
            verdicts=dict(Counter(entry["verdict"] for entry in log)),
            questions=[entry["question"] for entry in new],
            right=[entry["right"] for entry in new],
            kept=kept,
            loss=sum(losses[-(len(losses) // 4 or 1) :]) / (len(losses) // 4 or 1),
            cpu_seconds=time.process_time() - started,
        )
        return done, log

    def scores(self) -> tuple[list[int], list[int]]:
        """Which held-out tasks the model at work solves, asked alone and after the demonstrations."""
        found = []
        for demonstrations, title in (((), "held out, alone"), (self.demonstrations, "held out, shown")):
            prompts = [self.domain.prompt(question, demonstrations) for question in self.held_out]
            made = sample(self.lm, prompts, ANSWER_TOKENS, temperature=0, progress=self.title(title))
            found.append([int(self.correct(q, texts[0])) for q, texts in zip(self.held_out, made)])
        return found[0], found[1]

    def correct(self, question: str, answer: str) -> bool:
        return answer.strip() == self.domain.answer(question)

    def proposals(self, number: int, before: list[Round]) -> list[Entry]:
        """Proposals with their verdicts, until there are enough new tasks, or too many tries."""
        settings, domain = self.settings, self.domain
        log: list[Entry] = []
        seen = {domain.key(question) for each in before for question in each.questions}
        demonstrated = {domain.key(question) for question, _ in self.demonstrations}
        wanted = settings.tasks
        with self.adapter.active() if settings.own_proposals and number > 1 else nullcontext():
            for draw in range(settings.tries):
                for text in self.propose(wanted) if self.propose else self.propose_by_model(number, draw):
                    verdict, question = judge(domain, text, demonstrated, self.known, seen)
                    if verdict == "new" and wanted == 0:
                        verdict = "surplus"
                    elif verdict == "new":
                        wanted -= 1
                        seen.add(domain.key(question or ""))
                    entry = {"round": number, "text": text[:LOGGED], "length": len(text), "verdict": verdict}
                    log.append(entry | {"question": question})
                if wanted == 0:
                    break
        return log

    def propose_by_model(self, number: int, draw: int) -> list[str]:
        generator = self.generator("proposals", number, draw)
        order = torch.randperm(len(self.demonstrations), generator=generator).tolist()
        prompt = self.domain.proposal_prompt(tuple(self.demonstrations[row][0] for row in order))
        made = sample(
            self.lm,
            [prompt] * self.settings.tasks,
            QUESTION_TOKENS,
            temperature=self.settings.temperature,
            generator=generator,
            progress=self.title("proposals"),
        )
        return [texts[0] for texts in made]

    def solve(self, number: int, entries: list[Entry]) -> None:
        """Add to entries of the log what the model answers, and how often that is right."""
        trained = number > 1
        shown = () if trained else self.demonstrations  # it is trained to answer without them
        with self.adapter.active() if trained else nullcontext():
            made = sample(
                self.lm,
                [self.domain.prompt(entry["question"], shown) for entry in entries],
                ANSWER_TOKENS,
                self.settings.samples,
                temperature=self.settings.temperature,
                generator=self.generator("answers", number),
                progress=self.title("answers"),
            )
        for entry, texts in zip(entries, made):
            entry["answers"] = [text.strip()[:LOGGED] for text in texts]
            entry["right"] = sum(self.correct(entry["question"], text) for text in texts)

    def keep(self, entry: Entry) -> Pair | None:
        """What the pool takes from an entry of the log, if anything."""
        if entry["verdict"] != "new":
            return None
        if self.settings.pool == "unverified":
            return (entry["question"], entry["answers"][0]) if entry["answers"][0] else None
        return (entry["question"], self.domain.answer(entry["question"]) or "") if entry["right"] else None


def judge(
    domain: Domain,
    text: str,
    demonstrated: Collection[Hashable] = (),
    held_out: Collection[Hashable] = (),
    seen: Collection[Hashable] = (),
) -> tuple[str, str | None]:
    """What becomes of a proposal: one of :data:`VERDICTS` but the last, and its question if it is one.

    Parameters
    ----------
    domain : Domain
    text : str
        Anything at all. It is compared and matched, never evaluated.
    demonstrated, held_out, seen : collections
        Keys of tasks that are not new.
    """
    question = domain.parse(text)
    if question is None:
        return "malformed", None
    key = domain.key(question)
    for verdict, known in (("demonstration", demonstrated), ("held out", held_out), ("duplicate", seen)):
        if key in known:
            return verdict, question
    return "new", question


def train(
    adapter: Adapter,
    domain: Domain,
    pairs: Sequence[Pair],
    *,
    steps: int,
    batch: int = 16,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> list[float]:
    """Train an adapter to answer questions that are asked alone; the loss of each step.

    Parameters
    ----------
    adapter : Adapter
        Trained from the values that it has.
    domain : Domain
        Writes the prompts.
    pairs : sequence of (question, answer)
        At least one; every one in turn, in a new order each time through.
    steps, batch, lr
        AdamW without weight decay.
    generator : torch.Generator, optional
        Of the orders.
    progress : bool
    """
    lm = adapter.lm
    rows = [(lm.encode(domain.prompt(question)), lm.encode(f" {answer}\n")) for question, answer in pairs]
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=lr, weight_decay=0.0)
    queue: list[int] = []
    losses = []
    for _ in tqdm(range(steps), disable=not progress, unit="step", desc="training", leave=False):
        while len(queue) < min(batch, len(rows)):
            queue += torch.randperm(len(rows), generator=generator).tolist()
        now, queue = queue[:batch], queue[batch:]
        with adapter.active():
            loss = _loss(lm, [rows[row] for row in now])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def _loss(lm: LanguageModel, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Cross-entropy of the answers' tokens, given all before them; texts are padded at their end and need no mask."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    first = min(len(prompt) for prompt, _ in rows)
    inputs, targets = [], []
    for prompt, answer in rows:
        padding = longest - len(prompt) - len(answer)
        inputs.append([*prompt, *answer, *[0] * padding])
        targets.append([*[-100] * (len(prompt) - first), *answer, *[-100] * padding])
    kept = torch.arange(first - 1, longest - 1, device=lm.device)
    logits = lm.model(torch.tensor(inputs, device=lm.device), use_cache=False, logits_to_keep=kept).logits
    return F.cross_entropy(logits.flatten(0, 1), torch.tensor(targets, device=lm.device).flatten(), ignore_index=-100)


class _Shelf:
    """The rounds of a run as files; a round is there when its JSON file is, which is written last."""

    def __init__(self, folder: Path, loop: _Loop) -> None:
        self.folder = folder
        described = json.loads(json.dumps({**asdict(loop.settings), "sizes": loop.sizes}))
        described |= {"domain": loop.domain.name, "model": loop.lm.name}
        file = folder / "settings.json"
        if file.exists():
            there = json.loads(file.read_text(encoding="utf-8"))
            different = [name for name in {**there, **described} if there.get(name) != described.get(name)]
            if different:
                raise UserError(f"{folder} holds a run with another {different[0]}: name another folder, or remove it")
        else:
            write_bytes(file, json.dumps(described, indent=1).encode())

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"round-{number}.{kind}"

    def take(self, number: int, adapter: Adapter) -> Round | None:
        """A round that was kept, its weights put into the adapter; None if it was not."""
        if not self._file(number, "json").exists():
            return None
        tensors, _ = read_tensors(self._file(number, "safetensors"))
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                parameter.copy_(tensors[name])
        kept = json.loads(self._file(number, "json").read_text(encoding="utf-8"))
        return Round(**{**kept, "kept": [(question, answer) for question, answer in kept["kept"]]})

    def put(self, done: Round, adapter: Adapter, log: list[Entry]) -> None:
        lines = "".join(f"{json.dumps(entry)}\n" for entry in log)
        write_bytes(self._file(done.number, "jsonl"), lines.encode())
        write_tensors(self._file(done.number, "safetensors"), dict(adapter.named_parameters()), {"round": done.number})
        write_bytes(self._file(done.number, "json"), json.dumps(asdict(done)).encode())
