import itertools

import numpy as np
import pytest
import torch

from metabook import fit
from metabook.rl import RL2, EnvTasks, Memoryless, RewardBlind, Tasks
from metabook.rl.rl2 import advantages


def bandits(tasks=8, seed=1, **settings):
    return EnvTasks("metabook/Bandits-v0", seed=seed, **{"arms": 2, **settings}).sample(tasks)


def agent(kind=RL2, arms=2, **settings):
    torch.manual_seed(0)
    learner = kind(1, arms, hidden=8, **settings)
    with torch.no_grad():
        learner.policy.weight.mul_(200)  # a policy that is far from uniform, and reacts to what it is told
        learner.cell.weight_ih.mul_(4)
    return learner


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 1.0), (1.0, 0.7), (0.9, 0.95), (0.5, 0.0)])
def test_advantages_are_the_sum_over_errors_to_come(discount, trace):
    rewards, values = torch.randn(2, 3, 6, dtype=torch.float64)
    after = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    errors = rewards + discount * after - values
    expected = torch.stack(
        [sum((discount * trace) ** (s - t) * errors[:, s] for s in range(t, 6)) for t in range(6)], 1
    )
    torch.testing.assert_close(advantages(rewards, values, discount, trace), expected)


def test_with_a_full_trace_the_advantage_is_the_return_to_go_minus_the_value():
    rewards, values = torch.randn(2, 3, 6)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages(rewards, values, 1.0, 1.0), to_go - values)


def exact_objective(learner, pulls):
    """Expected total reward on two uniform Bernoulli arms: the sum over all that can happen."""
    seen, first, total = torch.zeros(1, 1), torch.zeros(1, 1), 0
    for actions in itertools.product(range(2), repeat=pulls):
        for rewards in itertools.product(range(2), repeat=pulls):
            state, told, reward = torch.zeros(1, 8), torch.zeros(1, 2), torch.zeros(1, 1)
            likelihood, won, lost = 1.0, [0, 0], [0, 0]
            for a, r in zip(actions, rewards, strict=True):
                state = learner.remember(state, seen, told, reward, first)
                mean = (won[a] + 1) / (won[a] + lost[a] + 2)
                likelihood = likelihood * learner.policy(state).softmax(1)[0, a] * (mean if r else 1 - mean)
                (won if r else lost)[a] += 1
                told, reward = torch.eye(2)[[a]], torch.full((1, 1), float(r))
            total = total + likelihood * sum(rewards)
    return total


def test_the_estimated_policy_gradient_is_right_on_average():
    learner, weights = agent(), ["policy.weight", "cell.weight_hh"]
    wanted = [dict(learner.named_parameters())[name] for name in weights]
    objective = exact_objective(learner, 2)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(objective, wanted)])
    estimates, earned = [], []
    for step in range(60):
        trial = learner.play(bandits(2_000, seed=step, pulls=2))
        gain = advantages(trial.rewards, trial.values.detach(), 1.0, 1.0)
        surrogate = (trial.log_probs * gain).sum(1).mean()
        estimates.append(torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, wanted)]))
        earned.append(trial.returns.mean().item())
    estimates = torch.stack(estimates)
    error = estimates.std(0) / len(estimates) ** 0.5
    assert (exact.abs() > 5 * error).any(), "the test must be able to tell the gradient from zero"
    assert ((estimates.mean(0) - exact).abs() < 4.5 * error + 1e-7).all()
    assert np.mean(earned) == pytest.approx(objective.item(), abs=0.02)


def test_a_trial_says_what_the_policy_did():
    learner, tasks = agent(arms=3, episodes=2), bandits(arms=3, pulls=4)
    trial = learner.play(tasks)
    assert trial.actions.shape == trial.rewards.shape == trial.values.shape == (8, 8)
    assert trial.hidden.shape == (8, 8, 8)
    log_probs = learner.policy(trial.hidden).log_softmax(2)
    torch.testing.assert_close(trial.log_probs, log_probs.gather(2, trial.actions.unsqueeze(2)).squeeze(2))
    torch.testing.assert_close(trial.entropies, -(log_probs.exp() * log_probs).sum(2))
    torch.testing.assert_close(trial.returns.sum(1), trial.rewards.sum(1))
    assert learner.predict(tasks).shape == (8, 2)


def test_actions_are_drawn_from_the_policy_or_are_its_most_probable():
    learner, tasks = agent(), bandits(20_000, pulls=1)
    probability = learner.play(tasks).log_probs[:, 0].detach().exp().unique()  # all start in the same state
    drawn = learner.play(tasks).actions[:, 0]
    assert probability.sum().item() == pytest.approx(1, abs=1e-4)
    assert sorted([drawn.float().mean().item(), 1 - drawn.float().mean().item()]) == pytest.approx(
        sorted(probability.tolist()), abs=0.015
    )
    greedy = learner.play(bandits(pulls=5), greedy=True)
    torch.testing.assert_close(greedy.actions, learner.policy(greedy.hidden).argmax(2))


def test_the_state_outlives_episodes_and_the_agent_is_told_of_a_new_one():
    told = []

    class Listening(RL2):
        def remember(self, state, seen, action, reward, first):
            told.append((state, action, reward, first))
            return super().remember(state, seen, action, reward, first)

    trial = agent(Listening, episodes=2).play(bandits(pulls=3))
    assert [first.unique().item() for *_, first in told] == [0, 0, 0, 1, 0, 0]
    for step, (state, action, reward, _) in enumerate(told):
        if step == 0:
            assert not state.any()
            assert not action.any()
        else:
            torch.testing.assert_close(state, trial.hidden[:, step - 1])
            torch.testing.assert_close(action.argmax(1), trial.actions[:, step - 1])
            torch.testing.assert_close(reward[:, 0], trial.rewards[:, step - 1])


def test_an_agent_that_is_not_told_its_rewards_does_not_react_to_them():
    family, played = bandits().family, {}
    for kind in (RL2, RewardBlind):
        for payoff in (0.0, 1.0):
            torch.manual_seed(1)
            tasks = Tasks(family, np.full((200, 2), payoff), 0)
            played[kind, payoff] = agent(kind).play(tasks).actions
    assert (played[RewardBlind, 0.0] == played[RewardBlind, 1.0]).all()
    assert (played[RL2, 0.0] != played[RL2, 1.0]).any()


def test_an_agent_without_memory_knows_its_last_pull_alone():
    trial = agent(Memoryless).play(bandits(300))
    last = torch.stack([trial.actions[:, :-1], trial.rewards[:, :-1].long()], 2).flatten(0, 1)
    states = trial.hidden[:, 1:].flatten(0, 1)
    for action, reward in itertools.product(range(2), range(2)):
        same = states[(last == torch.tensor([action, reward])).all(1)]
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert len(agent(RL2).play(bandits(300)).hidden[:, 2].round(decimals=4).unique(dim=0)) > 4


def test_training_teaches_to_explore_and_to_stay():
    torch.manual_seed(0)
    learner, test = RL2(1, 2, hidden=16, entropy=0.0), bandits(4_000, seed=9, pulls=6)
    before = learner.predict(test).mean().item()
    source = EnvTasks("metabook/Bandits-v0", seed=0, arms=2, pulls=6)
    fit(learner, source, steps=120, tasks=128, lr=2e-2, progress=False)
    assert before == pytest.approx(3, abs=0.1)
    assert learner.predict(test).mean().item() > before + 0.2
