"""RL²: a recurrent policy whose hidden state learns, while its weights stay as they are.

Y. Duan, J. Schulman, X. Chen, P. L. Bartlett, I. Sutskever, P. Abbeel. RL²: Fast Reinforcement Learning via Slow
Reinforcement Learning. 2016, https://arxiv.org/abs/1611.02779; J. X. Wang et al., Learning to reinforcement learn,
2016, https://arxiv.org/abs/1611.05763. Trained here by advantage actor-critic (V. Mnih et al., ICML 2016,
https://arxiv.org/abs/1602.01783) with generalised advantage estimation (J. Schulman et al., ICLR 2016,
https://arxiv.org/abs/1506.02438).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from metabook.learners.base import Learner
from metabook.rl.base import Tasks

__all__ = ["RL2", "Trial", "advantages"]


@dataclass(frozen=True)
class Trial:
    """What a recurrent agent did in its tasks, over all the episodes of a trial, in order.

    Parameters
    ----------
    episode : int
        Steps an episode.
    actions : Tensor [tasks, steps]
    rewards : Tensor [tasks, steps]
    log_probs, entropies, values : Tensor [tasks, steps]
        Of the actions, of the policy, and expected returns to go; with the graph that leads to the weights.
    hidden : Tensor [tasks, steps, hidden]
        The state in which each action was chosen.
    """

    episode: int
    actions: Tensor
    rewards: Tensor
    log_probs: Tensor
    entropies: Tensor
    values: Tensor
    hidden: Tensor

    @property
    def returns(self) -> Tensor:
        """Sum of the rewards of each task's episodes, ``[tasks, episodes]``."""
        return self.rewards.unflatten(1, (-1, self.episode)).sum(2)


class RL2(Learner):
    """A recurrent policy that is given its last action and reward, and keeps its state from episode to episode.

    A *trial* is several episodes of one task. The state is reset between trials alone, so that what the agent has found
    out about its task can steer the episodes that follow: the network's dynamics are the learning algorithm, and
    training looks for one that earns much over a whole trial.

    Parameters
    ----------
    observations, actions : int
        Numbers of what is seen in a step, and actions to choose from.
    hidden : int
        Units of the recurrent state (a GRU).
    episodes : int
        Of a trial.
    discount, trace : float
        Gamma and lambda of the generalised advantage.
    entropy, value : float
        What the policy's entropy and the squared error of the values count beside the policy's loss.
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: int = 64,
        episodes: int = 1,
        discount: float = 1.0,
        trace: float = 0.95,
        entropy: float = 0.01,
        value: float = 0.5,
    ) -> None:
        super().__init__()
        self.observations, self.actions, self.hidden, self.episodes = observations, actions, hidden, episodes
        self.discount, self.trace, self.entropy, self.value = discount, trace, entropy, value
        self.cell = nn.GRUCell(observations + actions + 2, hidden)
        self.policy, self.critic = nn.Linear(hidden, actions), nn.Linear(hidden, 1)
        with torch.no_grad():
            self.policy.weight.mul_(0.01)  # begin near the uniform policy: what is never tried teaches nothing

    def play(self, tasks: Tasks, greedy: bool = False) -> Trial:
        """Live through one trial in each task.

        Parameters
        ----------
        tasks : Tasks
        greedy : bool
            Take the most probable action instead of drawing one.
        """
        env, seen = tasks.environments()
        device = self.policy.weight.device
        state = torch.zeros(len(tasks), self.hidden, device=device)
        told = torch.zeros(len(tasks), self.actions + 2, device=device)  # the last action, its reward, "a new episode"
        steps: list[tuple[Tensor, ...]] = []
        for episode in range(self.episodes):
            if episode:
                seen, _ = env.reset()
                told = torch.cat([told[:, :-1], torch.ones_like(told[:, :1])], 1)
            for _ in range(env.horizon):
                x = torch.as_tensor(seen, dtype=torch.float32, device=device)
                state = self.cell(torch.cat([x, told], 1), state)
                choice = Categorical(logits=self.policy(state), validate_args=False)
                action = choice.probs.argmax(1) if greedy else choice.sample()
                seen, rewards, *_ = env.step(action.cpu().numpy())
                reward = torch.as_tensor(rewards, dtype=torch.float32, device=device)
                told = torch.cat(
                    [F.one_hot(action, self.actions), reward.unsqueeze(1), torch.zeros_like(told[:, :1])], 1
                )
                value = self.critic(state).squeeze(1)
                steps.append((action, reward, choice.log_prob(action), choice.entropy(), value, state))
        return Trial(env.horizon, *(torch.stack(each, 1) for each in zip(*steps, strict=True)))

    def loss(self, tasks: Tasks) -> Tensor:  # type: ignore[override]
        r"""Advantage actor-critic on one trial in each task.

        .. math:: -\hat A_t \log \pi(a_t \mid h_t) + c_v (V(h_t) - \hat A_t - V_t)^2 - c_e\, H[\pi(\cdot \mid h_t)],

        the mean over tasks and steps.
        """
        trial = self.play(tasks)
        values = trial.values.detach()
        gain = advantages(trial.rewards, values, self.discount, self.trace)
        policy = -(trial.log_probs * (gain - gain.mean()) / (gain.std() + 1e-8)).mean()
        return policy + self.value * F.mse_loss(trial.values, gain + values) - self.entropy * trial.entropies.mean()

    def predict(self, tasks: Any) -> Tensor:
        """Returns of the episodes of one trial in each task, ``[tasks, episodes]``: an agent answers by acting."""
        with torch.no_grad():
            return self.play(tasks).returns


def advantages(rewards: Tensor, values: Tensor, discount: float, trace: float) -> Tensor:
    r"""Generalised advantages :math:`\hat A_t = \sum_l (\gamma\lambda)^l \delta_{t+l}`, up to the end of the trial.

    Parameters
    ----------
    rewards, values : Tensor [..., steps]
        ``values`` of the states in which the actions were taken; after the last step the value is 0.
    discount, trace : float
        Gamma and lambda. With ``trace = 1``: the return to go minus the value.

    Returns
    -------
    Tensor [..., steps]
    """
    after = F.pad(values[..., 1:], (0, 1))
    errors = rewards + discount * after - values
    kept, total = [], torch.zeros_like(errors[..., 0])
    for error in reversed(errors.unbind(-1)):
        total = error + discount * trace * total
        kept.append(total)
    return torch.stack(kept[::-1], -1)
