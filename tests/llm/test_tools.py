"""Calls are data: what the strict parser takes, and all that it does not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabook.llm import tools
from metabook.llm.tools import (
    SPLITS,
    TOOLS,
    Choice,
    Clock,
    Integer,
    Name,
    Number,
    Quoted,
    Tool,
    ToolError,
    fill,
    parse_call,
    requests,
    tools_in,
)

BY_NAME = {tool.name: tool for tool in TOOLS}


def test_a_call_is_read_and_carried_out() -> None:
    call = parse_call(" tip(amount=40,  percent = 15) ", TOOLS)
    assert (call.tool.name, call.values) == ("tip", (40.0, 15))
    assert call.run() == "tip 6.00, together 46.00"


def test_arguments_can_be_named_in_any_order() -> None:
    assert parse_call("tip(percent=15, amount=40)", TOOLS) == parse_call("tip(amount=40, percent=15)", TOOLS)
    assert parse_call("tip(percent=15, amount=40)", TOOLS) != parse_call("tip(amount=41, percent=15)", TOOLS)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("set_light(room=office, percent=0)", ("office", 0)),
        ("reserve_room(people=4, time=9:05)", (4, 545)),
        ("send_message(person=Anna, text='pay the rent')", ("Anna", "pay the rent")),
        ("unit_price(price=2.50, grams=500)", (2.5, 500)),
    ],
)
def test_every_type_has_its_own_form(text: str, values: tuple) -> None:
    assert parse_call(text, TOOLS).values == values


HOSTILE = [
    "__import__('os').system('ls')",
    "tip(amount=__import__('os'), percent=15)",
    "tip(amount=40, percent=15); tip(amount=1, percent=5)",
    "tip(amount=40, percent=15)\nrm -rf",
    "tip(amount=40, percent=15) # and more",
    "tip.__class__(amount=40, percent=15)",
    "tip(**{})",
    "tip(*[40, 15])",
    "tip(amount=(40), percent=15)",
    "tip(amount=40+0, percent=15)",
    "tip(amount=4e1, percent=15)",
    "tip(amount=nan, percent=15)",
    "tip(amount=inf, percent=15)",
    "tip(amount=-40, percent=15)",
    "tip(amount=4_0, percent=15)",
    "tip(amount=0x28, percent=15)",
    "tip(amount=\u0664\u0660, percent=15)",  # digits of another script
    "tip(amount=\uff14\uff10, percent=15)",
    "tip(amount=40\x00, percent=15)",
    "tip(amount=40\x1b[2J, percent=15)",
    "tip(amount=999999999999, percent=15)",
    "tip(amount=40, percent=15.0)",
    "tip(amount=40, percent=15, percent=16)",
    "tip(amount=40, percent=15, __class__=1)",
    "tip(amount=40)",
    "tip(40, 15)",
    "tip(amount=40, percent=15,)",
    "tip()",
    "tip",
    "",
    "Tip(amount=40, percent=15)",
    "t\u0456p(amount=40, percent=15)",  # a letter that only looks like i
    "no_such_tool(amount=40)",
    "send_message(person=Anna, text=pay the rent)",
    "send_message(person=Anna, text='a' 'b')",
    "send_message(person=Anna, text='{0.__class__}')",
    "send_message(person=Anna, text='%s')",
    "send_message(person=Anna, text='../../etc')",
    "send_message(person=Anna, text='')",
    "send_message(person=anna; ls, text='hi')",
    "set_light(room=cellar, percent=10)",
    "set_light(room=office.*, percent=10)",
    "reserve_room(people=4, time=24:00)",
    "reserve_room(people=4, time=9:5)",
    "reserve_room(people=4, time=9:05:00)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_anything_else_is_refused_in_one_plain_line(text: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse_call(text, TOOLS)
    assert re.fullmatch(r"[\x20-\x7e]+", str(caught.value))
    assert len(str(caught.value)) < 200


def test_a_long_text_is_not_even_looked_at() -> None:
    with pytest.raises(ToolError, match="1000011 characters"):
        parse_call("tip(amount=" + "4" * 1_000_000, TOOLS)


def test_only_tools_of_the_box_can_be_called() -> None:
    with pytest.raises(ToolError, match="no tool 'tip'"):
        parse_call("tip(amount=40, percent=15)", tools_in("test"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=250))
def test_no_text_gets_past_the_parser_but_as_a_call(text: str) -> None:
    try:
        call = parse_call(text, TOOLS)
    except ToolError:
        return
    assert parse_call(str(call), TOOLS) == call


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_an_argument_is_of_its_type_or_refused(text: str) -> None:
    """The tool only ever sees values that the kind allows."""
    for kind, allowed in (
        (Integer(2, 90), lambda v: type(v) is int and 2 <= v <= 90),
        (Number(2, 90), lambda v: type(v) is float and 2 <= v <= 90),
        (Choice(("soft", "hard")), lambda v: v in ("soft", "hard")),
        (Clock(), lambda v: type(v) is int and 0 <= v < 1440),
        (Name(), lambda v: v.isalpha() and v.isascii()),
        (Quoted(), lambda v: v.replace(" ", "").isalnum() and v.isascii()),
    ):
        try:
            value = kind.parse(text)
        except ToolError:
            continue
        assert allowed(value)


def test_the_tools_are_many_and_their_splits_share_no_domain() -> None:
    domains = [domain for part in SPLITS.values() for domain in part]
    assert len(TOOLS) == len(BY_NAME) >= 24
    assert len(domains) == len(set(domains)) >= 6
    assert {tool.domain for tool in TOOLS} == set(domains)
    assert sum(len(tools_in(part)) for part in SPLITS) == len(TOOLS)
    with pytest.raises(ValueError, match="split must be one of"):
        tools_in("dev")


def test_every_tool_is_asked_for_in_several_ways_that_name_its_parameters() -> None:
    asked = tools._asked()
    assert set(asked) == set(BY_NAME)
    for name, templates in asked.items():
        assert len(templates) == len(set(templates)) == 6
        for template in templates:
            assert set(tools._HOLE.findall(template)) == set(BY_NAME[name].parameters), template


def test_requests_are_the_same_for_a_seed_and_their_calls_can_be_carried_out() -> None:
    made = requests(TOOLS, variants=2)
    assert made == requests(TOOLS, variants=2)
    assert made != requests(TOOLS, variants=2, seed=1)
    assert len(made) == 2 * 6 * len(TOOLS)
    for request in made:
        assert "{" not in request.text
        assert parse_call(str(request.call), TOOLS) == request.call
        assert request.call.run() == request.call.run() != ""


def test_most_requests_can_be_filled_by_the_order_of_what_stands_in_them() -> None:
    def right(request) -> bool:
        try:
            return fill(request.call.tool, request.text) == request.call
        except ToolError:
            return False

    found = [right(request) for request in requests(TOOLS, variants=2)]
    assert 0.9 < sum(found) / len(found) < 1, "some requests name the arguments in another order: no rule by order"


def test_filling_takes_no_span_twice_and_says_what_is_missing() -> None:
    tool = BY_NAME["split_bill"]
    assert fill(tool, "split 84 into 3").values == (84.0, 3)
    with pytest.raises(ToolError, match="can be its people"):
        fill(tool, "split 84 among us")


def test_filling_does_not_take_a_number_out_of_a_time_or_a_quotation() -> None:
    with pytest.raises(ToolError, match="can be its people"):
        fill(BY_NAME["reserve_room"], "a room at 9:30 for 'team 7'")


def test_a_tool_of_ones_own() -> None:
    double = Tool("double", "own", "Twice a number.", {"n": Integer(0, 9)}, lambda n: str(2 * n))
    assert parse_call("double(n=4)", [double]).run() == "8"
    with pytest.raises(ToolError, match="no whole number from 0 to 9"):
        parse_call("double(n=10)", [double])
