import gymnasium
import numpy as np
import pytest
import torch

from metabook.rl import RL2, CartPoles, Engineer, EnvTasks, Memoryless, Tasks, pole_replay
from metabook.rl.control import LIMITS, SCALE, pilot

ID = "metabook/CartPoles-v0"


def sampled(tasks=300, seed=5, **settings):
    return EnvTasks(ID, seed=seed, **settings).sample(tasks)


def test_every_frame_is_that_of_cartpole_v1():
    tasks = sampled(20)
    env, _ = tasks.environments()
    random, ended = np.random.default_rng(0), 0
    theirs = [gymnasium.make("CartPole-v1").unwrapped for _ in range(len(tasks))]
    for each, task, state in zip(theirs, tasks.parameters, env.state, strict=True):
        each.reset()
        each.state, each.length, each.gravity = state, task[-2], task[-1]
        each.polemass_length = each.masspole * each.length
    over = np.zeros(len(tasks), bool)
    for _ in range(env.horizon):
        pressed = random.integers(0, 3, len(tasks))
        _, rewards, terminated, *_ = env.step(pressed)
        for i, each in enumerate(theirs):
            force, paid, ends = tasks.parameters[i, pressed[i]], 0.0, False
            each.force_mag = abs(force)
            for _ in range(4 * (not over[i])):
                _, reward, ends, *_ = each.step(int(force > 0))
                paid += reward
                if ends:
                    break
            np.testing.assert_allclose(env.state[i], each.state, atol=1e-12)
            assert rewards[i] == pytest.approx(paid / 4)
            assert terminated[i] == ends
            over[i] |= ends
            ended += ends
    assert ended > 10


def test_tasks_have_one_button_to_each_side_and_dead_ones():
    tasks = sampled(3_000, buttons=4).parameters
    forces = tasks[:, :4]
    assert (np.sort(np.sign(forces), 1) == [-1, 0, 0, 1]).all()
    assert (np.abs(forces) > 0).mean(0) == pytest.approx(0.5, abs=0.03)
    assert np.abs(forces).max() <= 8
    np.testing.assert_allclose(forces.sum(1), 0, atol=1e-12)
    assert (tasks[:, 4:].min(0) >= (0.4, 8)).all()
    assert (tasks[:, 4:].max(0) <= (0.8, 12)).all()


def test_an_agent_sees_its_task_only_if_told():
    tasks = sampled(50)
    env, seen = tasks.environments()
    np.testing.assert_allclose(seen, env.state / SCALE, atol=1e-6)
    _, also = Tasks(tasks.family, tasks.parameters[::-1].copy(), tasks.seed).environments()
    np.testing.assert_array_equal(seen, also)
    told, more = sampled(50, told=True).environments()
    np.testing.assert_allclose(more[:, 4:7] * 8, told.tasks[:, :3], atol=1e-5)
    assert more.shape == (50, 9)


def test_an_episode_begins_inside_of_the_spread_and_what_has_fallen_stays():
    tasks = sampled(500)
    env, _ = tasks.environments()
    assert np.abs(env.state).max() <= 0.15
    wrong = (tasks.parameters[:, :3] * np.sign(env.state[:, 2:3])).argmin(1)  # away from under the pole
    seen = [env.step(wrong) for _ in range(6)]
    fallen = np.any([each[2] for each in seen], 0)
    assert fallen.mean() > 0.9
    assert (np.abs(env.state[fallen][:, [0, 2]]) > LIMITS).any(1).all()
    before = env.state.copy()
    _, rewards, terminated, *_ = env.step(wrong)
    assert (rewards[fallen] == 0).all()
    assert not terminated[fallen].any()
    np.testing.assert_array_equal(env.state[fallen], before[fallen])


def test_a_replay_shows_the_trial_again():
    torch.manual_seed(0)
    tasks = sampled(40)
    trial = RL2(4, 3, 8, episodes=2).play(tasks)
    states, forces = pole_replay(tasks, trial.actions)
    assert states.shape == (40, 2, 21, 4)
    assert forces.shape == (40, 2, 20)
    moved = (np.diff(states, axis=2) != 0).any(3).reshape(40, -1)
    np.testing.assert_array_equal(moved, trial.alive.numpy())
    assert (states[:, 0, 0] != states[:, 1, 0]).any(1).all()


def test_steps_after_the_end_teach_the_policy_nothing():
    torch.manual_seed(0)
    learner, tasks = RL2(4, 3, 8, episodes=2), sampled(40)
    trial = learner.play(tasks)
    assert 0.1 < trial.alive.float().mean() < 0.9
    assert (trial.rewards[~trial.alive] == 0).all()
    assert (trial.rewards[trial.alive] > 0).all()
    learner.value = 0.0  # what is left is the loss of the policy
    learner.play = lambda _: trial  # type: ignore[method-assign]
    kept = torch.autograd.grad(learner.loss(tasks), trial.log_probs)[0]
    assert (kept[~trial.alive] == 0).all()
    assert (kept[trial.alive] != 0).float().mean() > 0.9


def test_engineers_stand_in_the_expected_order():
    tasks = sampled(500)
    told, finds, forgets = (
        Engineer(3, **how).predict(tasks).mean(0) for how in ({"told": True}, {}, {"remembers": False})
    )
    assert (told > 19.5).all()
    assert finds[0] < 18
    assert (finds[1:] > 19.5).all()
    assert (forgets < 18).all()
    assert forgets[0] == pytest.approx(finds[0])


def test_an_engineer_presses_no_button_twice_to_find_out():
    tasks = sampled(200)
    actions, _ = Engineer(1).play(tasks)
    states, forces = pole_replay(tasks, actions)
    wanted = np.sign(states[:, 0, :-1] @ Engineer.RULE)
    alive = (np.diff(states[:, 0], axis=1) != 0).any(2)
    wrong = (np.sign(forces[:, 0]) != wanted) & alive
    # Three buttons: at most one wrong press of each before all is known, and dead ones are never pressed on purpose.
    assert wrong.sum(1).max() <= 2


def test_the_published_agent_learns_within_a_trial_and_not_without_its_memory():
    tasks, agent = sampled(300), pilot()
    torch.manual_seed(0)
    first, second, third = agent.predict(tasks).mean(0)
    assert second > first + 2
    assert third > first + 2
    wiped = Memoryless(4, 3, agent.hidden, 3)
    wiped.load_state_dict(agent.state_dict())
    assert (wiped.predict(tasks).mean(0) < second - 3).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"buttons": 1}, "two buttons"), ({"hold": 0}, "at least one frame"), ({"spread": 0.3}, "spread must be")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CartPoles(1, **settings)
