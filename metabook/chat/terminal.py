"""The bot in the terminal: one line in, some lines out."""

from __future__ import annotations

import hashlib
import html
import io
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from metabook.chat.bot import LONGEST_MESSAGE, Chatbot, ChatError, clean
from metabook.chat.memory import Entry
from metabook.files import UserError

if TYPE_CHECKING:
    from metabook.figures import Rendered

__all__ = ["Session", "converse", "picture", "recorder"]

PROMPT = "you> "
LONGEST_LINE = 4 * LONGEST_MESSAGE  # what is read of a line; the rest is thrown away, whatever its length
HELP = (
    ("/correct INTENT", "the last message meant this"),
    ("/teach INTENT: example", "an example of an intent, known or new"),
    ("/reply INTENT: text", "what to answer to an intent"),
    ("/undo", "take the last of these back; again, the one before"),
    ("/why", "what the last answer rests on"),
    ("/intents", "what I know"),
    ("/help", "this list"),
    ("/quit", "the end; what you taught is kept"),
)


class Session:
    """A conversation: takes lines, prints what the bot says to them.

    Parameters
    ----------
    bot : Chatbot
    console : rich.console.Console, optional
        Where to print; by default the standard output.

    Examples
    --------
    >>> session = Session(default_bot())
    >>> session.line("wake me at six")
    True
    """

    def __init__(self, bot: Chatbot, console: Console | None = None) -> None:
        self.bot = bot
        # Plain text in a notebook: what Rich displays there has colours for a white page.
        self.console = console or Console(highlight=False, force_jupyter=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "correct": self._correct,
            "teach": self._teach,
            "reply": self._reply,
            "undo": self._undo,
            "why": self._why,
            "intents": self._intents,
            "help": self._help,
        }

    def line(self, line: str) -> bool:
        """Deal with one line that the user wrote.

        Returns
        -------
        bool
            Whether the conversation goes on. Errors of the user, and of a full disk, are told and go on.
        """
        try:
            if not line.strip():
                return True
            command, _, rest = line.strip().partition(" ")
            if command == "/quit":
                return False
            if command.startswith("/"):
                self._command(command[1:].lower())(rest.strip())
            else:
                self._answer(line)
        except (ChatError, UserError) as error:
            self._say(str(error), "yellow")
        return True

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in self._commands:
            raise ChatError("There is no such command: /help lists them.")
        return self._commands[name]

    def _answer(self, line: str) -> None:
        answer = self.bot.answer(line)
        if answer.intent is not None:
            score = answer.scores[answer.intent]
            self._say(answer.reply, "green", f"  [{answer.intent}, {score:.2f}]")
            return
        near = ", ".join(list(answer.scores)[:3])
        closest = f" Closest are {near}." if near else ""
        self._say(f"{answer.reply}{closest} Teach me: /correct INTENT", "yellow")

    def _correct(self, rest: str) -> None:
        known = self.bot.intents
        self._learnt(self.bot.correct(rest), known)

    def _teach(self, rest: str) -> None:
        intent, example = _two(rest, "/teach INTENT: example")
        known = self.bot.intents
        self._learnt(self.bot.teach(intent, example), known)

    def _learnt(self, entry: Entry, known: dict[str, int]) -> None:
        intent, now = entry.intent, self.bot.intents[entry.intent]
        count = f"{now} example{'s' if now > 1 else ''}"
        new = f"; a new intent.{self.bot.similar(intent)}" if intent not in known else "."
        self._say(f"Learnt: “{_short(entry.text)}” is {intent} ({count}){new}", "cyan", "  /undo takes it back")

    def _reply(self, rest: str) -> None:
        entry = self.bot.set_reply(*_two(rest, "/reply INTENT: text"))
        self._say(f"Learnt: to {entry.intent} I answer “{_short(entry.text)}”.", "cyan")

    def _undo(self, rest: str) -> None:
        entry = self.bot.undo()
        if entry is None:
            raise ChatError("There is nothing left to undo: the rest is what I began with.")
        what = "answer" if entry.kind == "reply" else "example"
        self._say(f"Undone: “{_short(entry.text)}” is no {what} of {entry.intent} any more.", "cyan")

    def _why(self, rest: str) -> None:
        nearest, last = self.bot.why(), self.bot.last
        assert last is not None  # why() would have said so
        if not nearest:
            raise ChatError("I know nothing yet.")
        scores = ", ".join(f"{intent} {score:.2f}" for intent, score in list(last.scores.items())[:3])
        self._say(f"Best scores for “{_short(last.message)}”: {scores or 'none'}.", "cyan")
        self._say(f"I answer from {self.bot.threshold:.2f} on. The nearest examples that I remember:", "cyan")
        for example, cosine in nearest:
            self._say(f"  {cosine:5.2f}  {_short(example.message)}", "", f"  [{example.intent}]")

    def _intents(self, rest: str) -> None:
        known = self.bot.intents
        self._say(f"{len(known)} intents: " + ", ".join(f"{name} ({count})" for name, count in sorted(known.items())))

    def _help(self, rest: str) -> None:
        self._say("Write a message, or:")
        for command, meaning in HELP:
            self._say(f"  {command:24}{meaning}")

    def _say(self, text: str, style: str = "", aside: str = "") -> None:
        # Text, not markup: a message in square brackets stays what it is.
        self.console.print(Text(text, style).append(aside, "default"), soft_wrap=not self.console.record)


def _two(rest: str, form: str) -> tuple[str, str]:
    first, colon, second = rest.partition(":")
    if not colon:
        raise ChatError(f"Write {form}")
    return first, second


def _short(message: str, most: int = 70) -> str:
    line = clean(message)  # also what comes from a file that somebody else has changed
    return line if len(line) <= most else line[: most - 1] + "…"


def converse(session: Session, source: TextIO | None = None) -> None:
    """Read lines until ``/quit`` or the end of the input.

    Parameters
    ----------
    session : Session
    source : text stream, optional
        By default the standard input; in a terminal with line editing where Python has it.
    """
    source = source or sys.stdin
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="replace")  # bytes that are no UTF-8 must not end the program
    if source is sys.stdin and source.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 (importing it is what makes input() edit lines)
    where = session.bot.memory.path
    session.console.print(
        Text(f"I know {len(session.bot.intents)} intents. /help lists the commands; /quit ends.").append(
            f"  memory: {where or 'none'}", "dim"
        ),
        soft_wrap=True,
    )
    going = True
    while going:
        try:
            going = session.line(_read(source))
        except KeyboardInterrupt:
            session.console.print(Text("\n/quit ends.", "dim"))
        except EOFError:
            session.console.print()
            return


def _read(source: TextIO) -> str:
    if source is sys.stdin and source.isatty():
        return input(PROMPT)
    line = source.readline(LONGEST_LINE)
    if not line:
        raise EOFError
    end = line
    while len(end) == LONGEST_LINE and not end.endswith("\n"):
        end = source.readline(LONGEST_LINE)
    return line


_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="ALT"
 style="width:{width}px;max-width:100%;height:auto"><style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
 font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width }}
{styles}</style><defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}"
 height="{terminal_height}"/></clipPath>{lines}</defs>{chrome}<g transform="translate({terminal_x}, {terminal_y})"
 clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>"""


def recorder(width: int = 92) -> Console:
    """A console that keeps what is printed, for :func:`picture`, and shows nothing, in a notebook either.

    Parameters
    ----------
    width : int
        Columns.
    """
    # Without the last argument Rich also displays each line as HTML of its own, with colours for a white page.
    return Console(record=True, file=io.StringIO(), width=width, highlight=False, force_jupyter=False)


def picture(console: Console, alt: str, title: str, caption: str | None = None) -> Rendered:
    """A recorded session as inline SVG: text that can be selected, and nothing that is loaded from elsewhere.

    Parameters
    ----------
    console : rich.console.Console
        A :func:`recorder`, or any made with ``record=True``.
    alt : str
        What one sees, in words.
    title : str
        Of the window.
    caption : str, optional
        Text below.

    Returns
    -------
    Rendered
        To be the last line of a cell.
    """
    from metabook.figures import Rendered  # matplotlib is of no use in the terminal

    code = console.export_text(clear=False)
    unique = f"terminal-{hashlib.sha256((code + alt).encode()).hexdigest()[:10]}"
    form = _SVG.replace("ALT", html.escape(alt, quote=True).replace("{", "{{").replace("}", "}}"))
    drawing = console.export_svg(title=title, clear=False, code_format=form, unique_id=unique)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return Rendered(f'<figure class="metabook-figure" style="margin:1em 0">{drawing}{below}</figure>', alt)
