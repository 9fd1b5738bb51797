"""A measured figure in a chapter comes from a cell or from a record; those that are typed are named here."""

from __future__ import annotations

from pathlib import Path

import pytest
from _press.layout import Book, Page
from _press.typed import typed

PROJECT = Path(__file__).resolve().parents[2]

#: Typed figures that are not measured, by the sentence that they stand in: chance, definitions, cases that are made up.
ALLOWED = {
    "index": ["guessing gives 20 %"],
    "00-background/limits": ["A line marks chance, 20 %", "Chance is 20 %"],
    "10-concepts/tasks_and_episodes": ["make the 95 % interval ± 0.5 points?", "And ± 0.25?", "A paper reports 71.3"],
    "20-algorithms/prototypical_networks": ["it would have scored 100 %"],
    "20-algorithms/metric_learners": ["Suppose that all 200 checkpoints are equally good, at 99.4 %"],
    "20-algorithms/maml_family": ["The middle 90 % of"],
    "20-algorithms/bayesian": ["The coverage from 93 to 97 percent is shaded", "Shaded: 93 to 97 %"],
    "20-algorithms/self_evolution": ['read "from 0 % to 80 %" with the suspicion'],
    "30-mathematics/masked_losses": ["has 14 percent of the loss", "BERT hides 15 %", "a fixed rate of 15 %"],
    "30-mathematics/across_tasks": [
        "on a grid of 9 by 11 values",
        "the gap that 95 % of the meta-learners keep",
        "with the probability 10 %",
        "30 percent",
        "30 % of the data is real",
    ],
    "40-code/clinic": ["learnt them by heart has 100 %", "An exhibit costs +0.4 ± 0.9 points"],
    "60-tools/results": ["Our interval is ± 0.4 over tasks", "A paper reports 98.7"],
    "notation": ["the half-width of its 95 %"],
    "glossary": ["given with confidence 0.8, 80 % are right"],
}


def pages() -> list[Page]:
    return Book.at(PROJECT / "book").pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_measured_figure_is_typed(page: Page) -> None:
    allowed = ALLOWED.get(page.name, [])
    found = [each for each in typed(page) if not any(phrase in each.sentence for phrase in allowed)]
    assert not [f"{page.name}.md:{each.line}: {each.figure!r} in: {each.sentence}" for each in found], (
        "glue it from a cell or read it from a record; a published one needs its citation in the sentence"
    )


def test_what_is_allowed_is_there() -> None:
    sentences = {page.name: " | ".join(each.sentence for each in typed(page)) for page in pages()}
    assert not [(name, phrase) for name, each in ALLOWED.items() for phrase in each if phrase not in sentences[name]]


HEAD = "---\nkernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"


def found_in(tmp_path: Path, text: str) -> list[str]:
    source = tmp_path / "page.md"
    source.write_text(HEAD + text, encoding="utf-8")
    return [each.figure for each in typed(Page("page", source, ""))]


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It reaches 97.4 % on new characters.", ["97.4 %"]),
        ("It reaches 97 % on new characters.", ["97 %"]),
        ("The gain is 2.1 ± 0.3 points.", ["± 0.3 points"]),
        ("Training takes 61 CPU-seconds.", ["61 CPU-seconds"]),
        ("A call takes 1.2 ms, 2.5 times less.", ["1.2 ms", "2.5 times"]),
        ("| MAML | 94.3 ± 0.4 |\n| ProtoNet | {cite:t}`snell2017` 98.8 ± 0.1 |", ["± 0.4"]),
        ("- {glue:text}`one`, then 97.4 %, then {glue:text}`two`.", ["97.4 %"]),
        ("{cite:t}`finn2017maml` report 98.7 %. Ours is 94.3 %.", ["94.3 %"]),
        ("```{code-cell} ipython3\nshow(alt='It ends near 0.3, above 40 percent.')\n```", ["near 0.3", "40 percent"]),
        ("```{code-cell} ipython3\nrows = [['MAML', '98.7 ± 0.4']]\n```", ["98.7 ±"]),
        (":::{note}\nIt reaches 97.4 %.\n:::", ["97.4 %"]),
        (":::{note} It reaches 97.4 %.\nSo it does.\n:::", ["97.4 %"]),
        ("## Quiz\n\nA bot scores 97.4 %.\n\n## References\n\nIt reaches 97 %.", ["97.4 %", "97 %"]),
    ],
)
def test_a_typed_figure_is_found(tmp_path: Path, text: str, figures: list[str]) -> None:
    assert found_in(tmp_path, text) == figures


@pytest.mark.parametrize(
    "text",
    [
        "It reaches {glue:text}`accuracy` with its 95 % interval.",
        "{cite:t}`finn2017maml` report 98.7 ± 0.4 %, and {cite:t}`nichol2018reptile` 98.3 ± 0.5 %.",
        "The rate is `0.5 %`, and $p = 97.4\\,\\%$.",
        "$$\np = 97.4 %\n$$",
        "```{math}\n:label: eq-a\np = 97.4 %\n```",
        "```python\nprint('97.4 %')\n```",
        "## Quiz\n\nA bot is right in 90 % of the cases.",
        ":::{exercise-start} Bots\n:label: ex-a\n:::\nA bot is right in 90 % of the cases.\n:::{exercise-end}\n:::",
        ":::{exercise-start} A\n:::\n```{code-cell} ipython3\nf('98.7 ± 0.4')\n```\n:::{exercise-end}\n:::",
        ":::{solution} ex-a\nIt is 90 % of the cases.\n:::",
        "```{code-cell} ipython3\nshow(caption=f'mean ± 95 % interval, {value:.1f} %', alt='a rate of 0.1')\n```",
    ],
)
def test_what_is_no_typed_measurement_is_let_through(tmp_path: Path, text: str) -> None:
    assert found_in(tmp_path, text) == []
