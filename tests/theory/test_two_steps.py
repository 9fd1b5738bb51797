import torch

from metabook.rl import rollout
from metabook.theory import two_steps

REWARDS = torch.arange(12.0).view(2, 3, 2)


def test_the_environment_pays_what_the_table_of_paths_says():
    tasks = two_steps.two_step_tasks(REWARDS)
    for path in range(4):
        actions = iter(two_steps.PATHS[path])
        seen = rollout(tasks, lambda x, actions=actions: next(actions).expand(x.shape[:2]), copies=2)
        for task in range(2):
            torch.testing.assert_close(seen.rewards[task, 1], two_steps.path_rewards(REWARDS[task])[path])
        assert (seen.observations.argmax(3) == two_steps.STATES[path]).all()


def test_the_expected_return_is_what_episodes_pay_on_average():
    logits = torch.tensor([[0.3, -0.5, 0.2], [-0.3, 0.4, 0.1]])
    tasks = two_steps.two_step_tasks(REWARDS)
    chances = logits.softmax(0)

    def play(seed):
        return rollout(
            tasks, lambda x: torch.distributions.Categorical(x @ chances.T).sample(), copies=500, stream=seed
        ).returns

    exact = torch.stack([two_steps.expected_return(logits, task) for task in REWARDS])
    off = two_steps.deviation(two_steps.repeated(play, 20), exact).abs()
    assert off.max() < 4
    assert two_steps.deviation(two_steps.repeated(play, 20), exact + 1).abs().min() > 8
    torch.testing.assert_close(two_steps.path_log_probs(logits).sum(1).exp().sum(), torch.tensor(1.0))


def test_repetitions_leave_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = two_steps.repeated(lambda seed: torch.rand(1) + seed, 3)
    torch.testing.assert_close(torch.rand(2), expected)
    torch.testing.assert_close(two_steps.repeated(lambda seed: torch.rand(1) + seed, 3), first)
