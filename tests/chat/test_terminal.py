import io
import os
import re
import signal
import sys

import pexpect
import pytest
from rich.console import Console
from typer.testing import CliRunner

from metabook.chat import Memory, Session, converse, picture, recorder
from metabook.chat.terminal import LONGEST_LINE
from metabook.cli import app


@pytest.fixture
def session(toy):
    console = Console(file=io.StringIO(), width=100, highlight=False)
    return Session(toy.make(), console)


def say(session, *lines):
    """What is printed to some lines."""
    start = session.console.file.tell()
    for line in lines:
        assert session.line(line)
    session.console.file.seek(start)
    return session.console.file.read()


def test_a_conversation(session):
    assert "[book_flight," in say(session, "please book flight")
    assert "I don't know. Closest are" in say(session, "order pizza")
    assert "“order pizza” is order_food (1 example); a new intent." in say(session, "/correct order food")
    assert "[order_food," in say(session, "order pizza now")
    assert "(2 examples)." in say(session, "/teach order_food: pizza please")
    why = say(session, "order pizza", "/why")
    assert re.search(r"1\.00  order pizza  \[order_food\]", why)
    assert "3 intents: book_flight (2), order_food (2), play_music (2)" in say(session, "/intents")
    assert "On its way." in say(session, "/reply order_food: On its way.", "order pizza")
    assert "no answer of order_food any more" in say(session, "/undo")
    assert "“pizza please” is no example of order_food any more" in say(session, "/undo")
    say(session, "/undo")
    assert "nothing left to undo" in say(session, "/undo")
    assert "/teach INTENT: example" in say(session, "/help")
    assert session.line("/quit") is False


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/correct play_music", "no message yet"),
        ("/why", "no answer yet"),
        ("/nonsense", "no such command"),
        ("/", "no such command"),
        ("/teach play_music", "Write /teach INTENT: example"),
        ("/teach : play", "named by"),
        ("/teach play_music:   ", "nothing in it"),
        ("/teach play_musik: play song now", "Did you mean play_music?"),
        ("/reply nothing: x", "I know no intent nothing"),
        ("x" * 10_000, "too long"),
        ("\x00\x01\x1b", "nothing in it"),
        ("[bold]你好[/bold]", "I don't know."),
    ],
)
def test_bad_input_gets_one_line_and_the_conversation_goes_on(session, line, told):
    printed = say(session, line)
    assert told in printed
    assert printed.count("\n") == 1
    assert "[book_flight," in say(session, "please book flight")


def test_an_empty_line_is_no_message(session):
    assert say(session, "", "   ", "\n") == ""


def test_no_control_character_reaches_the_terminal(session):
    printed = say(session, "\x1b]0;title\x07 book flight \x9b2J \u202e", "/correct book_flight", "/why", "/intents")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed)
    assert "[book_flight]" in printed


def test_what_looks_like_markup_is_shown_as_it_is(session):
    assert "“[red]order[/red] pizza”" in say(session, "/teach order_food: [red]order[/red] pizza")


def test_a_file_that_was_changed_by_hand_cannot_steer_the_terminal(toy, tmp_path):
    with Memory(tmp_path / "m") as memory:
        memory.add("teach", "play_music", "play\x1b[2J song")
        session = Session(toy.make(memory), Console(file=io.StringIO(), width=100))
        assert "\x1b" not in say(session, "play song", "/why", "/intents", "/undo")


def run(toy, monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    session = Session(toy.make(), Console(file=io.StringIO(), width=100))
    converse(session)
    return session.console.file.getvalue()


def test_lines_from_a_pipe(toy, monkeypatch):
    printed = run(toy, monkeypatch, b"please book flight\n/quit\nplay song\n")
    assert "[book_flight," in printed
    assert "play_music" not in printed


@pytest.mark.parametrize("length", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1, 1 << 20])
def test_a_line_of_any_length_is_one_message(toy, monkeypatch, length):
    printed = run(toy, monkeypatch, b"play " * (length // 5) + b"x" * (length % 5) + b"\nplease book flight\n")
    assert printed.count("too long") == 1
    assert "[book_flight," in printed


def test_bytes_that_are_no_text(toy, monkeypatch):
    assert "[book_flight," in run(toy, monkeypatch, b"\xff\xfe\x80 please book flight \xc3")


def test_the_picture_is_svg_that_loads_nothing(toy):
    console = recorder(80)
    Session(toy.make(), console).line("please book flight <script>")
    shown = picture(console, alt='A "session"', title="metabook chat", caption="One line.")
    assert 'aria-label="A &quot;session&quot;"' in shown.html
    assert "<script>" not in shown.html
    assert not re.search(r"@import|@font-face|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)", shown.html)
    assert "book&#160;flight" in shown.html or "book flight" in shown.html
    again = picture(console, alt='A "session"', title="metabook chat", caption="One line.")
    assert again.html == shown.html


def test_in_a_notebook_too_a_recorder_shows_nothing(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert Console().is_jupyter
    assert not recorder().is_jupyter


def test_errors_of_the_command_line_are_one_line(tmp_path):
    (tmp_path / "f").write_bytes(b"my diary")
    refused = CliRunner().invoke(app, ["chat", "--memory", str(tmp_path / "f")])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("metabook: ")
    assert refused.stderr.count("\n") == 1
    assert (tmp_path / "f").read_bytes() == b"my diary"
    unknown = CliRunner().invoke(app, ["chat", "--memory", str(tmp_path / "m"), "--features", "magic"])
    assert unknown.exit_code == 2
    assert "tfidf, meta, llm" in unknown.stderr


# --- End to end, in a pseudo-terminal -------------------------------------------------------------------------------


def start(path):
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    environment.pop("METABOOK_DATA", None)
    command = ["-m", "metabook", "chat", "--memory", str(path)]
    child = pexpect.spawn(sys.executable, command, env=environment, timeout=90, encoding="utf-8", dimensions=(40, 200))
    child.expect("I know 4. intents")
    child.expect("you> ")
    return child


def tell(child, line, *expected):
    child.sendline(line)
    for pattern in expected:
        child.expect(pattern)
    child.expect("you> ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_a_kill_takes_nothing_that_was_confirmed(tmp_path):
    path = tmp_path / "memory.sqlite"
    child = start(path)
    tell(child, "book a flight to Oslo", r"\[book_flight, ")
    tell(child, "log a banana for me please", "I don't know")
    tell(child, "/correct log_food", r"Learnt: .*log_food \(1 example\); a new intent")
    tell(child, "/teach log_food: put a sandwich into my food log", r"log_food \(2 examples\)")
    tell(child, "/teach log_food: this was a mistake", r"log_food \(3 examples\)")
    tell(child, "/undo", "Undone: .*this was a mistake")
    child.sendintr()
    child.expect("/quit ends")
    child.expect("you> ")
    tell(child, "x" * 5000, "too long")
    child.sendline("/teach log_food: add a bowl of rice to my food diary")
    child.expect("Learnt: .*3 examples")
    child.kill(signal.SIGKILL)  # confirmed, and killed at once
    child.close(force=True)
    assert child.signalstatus == signal.SIGKILL

    child = start(path)
    tell(child, "log a bowl of rice", r"\[log_food, ")
    tell(child, "/why", "bowl of rice to my food diary")
    tell(child, "/intents", r"log_food \(3\)")
    tell(child, "/undo", "bowl of rice")
    tell(child, "/intents", r"log_food \(2\)")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    with Memory(path) as memory:
        texts = [entry.text for entry in memory.entries()]
    assert texts == ["log a banana for me please", "put a sandwich into my food log"]
