"""A bot ready for use: features, a mind, the intents that it starts with, and a threshold from validation classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metabook.chat.bot import Chatbot, Example
from metabook.chat.memory import Memory
from metabook.chat.scenario import Outcome, Scenario, ask, draw_scenario, pooled_threshold, training_part
from metabook.chat.scope import Threshold, UnbiasedPrototypes, within_class_spread
from metabook.data import TextData
from metabook.episodes import EpisodeSampler
from metabook.learners import ProtoNet
from metabook.nets import Adapted
from metabook.text import TfIdf
from metabook.training import fit, seed_everything

if TYPE_CHECKING:
    from metabook.llm import LanguageModel

__all__ = ["FEATURES", "Adapted", "LLMFeatures", "Settings", "TfIdfFeatures", "calibrate", "default_bot", "meta_learn"]

FEATURES = ("tfidf", "meta", "llm")
DIMENSIONS = 1024
LAYER = 28  # of SmolLM2-135M: chosen on validation classes
STARTER_SHOTS = {"tfidf": 20, "meta": 20, "llm": 5}
Embedding = Callable[[Sequence[str]], Tensor]


class TfIdfFeatures:
    """Texts to TF-IDF features in ``dimensions`` numbers; zeros for a text without a known n-gram.

    Parameters
    ----------
    texts : sequence of str
        Training texts, which say what n-grams there are and how rare they are.
    dimensions : int
        Of the random projection.
    """

    def __init__(self, texts: Sequence[str], dimensions: int = DIMENSIONS) -> None:
        self._tfidf, self._dimensions = TfIdf(texts), dimensions

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features ``[texts, dimensions]`` of length one."""
        return self._tfidf.dense(texts, self._dimensions)


class LLMFeatures:
    """Texts to what a language model makes of them in one word: standardised on training texts, of length one.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
        Training texts: mean and deviation of every feature are taken from them.
    others : sequence of str
        More texts that will be needed; what has been computed once is never computed again.
    layer : int
    cached : bool
        Keep what is computed here in metabook's cache, for the next start
        (:func:`~metabook.llm.features.cached_features`).
    progress : bool
        Show a progress bar.
    """

    def __init__(
        self,
        lm: LanguageModel,
        texts: Sequence[str],
        others: Sequence[str] = (),
        *,
        layer: int = LAYER,
        cached: bool = False,
        progress: bool = False,
    ) -> None:
        from metabook.llm import cached_features, features

        self._lm, self._layer = lm, layer
        needed = list(dict.fromkeys([*texts, *others]))
        compute = cached_features if cached else features
        with torch.no_grad():
            self._known = dict(zip(needed, compute(lm, needed, layer, progress=progress).cpu()))
        training = torch.stack([self._known[text] for text in texts])
        self._mean, self._deviation = training.mean(0), training.std(0).clamp_min(1e-6)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features ``[texts, width]``."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if missing:
            from metabook.llm import features

            with torch.no_grad():
                self._known.update(zip(missing, features(self._lm, missing, self._layer).cpu()))
        states = torch.stack([self._known[text] for text in texts])
        return F.normalize((states - self._mean) / self._deviation, dim=1)


def meta_learn(
    embed: Embedding, pool: TextData, steps: int = 30, *, seed: int = 0, rank: int = 64, scale: float = 4.0
) -> Adapted:
    """Meta-train a change of the features, as a Prototypical Network on few-shot tasks of old intents.

    Parameters
    ----------
    embed : callable
        Texts to features ``[texts, d]``.
    pool : TextData
        The messages of the old intents (:func:`~metabook.chat.scenario.training_part`).
    steps : int
        Few are better than many: with many, the change fits the old intents alone.
    seed : int
    rank, scale : int, float
        See :class:`Adapted`.

    Returns
    -------
    Adapted
        In evaluation mode, frozen.
    """
    seed_everything(seed)
    features = embed(pool.texts)
    learner = ProtoNet(Adapted(features.shape[1], rank, scale), in_turn=True)
    tasks = EpisodeSampler(pool.with_features(features), ways=16, shots=1, queries=4, seed=seed)
    fit(learner, tasks, steps=steps, tasks=4, lr=3e-3, anneal="cosine", seed=seed, progress=False)
    net = learner.net.eval().requires_grad_(False)
    assert isinstance(net, Adapted)  # for the type checker
    return net


@dataclass(frozen=True)
class Settings:
    """What was chosen on validation classes.

    Parameters
    ----------
    spread : float
        Of the embeddings within a class.
    threshold : Threshold
    outcomes : sequence of Outcome
        What it was chosen from.
    """

    spread: float
    threshold: Threshold
    outcomes: tuple[Outcome, ...]


def spread_in(embed: Embedding, scenarios: Sequence[Scenario], net: nn.Module | None = None) -> float:
    """The spread within the new classes of some scenarios, in the space of the net."""
    spreads = []
    for scenario in scenarios:
        examples = [*scenario.taught, *scenario.new]
        names = sorted({example.intent for example in examples})
        with torch.no_grad():
            z = embed([example.message for example in examples])
            z = z if net is None else net(z)
        y = torch.tensor([names.index(example.intent) for example in examples], device=z.device)
        spreads.append(within_class_spread(z, y))
    return float(np.mean(spreads))


def calibrate(embed: Embedding, scenarios: Sequence[Scenario], net: nn.Module | None = None) -> Settings:
    """Choose spread and threshold of :class:`UnbiasedPrototypes` on scenarios of validation classes.

    Parameters
    ----------
    embed : callable
        Texts to features ``[texts, d]``.
    scenarios : sequence of Scenario
        Drawn with ``part="validation"``; several numbers of shots make a threshold that serves all of them.
    net : Module, optional
        The embedding on top of the features.

    Returns
    -------
    Settings
    """
    spread = spread_in(embed, scenarios, net)
    learner = UnbiasedPrototypes(net or nn.Identity(), spread)
    outcomes = tuple(ask(embed, learner, scenario) for scenario in scenarios)
    return Settings(spread, pooled_threshold(outcomes), outcomes)


def texts_of(scenarios: Sequence[Scenario]) -> tuple[list[str], list[str]]:
    """The examples of the old intents, and all other messages of some scenarios."""
    training = [example.message for scenario in scenarios for example in scenario.known]
    parts = [(*each.taught, *each.old, *each.new) for each in scenarios]
    others = [example.message for part in parts for example in part]
    return list(dict.fromkeys(training)), [*others, *(text for each in scenarios for text in each.outside)]


def default_bot(
    features: str = "tfidf", *, memory: Memory | None = None, starter: bool = True, progress: bool = False
) -> Chatbot:
    """The bot of ``metabook chat``: unbiased prototypes over frozen features, with 40 generated intents to start with.

    Parameters
    ----------
    features : {"tfidf", "meta", "llm"}
        TF-IDF needs no download and no time; "meta" has a meta-learned change of it, trained in seconds. The language
        model is downloaded once; preparing it takes about a minute the first time, and a message a tenth of a second.
    memory : Memory, optional
        Where what the user teaches is kept.
    starter : bool
        Whether to know the generated training intents; otherwise the bot begins with nothing.
    progress : bool
        Show a progress bar where there is something to wait for.

    Returns
    -------
    Chatbot

    Raises
    ------
    ValueError
        If there are no such features.
    UserError
        If the language model cannot be had.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, not {features!r}")
    shots = STARTER_SHOTS[features]
    scenarios = [
        draw_scenario("intents", "validation", shots=k, seed=s, known_shots=shots, old_queries=2, outside=80)
        for k, s in ((1, 0), (5, 1))
    ]
    embed: Embedding
    net: nn.Module | None = None
    if features in ("tfidf", "meta"):
        pool = training_part()
        embed = TfIdfFeatures(pool.texts)
        if features == "meta":
            net = meta_learn(embed, pool)
    else:
        from metabook import llm  # an extra of the package

        embed = LLMFeatures(llm.load(), *texts_of(scenarios), cached=True, progress=progress)
    chosen = calibrate(embed, scenarios, net)
    known: Sequence[Example] = scenarios[0].known if starter else ()
    learner = UnbiasedPrototypes(net or nn.Identity(), chosen.spread)
    return Chatbot(embed, learner, threshold=chosen.threshold.value, starter=known, memory=memory)
