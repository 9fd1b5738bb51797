import numpy as np
import pytest
import torch
from torch import nn

from metabook import chat, data
from metabook.chat.scenario import by_class
from metabook.chat.setup import Adapted, TfIdfFeatures, spread_in
from metabook.chat.users import correct, nothing
from metabook.learners import ProtoNet


@pytest.fixture(scope="module")
def embed():
    return TfIdfFeatures(chat.training_part().texts)


def texts(examples):
    return {example.message for example in examples}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_is_asked_was_told_or_fitted_to(seed):
    fitted = set(chat.training_part().texts)
    parts = {part: chat.draw_scenario("intents", part, shots=5, seed=seed) for part in ("validation", "test")}
    for scenario in parts.values():
        told = texts(scenario.known) | texts(scenario.taught)
        assert not texts((*scenario.old, *scenario.new)) & told
        assert not (texts(scenario.old) | texts(scenario.new) | texts(scenario.taught) | set(scenario.outside)) & fitted
        assert texts(scenario.known) <= fitted
    old, new = ({part: {e.intent for e in getattr(s, kind)} for part, s in parts.items()} for kind in ("old", "new"))
    assert old["test"] == old["validation"]
    assert not new["test"] & new["validation"]
    assert not texts(parts["test"].old) & texts(parts["validation"].old)


def test_messages_outside_come_from_another_domain_than_the_new_intents():
    pool = data.load("intents", "test")
    group = dict(zip(pool.names, pool.groups))
    of = {text: intent for intent, members in by_class(pool).items() for text in members}
    scenario = chat.draw_scenario("intents", "test", seed=1)
    (inside,) = {group[example.intent] for example in scenario.new}
    assert {group[of[text]] for text in scenario.outside} == set(pool.groups) - {inside}


def test_fewer_shots_are_the_first_of_more():
    one, five = (chat.draw_scenario("intents", "test", shots=k, seed=3) for k in (1, 5))
    assert set(one.taught) < set(five.taught)
    assert (one.known, one.old, one.new, one.outside) == (five.known, five.old, five.new, five.outside)
    assert len(one.taught) == 5
    assert chat.draw_scenario("intents", "test", seed=4) != chat.draw_scenario("intents", "test", seed=5)
    with pytest.raises(ValueError, match="validation or test"):
        chat.draw_scenario("intents", "train")


def test_shares_count_what_they_say():
    outcome = chat.Outcome(
        old_scores=np.array([3.0, 2.0, 1.0]),
        old_right=np.array([True, False, True]),
        new_scores=np.array([2.5, 0.5]),
        new_right=np.array([True, True]),
        outside=np.array([0.0, 2.2, -np.inf, 1.0]),
    )
    free = outcome.shares()
    assert (free["old"], free["new"], free["outside"]) == (2 / 3, 1.0, 0.0)
    held = outcome.shares(1.5)
    assert (held["old"], held["new"], held["outside"]) == (1 / 3, 0.5, 0.75)
    assert held["balance"] == pytest.approx((1 / 3 + 0.5 + 1.5) / 4)
    chosen = chat.pooled_threshold([outcome])
    assert outcome.shares(chosen.value)["balance"] == pytest.approx(
        max(outcome.shares(at)["balance"] for at in np.linspace(-1, 4, 501))
    )


def test_one_shot_classes_are_found_once_the_bias_is_gone(embed):
    """The chapter's claim, on one scenario; nothing else differs between the two."""
    scenarios = [chat.draw_scenario("intents", "validation", shots=5, seed=0)]
    scenario = chat.draw_scenario("intents", "test", shots=1, seed=0)
    plain = chat.ask(embed, ProtoNet(nn.Identity()), scenario)
    fair = chat.ask(embed, chat.UnbiasedPrototypes(nn.Identity(), spread_in(embed, scenarios)), scenario)
    assert fair.new_right.mean() > plain.new_right.mean() + 0.1


def test_fine_tuning_on_the_new_alone(embed):
    scenario = chat.draw_scenario("intents", "test", shots=5, seed=0, known_shots=5, outside=10)
    tuned, shares = chat.FineTuned(len(scenario.known)), {}
    for tuned.steps in (0, 20):
        shares[tuned.steps] = chat.ask(embed, tuned, scenario).shares()
    assert shares[0]["new"] == 0
    assert shares[20]["new"] > 0.5
    assert shares[20]["old"] < shares[0]["old"] - 0.2


def test_before_training_the_change_of_the_features_is_none():
    z = nn.functional.normalize(torch.randn(5, 12), dim=1)
    torch.testing.assert_close(Adapted(12, rank=3, scale=4.0)(z), 4 * z)


def test_meta_learning_is_repeatable_and_changes_the_features(embed):
    pool = chat.training_part()
    first, again, other = (chat.meta_learn(embed, pool, 3, seed=seed) for seed in (0, 0, 1))
    z = embed(pool.texts[:4])
    torch.testing.assert_close(first(z), again(z), rtol=0, atol=0)
    assert not torch.allclose(first(z), other(z))
    assert not torch.allclose(first(z), 4 * z)
    assert not any(p.requires_grad for p in first.parameters())


def test_the_scripted_user_is_the_same_for_the_same_seed():
    one, same, other = (chat.ScriptedUser.draw(turns=50, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    said = [example.message for example in one.turns]
    assert len(said) == len(set(said)) == 50
    assert not (texts(one.turns) | texts(one.heldout)) & texts(one.known)
    assert not texts(one.turns) & texts(one.heldout)
    assert len({e.intent for e in one.heldout}) == 24


def test_a_bot_that_is_corrected_learns_and_stores_its_errors(embed):
    user = chat.ScriptedUser.draw(turns=80, seed=0, known_shots=5)
    learner = chat.UnbiasedPrototypes(nn.Identity(), 0.8)
    dialogues = {}
    for says in (nothing, correct):
        bot = chat.Chatbot(embed, learner, threshold=-1.0, starter=user.known)
        dialogues[says] = chat.talk(bot, user, says, checks=[0, 80])
    silent, taught = dialogues[nothing], dialogues[correct]
    assert silent.stored[-1] == 0
    assert silent.checks[0] == silent.checks[80] == taught.checks[0]
    assert taught.checks[80] > taught.checks[0] + 0.1
    assert taught.stored[-1] == sum(not right for right in taught.right)
    assert taught.wrong + sum(taught.silent) + sum(taught.right) == 80


def test_features_of_a_language_model(monkeypatch):
    """Computed once, standardised, kept in the cache if asked to; with a model whose state is a count of letters."""
    calls = []

    def counting(way):
        def states(lm, asked, layer, progress=False):
            calls.append((way, list(asked)))
            return torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in asked])

        return states

    pytest.importorskip("transformers")
    for way in ("features", "cached_features"):
        monkeypatch.setattr(f"metabook.llm.{way}", counting(way))
    training = ["aab", "abc", "bcc", "ccc"]
    embed = chat.LLMFeatures(None, training, ["aaa"], cached=True)
    z = embed([*training, "aaa", "cab", "cab"])
    assert calls == [("cached_features", ["aab", "abc", "bcc", "ccc", "aaa"]), ("features", ["cab"])]
    raw = counting("")(None, [*training, "aaa", "cab", "cab"], 0)
    expected = nn.functional.normalize((raw - raw[:4].mean(0)) / raw[:4].std(0).clamp_min(1e-6), dim=1)
    torch.testing.assert_close(z, expected)
    assert chat.LLMFeatures(None, training)(["abc"]).shape == (1, 3)
    assert calls[-1] == ("features", training)
