import math

import pytest
from torch import nn

from metabook.chat.bot import LONGEST_MESSAGE, Chatbot, ChatError, Example, clean, intent_name
from metabook.chat.memory import Memory
from metabook.chat.rivals import Retrained
from metabook.files import UserError
from metabook.learners import MatchingNet, NearestNeighbour, ProtoNet


def state(bot):
    return bot.examples, bot.intents, [bot.answer(text) for text in ("order pizza", "play song", "flight oslo")]


def test_it_answers_and_says_when_it_does_not_know(toy):
    bot = toy.make()
    answer = bot.answer("please book flight")
    assert (answer.intent, answer.reply) == ("book_flight", "Understood: book flight.")
    assert list(answer.scores) == ["book_flight", "play_music"]
    unknown = bot.answer("order pizza")
    assert unknown.intent is None
    assert unknown.reply == "I don't know."


def test_a_correction_works_at_once_and_is_undone_exactly(toy):
    bot = toy.make()
    before = state(bot)
    bot.answer("order pizza")
    bot.correct("Order Food")
    assert bot.answer("order pizza now").intent == "order_food"
    assert bot.intents["order_food"] == 1
    assert bot.undo().intent == "order_food"
    assert state(bot) == before
    assert bot.undo() is None


def test_the_last_correction_of_a_message_counts(toy):
    bot = toy.make()
    bot.answer("order pizza")
    bot.correct("order_food")
    bot.correct("play_music")
    assert bot.answer("order pizza").intent == "play_music"
    assert "order_food" not in bot.intents
    bot.undo()
    assert bot.answer("order pizza").intent == "order_food"


def test_what_it_began_with_can_be_corrected_too(toy):
    bot = toy.make()
    bot.teach("order_food", "play song louder")
    assert Example("play song louder", "order_food") in bot.examples
    assert len(bot.examples) == len(toy.starter)
    bot.undo()
    assert bot.examples == list(toy.starter)


def test_after_opening_again_everything_is_as_it_was(toy, tmp_path):
    with Memory(tmp_path / "m") as memory:
        bot = toy.make(memory)
        bot.teach("order_food", "order pizza")
        bot.set_reply("order food", "On its way.")
        bot.teach("order_food", "pizza now")
        bot.undo()
        before = state(bot)
    with Memory(tmp_path / "m") as memory:
        again = toy.make(memory)
        assert state(again) == before
        assert again.answer("order pizza").reply == "On its way."
        again.undo()
        assert again.answer("order pizza").reply == "Understood: order food."


def test_if_it_cannot_be_stored_nothing_has_changed(toy, monkeypatch):
    bot = toy.make()
    before = state(bot)
    monkeypatch.setattr(bot.memory, "add", lambda *entry: (_ for _ in ()).throw(UserError("full")))
    with pytest.raises(UserError):
        bot.teach("order_food", "order pizza")
    assert state(bot) == before


def test_there_has_to_be_something_to_correct(toy):
    bot = toy.make()
    for call in (lambda: bot.correct("play_music"), bot.why):
        with pytest.raises(ChatError, match="yet"):
            call()


def test_a_message_that_cannot_be_read_is_not_corrected_in_the_place_of_the_one_before(toy):
    bot = toy.make()
    bot.answer("order pizza")
    with pytest.raises(ChatError, match="too long"):
        bot.answer("x" * (LONGEST_MESSAGE + 1))
    with pytest.raises(ChatError, match="no message"):
        bot.correct("order_food")
    assert "order_food" not in bot.intents


def test_a_message_of_which_the_features_know_nothing(toy):
    bot = toy.make(threshold=-math.inf)
    assert bot.answer("你好").intent is None
    with pytest.raises(ChatError, match="no part"):
        bot.correct("hello")
    assert bot.memory.entries() == []


def test_why_names_the_nearest_examples(toy):
    bot = toy.make()
    bot.answer("play song louder now")
    (first, cosine), (second, _), *_ = bot.why()
    assert first == Example("play song louder", "play_music")
    assert second == Example("play song", "play_music")
    assert cosine == pytest.approx(3 / 12**0.5)


def test_a_bot_without_examples(toy):
    bot = Chatbot(toy.embed, ProtoNet(nn.Identity()))
    assert bot.answer("order pizza").intent is None
    assert bot.why() == []
    bot.correct("order_food")
    assert bot.answer("pizza").intent == "order_food"
    bot.undo()
    assert bot.answer("pizza").intent is None


def test_several_answers_are_those_given_one_by_one(toy):
    bot = toy.make()
    texts = ["order pizza", "book flight", "???", "play louder"]
    assert bot.answers(texts) == [bot.answer(text) for text in texts]
    assert bot.answers([]) == []


@pytest.mark.parametrize(
    "learner", [NearestNeighbour(), ProtoNet(nn.Identity()), MatchingNet(nn.Identity()), Retrained()]
)
def test_any_learner_can_be_its_mind(toy, learner):
    bot = toy.make(learner=learner, threshold=-math.inf)
    assert bot.answer("book flight please").intent == "book_flight"
    bot.teach("order_food", "order pizza")
    assert bot.answer("order pizza now").intent == "order_food"
    assert bot.answer("play song now").intent == "play_music"
    assert bot.why()[0][0].intent == "play_music"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\n", "a b"),
        ("\x1b[31mred\x07\x00", "[31mred"),
        ("one\u2028two\x85three", "one two three"),
        ("left\u202eright\u200b", "left right"),
        ("na\u0131ve é \u0928\u092e\u0938\u094d\u0924\u0947", "na\u0131ve é \u0928\u092e\u0938\u094d\u0924\u0947"),
        ("\ud800 surrogate", "surrogate"),
        ("👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize("text", ["", "  ", "\x00\x1b", "x" * 2001])
def test_what_cannot_be_cleaned(text):
    with pytest.raises(ChatError):
        clean(text)


def test_names_of_intents():
    assert intent_name(" Book-Flight  now ") == "book_flight_now"
    assert intent_name("réserver") == "réserver"
    for bad in ("", "  ", "a:b", "x" * 61, "[red]", "a\x1bb", "__"):
        with pytest.raises(ChatError, match="named by"):
            intent_name(bad)


def test_a_likely_slip_of_the_pen_is_asked_about(toy):
    bot = toy.make()
    assert bot.similar("bok_flight") == " Did you mean book_flight?"
    assert bot.similar("book_flight") == ""
    assert bot.similar("weather") == ""
    with pytest.raises(ChatError, match="Did you mean play_music"):
        bot.set_reply("play_musik", "x")


def test_retrained_trains_when_it_has_to(toy):
    eager, lazy = Retrained(), Retrained(every=2)
    bots = [toy.make(learner=each, threshold=-math.inf) for each in (eager, lazy)]
    for bot in bots:
        bot.answer("play song"), bot.answer("book flight")
    assert (eager.trainings, lazy.trainings) == (1, 1)
    for bot in bots:
        bot.teach("order_food", "order pizza")
    assert bots[0].answer("order pizza").intent == "order_food"
    assert bots[1].answer("order pizza").intent != "order_food", "a new intent waits for the next training"
    for bot in bots:
        bot.teach("order_food", "pizza now")
    assert [bot.answer("order pizza").intent for bot in bots] == ["order_food"] * 2
    assert (eager.trainings, lazy.trainings) == (3, 2)
    bots[0].teach("play_music", "order pizza")  # as many examples as before, but another label
    bots[0].answer("order pizza")
    assert eager.trainings == 4
