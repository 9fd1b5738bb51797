"""Each construct of MyST as the notebooks show it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _press.errors import PressError
from _press.flatten import leftovers
from markdown_it import MarkdownIt

Flatten = Callable[..., str]

BIB = r"""
@inproceedings{finn2017maml, author = {Finn, Chelsea and Abbeel, Pieter and Levine, Sergey}, title = {{MAML}: A Title},
  booktitle = {A Conference}, year = {2017}, url = {https://example.org/maml}}
@article{lake2015, author = {Lake, Brenden M. and Salakhutdinov, Ruslan}, title = {Concepts}, journal = {Science},
  year = {2015}, doi = {10.1/abc}}
@mastersthesis{juergen1987, author = {Schmidhuber, J{\"u}rgen}, title = {On Learning}, school = {TU}, year = {1987}}
"""


@pytest.mark.parametrize("fence", [":::", "```"])
def test_admonitions_become_quotations(flatten: Flatten, fence: str) -> None:
    assert flatten(f"{fence}{{warning}}\nMind *this*.\n\n- a\n{fence}") == "> **Warning**\n>\n> Mind *this*.\n>\n> - a"


def test_admonition_with_its_own_title_and_nested_blocks(flatten: Flatten) -> None:
    text = "::::{admonition} Read `me`\n:class: tip\n:::{note}\nInner.\n:::\n```python\nx = 1\n```\n::::"
    assert flatten(text) == "> **Read `me`**\n>\n> > **Note**\n> >\n> > Inner.\n>\n> ```python\n> x = 1\n> ```"


def test_dropdowns_fold_and_keep_mathematics_in_the_summary(flatten: Flatten) -> None:
    made = flatten(":::{dropdown} B. Because $\\theta'$ is `theta`\nYes.\n:::")
    summary = "<summary>B. Because $\\theta'$ is <code>theta</code></summary>"
    assert made == f"<details>\n{summary}\n\nYes.\n\n</details>"


def test_equations_are_numbered_and_referred_to(flatten: Flatten) -> None:
    made = flatten(
        "$$\na\n$$ (eq-a)\n\n$$ plain $$\n\n```{math}\n:label: eq-b\n\nb\n```\n\nBy {eq}`eq-b` and {eq}`eq-c`.",
        other="# Other\n\n$$ c $$ (eq-c)\n",
    )
    assert "$$\na\n\\tag{1.1}\n$$" in made
    assert "$$\n plain \n$$" in made
    assert "$$\nb\n\\tag{1.2}\n$$" in made
    assert "By [(1.2)](#eq-b) and [(2.1)](other.md#eq-c)." in made


def test_exercises_and_their_solutions(flatten: Flatten) -> None:
    made = flatten(
        ":::{exercise} First\n:label: ex-a\nDo {ref}`ex-b`.\n:::\n\n:::{exercise}\n:label: ex-b\nDo.\n:::\n\n"
        ":::{solution} ex-b\n:class: dropdown\nDone.\n:::"
    )
    assert "**Exercise 1.1: First**\n\nDo [Exercise 1.2](#ex-b)." in made
    assert "**Exercise 1.2**\n\nDo." in made
    assert "<details>\n<summary>Solution to Exercise 1.2</summary>\n\nDone.\n\n</details>" in made


def test_gated_solutions_fold_their_text_around_code_that_stays_a_cell(flatten: Flatten) -> None:
    made = flatten(
        ":::{exercise-start} Stub\n:label: ex-a\n:::\nFill in.\n\n```{code-cell} ipython3\nstub()\n```\n\n"
        ":::{exercise-end}\n:::\n\n:::{solution-start} ex-a\n:::\nFirst.\n\n```{code-cell} ipython3\nsolved()\n```\n\n"
        "Then.\n\n:::{solution-end}\n:::\n\nAfter."
    )
    start = "<details>\n<summary>Solution to Exercise 1.1</summary>\n\n"
    anchor = '<a id="ex-a"></a>\n\n'
    assert made == (
        f"{anchor}**Exercise 1.1: Stub**\n\nFill in.\n\n[stub()]\n\n{start}First.\n\n</details>\n\n[solved()]\n\n"
        f"{start}Then.\n\n</details>\n\nAfter."
    )


def test_citations_link_to_the_work_and_the_references_are_listed(flatten: Flatten) -> None:
    made = flatten(
        "{cite:t}`finn2017maml`; {cite:p}`lake2015,juergen1987`.\n\n```{bibliography}\n:filter: x\n```\n", BIB
    )
    first, _, references = made.partition("\n\n")
    maml = "[Finn et al. (2017)](https://example.org/maml)"
    assert first == f"{maml}; ([Lake and Salakhutdinov, 2015](https://doi.org/10.1/abc); Schmidhuber, 1987)."
    assert references.split("\n") == [
        "- Chelsea Finn, Pieter Abbeel and Sergey Levine. *MAML: A Title*. A Conference. 2017. <https://example.org/maml>",
        "- Brenden M. Lake and Ruslan Salakhutdinov. *Concepts*. Science. 2015. <https://doi.org/10.1/abc>",
        "- Jürgen Schmidhuber. *On Learning*. TU. 1987.",
    ]


def test_only_what_a_chapter_cites_is_among_its_references(flatten: Flatten) -> None:
    assert "Lake" not in flatten("{cite}`finn2017maml`\n\n```{bibliography}\n```\n", BIB)


def test_references_to_sections_pages_and_terms(flatten: Flatten) -> None:
    made = flatten(
        "{ref}`there`, {ref}`its text <there>`, {doc}`sub/other`, [so](sub/other.md#there), [](sub/other.md), "
        "[x](#there), {term}`task`, {term}`tasks <task>`",
        **{"sub/other": "(there)=\n# Other *title*\n\n```{code-cell} ipython3\n1\n```\n"},
    )
    there = "sub/other.ipynb#there"
    title = "[Other *title*](sub/other.ipynb)"
    expected = [f"[Other *title*]({there})", f"[its text]({there})", title, f"[so]({there})", title, f"[x]({there})"]
    assert made == ", ".join([*expected, "*task*", "*tasks*"])


def test_targets_become_anchors(flatten: Flatten) -> None:
    assert flatten("(here)=\n## Title\n\nSee {ref}`here`.") == '<a id="here"></a>\n\n## Title\n\nSee [Title](#here).'


def test_targets_before_a_paragraph_can_be_referred_to(flatten: Flatten) -> None:
    made = flatten(
        "(check-a)=\n(check-b)=\n**Check.** That $a = b$.\n\n"
        "See {ref}`the *check* <check-a>`, {ref}`others <check-c>`.",
        other="# Other\n\n(check-c)=\n**Check.** So it is.\n\n```{code-cell} ipython3\n1\n```\n",
    )
    anchors = '<a id="check-a"></a>\n\n<a id="check-b"></a>\n\n'
    assert made == f"{anchors}**Check.** That $a = b$.\n\nSee [the *check*](#check-a), [others](other.ipynb#check-c)."
    assert leftovers(made) == []


def test_pictures_need_words(flatten: Flatten) -> None:
    made = flatten("```{figure} a.svg\n:alt: A cat\nA *caption*.\n```\n\n```{image} b.svg\n:alt: A dog\n```")
    assert made == "![A cat](a.svg)\n\n**Figure 1.1.** A *caption*.\n\n![A dog](b.svg)"
    with pytest.raises(PressError, match=r"page.md:3: \{image\} b.svg needs :alt:"):
        flatten("a\n\n```{image} b.svg\n```")


def test_theorems_are_numbered_by_kind(flatten: Flatten) -> None:
    made = flatten(
        ":::{prf:lemma}\nL.\n:::\n\n:::{prf:theorem} Name\n:label: thm\nT.\n:::\n\n"
        ":::{prf:proof}\nP.\n:::\n\n{prf:ref}`thm`"
    )
    assert "> **Lemma 1.1**\n>\n> L." in made
    assert "> **Theorem 1.1** (Name)\n>\n> T." in made
    assert "> **Proof**\n>\n> P." in made
    assert made.endswith("[Theorem 1.1](#thm)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{math}`x_1` {sub}`2` {sup}`3` {kbd}`C`", "$x_1$ <sub>2</sub> <sup>3</sup> <kbd>C</kbd>"),
        ("{abbr}`MSE (mean error)`", '<abbr title="mean error">MSE</abbr>'),
        ("a[^n] b[^m] c[^n]\n\n[^n]: Why.", "a<sup>1</sup> b<sup>2</sup> c<sup>1</sup>\n\n<sup>1</sup> Why."),
        ("```{code-block} python\nx = 1\n```", "```python\nx = 1\n```"),
        ("```{raw} latex\nx\n```\n\n```{raw} html\n<b>x</b>\n```", "<b>x</b>"),
        ("```{tableofcontents}\n```\n\nText", "Text"),
        (":::{table} Name\n| a |\n| - |\n:::", "**Name**\n\n| a |\n| - |"),
        ("::::{tab-set}\n:::{tab-item} One\nA\n:::\n:::{tab-item} Two\nB\n:::\n::::", "**One**\n\nA\n\n**Two**\n\nB"),
        (":::{glossary}\ntask\n    A problem.\n:::", "**task**\n\nA problem."),
        (":::{epigraph}\nWords.\n:::", "> Words."),
    ],
)
def test_small_constructs(flatten: Flatten, text: str, expected: str) -> None:
    assert flatten(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "`{eq}` and ``{ref}`x` `` are words",
        "$a`b$ costs \\$3, {not a role}",
        "| a | b |\n| --- | --- |\n| `{x}` | $y$ |",
        "![alt *text*](../_static/x.svg) and [out](https://example.org/a_(b)) <https://example.org>",
        "- a list\n\n  ```python\n  {ref}`x`\n  ```",
        "It costs $3 or $4, and `code`.",
    ],
)
def test_what_is_plain_stays_as_it_is(flatten: Flatten, text: str) -> None:
    assert flatten(text) == text


def test_a_directive_in_a_list_keeps_its_indentation(flatten: Flatten) -> None:
    made = flatten("- item\n\n  :::{note}\n  Inside.\n  :::\n- next")
    assert made == "- item\n\n  > **Note**\n  >\n  > Inside.\n\n- next"
    assert MarkdownIt().parse(made)[0].type == "bullet_list_open"


def test_a_role_may_run_over_a_line(flatten: Flatten) -> None:
    assert flatten("See {cite:t}`finn2017maml,\nlake2015`.", BIB).startswith("See [Finn et al. (2017)]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\n:::{mermaid}\nx\n:::", r"page.md:3: .*directive \{mermaid\}"),
        ("a\n\n:::{note}\n\nb {unknown}`x`\n:::", r"page.md:5: .*role \{unknown\}"),
        ("{eq}`nowhere`", "page.md:1: nothing has the label 'nowhere'"),
        ("a\n{cite:t}`nobody2020`", "page.md:2: references.bib has no entry 'nobody2020'"),
        ("{doc}`missing`", "page.md:1: there is no page 'missing'"),
        (":::{solution} ex-none\n:::", "page.md:1: the solution of an unknown exercise 'ex-none'"),
        ("{{ name }}", "page.md:1: .*substitutions"),
        ("> :::{note}\n> x\n> :::", "page.md:1: could not flatten ':::{note}'"),
        ("(a)=\n# A\n\n(a)=\n## B", "page.md:4: the label 'a' is already in page"),
    ],
)
def test_what_a_notebook_has_no_form_for_stops_the_press(flatten: Flatten, text: str, message: str) -> None:
    with pytest.raises(PressError, match=message):
        flatten(text)


@pytest.mark.parametrize("text", ["```{note}\nx\n```", "a {ref}`x` b", ":::{note}\nx\n:::", "(label)="])
def test_leftovers_are_found(text: str) -> None:
    assert leftovers(text)
    assert not leftovers(f"~~~~text\n{text}\n~~~~")
