from __future__ import annotations

import copy

import pytest
import torch

from metabook.llm import LanguageModel
from metabook.llm.scoring import Tree, log_probabilities


def by_hand(lm, ids, start):
    """The chain rule, one token at a time."""
    total = 0.0
    for at in range(start, len(ids)):
        total += lm.model(torch.tensor([ids[:at]])).logits[0, -1].log_softmax(0)[ids[at]].item()
    return total


SEQUENCES = {
    "branches that share": ([[9, 8, 7, 6, 5], [9, 8, 7, 6, 4, 3], [9, 8, 2, 1], [9, 8, 2, 5, 5, 5]], [3, 3, 3, 3]),
    "one inside another, and twice": ([[9, 8, 7], [9, 8, 7, 6], [9, 8, 7], [9, 8, 7, 6, 6]], [2, 2, 2, 3]),
    "nothing in common but the first": ([[9, 1, 2], [9, 2, 1, 4, 5, 6, 7]], [1, 1]),
    "nothing in common at all": ([[9, 1], [8, 1]], None),
    "a single one": ([[4, 5, 6, 7, 8]], [2]),
}


@pytest.mark.parametrize("method", ["packed", "cached", "naive"])
@pytest.mark.parametrize("name", sorted(set(SEQUENCES) - {"nothing in common at all"}))
def test_every_method_is_the_chain_rule(lm, name, method) -> None:
    sequences, starts = SEQUENCES[name]
    expected = torch.tensor([by_hand(lm, ids, start) for ids, start in zip(sequences, starts)], dtype=torch.float64)
    found = log_probabilities(lm, sequences, starts, method)
    assert torch.allclose(found, expected, atol=1e-10)
    assert bool((found < -1).all())


@pytest.mark.parametrize("tokens", [1, 12, 40, 1000])
def test_many_sequences_in_passes_of_any_size(lm, tokens) -> None:
    generator = torch.Generator().manual_seed(1)
    stem = torch.randint(100, (20,), generator=generator).tolist()
    sequences, starts = [], []
    for query in range(5):
        middle = [query, *torch.randint(100, (4,), generator=generator).tolist()]
        for label in ([1, 2], [1, 2, 3], [4], [4, 4, 4, 4]):
            sequences.append([*stem, *middle, *label])
            starts.append(25)
    naive = log_probabilities(lm, sequences, starts, "naive")
    assert torch.allclose(log_probabilities(lm, sequences, starts, tokens=tokens), naive, atol=1e-10)


def test_float32_agrees_to_four_decimals(lm) -> None:
    single = LanguageModel(copy.deepcopy(lm.model).float(), lm.tokeniser, "single")
    sequences, starts = SEQUENCES["branches that share"]
    packed, naive = (log_probabilities(single, sequences, starts, method) for method in ("packed", "naive"))
    assert torch.allclose(packed, naive, atol=1e-4)
    assert torch.allclose(packed.double(), log_probabilities(lm, sequences, starts), atol=1e-3)


def test_eager_attention_takes_the_same_mask(lm) -> None:
    eager = LanguageModel(copy.deepcopy(lm.model), lm.tokeniser, "eager")
    eager.model.set_attn_implementation("eager")
    sequences, starts = SEQUENCES["branches that share"]
    # transformers' eager attention takes its softmax in float32
    assert torch.allclose(
        log_probabilities(eager, sequences, starts), log_probabilities(lm, sequences, starts), atol=1e-5
    )


def test_gradients_are_those_of_separate_passes(lm) -> None:
    sequences, starts = SEQUENCES["branches that share"]
    gradients = []
    for method in ("packed", "naive"):
        trained = LanguageModel(copy.deepcopy(lm.model).requires_grad_(True), lm.tokeniser, "trained")
        sums = log_probabilities(trained, sequences, starts, method, tokens=6)
        (sums * torch.arange(1.0, 5.0, dtype=sums.dtype)).sum().backward()
        gradients.append([parameter.grad for parameter in trained.model.parameters()])
    for packed, naive in zip(*gradients):
        assert torch.allclose(packed, naive, atol=1e-9 * float(naive.abs().max() + 1))
    assert max(float(g.abs().max()) for g in gradients[0]) > 0.1


def test_a_tree_shares_what_is_shared() -> None:
    tree = Tree(9)
    assert tree.added([1, 2, 3]) == 3
    tree.add([1, 2, 3], 2)
    assert tree.added([1, 2, 4]) == 1
    tree.add([1, 2, 4], 1)
    assert tree.added([1, 2]) == 0
    assert tree.tokens == [9, 1, 2, 3, 4]
    assert tree.parents == [-1, 0, 1, 2, 2]
    assert tree.depths == [0, 1, 2, 3, 3]
    assert tree.ends == [[3], [2, 4]]
    assert tree.visible().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]


@pytest.mark.parametrize(
    ("sequences", "starts", "method", "message"),
    [
        ([[1, 2]], [0], "packed", "something must come before its start"),
        ([[1, 2]], [2], "naive", "something after it"),
        ([[1] * 513], [3], "cached", r"513 tokens and tiny takes 512: give fewer shots"),
        ([[1, 2]], [1], "fast", "method must be one of packed, cached, naive"),
        ([[1, 2], [1, 2]], [1], "packed", "shorter"),
    ],
)
def test_errors(lm, sequences, starts, method, message) -> None:
    with pytest.raises(ValueError, match=message):
        log_probabilities(lm, sequences, starts, method)


def test_nothing_to_score(lm) -> None:
    assert log_probabilities(lm, [], []).shape == (0,)
