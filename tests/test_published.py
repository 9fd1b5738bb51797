"""Published figures have a source, and are set beside those of the same kind."""

import re
from pathlib import Path

import pytest

from metabook import published

ROOT = Path(__file__).parents[1]
FIGURES = [
    *published.OMNIGLOT,
    *published.SINUSOIDS,
    *published.NAVIGATION,
    *published.BANDITS,
    *published.INTENTS,
]


@pytest.mark.parametrize("each", FIGURES, ids=lambda each: f"{each.learner}-{each.source}-{each.transductive}")
def test_a_published_figure_has_a_reference_and_says_where_it_was_read(each):
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert each.source in keys
    assert each.read in ("own paper", "its code", "another paper")
    assert each.origin.split()[0].lower() in each.source
    assert all(isinstance(each.mean(what), float) for what in each.values)


def test_the_figure_beside_ours_is_of_the_same_kind_of_queries_if_there_are_both():
    assert published.on_omniglot("Reptile", transductive=True).values["5w1s"] == "97.68 ± 0.04"
    assert published.on_omniglot("Reptile", transductive=False).values["5w1s"] == "95.39 ± 0.09"
    assert published.on_omniglot("MAML", transductive=False).transductive is True
    assert published.on_omniglot("nobody", transductive=False) is None


def test_a_figure_is_a_number_too_and_names_its_origin():
    maml = published.on_omniglot("MAML", transductive=True)
    assert maml.mean("5w1s") == 98.7
    assert maml.origin == "Finn 2017, table 1"
    assert published.on_omniglot("MetaSGD", transductive=True).origin == "Li 2017"
