"""A bot whose features are ten words: what it answers can be worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metabook.chat import Chatbot, Example, UnbiasedPrototypes

WORDS = ("book", "flight", "oslo", "play", "song", "louder", "pizza", "order", "now", "please")


def embed(texts):
    """Which words a text has, at length one; zeros if it has none of them."""
    counts = torch.tensor([[float(word in text.lower().split()) for word in WORDS] for text in texts])
    return nn.functional.normalize(counts, dim=1)


STARTER = (
    Example("book flight oslo", "book_flight"),
    Example("book flight now", "book_flight"),
    Example("play song", "play_music"),
    Example("play song louder", "play_music"),
)


def make(memory=None, learner=None, threshold=-0.9):
    learner = learner or UnbiasedPrototypes(nn.Identity(), 0.2)
    return Chatbot(embed, learner, threshold=threshold, starter=STARTER, memory=memory)


@pytest.fixture(scope="session")
def toy():
    return SimpleNamespace(embed=embed, starter=STARTER, make=make)
