"""Texts as few-shot data: messages in a table, and episodes of row numbers into it.

A tensor holds no strings. So the example that an episode draws is a *row number*: a learner that reads text looks it up
(``data.texts[row]``), and one that reads numbers gets the features of the row, computed once for all texts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metabook.data.store import DataError
from metabook.episodes import LabelledData

__all__ = ["TextData", "csv_rows", "read_text_file", "read_texts"]


@dataclass(frozen=True)
class TextData(LabelledData):
    """Labelled texts: ordinary labelled data whose inputs are row numbers, and the table of texts.

    :class:`~metabook.episodes.EpisodeSampler` draws from it as from any data; ``episodes.support_x`` are rows.

    Parameters
    ----------
    x : Tensor [examples]
        The row of each example in ``texts``: always ``0 .. examples - 1``.
    y, names, groups
        As in :class:`~metabook.episodes.LabelledData`; groups are domains.
    texts : tuple of str
        The texts, sorted by class.

    Raises
    ------
    ValueError
        If ``x`` does not number the texts.
    """

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.equal(self.x, torch.arange(len(self.texts))):
            raise ValueError(f"x must number the texts: 0 to {len(self.texts) - 1}")

    @classmethod
    def of(cls, messages: Iterable[tuple[str, str]], groups: dict[str, str] | None = None) -> TextData:
        """From pairs of text and class name; classes in the order in which they first occur.

        White space is put in order. A text that a class has twice is kept once: the one could be in the support
        and the other among the queries. (A text in two *classes* stays in both: that is for the data's author to mend.)

        Parameters
        ----------
        messages : iterable of (str, str)
        groups : dict, optional
            The group of each class name. By default every class is its own.
        """
        classes: dict[str, dict[str, None]] = {}  # a dict is an ordered set
        for text, name in messages:
            classes.setdefault(name, {})[" ".join(text.split())] = None
        names, texts = tuple(classes), tuple(text for members in classes.values() for text in members)
        counts = torch.tensor([len(members) for members in classes.values()], dtype=torch.long)
        y = torch.arange(len(names)).repeat_interleave(counts)
        return cls(torch.arange(len(texts)), y, names, tuple((groups or {}).get(n, n) for n in names), texts)

    def with_features(self, features: Tensor) -> LabelledData:
        """The same examples with numbers in the place of row numbers, for learners that read numbers.

        Parameters
        ----------
        features : Tensor [examples, ...]
            The features of ``texts``, in their order.
        """
        return LabelledData(features, self.y, self.names, self.groups)

    def select(self, classes: Iterable[int]) -> TextData:
        """The data of some classes only, renumbered in the order given, with their texts alone."""
        return self._renumbered(super().select(list(classes)), self.texts)

    def in_groups(self, groups: Iterable[str]) -> TextData:
        """The classes of some groups (domains)."""
        selected = super().in_groups(list(groups))
        assert isinstance(selected, TextData)  # for the type checker: it is made by select
        return selected

    def __add__(self, other: LabelledData) -> TextData:
        """Both pools, the other's classes after this one's."""
        if not isinstance(other, TextData):
            return NotImplemented
        shifted = LabelledData(other.x + len(self.texts), other.y, other.names, other.groups)
        return self._renumbered(super().__add__(shifted), self.texts + other.texts)

    @classmethod
    def _renumbered(cls, rows: LabelledData, table: tuple[str, ...]) -> TextData:
        texts = tuple(table[row] for row in rows.x.tolist())
        return cls(torch.arange(len(texts)), rows.y, rows.names, rows.groups, texts)


def read_texts(path: str | Path, *, text: str = "text", label: str = "label", group: str = "group") -> TextData:
    """Your own labelled texts, from a CSV file with a header or from one JSON object a line.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.jsonl`` file in UTF-8.
    text, label, group : str
        The columns (keys) of the text, of its class, and, if there is one, of the class's group (domain). Others
        are ignored. A class without a group is its own.

    Returns
    -------
    TextData
        Classes sorted by name; a text that a class has twice is kept once.

    Raises
    ------
    DataError
        If the file cannot be read, or a line of it cannot be used; the message names the file and the line.
    """
    path = Path(path)
    readers = {".csv": csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: neither .csv nor .jsonl: convert it to one of the two")
    messages: list[tuple[str, str]] = []
    groups: dict[str, str] = {}
    for line, row in readers[path.suffix.lower()](path, (text, label)):
        where = f"{path}, line {line}"
        message, name = (_field(row, column, where) for column in (text, label))
        own = _field(row, group, where) if row.get(group) not in (None, "") else name
        if groups.setdefault(name, own) != own:
            raise DataError(f"{where}: class {name!r} is of group {own!r} here but of {groups[name]!r} above")
        messages.append((message, name))
    if len(groups) < 2:
        found = f"only the class {next(iter(groups))!r}" if groups else "no texts"
        raise DataError(f"{path}: holds {found}, and a task needs two classes at least: add some")
    return TextData.of(sorted(messages, key=lambda pair: pair[1]), groups)


def read_text_file(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises
    ------
    DataError
        If it cannot be read or is in another encoding.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8: save the file in that encoding") from None


def _field(row: dict[Any, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # numbered classes
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {'missing' if value is None else 'not a string'}: put one there")
    if not value.strip():
        raise DataError(f"{where}: {column!r} is empty: fill it or delete the line")
    return value.strip()


def csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text_file(path), newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        if missing := [column for column in needed if column not in columns]:
            has = ", ".join(columns) or "nothing"
            raise DataError(f"{path}, line 1: no column {missing[0]!r} (it has {has}): name it in the header")
        for row in reader:
            if None in row:
                raise DataError(f"{path}, line {reader.line_num}: more fields than the header: quote texts with commas")
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: not CSV ({error}): correct the line") from None


def _jsonl_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    # Not splitlines: a string of JSON may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(read_text_file(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: not JSON: correct the line") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object: write one with the keys {', '.join(needed)}")
        yield number, row
