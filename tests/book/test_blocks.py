"""The block structure of MyST: fences, directives, mathematics, targets, cells."""

from __future__ import annotations

from pathlib import Path

import pytest
from _press.blocks import Directive, Math, Target, Text, Verbatim, parse
from _press.cells import cells
from _press.errors import PressError
from _press.layout import Page


def test_a_fence_ends_at_the_first_as_long_one_so_that_longer_ones_hold_others() -> None:
    outer, after = parse("::::{note}\n:::{tip} Title\ninside\n:::\n::::\nafter", "f")
    assert isinstance(outer, Directive)
    assert (outer.name, outer.body) == ("note", [":::{tip} Title", "inside", ":::"])
    inner = parse(outer.body, "f", outer.body_line)[0]
    assert isinstance(inner, Directive)
    assert (inner.name, inner.argument, inner.body, inner.line) == ("tip", "Title", ["inside"], 2)
    assert isinstance(after, Text)
    assert (after.lines, after.line) == (["after"], 6)


def test_options_are_taken_off_the_body() -> None:
    block = parse("```{figure} a.png\n:alt: A: b\n:name:\n\ncaption\n```", "f")[0]
    assert isinstance(block, Directive)
    assert block.options == {"alt": "A: b", "name": ""}
    assert block.body == ["", "caption"]
    assert block.body_line == 4


def test_what_is_fenced_without_a_directive_is_verbatim() -> None:
    text = "```python\n:::{note}\n(label)=\n$$\n```"
    assert parse(text, "f") == [Verbatim(text.split("\n"), 1)]


def test_inline_code_in_backticks_is_not_a_fence() -> None:
    assert isinstance(parse("```{eq}``` is a word", "f")[0], Text)


@pytest.mark.parametrize(
    ("text", "body", "label"),
    [("$$ x $$", " x ", None), ("$$\nx\n+ y\n$$ (eq-a)", "x\n+ y", "eq-a"), ("$$x\ny$$ (eq-a)", "x\ny", "eq-a")],
)
def test_display_mathematics(text: str, body: str, label: str | None) -> None:
    assert parse(text, "f") == [Math(body, label, 1)]


def test_targets_and_comments() -> None:
    assert parse("(here)=\n% a comment\n# Title", "f") == [Target("here", 1), Text(["# Title"], 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\n:::{note}\nopen", "f:3: the fence :::{note} is never closed"),
        ("$$\nx", "f:1: display mathematics is never closed"),
        ("a\n$$ x $$ more", "f:2: only a .label. may follow"),
        (":::note\n:::", "f:1: a colon fence without"),
    ],
)
def test_what_is_not_closed_is_reported_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PressError, match=message):
        parse(text, "f")


SOURCE = """\
---
kernelspec: {name: python3}
---
# Title

text
+++
second

```{code-cell} ipython3
:tags: [hide-input, "parameters"]

x = 1

y = 2
```
last
"""


def test_cells_keep_their_place_and_their_tags(tmp_path: Path) -> None:
    source = tmp_path / "page.md"
    source.write_text(SOURCE)
    found = cells(Page("page", source, ""))
    assert [(cell.kind, cell.source, cell.line) for cell in found] == [
        ("markdown", "# Title\n\ntext", 4),
        ("markdown", "second", 8),
        ("code", "x = 1\n\ny = 2", 13),
        ("markdown", "last", 17),
    ]
    assert found[2].tags == ["hide-input", "parameters"]
    lines = SOURCE.split("\n")
    for cell in found:
        assert lines[cell.line - 1] == cell.lines[0]
