"""The book's Sphinx extension: pages that need nothing from elsewhere, and buttons only where they lead somewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinxcontrib.bibtex.plugin import register_plugin
from sphinxcontrib.bibtex.style.referencing import BracketStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

from . import formulas, measured, notation, repository

_BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button", "use_source_button")
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/", "input/tex/extensions/", "a11y/assistive-mml.js")


_ROUND = BracketStyle(left="(", right=")")


@dataclass
class RoundBrackets(AuthorYearReferenceStyle):
    """Citations as ``Finn et al. (2017)`` and ``(Finn et al., 2017)``."""

    bracket_parenthetical: BracketStyle = field(default_factory=lambda: _ROUND)
    bracket_textual: BracketStyle = field(default_factory=lambda: _ROUND)


class Measured(SphinxDirective):
    """``{measured}``: run time and peak memory of this chapter, from the committed record."""

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / "_measured.json"
        self.env.note_dependency(str(file))
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        text = measured.markdown(records.get(self.env.docname, {}))
        box = nodes.container(classes=["measured"])
        self.state.nested_parse(StringList(text.splitlines(), str(file)), self.content_offset, box)
        return [box]


class Formulas(SphinxDirective):
    """``{formulas}``: the labelled equations of the Mathematics part, each with its check."""

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / formulas.SHEET
        self.env.note_dependency(str(file))
        sheet = nodes.section()
        if file.exists():
            lines = StringList(file.read_text(encoding="utf-8").splitlines(), str(file))
            self.state.nested_parse(lines, self.content_offset, sheet, match_titles=True)
        return sheet.children


def _set_repository(app: Sphinx, config: Config) -> None:
    """Buttons for the repository that is known; none where none is.

    Jupyter Book fills in its own repository otherwise.
    """
    theme = config.html_theme_options
    url = os.environ.get("PRESS_REPOSITORY_URL")
    if url is None:  # Sphinx was not started by the press
        own = {"repository": {"url": theme.get("repository_url", "")}}
        url = repository.find(own if "executablebooks/jupyter-book" not in str(own) else {}, Path(app.confdir))
    if url:
        theme["repository_url"] = url
        theme |= dict.fromkeys(_BUTTONS[:2], True)
    else:
        for name in ("repository_url", "path_to_docs", "repository_branch", "launch_buttons"):
            theme.pop(name, None)
        theme |= dict.fromkeys(_BUTTONS, False)


def _keep_together(app: Sphinx, doctree: nodes.document) -> None:
    """No line break inside ``97.4 ± 0.3 %``."""
    for text in list(doctree.findall(nodes.Text)):
        if " ± " in text and not isinstance(text.parent, nodes.literal | nodes.literal_block | nodes.raw):
            joined = text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
            text.parent.replace(text, nodes.Text(joined))


def _unique_ids(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """sphinx-exercise gives the contents of all exercises the same id."""
    for section in doctree.findall(nodes.section):
        if section["ids"] in (["exercise-content"], ["solution-content"]):
            section["ids"] = []


def _name_chapters(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """The page of notation says ``Only in `NN-part/name``` in its headings: show the chapter's title, linked."""
    for title in doctree.findall(nodes.title) if docname == notation.PAGE else ():
        for literal, words in _chapter_titles(title, app.env):
            address = app.builder.get_relative_uri(docname, literal.astext())
            title.replace(literal, nodes.reference("", "", *words, internal=True, refuri=address))


def _name_chapters_in_contents(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The same in the list of the page's contents; that page is written anew, as a title may have changed."""
    if notation.PAGE not in env.tocs:
        return []
    for literal, words in _chapter_titles(env.tocs[notation.PAGE], env):
        literal.parent.replace(literal, words)
    return [notation.PAGE]


def _chapter_titles(tree: nodes.Element, env: BuildEnvironment) -> list[tuple[nodes.literal, list[nodes.Node]]]:
    """Each literal text that names a chapter, and the chapter's title."""
    literals = [literal for literal in tree.findall(nodes.literal) if literal.astext() in env.titles]
    return [(literal, env.titles[literal.astext()].deepcopy().children) for literal in literals]


def _trim_page(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the scripts that would fetch Thebe when a page is read."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if "thebe" not in _words(file)]


def _words(file: Any) -> str:
    """Name and inline text of a script or style sheet."""
    return f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {})}".lower()


def _mathjax_files() -> Iterator[tuple[str, Path]]:
    """Path below MathJax's folder and place of each file that the pages need (2 MB of 12)."""
    for file in metadata.files("sphinx-mathjax-offline") or []:
        _, marker, path = file.as_posix().partition("/static/mathjax/")
        if marker and path.startswith(_MATHJAX):
            yield path, Path(str(file.locate()))


def _finish(app: Sphinx, exception: Exception | None) -> None:
    """Ship MathJax; drop source maps, Thebe, and the theme's templates."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for path, source in _mathjax_files():
        target = static / "mathjax" / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for path in [*static.rglob("*.map"), *static.glob("*thebe*"), *static.glob("*macros.html")]:
        path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    register_plugin("sphinxcontrib.bibtex.style.referencing", "author_year_round", RoundBrackets)
    app.add_directive("measured", Measured)
    app.add_directive("formulas", Formulas)
    app.connect("config-inited", _set_repository, priority=400)
    app.connect("doctree-read", _keep_together)
    app.connect("doctree-resolved", _unique_ids)
    app.connect("doctree-resolved", _name_chapters)
    app.connect("env-updated", _name_chapters_in_contents)
    app.connect("html-page-context", _trim_page, priority=900)
    app.connect("build-finished", _finish)
    # Below _static of the pages and not of the sources: every script of the latter is put into every page.
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
