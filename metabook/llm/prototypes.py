"""Prototypes of frozen features: a class is the mean of what a language model makes of its texts.

Prototypical Networks (J. Snell, K. Swersky, R. Zemel, 2017) without training the embedding, as in SimpleShot (Y. Wang,
W.-L. Chao, K. Q. Weinberger, L. van der Maaten, 2019, https://arxiv.org/abs/1911.04623).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from metabook.episodes import TaskSource
from metabook.learners import ProtoNet
from metabook.learners.prototypes import class_means
from metabook.training import evaluate

__all__ = ["SCALINGS", "Choice", "LLMPrototypes", "Whitening", "choose"]

SCALINGS = ("none", "centred", "standardised")


class LLMPrototypes(ProtoNet):
    """Nearest class mean of features that were computed once.

    Features are shifted and scaled by what the training classes' are, then brought to unit length. Nothing is trained.

    Parameters
    ----------
    table : Tensor [texts, width]
        Features of the whole pool (:func:`~metabook.llm.features.features`); the inputs of episodes are its rows.
    training_rows : Tensor or sequence of int
        Rows of texts of the training classes, which mean and standard deviation are taken from.
    scaling : {"none", "centred", "standardised"}
        Unit length only; after subtracting the mean; or after dividing each feature by its deviation as well.

    Raises
    ------
    ValueError
        For another scaling, or too few training rows for it.
    """

    mean: Tensor
    deviation: Tensor
    table: Tensor

    def __init__(self, table: Tensor, training_rows: Tensor | Sequence[int], scaling: str = "standardised") -> None:
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
        if scaling != "none" and len(training_rows) < 2:
            raise ValueError(f"{len(training_rows)} training texts are too few to take a mean and a deviation from")
        super().__init__(nn.Identity())
        self.scaling = scaling
        known = table[torch.as_tensor(training_rows, device=table.device)]
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("mean", known.mean(0) if scaling != "none" else table.new_zeros(table.shape[1]))
        deviation = known.std(0).clamp_min(1e-6) if scaling == "standardised" else table.new_ones(table.shape[1])
        self.register_buffer("deviation", deviation)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings ``[tasks, examples, width]`` of row numbers ``[tasks, examples]``."""
        return F.normalize((self.table[x] - self.mean) / self.deviation, dim=-1)


class Whitening(nn.Module):
    r"""A linear map after which the classes that it was made from spread alike in every direction.

    What a class varies in says nothing about which class it is. With the covariance :math:`\Sigma` that features of the
    training classes have around the mean of their own class, and its Cholesky factor :math:`\Sigma = LL^\top`, the map
    is :math:`z \mapsto L^{-1}(z - \bar z)`: lengths after it are Mahalanobis distances before it, as in linear
    discriminant analysis (R. A. Fisher, The Use of Multiple Measurements in Taxonomic Problems, Annals of Eugenics 7,
    1936; A. O. Hatch, S. Kajarekar, A. Stolcke, Within-Class Covariance Normalization for SVM-Based Speaker
    Recognition, Interspeech 2006). The covariance is all that is learned, from labels of training classes, without a
    gradient step.

    Parameters
    ----------
    features : Tensor [texts, width]
        Of the training classes.
    y : Tensor [texts]
        Their classes, ``0 .. classes - 1``.
    shrinkage : float
        How much of the mean variance is added to that of every direction. There are more directions than texts can
        tell about: without it, those in which the training texts happen not to vary would count most.

    Raises
    ------
    ValueError
        For a shrinkage that is not positive, or no class with two texts.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, features: Tensor, y: Tensor, shrinkage: float = 1.0) -> None:
        super().__init__()
        if shrinkage <= 0:
            raise ValueError(f"shrinkage must be positive, not {shrinkage}")
        classes = int(y.max()) + 1 if len(y) else 0
        if len(y) <= classes:
            raise ValueError(f"{len(y)} texts of {classes} classes: a spread within a class needs two texts of it")
        z = features.double()
        within = z - class_means(z.unsqueeze(0), y.unsqueeze(0), classes)[0][y]
        covariance = within.T @ within / (len(y) - classes)
        ridge = shrinkage * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        self.register_buffer("mean", z.mean(0).to(features))
        self.register_buffer("factor", torch.linalg.cholesky(covariance + ridge).to(features))

    def forward(self, features: Tensor) -> Tensor:
        """Whitened features ``[texts, width]``."""
        return torch.linalg.solve_triangular(self.factor, (features - self.mean).T, upper=False).T


@dataclass(frozen=True)
class Choice:
    """One setting and how well it did on the validation tasks.

    Parameters
    ----------
    setting : hashable
        Key of its table of features.
    scaling : str
    accuracy, ci95 : float
        On the validation tasks, in [0, 1].
    """

    setting: Any
    scaling: str
    accuracy: float
    ci95: float


def choose(
    tables: Mapping[Any, Tensor],
    training_rows: Tensor | Sequence[int],
    validation: TaskSource,
    *,
    scalings: Iterable[str] = SCALINGS,
    tasks: int = 200,
    progress: bool = False,
) -> list[Choice]:
    """Judge every table of features with every scaling on the same validation tasks; the best comes first.

    Parameters
    ----------
    tables : mapping
        Features ``[texts, width]`` by setting: ``{("last", 28): ..., ("mean", 8): ...}``, say.
    training_rows : Tensor or sequence of int
        See :class:`LLMPrototypes`.
    validation : TaskSource
        Tasks of validation classes, never of test classes.
    scalings : iterable of str
    tasks : int
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Choice
        ``LLMPrototypes(tables[best.setting], training_rows, best.scaling)`` is then the learner to test once.
    """
    settings = [(setting, scaling) for setting in tables for scaling in scalings]
    choices = []
    for setting, scaling in tqdm(settings, disable=not progress, unit="setting", desc="choosing"):
        result = evaluate(LLMPrototypes(tables[setting], training_rows, scaling), validation, tasks=tasks)
        choices.append(Choice(setting, scaling, result.mean, result.ci95))
    return sorted(choices, key=lambda choice: -choice.accuracy)
