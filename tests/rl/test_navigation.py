import gymnasium
import numpy as np
import torch

from metabook.rl import EnvTasks, Tasks, rollout
from metabook.rl.navigation import oracle


def family(num_envs):
    return gymnasium.make_vec("metabook/Navigation-v0", num_envs, horizon=12)


def test_goals_fill_the_square_around_the_start():
    goals = EnvTasks("metabook/Navigation-v0").sample(400).parameters
    assert goals.shape == (400, 2)
    assert -0.5 <= goals.min() < -0.48
    assert 0.48 < goals.max() <= 0.5
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.05)


def test_a_move_is_cut_to_a_tenth_along_each_axis_and_pays_the_squared_distance_after_it():
    env = family(2)
    env.reset(options={"tasks": np.array([[0.3, 0.4], [-0.5, 0.0]])})
    seen, rewards, *_ = env.step(np.array([[9.0, -0.02], [-0.05, -3.0]]))
    np.testing.assert_allclose(seen, [[0.1, -0.02], [-0.05, -0.1]], atol=1e-7)
    np.testing.assert_allclose(rewards, [-(0.2**2 + 0.42**2), -(0.45**2 + 0.1**2)])


def test_an_episode_ends_where_both_axes_are_near_the_goal():
    env = family(3)
    env.reset(options={"tasks": np.array([[0.109, 0.0], [0.111, 0.0], [0.1, 0.05]])})
    _, _, terminated, *_ = env.step(np.tile([0.1, 0.0], (3, 1)))
    assert terminated.tolist() == [True, False, False]


def test_the_oracle_takes_the_fewest_steps_and_earns_what_can_be_counted():
    tasks = Tasks(family, np.array([[0.25, 0.0], [-0.5, 0.05]]), 0)
    seen = rollout(tasks, lambda x: oracle(tasks.parameters, x), copies=2)
    assert seen.alive.sum(2).tolist() == [[3, 3], [5, 5]]
    expected = [0.15**2 + 0.05**2, 0.4**2 + 0.3**2 + 0.2**2 + 0.1**2]
    np.testing.assert_allclose(seen.returns, [-each for each in expected], rtol=1e-5)


def test_nobody_earns_more_than_the_oracle():
    tasks = EnvTasks("metabook/Navigation-v0", seed=3).sample(10)
    torch.manual_seed(0)
    best = rollout(tasks, lambda x: oracle(tasks.parameters, x), copies=1).returns
    noisy = rollout(tasks, lambda x: oracle(tasks.parameters, x) + 0.03 * torch.randn_like(x), copies=5).returns
    assert (best > noisy).all()
