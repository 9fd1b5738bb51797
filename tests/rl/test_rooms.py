import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from metabook.rl import RL2, EnvTasks, Room, Rooms, TaskBelief, Tasks, Walker
from metabook.rl.rooms import FORWARD, LEFT, MOVES, OPEN, RIGHT, first_right, route

ID = "metabook/Rooms-v0"


def sampled(tasks=60, seed=5, **settings):
    return EnvTasks(ID, seed=seed, **settings).sample(tasks)


def image_code(image, colours):
    """MiniGrid's image as the numbers that an agent in Rooms sees."""
    kind, colour = image[..., 0], image[..., 1]
    channels = [kind == OBJECT_TO_IDX["wall"]]
    thing = np.isin(kind, [OBJECT_TO_IDX["box"], OBJECT_TO_IDX["ball"]])
    channels += [thing & (colour == COLOR_TO_IDX[name]) for name in colours]
    channels.append(kind == OBJECT_TO_IDX["ball"])
    return np.stack(channels, -1).reshape(-1)


@pytest.mark.parametrize("settings", [{}, {"size": 6, "view": 7, "colours": 4}, {"size": 4, "view": 3, "colours": 2}])
def test_rooms_show_what_minigrid_shows_and_pay_what_it_pays(settings):
    env, seen = sampled(30, **settings).environments()
    theirs = []
    for ours in env.rooms:
        room = Room(ours.rule, **settings)
        room.reset(seed=0)
        room.grid, room.boxes, room.agent_pos, room.agent_dir = (
            ours.grid.copy(),
            ours.boxes,
            ours.agent_pos,
            ours.agent_dir,
        )
        theirs.append(room)
    random, over, opened = np.random.default_rng(0), np.zeros(30, bool), 0
    for _ in range(env.horizon):
        for room, view in zip(theirs, seen, strict=True):
            np.testing.assert_array_equal(view, image_code(room.gen_obs()["image"], room.colours))
        actions = random.choice(4, 30, p=[0.15, 0.15, 0.35, 0.35])
        seen, rewards, terminated, truncated, _ = env.step(actions)
        for i in np.flatnonzero(~over):
            _, paid, ended, late, _ = theirs[i].step(MOVES[actions[i]])
            assert (rewards[i], terminated[i], truncated[i]) == (paid, ended, late)
            opened += paid != 0
        assert (rewards[over] == 0).all()
        over |= terminated
    assert opened > 10
    assert over.any()


def test_a_room_is_an_environment_of_minigrid():
    room = Room(render_mode="rgb_array")
    check_env(room, skip_render_check=True)
    room.reset(seed=0)
    assert room.render().shape == (6 * 32, 6 * 32, 3)


@pytest.mark.parametrize("rule", [0, 1, 2])
def test_the_right_box_pays_by_the_step_and_the_wrong_ones_cost(rule):
    for colour in range(3):
        room = Room(rule, cost=0.3)
        room.reset(seed=colour)
        way = route(room, colour)
        for move in way[:-1]:
            _, reward, ended, *_ = room.step(MOVES[move])
            assert (reward, ended) == (0, False)
        _, reward, ended, *_ = room.step(MOVES[way[-1]])
        assert ended == (colour == rule)
        assert reward == (pytest.approx(1 - 0.9 * len(way) / room.max_steps) if ended else -0.3)
        ahead = room.grid.get(*room.front_pos)
        assert ahead.type == "ball" if ended else ahead is None
        if not ended:  # nothing is left there to open
            assert room.step(Actions.toggle)[1] == 0


def test_nothing_that_is_seen_tells_the_rule_before_a_box_is_opened():
    views = []
    for rule in range(3):
        env, first = Tasks(EnvTasks(ID).family, np.full(40, rule), 7).environments()
        random = np.random.default_rng(1)
        views.append([first, *(env.step(random.integers(0, OPEN, 40))[0] for _ in range(10))])
    np.testing.assert_array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[0], views[2])
    _, plain = Tasks(EnvTasks(ID).family, np.arange(3), 7).environments()
    _, told = Tasks(EnvTasks(ID, told=True).family, np.arange(3), 7).environments()
    np.testing.assert_array_equal(told, np.hstack([plain, np.eye(3)]))


def test_the_rule_stays_and_the_room_changes_from_episode_to_episode():
    tasks = sampled()
    env, _ = tasks.environments()
    rooms = [[room.boxes for room in env.rooms]]
    for _ in range(2):
        env.reset()
        rooms.append([room.boxes for room in env.rooms])
        for room, rule in zip(env.rooms, tasks.parameters, strict=True):
            holds = [room.grid.get(*at).contains is not None for at in room.boxes]
            assert holds == [number == rule for number in range(3)]
    assert np.mean([a == b for a, b in zip(rooms[0], rooms[1], strict=True)]) < 0.1
    assert np.bincount(sampled(900).parameters).min() > 250


def test_a_seed_fixes_the_rooms_and_actions_do_not_change_the_next_ones():
    def boxes(seed, action):
        env = gymnasium.make_vec(ID, 8)
        env.reset(seed=seed)
        for _ in range(3):
            env.step(np.full(8, action))
        env.reset()
        return env.tasks.tolist(), [room.boxes for room in env.rooms]

    assert boxes(3, LEFT) == boxes(3, FORWARD)
    assert boxes(3, LEFT) != boxes(4, LEFT)


def test_boxes_never_touch_and_every_one_can_be_reached():
    env, _ = sampled(200, colours=4).environments()
    for room in env.rooms:
        at = np.array(room.boxes)
        apart = np.abs(at[:, None] - at).max(2)[~np.eye(4, dtype=bool)]
        assert apart.min() >= 2
        for colour in range(4):
            assert len(route(room, colour)) <= room.max_steps


def test_a_route_is_the_shortest():
    room = Room()
    room.reset(seed=0)
    room.grid.grid = [None if cell is not None and cell.type == "box" else cell for cell in room.grid.grid]
    room.agent_pos, room.agent_dir, room.boxes = (1, 1), 0, [(4, 1), (1, 2), (4, 4)]
    assert route(room, 0) == [FORWARD, FORWARD, OPEN]
    assert route(room, 1) == [RIGHT, OPEN]
    assert len(route(room, 2)) == 7  # five cells, a turn, and the box


def test_walkers_stand_in_the_expected_order():
    tasks = sampled(600)
    told, finds, forgets = (Walker(3, **how) for how in ({"told": True}, {}, {"remembers": False}))
    first = {
        agent: first_right(torch.from_numpy(agent.play(tasks).rewards), 3).mean(0) for agent in (told, finds, forgets)
    }
    assert (first[told] == 1).all()
    assert (first[finds][1:] > 0.99).all()
    assert first[finds][0].item() == pytest.approx(1 / 3, abs=0.06)
    assert first[forgets].numpy() == pytest.approx(1 / 3, abs=0.06)
    best, search = told.predict(tasks), finds.predict(tasks)
    assert search[:, 0].mean() < best[:, 0].mean() - 0.1
    torch.testing.assert_close(search[:, 2].mean(), best[:, 2].mean(), atol=0.01, rtol=0)


def test_first_right_looks_at_the_first_box_of_each_episode():
    rewards = torch.tensor([[0, -0.1, 0.5, 0, 0.6, 0], [0, 0, 0, -0.1, 0, -0.1]])
    assert first_right(rewards, 2).tolist() == [[0, 1], [0, 0]]


def test_the_belief_is_asked_in_training_alone_and_adds_its_surprise_to_the_loss():
    torch.manual_seed(0)
    tasks, settings = sampled(24), dict(hidden=16, episodes=2)
    asked = TaskBelief(125, 4, 3, supervision=0.5, **settings)
    plain = RL2(125, 4, **settings)
    plain.load_state_dict({name: value for name, value in asked.state_dict().items() if "belief" not in name})
    trial = asked.play(tasks)
    truth = torch.from_numpy(tasks.parameters)
    surprise = -asked.belief(trial.hidden).log_softmax(2)[torch.arange(24), :, truth].mean()
    torch.testing.assert_close(asked.loss_of(trial, tasks), plain.loss_of(trial, tasks) + 0.5 * surprise)
    others = Tasks(tasks.family, (tasks.parameters + 1) % 3, tasks.seed)
    torch.manual_seed(1)
    before = asked.play(tasks)
    torch.manual_seed(1)
    after = asked.play(others)
    same = (before.rewards == 0).cumprod(1).bool() & (after.rewards == 0).cumprod(1).bool()
    assert (before.actions[same] == after.actions[same]).all()  # until a box is opened nothing differs


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"colours": 1}, "two to 4 colours"), ({"rule": 3}, "number 3 cannot"), ({"size": 3}, "four cells")],
)
def test_impossible_rooms_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Room(**settings)
    if "rule" not in settings:
        with pytest.raises(ValueError, match=message):
            Rooms(2, **settings)
