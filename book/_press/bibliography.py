"""Works cited: how the notebooks name them and where they link to."""

from __future__ import annotations

from pathlib import Path

from pybtex.database import Entry, parse_file
from pybtex.richtext import Text

from .errors import PressError


class Bibliography:
    """The entries of ``references.bib``.

    Raises
    ------
    PressError
        If the file is not there, when an entry is asked for, or has no such entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = parse_file(str(path)).entries if path.exists() else {}

    def entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise PressError(f"{self.path.name} has no entry {key!r}")
        return self.entries[key]

    def names(self, key: str) -> str:
        """Last names: ``Finn et al.``."""
        people = _people(self.entry(key))
        last = [_plain(" ".join(person.last_names)) for person in people]
        if len(last) > 2 or "others" in last:
            return f"{last[0]} et al."
        return " and ".join(last)

    def year(self, key: str) -> str:
        return self.entry(key).fields.get("year", "no year")

    def link(self, key: str) -> str | None:
        fields = self.entry(key).fields
        return f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url")

    def textual(self, key: str) -> str:
        """``[Finn et al. (2017)](link)``."""
        return self._linked(f"{self.names(key)} ({self.year(key)})", key)

    def parenthetical(self, keys: list[str]) -> str:
        """``([Finn et al., 2017](link); ...)``."""
        return "(" + "; ".join(self._linked(f"{self.names(key)}, {self.year(key)}", key) for key in keys) + ")"

    def full(self, key: str) -> str:
        """One line of a list of references."""
        entry = self.entry(key)
        people = [
            "others"
            if str(person) == "others"
            else " ".join([*person.first_names, *person.middle_names, *person.last_names])
            for person in _people(entry)
        ]
        names = _join([_plain(name) for name in people])
        role = " (editors)" if "author" not in entry.persons else ""
        title = _plain(entry.fields["title"])
        place = next(
            (entry.fields[f] for f in ("journal", "booktitle", "publisher", "school") if f in entry.fields), ""
        )
        parts = [f"{names}{role}", f"*{title}*", _plain(place), self.year(key)]
        line = ". ".join(part.removesuffix(".") for part in parts if part) + "."
        return f"{line} <{self.link(key)}>" if self.link(key) else line

    def _linked(self, text: str, key: str) -> str:
        return f"[{text}]({self.link(key)})" if self.link(key) else text


def _plain(latex: str) -> str:
    return str(Text.from_latex(latex))


def _people(entry: Entry) -> list:
    return entry.persons.get("author") or entry.persons.get("editor") or []


def _join(names: list[str]) -> str:
    if names and names[-1] == "others":
        return ", ".join(names[:-1]) + " and others"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""
