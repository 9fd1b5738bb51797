"""The agent's loop, what its minds are shown, and what meta-training changes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metabook import Episodes, LabelledData
from metabook.episodes import generator_for
from metabook.learners import Learner, NearestNeighbour
from metabook.llm import agent
from metabook.llm.agent import Agent, AnyTool, InContextTools, OverRows, Pool, ToolTasks, WeighedMemory, draw_stream
from metabook.llm.tools import SPLITS, TOOLS, ToolError, parse_call, requests, tools_in
from metabook.text import TfIdf

TRAINING = [number for number, tool in enumerate(TOOLS) if tool.domain in SPLITS["train"]]
TESTED = [number for number, tool in enumerate(TOOLS) if tool.domain in SPLITS["test"]]


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(TOOLS, tuple(requests(TOOLS)))


@pytest.fixture(scope="module")
def table(pool: Pool) -> Tensor:
    return TfIdf(pool.texts).dense(pool.texts, 128)


def stream(pool: Pool, length: int = 24, seed: int = 0, described: float = 1.0) -> agent.Stream:
    return draw_stream(pool, TESTED, 8, length, generator_for("test", seed), described)


class Oracle(Learner):
    """Knows the tool; ``wrong`` puts so many others before it."""

    def __init__(self, pool: Pool, wrong: int = 0) -> None:
        super().__init__()
        self.pool, self.wrong, self.seen = pool, wrong, []

    def predict(self, episodes: Episodes) -> Tensor:
        self.seen.append(episodes)
        name = self.pool.request(int(episodes.query_x)).call.tool.name
        right = [self.pool.tool(row).name for row in episodes.support_x[0, : episodes.ways].tolist()].index(name)
        order = [place for place in range(episodes.ways) if place != right]
        order.insert(self.wrong, right)
        return -torch.tensor(order).argsort().float()[None, None]


def test_the_table_holds_descriptions_then_labels_then_requests(pool: Pool) -> None:
    assert pool.texts[0] == TOOLS[0].text
    assert pool.texts[len(TOOLS)] == pool.label(len(TOOLS)) == "money service 1"
    assert pool.label(0) == "tip"
    assert pool.tool(len(TOOLS) + 3) is TOOLS[3]
    assert pool.texts[pool.told] == pool.requests[0].text
    assert {pool.request(row).call.tool.name for row in pool.rows_for(5)} == {TOOLS[5].name}
    for row in range(len(TOOLS), pool.told):  # what is undocumented says nothing of the tool itself
        assert pool.tool(row).label not in pool.texts[row]


def test_a_stream_asks_for_tools_of_its_box_and_nothing_in_the_same_words(pool: Pool) -> None:
    one = stream(pool)
    assert one == stream(pool) != stream(pool, seed=1)
    assert len(set(one.toolbox)) == 8
    assert set(one.toolbox) <= set(TESTED)
    names = {pool.tool(row).name for row in one.toolbox}
    asked = [(pool.request(row).call.tool.name, pool.request(row).template) for row in one.rows]
    assert len(set(asked)) == len(asked) == 24
    assert {name for name, _ in asked} <= names


def test_descriptions_are_taken_away_and_nothing_else_changes(pool: Pool) -> None:
    whole, half, none = (stream(pool, described=share) for share in (1.0, 0.5, 0.0))
    assert whole.rows == half.rows == none.rows
    assert [row % len(TOOLS) for row in none.toolbox] == [row % len(TOOLS) for row in half.toolbox]
    assert [sum(row < len(TOOLS) for row in each.toolbox) for each in (whole, half, none)] == [8, 4, 0]


def test_a_stream_that_cannot_be_drawn(pool: Pool) -> None:
    with pytest.raises(ValueError, match="48 templates, and 49 requests"):
        stream(pool, length=49)
    with pytest.raises(ValueError, match="13 tools of 12"):
        draw_stream(pool, TESTED, 13, 4, generator_for("x"))


def test_tasks_hold_the_descriptions_first_and_no_request_on_both_sides(pool: Pool) -> None:
    source = ToolTasks(pool, TRAINING, ways=5, queries=6, memory=(0, 7), described=0.4)
    for step, size in ((0, 0), (1, 7), (2, 0)):
        tasks = source.sample(3, step)
        assert tasks.support_x.shape == (3, 5 + size)
        assert torch.equal(tasks.support_x[:, :5], tasks.classes)
        assert ((tasks.support_x[:, :5] < len(TOOLS)).sum(1) == 2).all()
        for support, y, query, query_y in zip(*(p.tolist() for p in list(vars(tasks).values())[:4])):
            assert not set(support[5:]) & set(query)
            for row, place in zip([*support[5:], *query], [*y[5:], *query_y]):
                assert pool.request(row).call.tool is pool.tool(support[place])
                assert pool.tool(support[place]).domain in SPLITS["train"]
    assert torch.equal(source.sample(3, 1).query_x, source.sample(3, 1).query_x)


def test_an_agent_remembers_what_was_solved_by_whomever(pool: Pool) -> None:
    one = stream(pool, 6)
    mind = Oracle(pool, wrong=7)  # the right tool comes last: three calls do not reach it
    who = Agent(mind, pool, one.toolbox)
    lives = who.live(one)
    assert [attempt.remembered for attempt in lives] == list(range(6))
    assert not any(attempt.solved or attempt.tool_right for attempt in lives)
    assert all(len(attempt.tried) == 3 for attempt in lives)
    assert [row for row, _ in who.memory] == list(one.rows)
    for row, place in who.memory:
        assert pool.tool(one.toolbox[place]) is pool.request(row).call.tool
    last = mind.seen[-1]
    assert last.support_x[0].tolist() == [*one.toolbox, *one.rows[:5]]
    assert last.query_x.tolist() == [[one.rows[5]]]


def test_the_mind_is_not_told_the_answer(pool: Pool) -> None:
    mind = Oracle(pool)
    Agent(mind, pool, stream(pool).toolbox).live(stream(pool))
    assert all(int(task.query_y) == 0 for task in mind.seen)


def test_without_a_memory_it_stays_at_the_descriptions(pool: Pool) -> None:
    mind, one = Oracle(pool), stream(pool, 4)
    who = Agent(mind, pool, one.toolbox, remembers=False)
    assert [attempt.remembered for attempt in who.live(one)] == [0] * 4
    assert all(task.support_x.shape == (1, 8) for task in mind.seen)


def test_calls_are_counted_until_the_right_one(pool: Pool) -> None:
    one = stream(pool, 8)
    for wrong in (0, 1, 2):
        for attempt in Agent(Oracle(pool, wrong), pool, one.toolbox).live(one):
            if attempt.solved:
                assert len(attempt.tried) == wrong + 1
                assert attempt.tried[-1] == (attempt.request.call.tool, attempt.request.call)
            assert attempt.at_once == (attempt.solved and wrong == 0)
            assert attempt.tool_right == (wrong == 0)


def test_the_type_check_passes_over_tools_that_cannot_be_filled(pool: Pool) -> None:
    one = stream(pool, 12)
    free, checked = (Agent(AnyTool(), pool, one.toolbox, checks=checks).live(one) for checks in (False, True))
    assert any(call is None for attempt in free for _, call in attempt.tried)
    assert all(call is not None for attempt in checked for _, call in attempt.tried)
    assert sum(a.at_once for a in checked) > sum(a.at_once for a in free)


def test_only_some_requests_are_left_to_a_slow_mind(pool: Pool) -> None:
    mind, one = Oracle(pool), stream(pool, 10)
    attempts = Agent(mind, pool, one.toolbox).live(one, every=4)
    assert [attempt.request for attempt in attempts] == [pool.request(one.rows[at]) for at in (0, 4, 8)]
    assert [attempt.remembered for attempt in attempts] == [0, 4, 8]
    assert len(mind.seen) == 3


def test_chance_is_chance_and_repeatable(pool: Pool) -> None:
    task = Agent(AnyTool(), pool, stream(pool).toolbox).task(100)
    assert torch.equal(AnyTool().predict(task), AnyTool().predict(task))
    counts = torch.zeros(8)
    for row in range(pool.told, pool.told + 240):
        counts[AnyTool().predict(Agent(AnyTool(), pool, stream(pool).toolbox).task(row)).argmax()] += 1
    assert counts.min() > 12


# --- Weighed memory -----------------------------------------------------------------------------------------------


def some_task(pool: Pool, memory: int = 9) -> Episodes:
    return agent.episodes_of(pool, [stream(pool), stream(pool, seed=1, described=0.5)], memory)


def test_evidence_is_the_sum_of_the_formula(pool: Pool, table: Tensor) -> None:
    mind = WeighedMemory(table.double(), pool.told).double()
    with torch.no_grad():
        mind.worth.weight.normal_(generator=torch.Generator().manual_seed(0))
        mind.offset.fill_(0.02)
        mind.log_sharpness.copy_(torch.tensor([0.1, 0.15]))
    tasks = some_task(pool)
    found = mind.predict(tasks).softmax(2)
    s_told, s_solved = math.exp(20 * 0.1), math.exp(20 * 0.15)
    z = table.double()
    for t in range(2):
        support, y = tasks.support_x[t].tolist(), tasks.support_y[t].tolist()
        for j, row in enumerate(tasks.query_x[t, :3].tolist()):
            evidence = torch.zeros(8, dtype=torch.float64)
            for k in range(8):
                worth = math.exp(20 * 0.02 + float(mind.worth.weight.detach()[0] @ z[support[k]]))
                evidence[k] = worth * math.exp(s_told * float(z[row] @ z[support[k]]))
            for other, place in zip(support[8:], y[8:]):
                evidence[place] += math.exp(s_solved * float(z[row] @ z[other]))
            torch.testing.assert_close(found[t, j], evidence / evidence.sum())


def test_a_very_sharp_memory_is_the_nearest_example(pool: Pool, table: Tensor) -> None:
    tasks = some_task(pool, 12)
    sharp = WeighedMemory(table.double(), pool.told, sharpness=3000.0).double()
    nearest = OverRows(NearestNeighbour(), F.normalize(table.double(), dim=1))
    assert torch.equal(sharp.predict(tasks).argmax(2), nearest.predict(tasks).argmax(2))


def test_without_a_memory_only_descriptions_count(pool: Pool, table: Tensor) -> None:
    tasks = some_task(pool, 0)
    mind = WeighedMemory(table, pool.told)
    cosines = table[tasks.query_x] @ table[tasks.support_x].mT
    torch.testing.assert_close(mind.predict(tasks), 10 * cosines)


def test_the_order_of_the_memory_makes_no_difference(pool: Pool, table: Tensor) -> None:
    task = some_task(pool, 9)
    order = torch.cat([torch.arange(8), 8 + torch.randperm(9, generator=torch.Generator().manual_seed(0))])
    turned = Episodes(task.support_x[:, order], task.support_y[:, order], task.query_x, task.query_y, task.classes)
    mind = WeighedMemory(table, pool.told, rank=4)
    torch.testing.assert_close(mind.predict(turned), mind.predict(task))


def test_meta_training_lowers_the_loss_on_tools_that_it_saw_and_touches_no_others(pool: Pool, table: Tensor) -> None:
    plain = WeighedMemory(table, pool.told)
    learned = agent.meta_train(pool, table, TRAINING, steps=40, rank=4, seed=3)
    again = agent.meta_train(pool, table, TRAINING, steps=40, rank=4, seed=3)
    tasks = ToolTasks(pool, TRAINING, seed=9).sample(8, 3)
    assert learned.loss(tasks).item() < plain.loss(tasks).item()
    assert not any(p.requires_grad for p in learned.parameters())
    for one, other in zip(learned.parameters(), again.parameters()):
        torch.testing.assert_close(one, other)
    blind = table.clone()
    for tool in TESTED:  # features of test tools can be anything
        blind[[tool, tool + len(TOOLS), *pool.rows_for(tool)]] = 7.0
    same = agent.meta_train(pool, blind, TRAINING, steps=40, rank=4, seed=3)
    for one, other in zip(learned.parameters(), same.parameters()):
        torch.testing.assert_close(one, other)


def test_standardising_uses_training_tools_only_and_each_kind_of_text_apart(pool: Pool) -> None:
    raw = torch.randn(len(pool.texts), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[: pool.told] += 5.0
    z = agent.standardised(raw, pool, TRAINING)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z), dtype=torch.float64))
    assert (z[: pool.told] @ z[: pool.told].T).mean() < 0.1
    together = agent.standardised(raw, pool, TRAINING, apart=False)
    assert (together[: pool.told] @ together[: pool.told].T).mean() > 0.3
    moved = raw.clone()
    moved[pool.rows_for(TESTED[0])] += 100.0
    untouched = [row for row in range(len(raw)) if row not in pool.rows_for(TESTED[0])]
    torch.testing.assert_close(agent.standardised(moved, pool, TRAINING)[untouched], z[untouched])


def test_a_learner_over_rows_sees_their_vectors(pool: Pool, table: Tensor) -> None:
    tasks = some_task(pool, 9)
    data = LabelledData(table, torch.arange(len(table)), pool.texts, pool.texts)
    expected = NearestNeighbour().predict(
        Episodes(data.x[tasks.support_x], tasks.support_y, data.x[tasks.query_x], tasks.query_y, tasks.classes)
    )
    assert torch.equal(OverRows(NearestNeighbour(), table).predict(tasks), expected)


# --- In context ---------------------------------------------------------------------------------------------------


def test_the_prompt_holds_descriptions_and_the_most_similar_requests_last(pool: Pool, table: Tensor, lm) -> None:
    mind = InContextTools(lm, pool, table, shown=2, scoring="channel")
    one = stream(pool, 10)
    query, solved = one.rows[9], list(one.rows[:9])
    shown = [solved[at] for at in mind.nearest(solved, query)]
    similarity = table[solved] @ table[query]
    assert len(shown) == 2
    assert float(table[shown[1]] @ table[query]) == float(similarity.max())
    assert float(table[shown[0]] @ table[query]) == float(similarity.sort().values[-2])
    prompt = mind.asker(one.toolbox).prompt([pool.texts[row] for row in shown], [0, 1], ["a", "b"])
    for row in one.toolbox:
        assert f"\n- {pool.texts[row]}" in prompt
    assert prompt.index(pool.texts[shown[0]]) < prompt.index(pool.texts[shown[1]])
    assert pool.texts[query] not in prompt


def test_in_context_with_and_without_a_memory(pool: Pool, table: Tensor, lm) -> None:
    mind = InContextTools(lm, pool, table, shown=1, scoring="channel")
    one = draw_stream(pool, TESTED, 3, 4, generator_for("small"))
    empty, full = (agent.episodes_of(pool, [one], memory) for memory in (0, 3))
    with agent.reading(lm) as counts:
        zero = mind.predict(empty)
    assert zero.shape == (1, 4, 3)
    assert sum(counts) > 0
    scores = mind.predict(full)
    names = [pool.label(row) for row in one.toolbox]
    at = mind.nearest(list(one.rows[:3]), one.rows[3])
    y = [int(full.support_y[0, 3 + place]) for place in at]
    texts = [pool.texts[one.rows[place]] for place in at]
    expected = mind.asker(one.toolbox).scores(texts, y, names, [pool.texts[one.rows[3]]])
    torch.testing.assert_close(scores[0], expected)


def test_what_the_model_reads_is_counted(lm) -> None:
    with agent.reading(lm) as counts:
        lm.logits(lm.encode("What is the weather"))
        lm.logits(lm.encode("hi"))
    assert counts == [len(lm.encode("What is the weather")), len(lm.encode("hi"))]
    lm.logits(lm.encode("hi"))
    assert len(counts) == 2


def test_what_the_model_writes_is_text_that_the_parser_judges(pool: Pool, lm) -> None:
    shown, asked = pool.requests[:2], pool.requests[40:42]
    prompt = agent.call_prompt(asked[0].call.tool, asked[0].text, shown)
    assert prompt.endswith(f"\nCall: {asked[0].call.tool.name}(")
    assert f"Call: {shown[0].call}\n" in prompt
    assert str(asked[0].call) not in prompt
    for text in agent.written_calls(lm, asked, shown):  # of a model with random weights
        with pytest.raises(ToolError):
            parse_call(text, tools_in("train"))
