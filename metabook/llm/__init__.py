"""A real language model as a learner: loading it, its features, learning in its context, adapters,
and training on its own verified answers.

Needs the extra ``llm`` of the package (transformers, peft). Nothing else in metabook imports this.
"""

from metabook.llm.adapted import AdaptedFeatures, LowerStates
from metabook.llm.adapters import Adapter
from metabook.llm.evolution import evolve
from metabook.llm.features import cached_features, features
from metabook.llm.few_shot import AdapterFewShot, MaskedAdapter, MetaAdapter
from metabook.llm.in_context import InContext
from metabook.llm.model import LanguageModel, load
from metabook.llm.prototypes import LLMPrototypes, Whitening, choose

__all__ = [
    "AdaptedFeatures",
    "Adapter",
    "AdapterFewShot",
    "InContext",
    "LLMPrototypes",
    "LanguageModel",
    "LowerStates",
    "MaskedAdapter",
    "MetaAdapter",
    "Whitening",
    "cached_features",
    "choose",
    "evolve",
    "features",
    "load",
]
