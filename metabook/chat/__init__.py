"""A chatbot that learns while it is used: it answers with an intent, and adapts to each correction at once.

Any :class:`~metabook.learners.Learner` can be its mind: what the bot remembers is the support set, the message that it
is asked is the query. ``metabook chat`` is the same bot in the terminal.
"""

from metabook.chat.bot import Answer, Chatbot, ChatError, Example
from metabook.chat.memory import Entry, Memory
from metabook.chat.rivals import FineTuned, Retrained
from metabook.chat.scenario import Outcome, Scenario, ask, draw_scenario, pooled_threshold, training_part
from metabook.chat.scope import Threshold, UnbiasedPrototypes, auroc, choose_threshold, within_class_spread
from metabook.chat.setup import Adapted, LLMFeatures, Settings, TfIdfFeatures, calibrate, default_bot, meta_learn
from metabook.chat.terminal import Session, converse, picture, recorder
from metabook.chat.users import Dialogue, ScriptedUser, talk

__all__ = [
    "Adapted",
    "Answer",
    "ChatError",
    "Chatbot",
    "Dialogue",
    "Entry",
    "Example",
    "FineTuned",
    "LLMFeatures",
    "Memory",
    "Outcome",
    "Retrained",
    "Scenario",
    "ScriptedUser",
    "Session",
    "Settings",
    "TfIdfFeatures",
    "Threshold",
    "UnbiasedPrototypes",
    "ask",
    "auroc",
    "calibrate",
    "choose_threshold",
    "converse",
    "default_bot",
    "draw_scenario",
    "meta_learn",
    "picture",
    "pooled_threshold",
    "recorder",
    "talk",
    "training_part",
    "within_class_spread",
]
