"""Where things are: the project, the book's pages in reading order, and what is built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from .errors import PressError

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Page:
    """A page of the table of contents.

    Parameters
    ----------
    name : str
        Path below the book's folder without suffix, with forward slashes.
    source : Path
        The ``.md`` file.
    number : str
        Chapter number, empty where the part is not numbered.
    """

    name: str
    source: Path
    number: str

    @cached_property
    def text(self) -> str:
        return self.source.read_text(encoding="utf-8")

    @property
    def is_notebook(self) -> bool:
        return "```{code-cell}" in self.text

    @property
    def twin(self) -> Path:
        return self.source.with_suffix(".ipynb")


@dataclass(frozen=True)
class Book:
    """A folder of chapters with its table of contents.

    Parameters
    ----------
    folder : Path
        Has ``_toc.yml``; ``_config.yml`` is in it or beside it.
    build : Path
        Folder for whatever is made; Jupyter Book wants it to be called ``_build``.
    records : Path
        Folder of measured records.
    """

    folder: Path
    build: Path
    records: Path

    @classmethod
    def at(cls, folder: Path | None = None, output: Path | None = None) -> Book:
        """The book in a folder; its ``_build`` is in ``output``, by default beside the folder, as ``results`` is.

        Raises
        ------
        PressError
            If the folder has no table of contents.
        """
        folder = (folder or PROJECT / "book").resolve()
        if not (folder / "_toc.yml").exists():
            raise PressError(f"{folder} is not a book: it has no _toc.yml")
        return cls(folder, (output or folder.parent).resolve() / "_build", folder.parent / "results")

    @cached_property
    def config_file(self) -> Path:
        for folder in (self.folder, self.folder.parent):
            if (folder / "_config.yml").exists():
                return folder / "_config.yml"
        raise PressError(f"there is no _config.yml in {self.folder} or beside it")

    @cached_property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load(self.config_file.read_text(encoding="utf-8")) or {}

    @cached_property
    def pages(self) -> list[Page]:
        """All pages, in reading order.

        Raises
        ------
        PressError
            If a file of the table of contents is missing; the message lists all that are.
        """
        toc = yaml.safe_load((self.folder / "_toc.yml").read_text(encoding="utf-8"))
        found = [Page(toc["root"], self._source(toc["root"]), "")]
        chapter = 0
        for part in toc.get("parts") or [toc]:
            numbered = bool(part.get("numbered"))
            for entry in part.get("chapters", []):
                chapter += numbered
                found.append(Page(entry["file"], self._source(entry["file"]), str(chapter) if numbered else ""))
                found += [Page(s["file"], self._source(s["file"]), "") for s in entry.get("sections", [])]
        if missing := [page.name for page in found if not page.source.exists()]:
            raise PressError(f"_toc.yml lists pages that do not exist: {', '.join(missing)}")
        return found

    def _source(self, name: str) -> Path:
        return self.folder / f"{name.removesuffix('.md')}.md"

    @property
    def notebooks(self) -> list[Page]:
        return [page for page in self.pages if page.is_notebook]

    def executed(self, preset: str) -> Path:
        return self.build / "executed" / preset

    @cached_property
    def record(self) -> dict[str, Any]:
        """What was measured of each chapter: ``{page: {"presets": {preset: {...}}, "glue": {name: text}}}``."""
        path = self.records / "chapters.json"
        return json.loads(path.read_text(encoding="utf-8"))["chapters"] if path.exists() else {}
