from functools import cache

import numpy as np
import pytest
import torch

from metabook.rl import RL2, UCB1, BayesOptimal, EnvTasks, Gittins, Greedy, Tasks, Thompson, Uniform, regret
from metabook.rl.bandits import Belief, Pulls, beliefs, replay


def bandits(tasks=4_000, seed=3, **settings):
    return EnvTasks("metabook/Bandits-v0", seed=seed, **settings).sample(tasks)


def total(agent, tasks):
    return agent.play(tasks).rewards.sum(1).double().numpy()


def scores(agent, pulled, paid, left=1, payoff="bernoulli"):
    belief = Belief(np.array([pulled], float), np.array([paid], float), left, payoff)
    return agent.scores(belief, np.random.default_rng(0))[0]


@pytest.mark.parametrize("settings", [{"arms": 1}, {"payoff": "poisson"}])
def test_what_is_no_bandit_is_refused(settings):
    with pytest.raises(ValueError, match=r"arms|payoff"):
        bandits(1, **settings)


@pytest.mark.parametrize("payoff", ["bernoulli", "gaussian"])
def test_arms_pay_their_means(payoff):
    tasks = bandits(2, payoff=payoff, arms=3)
    many = Tasks(tasks.family, tasks.parameters.repeat(4_000, 0), 0)
    rewards = many.environments()[0].step(np.tile([0, 1, 2, 1], 2_000))[1].reshape(2, -1, 4)
    for task, arm in ((0, 0), (0, 2), (1, 0), (1, 2)):
        assert rewards[task, :, arm].mean() == pytest.approx(tasks.parameters[task, arm], abs=0.1)
    assert (set(np.unique(rewards)) == {0, 1}) == (payoff == "bernoulli")


def test_prior_and_posterior_are_conjugate():
    grid = np.linspace(0, 1, 20_001)
    density = grid**3 * (1 - grid) ** 2  # 3 of 5 pulls paid, uniform prior
    belief = Belief(np.array([[5.0]]), np.array([[3.0]]))
    assert belief.mean[0, 0] == pytest.approx((grid * density).sum() / density.sum())
    wide = np.linspace(-9, 9, 20_001)
    density = np.exp(-(wide**2) / 2 - sum((x - wide) ** 2 / 2 for x in (0.3, 1.9, 2.0)))
    assert Belief(np.array([[3.0]]), np.array([[4.2]]), payoff="gaussian").mean[0, 0] == pytest.approx(
        (wide * density).sum() / density.sum()
    )


@pytest.mark.parametrize("payoff", ["bernoulli", "gaussian"])
def test_draws_come_from_the_posterior(payoff):
    belief = Belief(np.full((40_000, 1), 4.0), np.full((40_000, 1), 3.0), payoff=payoff)
    drawn = belief.draw(np.random.default_rng(0))
    variance = 4 * 2 / (6**2 * 7) if payoff == "bernoulli" else 1 / 5
    assert drawn.mean() == pytest.approx(belief.mean[0, 0], abs=0.01)
    assert drawn.var() == pytest.approx(variance, rel=0.05)


def test_beliefs_are_those_before_each_pull():
    pulls = Pulls(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    belief = beliefs(pulls, 2)
    assert belief.pulled[0].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]
    assert belief.paid[0].tolist() == [[0, 0], [1, 0], [1, 0], [1, 1]]


def test_regret_adds_up_what_the_best_arm_would_have_paid_more():
    tasks = Tasks(bandits(1).family, np.array([[0.2, 0.9], [0.5, 0.5]]), 0)
    actions = torch.tensor([[0, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(regret(tasks, actions), [[0.7, 0.7, 1.4], [0, 0, 0]])


def test_every_agent_meets_the_same_luck_and_is_repeatable():
    tasks = bandits(50)
    first, again = (Thompson().play(tasks) for _ in range(2))
    torch.testing.assert_close(first.actions, again.actions)
    sure = Tasks(tasks.family, np.array([[1.0] * 5, [0.0] * 5]), 0)
    assert Uniform().play(sure).rewards.tolist() == [[1.0] * 10, [0.0] * 10]


def test_ties_are_broken_at_random():
    first = Greedy().play(bandits(5_000)).actions[:, 0]
    assert torch.bincount(first, minlength=5).min() > 900


def test_ucb1_tries_every_arm_and_then_follows_the_index_of_auer():
    actions = UCB1().play(bandits(20)).actions[:, :5]
    assert actions.sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 20
    np.testing.assert_allclose(
        scores(UCB1(), [4, 2], [3, 1]),
        [3 / 4 + np.sqrt(2 * np.log(6) / 4), 1 / 2 + np.sqrt(2 * np.log(6) / 2)],
    )


def test_epsilon_is_the_share_of_random_pulls():
    belief = Belief(np.tile([4.0, 0.0], (20_000, 1)), np.tile([4.0, 0.0], (20_000, 1)))
    random = (Greedy(0.3).scores(belief, np.random.default_rng(0)) == 0).all(1)
    assert random.mean() == pytest.approx(0.3, abs=0.02)


def test_thompson_pulls_an_arm_as_often_as_it_is_the_best():
    belief = Belief(np.tile([1.0, 0.0], (40_000, 1)), np.tile([1.0, 0.0], (40_000, 1)))
    chosen = Thompson().scores(belief, np.random.default_rng(0)).argmax(1)
    assert (chosen == 0).mean() == pytest.approx(2 / 3, abs=0.01)  # P(X > Y), X ~ Beta(2, 1), Y uniform


def plain_value(arms):
    """The Bellman equation over ordered beliefs, without tables, symmetry or arrays."""

    @cache
    def value(won, lost, left):
        return max(q(won, lost, left)) if left else 0.0

    def q(won, lost, left):
        for a in range(arms):
            mean = (won[a] + 1) / (won[a] + lost[a] + 2)
            more = tuple(np.eye(arms, dtype=int)[a])
            plus, minus = (tuple(x + y for x, y in zip(counts, more, strict=True)) for counts in (won, lost))
            yield mean * (1 + value(plus, lost, left - 1)) + (1 - mean) * value(won, minus, left - 1)

    return value, lambda *state: list(q(*state))


@pytest.mark.parametrize(("arms", "pulls"), [(2, 1), (2, 5), (3, 4)])
def test_the_optimum_solves_the_bellman_equation(arms, pulls):
    value, _ = plain_value(arms)
    assert BayesOptimal(arms, pulls).value == pytest.approx(value((0,) * arms, (0,) * arms, pulls))


@pytest.mark.parametrize("won", [(0, 1), (2, 0), (1, 1)])
@pytest.mark.parametrize("lost", [(0, 0), (1, 0), (0, 2)])
def test_arms_keep_their_places_in_the_table_of_sorted_beliefs(won, lost):
    left = 6 - sum(won + lost)
    _, q = plain_value(2)
    np.testing.assert_allclose(scores(BayesOptimal(2, 6), np.add(won, lost), won, left), q(won, lost, left))


def test_one_pull_is_worth_a_half_and_two_arms_with_two_pulls_are_worth_a_little_more():
    assert BayesOptimal(5, 1).value == pytest.approx(1 / 2)
    # By hand: after a success stay (2/3), after a failure change (1/2).
    assert BayesOptimal(2, 2).value == pytest.approx(1 / 2 + (2 / 3 + 1 / 2) / 2)


def test_the_optimal_agent_earns_the_optimum():
    tasks, agent = bandits(20_000), BayesOptimal(5, 10)
    earned = total(agent, tasks)
    assert abs(earned.mean() - agent.value) < 3 * earned.std() / np.sqrt(len(tasks))


@pytest.mark.parametrize("agent", [Greedy(), Thompson(), UCB1()])
def test_what_the_pulls_give_away_adds_up_to_the_distance_from_the_optimum(agent):
    tasks, optimum = bandits(20_000), BayesOptimal(5, 10)
    pulls = agent.play(tasks)
    lost, earned = optimum.given_away(pulls).sum(1), pulls.rewards.sum(1).double().numpy()
    assert (lost > -1e-9).all()
    assert lost.std() < earned.std() / 2
    assert abs(optimum.value - earned.mean() - lost.mean()) < 3 * earned.std() / np.sqrt(len(tasks))
    np.testing.assert_allclose(optimum.given_away(optimum.play(bandits(100))), 0, atol=1e-9)


def test_a_replayed_agent_is_in_the_states_in_which_it_was():
    torch.manual_seed(0)
    learner = RL2(1, 5, hidden=8)
    trial = learner.play(bandits(20))
    torch.testing.assert_close(replay(learner, trial), trial.hidden)


def test_agents_stand_in_the_expected_order():
    tasks = bandits(20_000)
    uniform, ucb, thompson, greedy, gittins = (
        total(agent, tasks).mean() for agent in (Uniform(), UCB1(), Thompson(), Greedy(), Gittins(10))
    )
    assert uniform == pytest.approx(5, abs=0.05)
    assert uniform < ucb < thompson < greedy < gittins < BayesOptimal(5, 10).value + 0.03


def test_the_index_of_a_last_pull_is_the_mean_and_rises_with_what_is_left():
    index = Gittins(20, grid=1_001).index
    np.testing.assert_allclose(index[0][3, 1], 4 / 6, atol=1e-3)
    fresh = [table[0, 0] for table in index]
    assert (np.diff(fresh) > 0).all()
    # Two pulls of a fresh arm against a sure payoff: (1/2 - v) + (2/3 - v) / 2 = 0 at v = 5/9.
    assert fresh[1] == pytest.approx(5 / 9, abs=1e-3)


def test_what_the_tables_were_not_made_for_is_refused():
    with pytest.raises(ValueError, match="too many beliefs"):
        BayesOptimal(5, 100)
    for agent in (BayesOptimal(5, 5), BayesOptimal(5, 11), BayesOptimal(4, 10), Gittins(5)):
        with pytest.raises(ValueError, match="made for Bernoulli bandits with"):
            agent.play(bandits(2))
    with pytest.raises(ValueError, match="Bernoulli"):
        Gittins(10).play(bandits(2, payoff="gaussian"))
    with pytest.raises(TypeError, match="plays bandits, not Navigation"):
        Thompson().play(EnvTasks("metabook/Navigation-v0").sample(2))


def test_gaussian_bandits_are_played_too():
    tasks = bandits(4_000, payoff="gaussian")
    uniform, thompson = total(Uniform(), tasks).mean(), total(Thompson(), tasks).mean()
    assert uniform == pytest.approx(0, abs=0.3)
    assert thompson > uniform + 3
