"""What a user has taught a bot, in one SQLite file from which a kill at any moment takes nothing that was confirmed.

The file is a list of entries, in the order in which they were made; undoing takes the last one away. Every change is a
transaction of its own that is on the disk (``synchronous = EXTRA``) when the method returns. The rollback journal
beside the file exists only while a change is being written; SQLite reads it again after a crash.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metabook.files import UserError

__all__ = ["KINDS", "Entry", "Memory"]

KINDS = ("correct", "teach", "reply")
APPLICATION = 0x6D626F6B  # "mbok" in the header of the file: it is ours, and not some other program's database
VERSION = 1
BUSY_SECONDS = 5.0  # how long another process may hold the file
_HEADER = b"SQLite format 3\0"
_APPLICATION_AT = slice(68, 72)
_TABLE = """CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('correct', 'teach', 'reply')),
    intent TEXT NOT NULL CHECK (typeof(intent) = 'text'),
    text TEXT NOT NULL CHECK (typeof(text) = 'text')
)"""


@dataclass(frozen=True)
class Entry:
    """One thing that the user taught.

    Parameters
    ----------
    number : int
        Its place in the file.
    kind : {"correct", "teach", "reply"}
    intent : str
    text : str
        The message that means this intent; for a reply, what to answer.
    """

    number: int
    kind: str
    intent: str
    text: str


class Memory:
    """The entries, in a file or, without a path, only as long as the object lives.

    Parameters
    ----------
    path : path, optional
        Made if it is missing, readable by its owner alone. A file that is damaged or not ours is left as it is.

    Raises
    ------
    UserError
        If the file is damaged, is no memory of a bot, or cannot be opened; the message says what to do.

    Examples
    --------
    >>> with Memory("bot.sqlite") as memory:
    ...     memory.add("teach", "book_flight", "get me to Oslo")
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        if self.path is not None:
            _make_or_check(self.path)
        with self._one_line("opened"):
            name = ":memory:" if self.path is None else f"{self.path.absolute().as_uri()}?mode=rw"
            self._file = sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with self._one_line("opened"):
                self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        # EXTRA also waits for the folder: the end of the journal is the moment of the commit.
        self._file.execute("PRAGMA synchronous = EXTRA")
        self._file.execute("PRAGMA secure_delete = ON")  # what is undone is overwritten
        with self._transaction():
            ours, version = (self._pragma(name) for name in ("application_id", "user_version"))
            if not self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and not version:
                self._file.execute(_TABLE)
                self._file.execute(f"PRAGMA application_id = {APPLICATION}")
                self._file.execute(f"PRAGMA user_version = {VERSION}")
            elif (ours, version) != (APPLICATION, VERSION):
                raise UserError(f"{self.path} was written by another version of metabook: name another file")
        if self._file.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("malformed")
        self.entries()  # a table with other columns is found out now

    def _pragma(self, name: str) -> int:
        return int(self._file.execute(f"PRAGMA {name}").fetchone()[0])

    def entries(self) -> list[Entry]:
        """All entries, the oldest first."""
        with self._one_line("read"):
            rows = self._file.execute("SELECT number, kind, intent, text FROM entries ORDER BY number").fetchall()
        return [Entry(*row) for row in rows]

    def add(self, kind: str, intent: str, text: str) -> Entry:
        """Store an entry; when this returns it is on the disk.

        Raises
        ------
        ValueError
            If there is no such kind.
        UserError
            If it cannot be stored (a full disk, another process that holds the file); then nothing is.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        with self._one_line("written"), self._transaction():
            statement = "INSERT INTO entries (kind, intent, text) VALUES (?, ?, ?)"
            number = self._file.execute(statement, (kind, intent, text)).lastrowid
        assert number is not None  # for the type checker
        return Entry(number, kind, intent, text)

    def remove(self, entry: Entry) -> None:
        """Take an entry out; when this returns it is gone from the disk."""
        with self._one_line("written"), self._transaction():
            self._file.execute("DELETE FROM entries WHERE number = ?", (entry.number,))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise

    @contextmanager
    def _one_line(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "no such" in str(error):  # a table or a column that ours has
                raise _damaged(self.path) from error
            raise UserError(
                f"{self.path} cannot be {done} ({error}): free it or its disk, or name another file"
            ) from error
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path) from error


def _damaged(path: Path | None) -> UserError:
    return UserError(f"{path} is damaged: nothing was changed; move it away or name another file")


def _make_or_check(path: Path) -> None:
    """Make an empty file, or see that what is there is a memory; SQLite would take an empty file for a new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return
        except FileExistsError:
            with path.open("rb") as file:
                header = file.read(100)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be opened ({reason}): name another file") from error
    if not header:
        return  # an earlier start was killed before it wrote anything
    if header[: len(_HEADER)] != _HEADER or int.from_bytes(header[_APPLICATION_AT]) != APPLICATION:
        raise UserError(f"{path} is not the memory of a chatbot: nothing was changed; name another file")
