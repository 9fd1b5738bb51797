"""In-context learning: the support set is a text, and adapting to it is reading it.

T. Brown and others, Language Models are Few-Shot Learners, 2020, https://arxiv.org/abs/2005.14165 (direct scoring);
S. Min, M. Lewis, H. Hajishirzi, L. Zettlemoyer, Noisy Channel Language Model Prompting for Few-Shot Text
Classification, 2022, https://arxiv.org/abs/2108.04106; Z. Zhao, E. Wallace, S. Feng, D. Klein, S. Singh, Calibrate
Before Use, 2021, https://arxiv.org/abs/2102.09690; H. Zhou and others, Batch Calibration, 2024,
https://arxiv.org/abs/2309.17249.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metabook.episodes import Episodes, generator_for
from metabook.learners import Learner, task_losses
from metabook.llm.model import LanguageModel
from metabook.llm.scoring import METHODS, log_probabilities

__all__ = ["CALIBRATIONS", "CONTENT_FREE", "SCORINGS", "InContext", "calibrated"]

SCORINGS = ("direct", "channel")
CALIBRATIONS = ("none", "contextual", "batch")
#: Inputs that say nothing: what a model answers to them is its bias.
CONTENT_FREE = ("N/A", "", "[MASK]")


def calibrated(scores: Tensor, reference: Tensor) -> Tensor:
    r"""Scores less the bias that a model shows on reference inputs.

    .. math:: s_k(x) - \log \frac1n \sum_{j=1}^n \operatorname{softmax}_k s(x_j)

    Parameters
    ----------
    scores : Tensor [queries, labels]
        Log-probabilities, up to a constant a query.
    reference : Tensor [n, labels]
        Those of the reference inputs.
    """
    return scores - (reference.log_softmax(1).logsumexp(0) - math.log(len(reference)))


class InContext(Learner):
    """Classify a text by what a language model finds probable after reading labelled examples.

    *Direct*: how probable is the label, and the end of its line, after the query? *Channel*: the examples are turned
    round, label first; how probable is the query after the label? Nothing is trained.

    Parameters
    ----------
    lm : LanguageModel
    texts : sequence of str
        The pool of texts; the inputs of episodes are row numbers into it (int64).
    names : sequence of str
        Name of each class of the pool; underscores become spaces.
    scoring : {"direct", "channel"}
    calibration : {"none", "contextual", "batch"}
        Contextual: divide by what the model answers to :data:`CONTENT_FREE` inputs (direct scoring only). Batch: divide
        by its mean answer to the queries of the task, which makes the learner transductive, and optimistic where, as
        in most episodes, every class has as many queries.
    seed : int, optional
        Of the order of the examples in the prompt, which answers depend on; None keeps the order given.
    instruction : str
        First line of the prompt.
    text_field, label_field : str
        What the prompt calls a text and a label.
    method : {"packed", "cached", "naive"}
        See :func:`~metabook.llm.scoring.log_probabilities`; the same result at different speeds.

    Raises
    ------
    ValueError
        For an option that there is not, or contextual calibration of channel scores.
    """

    def __init__(
        self,
        lm: LanguageModel,
        texts: Sequence[str] = (),
        names: Sequence[str] = (),
        *,
        scoring: str = "direct",
        calibration: str = "none",
        seed: int | None = None,
        instruction: str = "Classify the user message by intent.",
        text_field: str = "Message",
        label_field: str = "Intent",
        method: str = "packed",
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("scoring", scoring, SCORINGS),
            ("calibration", calibration, CALIBRATIONS),
            ("method", method, METHODS),
        ):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")
        if scoring == "channel" and calibration == "contextual":
            raise ValueError("a channel score has no content-free input: the text is what it scores")
        self.lm, self.texts, self.names = lm, tuple(texts), tuple(names)
        self.scoring, self.calibration, self.seed, self.method = scoring, calibration, seed, method
        self.instruction, self.text_field, self.label_field = instruction, text_field, label_field

    @property
    def transductive(self) -> bool:
        return self.calibration == "batch"

    def _line_pair(self, text: str, label: str) -> tuple[str, str]:
        """What is given and what is scored, of one example; a text is one line, whatever it held."""
        first, second = (self.text_field, " ".join(text.split())), (self.label_field, label.replace("_", " "))
        if self.scoring == "channel":
            first, second = second, first
        return f"\n{first[0]}: {first[1]}\n{second[0]}:", f" {second[1]}\n"

    def prompt(
        self, support_texts: Sequence[str], support_labels: Sequence[int] | Tensor, label_names: Sequence[str]
    ) -> str:
        """What is read before a query."""
        order = list(range(len(support_texts)))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator_for("order in context", self.seed)).tolist()
        shown = ["".join(self._line_pair(support_texts[row], label_names[int(support_labels[row])])) for row in order]
        return "".join([f"{self.instruction}\n", *shown])

    def scores(
        self,
        support_texts: Sequence[str],
        support_labels: Sequence[int] | Tensor,
        label_names: Sequence[str],
        query_texts: Sequence[str],
    ) -> Tensor:
        """Logits of each label for each query, ``[queries, labels]``: log-probabilities, calibrated if asked for.

        Parameters
        ----------
        support_texts : sequence of str
            Empty for zero-shot classification.
        support_labels : sequence of int
            Row of each support text's label in ``label_names``.
        label_names : sequence of str
        query_texts : sequence of str

        Raises
        ------
        ValueError
            If the prompt is too long for the model, or texts and labels differ in number.
        """
        if len(support_texts) != len(support_labels):
            raise ValueError(f"{len(support_texts)} support texts but {len(support_labels)} labels")
        asked = [*query_texts, *(CONTENT_FREE if self.calibration == "contextual" else ())]
        read = self.lm.encode(self.prompt(support_texts, support_labels, label_names))
        sequences, starts = [], []
        for text in asked:
            for label in label_names:
                given, scored = map(self.lm.encode, self._line_pair(text, label))
                sequences.append([*read, *given, *scored])
                starts.append(len(read) + len(given))
        sums = log_probabilities(self.lm, sequences, starts, self.method).view(len(asked), len(label_names))
        found = sums[: len(query_texts)]
        if self.calibration == "none":
            return found
        return calibrated(found, found if self.calibration == "batch" else sums[len(query_texts) :])

    def predict(self, episodes: Episodes) -> Tensor:
        """Logits ``[tasks, queries, ways]``.

        Raises
        ------
        ValueError
            If the episodes do not say which classes of the pool theirs are.
        """
        if episodes.classes is None:
            raise ValueError("the names of the labels are needed: episodes must name their classes (Episodes.classes)")
        rows = (part.tolist() for part in (episodes.support_x, episodes.query_x, episodes.classes))
        logits = [
            self.scores(
                [self.texts[row] for row in support],
                labels,
                [self.names[c] for c in classes],
                [self.texts[row] for row in queries],
            )
            for support, queries, classes, labels in zip(*rows, episodes.support_y)
        ]
        return torch.stack(logits).to(episodes.device)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()
