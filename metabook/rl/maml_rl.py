r"""MAML for policies: a policy from which one or a few steps of policy gradient lead to a good one.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017,
https://arxiv.org/abs/1703.03400, section 4.2. The tasks are adapted side by side, as in supervised learning; but the
data of an inner step are trajectories that the policy has to collect itself, anew after every step, and so they depend
on the very parameters that are differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metabook import batched
from metabook.batched import Parameters
from metabook.learners.gradient import GradientLearner
from metabook.rl.base import Tasks, Trajectories, rollout
from metabook.rl.policies import CategoricalPolicy

__all__ = ["MAMLRL", "PretrainedPolicy", "linear_baseline", "surrogate"]


class MAMLRL(GradientLearner):
    r"""MAML with the policy gradient in the inner loop.

    .. math:: \max_\theta\; \mathbb E_\tau\, J_\tau(\theta'_\tau),\qquad
              \theta'_\tau = \theta + \alpha \nabla_\theta J_\tau(\theta).

    Parameters
    ----------
    net : CategoricalPolicy or GaussianPolicy
    inner_lr : float
        The step size alpha.
    steps : int
        Updates in training.
    trajectories : int
        That are collected in each task before each update, and after the last.
    discount : float
        Gamma, of the return that the updates climb.
    first_order : bool
        Treat the inner gradients as constants.
    sampling_term : bool
        Keep the part of the second derivative that comes from the trajectories' dependence on the parameters; see
        :func:`surrogate`.
    normalise : bool
        Scale the advantages of each task to mean zero and variance one, and take the mean over the steps instead of the
        sum, as is usual; the step size then does not depend on the size of the rewards or the horizon.
    past : float
        How much earlier actions count in the sampling term: 1 for the unbiased estimate, less for one of less variance;
        see :func:`surrogate`.
    later_lr : float, optional
        Step size of every update after the first (the paper halves alpha there, outside training); by default
        ``inner_lr``.
    """

    net: CategoricalPolicy

    def __init__(
        self,
        net: CategoricalPolicy,
        inner_lr: float = 0.1,
        steps: int = 1,
        trajectories: int = 20,
        discount: float = 0.99,
        first_order: bool = False,
        sampling_term: bool = True,
        normalise: bool = True,
        past: float = 1.0,
        later_lr: float | None = None,
    ) -> None:
        super().__init__(net, inner_lr, steps)
        self.trajectories, self.discount = trajectories, discount
        self.first_order, self.sampling_term, self.normalise = first_order, sampling_term, normalise
        self.past, self.later_lr = past, later_lr

    def collect(self, params: Parameters, tasks: Tasks, stream: int = 0) -> Trajectories:
        """Trajectories of every task's own policy in that task."""
        held = {name: p.detach() for name, p in params.items()}

        def act(x: Tensor) -> Tensor:
            return self.net.distribution(held, x).sample()

        device = next(iter(held.values())).device
        return rollout(tasks, act, copies=self.trajectories, stream=stream, device=device)

    def inner_loop(self, episodes: Tasks, steps: int, second_order: bool = False) -> Iterator[Parameters]:  # type: ignore[override]
        """Yield the tasks' parameters after 0, 1, ..., ``steps`` updates, each on new trajectories."""

        def losses(params: Parameters, step: int) -> Tensor:
            return self.losses(params, self.collect(params, episodes, stream=step))

        yield from self.descend(batched.expand(self.net, len(episodes)), losses, steps, second_order)

    def loss(self, episodes: Tasks) -> Tensor:  # type: ignore[override]
        """Minus the objective of the updated policies, on trajectories of their own: its gradient is what counts."""
        params = self.adapt(episodes, second_order=not self.first_order)  # type: ignore[arg-type]
        return self.losses(params, self.collect(params, episodes, stream=self.steps)).mean()

    def predict(self, episodes: Tasks) -> Tensor:  # type: ignore[override]
        """Returns before and after each of ``steps`` updates, ``[tasks, steps + 1]``: an agent answers by acting."""
        return self.returns(episodes, self.steps)

    def returns(self, tasks: Tasks, steps: int) -> Tensor:
        """Returns (not discounted) of each task's policy after 0, 1, ..., ``steps`` updates, ``[tasks, steps + 1]``."""
        with torch.no_grad():
            loop = enumerate(self.inner_loop(tasks, steps))
            # Streams of their own: a policy is not judged by the trajectories that it is updated with.
            return torch.stack([self.collect(params, tasks, stream=1000 + k).returns for k, params in loop], 1)

    def update(self, params: Parameters, grads: Parameters, step: int, state: Parameters) -> Parameters:
        rate = self.inner_lr if step == 0 or self.later_lr is None else self.later_lr
        return {name: p - rate * grads[name] for name, p in params.items()}

    def log_probs(self, params: Parameters, seen: Trajectories) -> Tensor:
        """Log-probabilities of the actions that were taken, ``[tasks, copies, steps]``."""
        x, actions = seen.observations.flatten(1, 2), seen.actions.flatten(1, 2)
        return self.net.distribution(params, x).log_prob(actions).view_as(seen.rewards)

    def losses(self, params: Parameters, seen: Trajectories) -> Tensor:
        """Minus the :func:`surrogate` of each task, ``[tasks]``: its value says nothing, its derivatives do."""
        log_probs = self.log_probs(params, seen)
        return -surrogate(log_probs, self.advantages(seen), seen.alive, self.sampling_term, self.past)

    def advantages(self, seen: Trajectories) -> Tensor:
        """Discounted returns to go minus the baseline, ``[tasks, copies, steps]``."""
        to_go = returns_to_go(seen.rewards, self.discount)
        gain = (to_go - linear_baseline(seen, to_go)) * seen.alive
        if not self.normalise:
            return gain
        counted = seen.alive.sum((1, 2), keepdim=True)
        gain = (gain - gain.sum((1, 2), keepdim=True) / counted) * seen.alive
        return gain / ((gain.square().sum((1, 2), keepdim=True) / counted).sqrt() + 1e-8) / gain.shape[2]

    def _chunk(self, episodes: Tasks) -> int:  # type: ignore[override]
        return self.chunk or len(episodes)


class PretrainedPolicy(MAMLRL):
    """A policy trained on all tasks at once, which is then updated in each task like MAML's: transfer learning.

    Training maximises the return *before* any update. Parameters as for :class:`MAMLRL`.
    """

    def loss(self, episodes: Tasks) -> Tensor:  # type: ignore[override]
        params = self.adapt(episodes, 0)  # type: ignore[arg-type]
        return self.losses(params, self.collect(params, episodes)).mean()


def surrogate(
    log_probs: Tensor, advantages: Tensor, alive: Tensor, sampling_term: bool = True, past: float = 1.0
) -> Tensor:
    r"""An expression whose derivatives are estimates of the derivatives of each task's expected return.

    With the *magic box* :math:`b_t = \exp\bigl(\sum_{s \le t} \log\pi_s - \bot(\log\pi_s)\bigr)`, where
    :math:`\bot` stops gradients (so that :math:`b_t = 1`), it is

    .. math:: \sum_t (b_t - b_{t-1})\, \hat A_t .

    Its first derivative is the policy gradient :math:`\sum_t \nabla\log\pi_t\, \hat A_t`. The second has, beside
    :math:`\sum_t \nabla^2 \log\pi_t\, \hat A_t`, the products of the :math:`\nabla\log\pi` of an action with those of
    itself and all earlier ones: which trajectories are sampled depends on the parameters too. Without ``sampling_term``
    it is :math:`\sum_t \log\pi_t\, \hat A_t`, which much published code uses: the same first derivative, a biased
    second.

    The products with earlier actions are what makes the second derivative noisy: there are as many as pairs of steps.
    ``past`` multiplies each by ``past ** (t - s)``. At 0 the product with the action itself is left, the *low variance
    curvature* of J. Rothfuss et al., ProMP: Proximal Meta-Policy Search, ICLR 2019, https://arxiv.org/abs/1810.06784.

    J. Foerster et al., DiCE: The Infinitely Differentiable Monte Carlo Estimator, ICML 2018,
    https://arxiv.org/abs/1802.05098, in the form with advantages, and with the discount of the past, of G. Farquhar,
    S. Whiteson and J. Foerster, Loaded DiCE, NeurIPS 2019, https://arxiv.org/abs/1909.10549.

    Parameters
    ----------
    log_probs, advantages, alive : Tensor [tasks, copies, steps]
    sampling_term : bool
    past : float
        Between 0 and 1. Unbiased at 1.

    Returns
    -------
    Tensor [tasks]
        The sum over the steps, the mean over the copies.
    """
    log_probs = log_probs * alive
    if not sampling_term:
        return (log_probs * advantages).sum(2).mean(1)
    own = log_probs - log_probs.detach()
    until = own.cumsum(2) if past == 1 else returns_to_go(own.flip(2), past).flip(2)
    return ((until.exp() - (until - own).exp()) * advantages).sum(2).mean(1)


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """Discounted sums of the rewards from each step to the end, ``[..., steps]``."""
    total, kept = torch.zeros_like(rewards[..., 0]), []
    for reward in reversed(rewards.unbind(-1)):
        total = reward + discount * total
        kept.append(total)
    return torch.stack(kept[::-1], -1)


def linear_baseline(seen: Trajectories, to_go: Tensor, ridge: float = 1e-3) -> Tensor:
    """What the return to go is expected to be: a ridge regression in each task, on what is seen and the time.

    The features are the observation, its square, the time with its square and cube, and a constant (Y. Duan et al.,
    Benchmarking Deep Reinforcement Learning for Continuous Control, ICML 2016, https://arxiv.org/abs/1604.06778).

    Parameters
    ----------
    seen : Trajectories
    to_go : Tensor [tasks, copies, steps]
    ridge : float

    Returns
    -------
    Tensor [tasks, copies, steps]
    """
    x = seen.observations
    t = (torch.arange(x.shape[2], device=x.device) / 100).view(1, 1, -1, 1).expand(*x.shape[:3], 1)
    features = torch.cat([x, x**2, t, t**2, t**3, torch.ones_like(t)], 3) * seen.alive.unsqueeze(3)
    f, y = features.flatten(1, 2), (to_go * seen.alive).flatten(1, 2).unsqueeze(2)
    # In double precision (which MPS lacks: on the CPU): where a policy has run away, squares of what it sees are large.
    wide = f.cpu().double()
    gram = wide.mT @ wide + ridge * torch.eye(f.shape[2], dtype=torch.float64)
    weights = torch.linalg.solve(gram, wide.mT @ y.cpu().double())
    return (f @ weights.to(f)).view_as(to_go)
