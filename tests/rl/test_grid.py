from itertools import product

import gymnasium
import numpy as np
import pytest
import torch

from metabook.rl import EnvTasks, Searcher, optimal_search, replay, row_by_row, search_value

ID = "metabook/HiddenGoal-v0"


def goals_of(env, episodes, **options):
    env.reset(**options)
    goals = [env.tasks]
    for _ in range(episodes - 1):
        env.reset()
        goals.append(env.tasks)
    return np.stack(goals, 1)


def test_an_agent_walks_is_stopped_by_walls_and_is_paid_in_the_goal():
    env = gymnasium.make_vec(ID, 2, size=3, horizon=5)
    observations, _ = env.reset(options={"tasks": np.array([[0, 1], [2, 0]])})
    assert observations.argmax(1).tolist() == [0, 0]
    seen, paid = [], []
    for action in (1, 0, 3, 2, 2):  # up, stay, down, right, right
        observations, rewards, *_, truncated, _ = env.step(np.full(2, action))
        seen.append(observations.argmax(1).tolist())
        paid.append(rewards.tolist())
    assert [s[0] for s in seen] == [3, 3, 0, 1, 2]
    np.testing.assert_allclose(np.array(paid).T, [[1, 1, -0.1, -0.1, -0.1], [-0.1, -0.1, -0.1, -0.1, 1]])
    assert truncated.all()
    env.reset()
    observations, *_ = env.step(np.array([4, 3]))
    assert observations.argmax(1).tolist() == [0, 0]


def test_goals_are_any_cell_but_the_start():
    goals = EnvTasks(ID, size=3).sample(2000).parameters
    cells, counts = np.unique(goals @ (1, 3), return_counts=True)
    assert cells.tolist() == list(range(1, 9))
    assert counts.min() > 180


def test_goals_stay_unless_told_to_move():
    goals = goals_of(gymnasium.make_vec(ID, 50, size=4), 4, seed=0)
    assert (goals == goals[:, :1]).all()


def test_goals_move_with_the_given_probability_to_any_other_cell():
    goals = goals_of(gymnasium.make_vec(ID, 3000, size=3, change=0.25), 4, seed=0)
    moved = (goals[:, 1:] != goals[:, :-1]).any(2)
    assert abs(moved.mean() - 0.25) < 0.015
    from_one = goals[:, 1][moved[:, 0] & (goals[:, 0] == (1, 0)).all(1)] @ (1, 3)
    assert sorted(set(from_one.tolist())) == list(range(2, 9))  # neither the start nor where it was


def test_goals_move_before_the_episodes_that_a_sequence_names():
    goals = goals_of(gymnasium.make_vec(ID, 40, size=4, change=(0, 1)), 5, seed=0)
    moved = (goals[:, 1:] != goals[:, :-1]).any(2)
    assert moved.all(0).tolist() == [False, True, False, False]
    assert moved.any(0).tolist() == [False, True, False, False]


def test_goals_that_move_are_fixed_by_the_seed_and_begin_where_they_are_put():
    def trial(seed):
        return goals_of(gymnasium.make_vec(ID, 20, change=0.5), 4, seed=seed, options={"tasks": put})

    put = np.tile([1, 2], (20, 1))
    np.testing.assert_array_equal(trial(1), trial(1))
    np.testing.assert_array_equal(trial(1)[:, 0], put)
    assert (trial(1) != trial(2)).any()
    np.testing.assert_array_equal(put, np.tile([1, 2], (20, 1)))  # the caller's array is the caller's


def test_new_tasks_begin_a_new_trial():
    env = gymnasium.make_vec(ID, 5, change=(1,))
    goals_of(env, 3, seed=0)
    goals = goals_of(env, 2, options={"tasks": env.tasks})
    assert (goals[:, 0] != goals[:, 1]).any(1).all()


@pytest.mark.parametrize("settings", [{"size": 1}, {"change": 1.5}, {"change": (0.5, -0.1)}])
def test_an_impossible_grid_is_an_error(settings):
    with pytest.raises(ValueError, match=r"two cells a side|probabilities"):
        gymnasium.make_vec(ID, 1, **settings)


def test_replay_finds_where_everything_was():
    tasks = EnvTasks(ID, size=3, horizon=2, change=(1,)).sample(4)
    actions = torch.tensor([[1, 2, 2, 0]]).expand(4, -1)
    positions, goals = replay(tasks, actions)
    assert positions.shape == (4, 2, 3, 2)
    assert positions[0].tolist() == [[[0, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [1, 0]]]
    np.testing.assert_array_equal(goals[:, 0], tasks.parameters)
    assert (goals[:, 1] != goals[:, 0]).any(1).all()


def test_the_obvious_order_goes_to_and_fro():
    assert row_by_row(3) == [1, 2, 5, 4, 3, 6, 7, 8]


def test_a_searcher_finds_the_goal_and_then_goes_straight():
    tasks = EnvTasks(ID, size=3, horizon=6).sample(1)
    tasks = type(tasks)(tasks.family, np.array([[0, 1]]), 0)  # the fifth cell of the order, a step from the start
    returns = Searcher(row_by_row(3), 3).predict(tasks)[0]
    torch.testing.assert_close(returns, torch.tensor([-0.4 + 2, 6.0, 6.0]))
    told = Searcher(row_by_row(3), 2, told=True).predict(tasks)[0]
    torch.testing.assert_close(told, torch.tensor([6.0, 6.0]))


def test_a_searcher_goes_on_in_the_next_episode_where_it_was_cut_off():
    tasks = EnvTasks(ID, size=3, horizon=4).sample(1)
    tasks = type(tasks)(tasks.family, np.array([[0, 2]]), 0)
    returns = Searcher(row_by_row(3), 3).predict(tasks)[0]  # up to the fourth cell; then 3 by one step, 6 by another
    torch.testing.assert_close(returns, torch.tensor([-0.4, -0.1 + 3, -0.1 + 3]))


def test_a_searcher_forgets_a_goal_that_has_moved():
    tasks = EnvTasks(ID, size=2, horizon=6, change=(0, 1)).sample(200)
    returns = Searcher(row_by_row(2), 4).predict(tasks)
    told = Searcher(row_by_row(2), 4, told=True).predict(tasks)
    torch.testing.assert_close(returns[:, [1, 3]], told[:, [1, 3]])
    assert (returns[:, 2] < told[:, 2]).any()
    assert returns[:, 2].min() > 0  # found again within the episode


@pytest.mark.parametrize(("size", "horizon", "episodes"), [(3, 4, 3), (3, 9, 2), (4, 7, 3)])
def test_the_value_of_a_search_is_what_it_earns(size, horizon, episodes):
    order = np.random.default_rng(0).permutation(np.arange(1, size**2)).tolist()
    cells = np.arange(1, size**2)
    tasks = EnvTasks(ID, size=size, horizon=horizon).sample(1)
    tasks = type(tasks)(tasks.family, np.stack([cells % size, cells // size], 1), 0)  # each goal once
    earned = Searcher(order, episodes).predict(tasks).sum(1).mean().item()
    assert search_value(order, size, horizon, episodes) == pytest.approx(earned, abs=1e-4)


def by_brute_force(size, horizon, episodes, cost):
    """The best plan of all, as sequences of actions, judged in the environment's own terms."""
    best = -np.inf
    moves = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    for plan in product(range(4), repeat=horizon * episodes):
        first, place = {}, (0, 0)
        for t, action in enumerate(plan):
            place = (0, 0) if t % horizon == 0 else place
            place = tuple(np.clip(np.add(place, moves[action]), 0, size - 1).tolist())
            first.setdefault(place, t)
        total = 0.0
        for goal in product(range(size), repeat=2):
            if goal == (0, 0):
                continue
            steps = 0
            if goal in first:
                episode, step = divmod(first[goal], horizon)
                steps = horizon - step + (episodes - episode - 1) * max(horizon + 1 - sum(goal), 0)
            total += (1 + cost) * steps - cost * horizon * episodes
        best = max(best, total / (size**2 - 1))
    return best


@pytest.mark.parametrize(("size", "horizon", "episodes"), [(2, 2, 2), (3, 3, 2), (3, 5, 1)])
def test_the_optimal_search_is_the_best_plan(size, horizon, episodes):
    order, value = optimal_search(size, horizon, episodes, cost=0.2)
    assert value == pytest.approx(by_brute_force(size, horizon, episodes, 0.2))
    assert search_value(order, size, horizon, episodes, 0.2) == pytest.approx(value)


def test_the_optimal_search_beats_the_obvious_one():
    order, value = optimal_search(4, 10, 3)
    assert sorted(order) == list(range(1, 16))
    assert search_value(order, 4, 10, 3) == pytest.approx(value)
    assert value > search_value(row_by_row(4), 4, 10, 3) + 0.5
