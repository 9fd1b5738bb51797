"""The bot: what it remembers is a support set, what it is asked is a query."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from metabook.chat.memory import Entry, Memory
from metabook.episodes import Episodes
from metabook.learners import Learner

__all__ = ["LONGEST_MESSAGE", "LONGEST_NAME", "Answer", "ChatError", "Chatbot", "Example", "clean", "intent_name"]

LONGEST_MESSAGE, LONGEST_NAME = 2_000, 60  # characters
_SIGNS = {"Cc", "Cf", "Cn", "Co", "Cs"}  # categories of what is no visible character
_JOINERS = "\u200c\u200d"  # of category Cf, and part of words and of emoji
Embedding = Callable[[Sequence[str]], Tensor]


class ChatError(ValueError):
    """Something that cannot be done as it was said; the message is one line for the user."""


@dataclass(frozen=True)
class Example:
    """A message and the intent that it stands for."""

    message: str
    intent: str


@dataclass(frozen=True)
class Answer:
    """What the bot makes of a message.

    Parameters
    ----------
    message : str
    intent : str or None
        None: it does not know.
    reply : str
    scores : mapping of str to float
        Of every known intent, the best first.
    """

    message: str
    intent: str | None
    reply: str
    scores: MappingProxyType[str, float]

    def __str__(self) -> str:
        return f"{self.intent or '?'}: {self.reply}"


def clean(text: str) -> str:
    """One line without control characters: what is stored and shown cannot steer a terminal.

    Raises
    ------
    ChatError
        If nothing is left, or too much.
    """
    if len(text) > LONGEST_MESSAGE:
        raise ChatError(f"That is too long: I read {LONGEST_MESSAGE:,} characters at most.")
    visible = (c if c in _JOINERS or unicodedata.category(c) not in _SIGNS else " " for c in text)
    line = " ".join("".join(visible).split())
    if not line:
        raise ChatError("There is nothing in it that I can read.")
    return line


def intent_name(text: str) -> str:
    """The name of an intent as it is written everywhere: ``book_flight``.

    Raises
    ------
    ChatError
        If it is empty, too long or has other signs than letters, digits, blanks, hyphens and underscores.
    """
    name = re.sub(r"[\s_-]+", "_", text.strip().lower()).strip("_")
    if not re.fullmatch(rf"\w{{1,{LONGEST_NAME}}}", name):
        raise ChatError(f"An intent is named by 1 to {LONGEST_NAME} letters and digits, such as book_flight.")
    return name


class Chatbot:
    """Answers messages with an intent, and learns from what it is told, at once.

    Parameters
    ----------
    embed : callable
        Texts to the learner's inputs, ``[texts, ...]``.
    learner : Learner
        Adapts to the remembered examples each time: any learner that takes support sets with unequal classes.
    threshold : float
        An answer with a smaller score is not given.
    starter : iterable of Example
        What the bot knows from the beginning.
    memory : Memory, optional
        Where the user's corrections are kept. By default they live as long as the bot.

    Examples
    --------
    >>> bot = default_bot()
    >>> bot.answer("wake me at six")
    >>> bot.correct("set_alarm")
    """

    def __init__(
        self,
        embed: Embedding,
        learner: Learner,
        *,
        threshold: float = -math.inf,
        starter: Iterable[Example] = (),
        memory: Memory | None = None,
    ) -> None:
        self.learner, self.threshold = learner.eval(), threshold
        self.memory = memory if memory is not None else Memory()
        self.last: Answer | None = None
        self._embed, self._starter = embed, tuple(starter)
        self._inputs: dict[str, Tensor] = {}
        self._passing: tuple[str | None, Tensor] = (None, torch.empty(0))
        self._entries = self.memory.entries()
        self._adapt()

    @property
    def intents(self) -> dict[str, int]:
        """The known intents, and how many examples there are of each."""
        return dict(Counter(self._examples.values()))

    @property
    def examples(self) -> list[Example]:
        """All that is remembered; of a message that was taught twice, the last intent."""
        return [Example(message, intent) for message, intent in self._examples.items()]

    def answer(self, message: str) -> Answer:
        """The intent of a message, or None if no intent is near enough.

        Raises
        ------
        ChatError
            If the message is empty or too long.
        """
        self.last = None  # if this one cannot be read, a correction must not go to the one before
        self.last = self.answers([clean(message)])[0]
        return self.last

    @torch.no_grad()
    def answers(self, messages: Sequence[str]) -> list[Answer]:
        """Answers to several messages, each by itself; none of them can be corrected."""
        if not self._examples or not messages:
            return [self._reply(message, {}) for message in messages]
        x = self._of(messages)
        logits = self.learner.predict(
            Episodes(self._x, self._y, x.unsqueeze(0), torch.zeros(1, len(x), dtype=torch.long, device=x.device))
        )[0]
        seen = x.flatten(1).any(1).tolist()  # all zeros: the features know nothing of it
        rows = zip(messages, logits.tolist(), seen)
        return [self._reply(message, dict(zip(self._names, row)) if known else {}) for message, row, known in rows]

    def correct(self, intent: str) -> Entry:
        """Say what the last message meant.

        Raises
        ------
        ChatError
            If there is no last message, or the intent's name is none.
        UserError
            If it cannot be stored; then nothing has changed.
        """
        if self.last is None:
            raise ChatError("There is no message yet that could be corrected.")
        return self._learn("correct", intent, self.last.message)

    def teach(self, intent: str, message: str) -> Entry:
        """Give an example of an intent, known or new; errors as for :meth:`correct`."""
        return self._learn("teach", intent, message)

    def set_reply(self, intent: str, text: str) -> Entry:
        """Say what the bot shall answer to an intent that it knows."""
        name = intent_name(intent)
        if name not in self._names:
            raise ChatError(f"I know no intent {name}.{self.similar(name)}")
        return self._store("reply", name, clean(text))

    def undo(self) -> Entry | None:
        """Take back the last thing that was taught, and then the one before; None if there is none left."""
        if not self._entries:
            return None
        self.memory.remove(self._entries[-1])  # the file first: if that fails, nothing has changed
        taken = self._entries.pop()
        self._adapt()
        return taken

    def why(self, count: int = 3) -> list[tuple[Example, float]]:
        """The remembered examples nearest to the last message, with their cosines.

        Raises
        ------
        ChatError
            If there is no last message.
        """
        if self.last is None:
            raise ChatError("There is no answer yet that could be explained.")
        if not self._examples:
            return []
        with torch.no_grad():
            episodes = Episodes(self._x, self._y, self._of([self.last.message]).unsqueeze(0), self._y[:, :1])
            embed = getattr(self.learner, "embed_both", lambda e: (e.support_x.flatten(2), e.query_x.flatten(2)))
            support, query = (F.normalize(z[0].float(), dim=-1) for z in embed(episodes))
            cosines = support @ query[0]
        examples = self.examples
        return [(examples[row], float(cosines[row])) for row in cosines.argsort(descending=True)[:count].tolist()]

    def similar(self, name: str) -> str:
        """A sentence that asks whether another intent was meant; empty if none is spelt like it."""
        near = get_close_matches(name, [known for known in self._names if known != name], n=1, cutoff=0.8)
        return f" Did you mean {near[0]}?" if near else ""

    def _learn(self, kind: str, intent: str, message: str) -> Entry:
        message = clean(message)
        if not bool(self._of([message]).any()):
            raise ChatError("My features know no part of this message, so that I could not learn from it.")
        return self._store(kind, intent_name(intent), message)

    def _store(self, kind: str, intent: str, text: str) -> Entry:
        entry = self.memory.add(kind, intent, text)
        self._entries.append(entry)
        self._adapt()
        return entry

    def _adapt(self) -> None:
        """Put the support set together from what is remembered."""
        self._replies = {entry.intent: entry.text for entry in self._entries if entry.kind == "reply"}
        taught = [Example(entry.text, entry.intent) for entry in self._entries if entry.kind != "reply"]
        self._examples = {example.message: example.intent for example in (*self._starter, *taught)}
        self._names = list(dict.fromkeys(self._examples.values()))
        missing = [message for message in self._examples if message not in self._inputs]
        known = {**self._inputs, **(dict(zip(missing, self._of(missing))) if missing else {})}
        self._inputs = {message: known[message] for message in self._examples}
        if not self._examples:
            return
        numbers = {name: number for number, name in enumerate(self._names)}
        self._x = torch.stack(list(self._inputs.values())).unsqueeze(0)
        self._y = torch.tensor([[numbers[name] for name in self._examples.values()]], device=self._x.device)

    def _of(self, messages: Sequence[str]) -> Tensor:
        """The learner's inputs of messages; that of the last one, which may be taught next, is not computed twice."""
        if len(messages) != 1:
            return self._embed(messages)
        (message,) = messages
        if message not in self._inputs and message != self._passing[0]:
            self._passing = (message, self._embed(messages)[0])
        return self._inputs.get(message, self._passing[1]).unsqueeze(0)

    def _reply(self, message: str, scores: dict[str, float]) -> Answer:
        ranked = dict(sorted(scores.items(), key=lambda pair: -pair[1]))
        best = next(iter(ranked), None)
        if best is None or ranked[best] < self.threshold:
            best, reply = None, "I don't know."
        else:
            reply = self._replies.get(best, f"Understood: {best.replace('_', ' ')}.")
        return Answer(message, best, reply, MappingProxyType(ranked))
