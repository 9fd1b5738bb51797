"""A real language model as a learner: loading it, its features, learning in its context, and adapters.

Needs the extra ``llm`` of the package (transformers, peft). Nothing else in metabook imports this.
"""

from metabook.llm.adapters import Adapter
from metabook.llm.evolution import evolve
from metabook.llm.features import features
from metabook.llm.in_context import InContext
from metabook.llm.model import LanguageModel, load
from metabook.llm.prototypes import LLMPrototypes, choose

__all__ = ["Adapter", "InContext", "LLMPrototypes", "LanguageModel", "choose", "evolve", "features", "load"]
