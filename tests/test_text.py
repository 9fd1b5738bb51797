from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from metabook import EpisodeSampler, data, evaluate
from metabook.data import TextData
from metabook.learners.prototypes import class_means
from metabook.text import LinearProbe, SparsePrototypes, TfIdf


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


@pytest.mark.parametrize("ways", [2, 4])
def test_a_probe_is_at_the_minimum_of_its_objective(ways: int) -> None:
    features = np.random.default_rng(0).normal(size=(60, 3))
    pool = TextData.of([(f"text {n}", f"class {n % 6}") for n in range(60)])
    episodes = EpisodeSampler(pool, ways=ways, shots=2, queries=3).sample(2)
    logits = LinearProbe(features, strength=0.7).predict(episodes)
    for task in range(2):
        z, y = torch.from_numpy(features[episodes.support_x[task]]), episodes.support_y[task]
        columns = 1 if ways == 2 else ways  # two classes have one vector: the logit of the first is zero
        W = torch.zeros(3, columns, dtype=torch.float64, requires_grad=True)
        b = torch.zeros(columns, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([W, b], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def all_logits(z, W=W, b=b):
            return F.pad(z @ W + b, (ways - W.shape[1], 0))

        def objective(z=z, y=y, W=W, b=b, optimiser=optimiser, all_logits=all_logits):
            optimiser.zero_grad()
            loss = 0.5 * W.square().sum() + 0.7 * F.cross_entropy(all_logits(z), y, reduction="sum")
            loss.backward()
            return loss

        optimiser.step(objective)
        expected = all_logits(torch.from_numpy(features[episodes.query_x[task]])).detach().softmax(1)
        torch.testing.assert_close(logits[task].double().softmax(1), expected, atol=2e-3, rtol=0)


def test_a_probe_reads_sparse_features(tfidf: TfIdf, pool: TextData) -> None:
    source = EpisodeSampler(pool, ways=3, shots=2, queries=2)
    sparse, dense = (
        LinearProbe(features, 10.0).predict(source.sample(2))
        for features in (tfidf.sparse(pool.texts), tfidf.sparse(pool.texts).toarray())
    )
    torch.testing.assert_close(sparse, dense, atol=1e-2, rtol=0)
    assert evaluate(LinearProbe(tfidf.sparse(pool.texts), 10.0), source, tasks=20).mean > 0.5
