from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from metabook import EpisodeSampler, data, evaluate
from metabook.data import TextData
from metabook.learners.prototypes import class_means
from metabook.text import SparsePrototypes, TfIdf


@pytest.fixture(scope="module")
def tfidf() -> TfIdf:
    return TfIdf(data.intents("train").texts)


@pytest.fixture(scope="module")
def pool() -> TextData:
    return data.intents("test")


def test_features_come_from_the_training_texts_alone() -> None:
    tfidf = TfIdf(["abc", "abx"])
    # ab is in both texts and counts less than bc; z is in none.
    (row,) = tfidf.sparse(["ABCz"]).toarray()
    grams = tfidf._vectorizer.get_feature_names_out().tolist()
    assert grams == ["ab", "abc", "abx", "bc", "bx"]
    assert len(tfidf) == 5
    assert 0 < row[grams.index("ab")] < row[grams.index("bc")]
    assert row[grams.index("bx")] == 0
    assert np.linalg.norm(row) == pytest.approx(1)


def test_dense_features_keep_inner_products(tfidf: TfIdf, pool: TextData) -> None:
    texts = pool.texts[:200]
    exact = torch.from_numpy((tfidf.sparse(texts) @ tfidf.sparse(texts).T).toarray())
    errors = {}
    for dimensions in (64, 1024):
        dense = tfidf.dense(texts, dimensions)
        assert dense.shape == (200, dimensions)
        torch.testing.assert_close(dense.norm(dim=1), torch.ones(200))
        errors[dimensions] = float((dense @ dense.T - exact).square().mean().sqrt())
        assert errors[dimensions] < 1.1 / dimensions**0.5
    assert 3 < errors[64] / errors[1024] < 5  # four times: the square root of sixteen
    assert torch.equal(tfidf.dense(texts[:3]), tfidf.dense(texts[:3]))
    assert not torch.equal(tfidf.dense(texts[:3]), tfidf.dense(texts[:3], seed=1))


@pytest.mark.parametrize("shots", [1, 3])
def test_sparse_prototypes_are_the_cosines_with_the_class_means(tfidf: TfIdf, pool: TextData, shots: int) -> None:
    features = tfidf.sparse(pool.texts)
    episodes = EpisodeSampler(pool, ways=4, shots=shots, queries=2).sample(5)
    dense = F.normalize(torch.from_numpy(features.toarray()), dim=1)
    means = class_means(dense[episodes.support_x], episodes.support_y, 4)
    expected = F.cosine_similarity(dense[episodes.query_x].unsqueeze(2), means.unsqueeze(1), dim=3)
    learner = SparsePrototypes(7 * features)  # lengths make no difference
    torch.testing.assert_close(learner.predict(episodes), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        learner.loss(episodes), F.cross_entropy(expected.flatten(0, 1), episodes.query_y.flatten())
    )
    assert not learner.transductive


def test_a_text_without_a_known_ngram_has_no_direction() -> None:
    features = TfIdf(["abc", "abx"]).sparse(["abc", "xyz", "abx", "uvw"])
    pool = TextData.of([("abc", "a"), ("xyz", "a"), ("abx", "b"), ("uvw", "b")])
    logits = SparsePrototypes(features).predict(EpisodeSampler(pool, ways=2, shots=1, queries=1).sample(20))
    assert bool(logits.isfinite().all())


def test_the_generated_intents_are_neither_trivial_nor_hopeless(tfidf: TfIdf, pool: TextData) -> None:
    learner = SparsePrototypes(tfidf.sparse(pool.texts))
    one, five = (evaluate(learner, EpisodeSampler(pool, 5, shots, 5), tasks=100).mean for shots in (1, 5))
    assert 0.5 < one < 0.7
    assert 0.75 < five < 0.95


def test_numbers_in_the_place_of_rows_are_refused(pool: TextData) -> None:
    encoded = pool.with_features(torch.rand(len(pool.texts), 3))
    with pytest.raises(ValueError, match="row numbers"):
        SparsePrototypes(csr_array(np.eye(3))).predict(EpisodeSampler(encoded).sample(1))
