import os
import re
import sqlite3
import stat
import subprocess
import sys

import pytest

from metabook.chat.memory import Entry, Memory
from metabook.files import UserError


def told(path) -> str:
    """The one line that opening a bad file gives, with the file as it was."""
    before = path.read_bytes()
    with pytest.raises(UserError) as refused:
        Memory(path)
    assert path.read_bytes() == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_added_is_there_after_opening_again(tmp_path):
    path = tmp_path / "new folder" / "m.sqlite"
    with Memory(path) as memory:
        first = memory.add("teach", "book_flight", "get me to Oslo")
        memory.add("reply", "book_flight", "ça va 👍")
    with Memory(path) as memory:
        assert memory.entries() == [first, Entry(2, "reply", "book_flight", "ça va 👍")]
    assert [p.name for p in path.parent.iterdir()] == ["m.sqlite"], "one file, nothing beside it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_removed_is_gone_from_the_bytes_of_the_file(tmp_path):
    with Memory(tmp_path / "m") as memory:
        memory.add("teach", "a", "keep this")
        secret = memory.add("teach", "a", "my secret is swordfish")
        assert b"swordfish" in (tmp_path / "m").read_bytes()
        memory.remove(secret)
        assert b"swordfish" not in (tmp_path / "m").read_bytes()
        assert [entry.text for entry in memory.entries()] == ["keep this"]
        assert memory.add("teach", "a", "next").number == 3, "a number is not used again"


def test_without_a_path_it_lives_in_memory():
    with Memory() as one, Memory() as other:
        one.add("teach", "a", "x")
        assert len(one.entries()) == 1
        assert other.entries() == []


def test_an_unknown_kind_is_refused():
    with Memory() as memory, pytest.raises(ValueError, match="correct, teach, reply"):
        memory.add("guess", "a", "x")


@pytest.mark.parametrize("content", [b"hello", b"x" * 5000, b"SQLite format 3\0" + b"\0" * 5000, b"\0"])
def test_a_foreign_file_is_left_as_it_is(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    assert "is not the memory of a chatbot" in told(tmp_path / "f")


def test_another_programs_database_is_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "f") as other:
        other.execute("CREATE TABLE entries (number, kind, intent, text)")
    other.close()
    assert "is not the memory of a chatbot" in told(tmp_path / "f")


def filled(path, count=300):
    with Memory(path) as memory:
        for number in range(count):
            memory._file.execute("INSERT INTO entries (kind, intent, text) VALUES ('teach', 'a', ?)", ("x" * number,))
    return path.read_bytes()


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path):
    path = tmp_path / "m"
    whole = filled(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "is damaged: nothing was changed" in told(path)
    path.write_bytes(whole[:100] + b"\xff" * 4000 + whole[4100:])
    assert "is damaged: nothing was changed" in told(path)


def test_a_file_without_its_table_is_damaged(tmp_path):
    with Memory(tmp_path / "m") as memory:
        memory._file.execute("DROP TABLE entries")
    assert "is damaged" in told(tmp_path / "m")


def test_a_file_of_a_later_version_is_left_as_it_is(tmp_path):
    with Memory(tmp_path / "m") as memory:
        memory._file.execute("PRAGMA user_version = 2")
    assert "another version of metabook" in told(tmp_path / "m")


def test_an_empty_file_is_taken_for_a_new_one(tmp_path):
    """A start that was killed before it wrote anything leaves one."""
    (tmp_path / "m").touch()
    with Memory(tmp_path / "m") as memory:
        assert memory.entries() == []


@pytest.mark.parametrize("place", [".", "file/m"])
def test_a_place_that_cannot_be_a_file(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be opened"):
        Memory(tmp_path / place)


def test_a_file_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("metabook.chat.memory.BUSY_SECONDS", 0.05)
    with Memory(tmp_path / "m") as memory:
        memory.add("teach", "a", "x")
        other = sqlite3.connect(tmp_path / "m", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="locked"):
            memory.add("teach", "a", "y")
        other.execute("ROLLBACK")
        other.close()
        assert len(memory.entries()) == 1
        memory.add("teach", "a", "z")


def test_a_full_disk_loses_nothing(tmp_path):
    with Memory(tmp_path / "m") as memory:
        memory.add("teach", "a", "x")
        pages = memory._file.execute("PRAGMA page_count").fetchone()[0]
        memory._file.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match="full"):
            memory.add("teach", "a", "y" * 100_000)
        assert [entry.text for entry in memory.entries()] == ["x"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from metabook.chat.memory import Memory

path, rng = Path(sys.argv[1]), random.Random(0)
for life in range(10):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        memory = Memory(path)
        for number in range(10_000):
            entry = memory.add("teach", "a", f"{life}-{number} " + "x" * rng.randrange(3000))
            if number % 3 == 2:
                memory.remove(entry)
            else:
                os.write(write, f"{life}-{number}\\n".encode())  # confirmed
    os.close(write)
    first = os.read(read, 64)  # it has begun; now at any moment
    time.sleep(rng.random() * 0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    confirmed = first
    while more := os.read(read, 1 << 16):
        confirmed += more
    with Memory(path) as memory:
        kept = [entry.text.split()[0] for entry in memory.entries() if entry.text.startswith(f"{life}-")]
    lines = confirmed.decode().split()
    assert set(lines) <= set(kept), (life, set(lines) - set(kept))
    print(life, len(lines), len(kept))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_takes_nothing_that_was_confirmed(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lives = re.findall(r"(\d+) (\d+) (\d+)", done.stdout)
    assert len(lives) == 10
    assert sum(int(confirmed) for _, confirmed, _ in lives) > 24, "the kills came too early to show anything"
