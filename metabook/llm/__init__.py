"""A real language model as a learner: loading it, its features, and learning in its context.

Needs the extra ``llm`` of the package (transformers). Nothing else in metabook imports this.
"""

from metabook.llm.model import LanguageModel, load

__all__ = ["LanguageModel", "load"]
