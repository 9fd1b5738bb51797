"""Texts grown side by side are those grown alone."""

from __future__ import annotations

import pytest
import torch

from metabook.llm.sampling import sample

PROMPTS = ["Message: play some music\nIntent:", "Message: What is the weather", "Message: 20"]


def grown_alone(lm, prompt: str, tokens: int, stop: str) -> str:
    """One token after another, the whole sequence read anew each time."""
    ids, made = lm.encode(prompt), []
    for _ in range(tokens):
        made.append(int(lm.logits([*ids, *made])[-1].argmax()))
        if made[-1] == lm.tokeniser.eos_token_id or stop in lm.decode(made):
            break
    return lm.decode([token for token in made if token != lm.tokeniser.eos_token_id]).split(stop)[0]


@pytest.mark.parametrize("together", [1, 2, 100])
def test_the_most_probable_texts_are_those_of_one_prompt_at_a_time(lm, together) -> None:
    expected = [[grown_alone(lm, prompt, 12, "e")] * 2 for prompt in PROMPTS]
    assert sample(lm, PROMPTS, 12, 2, temperature=0, stop="e", together=together) == expected
    assert len({texts[0] for texts in expected}) == 3


def test_a_single_prompt_and_equal_ones_have_a_stem_and_something_after_it(lm) -> None:
    (alone,) = sample(lm, PROMPTS[:1], 6, temperature=0)
    assert sample(lm, PROMPTS[:1] * 3, 6, temperature=0) == [alone] * 3
    assert sample(lm, [], 6) == []


def test_drawn_texts_do_not_depend_on_how_many_grow_together(lm) -> None:
    def drawn(together: int, seed: int) -> list[list[str]]:
        return sample(lm, PROMPTS, 8, 3, generator=torch.Generator().manual_seed(seed), together=together)

    assert drawn(3, 0) == drawn(100, 0)
    assert drawn(100, 0) != drawn(100, 1)
    assert len({text for texts in drawn(100, 0) for text in texts}) > 5


def test_the_first_token_is_drawn_with_the_models_probabilities(lm) -> None:
    ids = lm.encode(PROMPTS[2])
    share = (lm.logits(ids)[-1] / 2.0).softmax(0)
    best = int(share.argmax())
    made = sample(lm, PROMPTS[2:], 1, 4000, temperature=2.0, stop="never in it", generator=torch.Generator())
    found = sum(text == lm.decode([best]) for text in made[0]) / 4000
    assert found == pytest.approx(float(share[best]), abs=0.03)


def test_what_cannot_be_sampled_is_refused(lm) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        sample(lm, PROMPTS, 3, temperature=-1.0)
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        sample(lm, ["one", ""], 3)
    with pytest.raises(ValueError, match="prompt 0 has"):
        sample(lm, ["far too long " * 200], 3)
