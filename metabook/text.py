"""Features of texts that need no network: TF-IDF of character n-grams, and two classifiers over them.

The baselines of every few-shot text experiment here: a learned representation has to beat them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metabook.episodes import Episodes
from metabook.learners import Learner, task_losses

__all__ = ["LinearProbe", "SparsePrototypes", "TfIdf"]


class TfIdf:
    """TF-IDF of a text's character n-grams: which n-grams there are, and how rare each is, from training texts only.

    Parameters
    ----------
    texts : sequence of str
        The training texts.
    ngrams : (int, int)
        Shortest and longest n-gram, in characters of the lower-case text; spaces count.

    Raises
    ------
    ValueError
        If the texts hold no n-gram.

    Examples
    --------
    >>> train, test = data.intents("train"), data.intents("test")
    >>> tfidf = TfIdf(train.texts)
    >>> evaluate(SparsePrototypes(tfidf.sparse(test.texts)), EpisodeSampler(test, ways=5, shots=1, queries=5))
    >>> pool = test.with_features(tfidf.dense(test.texts))  # ordinary data, for learners that read tensors
    """

    def __init__(self, texts: Sequence[str], ngrams: tuple[int, int] = (2, 4)) -> None:
        # 1 + log(count) for the count: an n-gram that occurs three times is not three times as telling.
        self._vectorizer = TfidfVectorizer(analyzer="char", ngram_range=ngrams, sublinear_tf=True, dtype=np.float32)
        self._vectorizer.fit(texts)

    def __len__(self) -> int:
        """Number of n-grams."""
        return len(self._vectorizer.vocabulary_)

    def sparse(self, texts: Sequence[str]) -> csr_array:
        """The features: a sparse matrix ``[texts, n-grams]``, rows of unit length (zero without a known n-gram)."""
        return csr_array(self._vectorizer.transform(texts))

    def dense(self, texts: Sequence[str], dimensions: int = 512, seed: int = 0) -> Tensor:
        """A random projection of the features, small enough for a tensor, ``[texts, dimensions]``, rows of unit length.

        Inner products are kept up to an error of about ``1 / sqrt(dimensions)`` (W. Johnson, J. Lindenstrauss,
        Contemporary Mathematics 26, 1984), which costs some accuracy: :class:`SparsePrototypes` is exact.

        Parameters
        ----------
        texts : sequence of str
        dimensions : int
        seed : int
            Of the projection. Features that are compared need the same.
        """
        return F.normalize(torch.from_numpy(self.sparse(texts) @ _projection(len(self), dimensions, seed)), dim=1)


@lru_cache(maxsize=1)
def _projection(inputs: int, dimensions: int, seed: int) -> np.ndarray:
    """Random numbers ``[inputs, dimensions]``; kept, since they take longer to draw than a text to project."""
    return np.random.default_rng(seed).standard_normal((inputs, dimensions), dtype=np.float32)


class SparsePrototypes(Learner):
    """The class whose mean feature has the largest cosine with the query's, over sparse features; nothing is trained.

    Its tasks are row numbers, as :class:`~metabook.episodes.EpisodeSampler` draws them from
    :class:`~metabook.data.TextData`; no dense matrix of all features is ever made.

    Parameters
    ----------
    features : sparse matrix [examples, features]
        The features of the data's texts, in their order.
    """

    def __init__(self, features: csr_array) -> None:
        super().__init__()
        lengths = np.sqrt(features.multiply(features).sum(1))
        self._features = csr_array(features.multiply(1 / np.maximum(lengths, 1e-12)[:, None]))

    def predict(self, episodes: Episodes) -> Tensor:
        if episodes.support_x.is_floating_point() or episodes.support_x.dim() != 2:
            raise ValueError("SparsePrototypes needs tasks of row numbers [tasks, examples]: draw them from TextData")
        tasks = zip(*(part.cpu().numpy() for part in (episodes.support_x, episodes.support_y, episodes.query_x)))
        cosines = [self._cosines(support, y, queries, episodes.ways) for support, y, queries in tasks]
        return torch.from_numpy(np.stack(cosines)).to(episodes.device)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _cosines(self, support: np.ndarray, classes: np.ndarray, queries: np.ndarray, ways: int) -> np.ndarray:
        """Cosines of one task, ``[queries, ways]``."""
        members = (classes == np.arange(ways)[:, None]).astype(self._features.dtype)  # [ways, support]
        # A class's sum has the direction of its mean.
        sums = members @ self._features[support]
        return self._features[queries] @ (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).T


class LinearProbe(Learner):
    r"""Logistic regression on the support set of each task, by scikit-learn; nothing is shared by the tasks.

    .. math:: \min_{W, b}\; \frac12 \lVert W \rVert^2 + C \sum_i -\log \operatorname{softmax}(W z_i + b)_{y_i}

    Parameters
    ----------
    features : sparse matrix or array [examples, features]
        The features of the data's texts, in their order; the inputs of episodes are its rows.
    strength : float
        The C above: how much the support set counts against the penalty.
    """

    def __init__(self, features: csr_array | np.ndarray, strength: float = 1.0) -> None:
        super().__init__()
        self.features, self.strength = features, strength

    def predict(self, episodes: Episodes) -> Tensor:
        parts = (episodes.support_x, episodes.support_y, episodes.query_x)
        logits = [self._logits(*task) for task in zip(*(part.cpu().numpy() for part in parts))]
        return torch.from_numpy(np.stack(logits)).float().to(episodes.device)

    def loss(self, episodes: Episodes) -> Tensor:
        return task_losses(self.predict(episodes), episodes.query_y).mean()

    def _logits(self, support: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
        # The best W is made of support features. In coordinates of their span, of which there are no more than
        # examples, the problem is the same and some ten times smaller in time.
        inner = _dense(self.features[support] @ self.features[support].T)
        values, vectors = np.linalg.eigh(inner)
        kept = values > 1e-6 * values[-1]
        basis = vectors[:, kept] / np.sqrt(values[kept])
        model = LogisticRegression(C=self.strength, max_iter=1000).fit(inner @ basis, y)
        logits = model.decision_function(_dense(self.features[queries] @ self.features[support].T) @ basis)
        return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], 1)  # two classes: one number


def _dense(matrix: csr_array | np.ndarray) -> np.ndarray:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
