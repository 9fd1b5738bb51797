import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import metabook
from metabook.nets import MLP
from metabook.rl import MAMLRL, RL2, CategoricalPolicy, EnvTasks, GaussianPolicy, rollout

IDS = [f"metabook/{name}-v0" for name in ("Bandits", "CartPoles", "HiddenGoal", "Navigation", "Rooms")]


@pytest.mark.parametrize("id", IDS)
def test_gymnasium_accepts_a_single_environment(id):
    check_env(gymnasium.make(id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("id", IDS[:-1])  # rooms are drawn one after the other: test_rooms holds them against MiniGrid
def test_side_by_side_is_the_same_as_one_by_one(id):
    together, task_of = gymnasium.make_vec(id, 3), np.random.default_rng(0)
    tasks = together.sample_tasks(3, task_of)
    together.reset(seed=0, options={"tasks": tasks})
    begun = getattr(together, "state", None)  # where episodes begin at random places
    actions = [together.action_space.sample() for _ in range(4)]
    seen = [together.step(each) for each in actions]
    for i, task in enumerate(tasks):
        alone = gymnasium.make(id).unwrapped
        alone.reset(seed=0, options={"tasks": task})
        if begun is not None:
            alone.vector.state = begun[[i]]
        for action, (observations, rewards, *_) in zip(actions, seen, strict=True):
            observation, reward, *_ = alone.step(action[i])
            np.testing.assert_allclose(observation, observations[i])
            if "Bandits" not in id:  # whose rewards are random
                assert reward == pytest.approx(rewards[i])


@pytest.mark.parametrize("id", IDS)
def test_a_seed_fixes_tasks_and_rewards(id):
    def play():
        env = gymnasium.make_vec(id, 4)
        env.reset(seed=3)
        env.action_space.seed(0)
        return np.array([env.step(env.action_space.sample())[1] for _ in range(env.horizon)])

    np.testing.assert_array_equal(play(), play())


def test_tasks_outlive_episodes_until_others_are_given():
    env = gymnasium.make_vec("metabook/Navigation-v0", 2)
    env.reset(seed=0)
    first = env.tasks
    env.step(np.full((2, 2), 0.1))
    observations, _ = env.reset()
    np.testing.assert_array_equal(env.tasks, first)
    np.testing.assert_array_equal(observations, 0)
    env.reset(options={"tasks": first + 1})
    np.testing.assert_array_equal(env.tasks, first + 1)
    env.reset(seed=1)
    assert not np.isin(env.tasks, first).any()
    with pytest.raises(ValueError, match="3 tasks for 2 environments"):
        env.reset(options={"tasks": np.zeros((3, 2))})


def test_an_episode_that_is_over_pays_nothing_more():
    env = gymnasium.make_vec("metabook/Navigation-v0", 2, horizon=3)
    env.reset(options={"tasks": np.array([[0.1, 0.0], [0.5, 0.5]])})
    _, _, terminated, truncated, _ = env.step(np.array([[0.1, 0.0], [0.0, 0.0]]))
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    observations, rewards, terminated, _, _ = env.step(np.array([[0.1, 0.1], [0.1, 0.1]]))
    assert rewards[0] == 0
    assert not terminated.any()
    np.testing.assert_allclose(observations, [[0.1, 0.0], [0.1, 0.1]])
    _, _, _, truncated, _ = env.step(np.zeros((2, 2)))
    assert truncated.tolist() == [False, True]


def test_a_source_of_tasks_is_a_function_of_seed_and_step():
    source = EnvTasks("metabook/Bandits-v0", seed=1, arms=3)
    tasks = source.sample(5, step=2)
    assert len(tasks) == 5
    np.testing.assert_array_equal(tasks.parameters, source.sample(5, step=2).parameters)
    assert not np.isin(tasks.parameters, source.sample(5, step=3).parameters).any()
    assert not np.isin(tasks.parameters, EnvTasks("metabook/Bandits-v0", seed=2, arms=3).sample(5, 2).parameters).any()
    env, _ = tasks.environments(copies=2)
    np.testing.assert_array_equal(env.tasks[::2], tasks.parameters)
    np.testing.assert_array_equal(env.tasks[1::2], tasks.parameters)


def test_rollout_keeps_what_happened_in_order():
    tasks = EnvTasks("metabook/Navigation-v0", horizon=6).sample(2)
    seen = rollout(tasks, lambda x: torch.full((*x.shape[:2], 2), 0.05), copies=3)
    assert seen.observations.shape == (2, 3, 6, 2)
    assert seen.rewards.shape == seen.alive.shape == (2, 3, 6)
    torch.testing.assert_close(seen.observations[0, 0, :, 0], torch.arange(6) * 0.05)
    goal = torch.tensor(tasks.parameters, dtype=torch.float32)[:, None, None]
    torch.testing.assert_close(seen.rewards, -(seen.observations + 0.05 - goal).square().sum(3))
    torch.testing.assert_close(seen.returns, seen.rewards[:, 0].sum(1))


def test_rollout_marks_what_comes_after_the_end():
    tasks = EnvTasks("metabook/Navigation-v0", horizon=6).sample(2)
    tasks = type(tasks)(tasks.family, np.array([[0.2, 0.0], [0.5, 0.5]]), 0)
    seen = rollout(tasks, lambda x: torch.tensor([0.1, 0.0]).expand(*x.shape[:2], 2), copies=1)
    assert seen.alive[:, 0].tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6]
    assert (seen.rewards[0, 0, 2:] == 0).all()


@pytest.mark.parametrize("settings", [{"horizon": 0}, {"num_envs": 0}])
def test_nothing_to_do_is_an_error(settings):
    with pytest.raises(ValueError, match="at least one environment and one step"):
        gymnasium.make_vec("metabook/Navigation-v0", **{"num_envs": 1, **settings})


@pytest.mark.parametrize(
    "learner",
    [
        RL2(1, 3, hidden=4, episodes=2),
        MAMLRL(GaussianPolicy(MLP(2, (4,), 2, "tanh"), 0.5)),
        MAMLRL(CategoricalPolicy(MLP(4, (4,), 5))),
    ],
)
def test_agents_are_saved_and_loaded_like_other_learners(learner, tmp_path):
    metabook.save(learner, tmp_path / "agent.safetensors")
    again = metabook.load(tmp_path / "agent.safetensors")
    assert type(again) is type(learner)
    for ours, theirs in zip(learner.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
