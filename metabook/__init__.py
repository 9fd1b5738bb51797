"""metabook: the code behind the book on learning to learn with language models."""

from metabook.episodes import Episodes, EpisodeSampler, LabelledData
from metabook.storage import load, save
from metabook.training import Evaluation, History, choose_device, evaluate, fit, seed_everything

__all__ = [
    "EpisodeSampler",
    "Episodes",
    "Evaluation",
    "History",
    "LabelledData",
    "choose_device",
    "evaluate",
    "fit",
    "load",
    "save",
    "seed_everything",
]
__version__ = "0.1.0"
