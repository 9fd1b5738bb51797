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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from metabook.learners.base import Learner
from metabook.rl.base import Tasks

__all__ = ["RL2", "Memoryless", "RewardBlind", "TaskBelief", "Trial", "advantages"]


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
    alive : Tensor of bool [tasks, steps]
        False where the episode had come to an end before the horizon, and the action did nothing.
    """

    episode: int
    actions: Tensor
    rewards: Tensor
    log_probs: Tensor
    entropies: Tensor
    values: Tensor
    hidden: Tensor
    alive: Tensor

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

    def remember(self, state: Tensor, seen: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        """The recurrent state after one more step: all that the agent is ever told passes through here.

        Parameters
        ----------
        state : Tensor [tasks, hidden]
        seen : Tensor [tasks, observations]
        action : Tensor [tasks, actions]
            The last one, one-hot; zero at the start of a trial.
        reward, first : Tensor [tasks, 1]
            Of that action; 1 in the first step of an episode that follows another.

        Returns
        -------
        Tensor [tasks, hidden]
        """
        return self.cell(torch.cat([seen, action, reward, first], 1), state)

    def play(self, tasks: Tasks, greedy: bool = False) -> Trial:
        """Live through one trial in each task.

        Parameters
        ----------
        tasks : Tasks
        greedy : bool
            Take the most probable action instead of drawing one.
        """
        env, seen = tasks.environments()
        start = self.policy.weight.new_zeros(len(tasks), 1)
        state, told, reward = start.expand(-1, self.hidden), start.expand(-1, self.actions), start
        states: list[Tensor] = []
        actions: list[Tensor] = []
        rewards: list[Tensor] = []
        lived: list[np.ndarray] = []
        for episode in range(self.episodes):
            if episode:
                seen, _ = env.reset()
            over = np.zeros(len(tasks), bool)
            for step in range(env.horizon):
                first = torch.full_like(start, bool(episode) and step == 0)
                state = self.remember(state, torch.as_tensor(seen).to(start), told, reward, first)
                action = self._choose(state.detach(), greedy)
                lived.append(~over)
                seen, paid, terminated, *_ = env.step(action.cpu().numpy())
                over = over | terminated
                told, reward = F.one_hot(action, self.actions).to(start), torch.as_tensor(paid).to(start).unsqueeze(1)
                for kept, new in ((states, state), (actions, action), (rewards, reward.squeeze(1))):
                    kept.append(new)
        hidden, taken = torch.stack(states, 1), torch.stack(actions, 1)
        choice = Categorical(logits=self.policy(hidden), validate_args=False)  # of all steps at once: far quicker
        values = self.critic(hidden).squeeze(2)
        alive = torch.as_tensor(np.stack(lived, 1), device=taken.device)
        return Trial(
            env.horizon, taken, torch.stack(rewards, 1), choice.log_prob(taken), choice.entropy(), values, hidden, alive
        )

    @torch.no_grad()
    def _choose(self, state: Tensor, greedy: bool) -> Tensor:
        logits = self.policy(state)
        if not greedy:  # the largest of logits with Gumbel noise is a draw from their softmax
            logits = logits - torch.empty_like(logits).exponential_().log()
        return logits.argmax(1)

    def loss(self, tasks: Tasks) -> Tensor:  # type: ignore[override]
        r"""Advantage actor-critic on one trial in each task.

        .. math:: -\hat A_t \log \pi(a_t \mid h_t) + c_v (V(h_t) - \hat A_t - V_t)^2 - c_e\, H[\pi(\cdot \mid h_t)],

        the mean over tasks and steps. Steps after the end of an episode count for the values alone: nothing was chosen.
        """
        return self.loss_of(self.play(tasks), tasks)

    def loss_of(self, trial: Trial, tasks: Tasks) -> Tensor:
        """The loss of what was done in these tasks."""
        values, alive = trial.values.detach(), trial.alive
        gain = advantages(trial.rewards, values, self.discount, self.trace)
        critic, chosen = F.mse_loss(trial.values, gain + values), gain[alive]
        policy = -(trial.log_probs[alive] * (chosen - chosen.mean()) / (chosen.std() + 1e-8)).mean()
        return policy + self.value * critic - self.entropy * trial.entropies[alive].mean()

    def predict(self, tasks: Any) -> Tensor:
        """Returns of the episodes of one trial in each task, ``[tasks, episodes]``: an agent answers by acting."""
        with torch.no_grad():
            return self.play(tasks).returns


class RewardBlind(RL2):
    """RL² that is not told its rewards, a control: nothing that it does in a task can depend on how well it goes."""

    def remember(self, state: Tensor, seen: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        return super().remember(state, seen, action, torch.zeros_like(reward), first)


class TaskBelief(RL2):
    r"""RL² whose state has to tell the task as well, while it is trained: there the tasks are known.

    A linear map of the state names the task, and the cross-entropy of its answer is added to the loss:

    .. math:: - \frac{c}{T} \sum_t \log q(\tau \mid h_t) .

    In a new task it acts just as RL² does, and is told no more. J. Humplik et al., Meta Reinforcement Learning as Task
    Inference, 2019, https://arxiv.org/abs/1905.06424.

    Parameters
    ----------
    observations, actions : int
    kinds : int
        Of tasks: their parameters are whole numbers below this.
    supervision : float
        What the cross-entropy counts beside the policy's loss.
    settings
        Those of :class:`RL2`.
    """

    def __init__(
        self, observations: int, actions: int, kinds: int, supervision: float = 0.3, **settings: float
    ) -> None:
        super().__init__(observations, actions, **settings)  # type: ignore[arg-type]
        self.supervision, self.belief = supervision, nn.Linear(self.hidden, kinds)

    def loss_of(self, trial: Trial, tasks: Tasks) -> Tensor:
        answers = self.belief(trial.hidden)
        truth = torch.as_tensor(tasks.parameters, device=answers.device)[:, None].expand(answers.shape[:2])
        surprise = F.cross_entropy(answers.flatten(0, 1), truth.flatten())
        return super().loss_of(trial, tasks) + self.supervision * surprise


class Memoryless(RL2):
    """RL² whose state is reset before every step, a control: it knows its last action and reward, no more."""

    def remember(self, state: Tensor, seen: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        return super().remember(torch.zeros_like(state), seen, action, reward, first)


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
