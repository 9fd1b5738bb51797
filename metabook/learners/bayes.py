"""Bayesian learners: what is shared by the tasks is a prior, and adaptation is its exact posterior.

Both have a network that is the same for all tasks and, on top of it, a model so simple that Bayes' rule needs no
approximation. So they know how sure they are, and are as sure of an answer as the support set allows.
"""

from __future__ import annotations

import math
from typing import ClassVar

import gpytorch
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from metabook.episodes import Episodes
from metabook.learners.base import Learner
from metabook.learners.prototypes import ProtoNet

__all__ = ["ALPaCA", "DeepKernelTransfer", "GaussianPrototypes", "StudentALPaCA", "TaskGP", "gaussian_nll"]


def gaussian_nll(mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """Minus the logarithm of the normal density at ``y``, elementwise, in nats."""
    return 0.5 * (torch.log(2 * math.pi * variance) + (y - mean) ** 2 / variance)


class ALPaCA(Learner):
    r"""Bayesian linear regression on learned features, whose prior is learned too.

    .. math:: y = W^\top \varphi(x) + \varepsilon,\qquad
              \varepsilon \sim \mathcal N(0, \sigma^2),\qquad
              W \sim \mathcal N\bigl(W_0, \sigma^2 \Lambda_0^{-1}\bigr).

    After the support set, with features :math:`\Phi` and values :math:`Y`,

    .. math:: \Lambda = \Lambda_0 + \Phi^\top \Phi,\qquad
              W_n = \Lambda^{-1} (\Lambda_0 W_0 + \Phi^\top Y),\qquad
              y_* \sim \mathcal N\bigl(W_n^\top \varphi(x_*),\;
              \sigma^2 (1 + \varphi(x_*)^\top \Lambda^{-1} \varphi(x_*))\bigr).

    J. Harrison, A. Sharma, M. Pavone. Meta-Learning Priors for Efficient Online Bayesian Regression. WAFR 2018,
    https://arxiv.org/abs/1807.08912

    Parameters
    ----------
    net : Module
        The features, ``[..., inputs] -> [..., features]``.
    features, outputs : int
    noise : float
        The standard deviation sigma at the start.
    """

    def __init__(self, net: nn.Module, features: int, outputs: int = 1, noise: float = 0.3) -> None:
        super().__init__()
        self.net, self.features, self.outputs, self.noise = net, features, outputs, noise
        self.prior_mean = nn.Parameter(torch.zeros(features, outputs))
        # Lambda_0 = L L': the diagonal of L is exp(log_diagonal), below it are free numbers.
        self.log_diagonal, self.below = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros((features,) * 2))
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise)))

    def prior(self) -> tuple[Tensor, Tensor]:
        """The mean ``[features, outputs]`` and the precision ``[features, features]`` in units of the noise's."""
        root = self.log_diagonal.exp().diag() + self.below.tril(-1)
        return self.prior_mean, root @ root.mT

    def posterior(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """After the first 0, 1, ..., all support points of each task.

        Returns
        -------
        mean : Tensor [tasks, points + 1, features, outputs]
        root : Tensor [tasks, points + 1, features, features]
            The lower Cholesky factor of the precision, in units of the noise's.
        """
        mean, precision = self.prior()
        phi = self.net(episodes.support_x)  # [tasks, points, features]
        seen = phi.unsqueeze(3) * phi.unsqueeze(2), phi.unsqueeze(3) * episodes.support_y.unsqueeze(2)
        start = precision, precision @ mean
        precisions, weighted = (
            torch.cat([first.expand(len(phi), 1, *first.shape), each], 1).cumsum(1)
            for first, each in zip(start, seen, strict=True)
        )
        root = torch.linalg.cholesky(precisions)
        return torch.cholesky_solve(weighted, root), root

    def predictive(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Mean and variance of the queries' values after the first 0, 1, ..., all support points.

        Returns
        -------
        Tensor, Tensor [tasks, points + 1, queries, outputs]
        """
        mean, root = self.posterior(episodes)
        phi = self.net(episodes.query_x).unsqueeze(1)  # [tasks, 1, queries, features]
        spread = torch.linalg.solve_triangular(root, phi.mT.expand(*root.shape[:2], *phi.mT.shape[2:]), upper=False)
        variance = (2 * self.log_noise).exp() * (1 + spread.square().sum(2))  # [tasks, points + 1, queries]
        predicted = phi @ mean
        return predicted, variance.unsqueeze(3).expand_as(predicted)

    def distribution(self, episodes: Episodes) -> Distribution:
        """Of the queries' values after the whole support set, ``[tasks, queries, outputs]``."""
        mean, variance = (each[:, -1] for each in self.predictive(episodes))
        return torch.distributions.Normal(mean, variance.sqrt())

    def predict(self, episodes: Episodes) -> Tensor:
        return self.predictive(episodes)[0][:, -1]

    def loss(self, episodes: Episodes) -> Tensor:
        """Negative log-likelihood of the queries, the mean over all numbers of support points, from none to all."""
        mean, variance = self.predictive(episodes)
        return gaussian_nll(mean, variance, episodes.query_y.unsqueeze(1)).mean()


class StudentALPaCA(ALPaCA):
    r"""ALPaCA for noise that differs from task to task: its variance has a prior too, and is learned in each task.

    .. math:: \sigma^2 \sim \operatorname{InvGamma}(a_0, b_0),\qquad
              W \mid \sigma^2 \sim \mathcal N\bigl(W_0, \sigma^2 \Lambda_0^{-1}\bigr).

    The prior is conjugate. With :math:`\Lambda` and :math:`W_n` as in :class:`ALPaCA`, after ``n`` points

    .. math:: a_n = a_0 + \tfrac n2,\qquad
              b_n = b_0 + \tfrac12\bigl(Y^\top Y + W_0^\top \Lambda_0 W_0 - W_n^\top \Lambda W_n\bigr),

    and a query's value has Student's distribution with :math:`2 a_n` degrees of freedom, the location
    :math:`W_n^\top \varphi(x_*)` and the squared scale
    :math:`\tfrac{b_n}{a_n}(1 + \varphi(x_*)^\top \Lambda^{-1} \varphi(x_*))`. "Noise" is whatever the features do not
    explain, and since the prior of W is in its units, a task with large values may have large weights.

    A. O'Hagan, J. Forster, Kendall's Advanced Theory of Statistics 2B: Bayesian Inference, 2004, chapter 11.

    Parameters
    ----------
    net, features
        See :class:`ALPaCA`. There is one output.
    noise : float
        Where sqrt(b_0 / a_0) starts.
    shape : float
        Where a_0 starts; half the number of points that the prior of the noise is worth.
    """

    def __init__(self, net: nn.Module, features: int, noise: float = 0.3, shape: float = 2.0) -> None:
        super().__init__(net, features, 1, noise)
        self.shape = shape
        self.log_shape = nn.Parameter(torch.tensor(math.log(shape)))

    def student(self, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
        """Degrees of freedom, location and scale of the queries' values after 0, 1, ..., all support points.

        Returns
        -------
        Tensor [tasks, points + 1, 1, 1], Tensor, Tensor [tasks, points + 1, queries, 1]
        """
        location, variance = super().predictive(episodes)
        phi, y = self.net(episodes.support_x), episodes.support_y
        mean, root = self.posterior(episodes)
        # One point after the other: b grows by half of the squared error of its prediction, in units of its variance.
        before = torch.linalg.solve_triangular(root[:, :-1], phi.unsqueeze(3), upper=False).square().sum(2)
        error = y - (phi.unsqueeze(2) @ mean[:, :-1]).squeeze(3)
        a = self.log_shape.exp()
        b0 = a * (2 * self.log_noise).exp()
        b = torch.cat([b0.expand(len(y), 1, 1), b0 + (0.5 * error**2 / (1 + before)).cumsum(1)], 1)
        a = a + 0.5 * torch.arange(y.shape[1] + 1, dtype=y.dtype, device=y.device).view(-1, 1, 1)
        scale = ((b.unsqueeze(3) / a) * variance / (2 * self.log_noise).exp()).sqrt()
        return (2 * a).expand(len(y), -1, 1, 1), location, scale

    def distribution(self, episodes: Episodes) -> Distribution:
        df, location, scale = (each[:, -1] for each in self.student(episodes))
        return torch.distributions.StudentT(df, location, scale)

    def loss(self, episodes: Episodes) -> Tensor:
        df, location, scale = self.student(episodes)
        return -torch.distributions.StudentT(df, location, scale).log_prob(episodes.query_y.unsqueeze(1)).mean()


class DeepKernelTransfer(Learner):
    r"""A Gaussian process whose kernel, on learned features, is shared by all tasks.

    .. math:: y \sim \mathcal{GP}\bigl(0,\; k(\varphi(x), \varphi(x')) + \sigma^2 [x = x']\bigr).

    There is no inner loop: training climbs the marginal likelihood of the tasks' data, and adaptation is conditioning
    on the support set, both exactly, by GPyTorch. M. Patacchiola, J. Turner, E. J. Crowley, M. O'Boyle, A. Storkey,
    Bayesian Meta-Learning for the Few-Shot Setting via Deep Kernels, NeurIPS 2020, https://arxiv.org/abs/1910.05199

    Parameters
    ----------
    net : Module
        The features, ``[..., inputs] -> [..., features]``.
    noise : float
        The standard deviation sigma at the start.
    kernel : {"rbf", "linear"}
        On the features. With the RBF kernel each value has the same prior variance; with the linear kernel, the inner
        product, the prior can be wider in one place than in another, and functions are sums of the features.

    Raises
    ------
    ValueError
        For another kernel.
    """

    KERNELS: ClassVar = {"rbf": gpytorch.kernels.RBFKernel, "linear": gpytorch.kernels.LinearKernel}

    def __init__(self, net: nn.Module, noise: float = 0.3, kernel: str = "rbf") -> None:
        if kernel not in self.KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(self.KERNELS)}, not {kernel!r}")
        super().__init__()
        self.net, self.noise, self.kernel = net, noise, kernel
        self.covariance = gpytorch.kernels.ScaleKernel(self.KERNELS[kernel]())
        if kernel == "linear":  # its own variance says the same as the scale
            self.covariance.base_kernel.variance = 1.0
            self.covariance.base_kernel.raw_variance.requires_grad_(False)
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood()
        self.likelihood.noise = noise**2

    def loss(self, episodes: Episodes) -> Tensor:
        """Minus the log marginal likelihood of all of a task's points, per point; the mean over tasks."""
        x = self.net(torch.cat([episodes.support_x, episodes.query_x], 1))
        y = torch.cat([episodes.support_y, episodes.query_y], 1)[..., 0]
        gp = _Process(x, y, self.likelihood, self.covariance).train()
        return -gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, gp)(gp(x), y).mean()

    def predictive(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Mean and variance of the queries' values after the support set, ``[tasks, queries, 1]`` each."""
        mode, (x, seen) = self.likelihood.training, (self.net(episodes.query_x), self.net(episodes.support_x))
        if seen.shape[1]:
            process = _Process(seen, episodes.support_y[..., 0], self.likelihood, self.covariance).eval()
        else:  # the prior
            process = _Process(None, None, self.likelihood, self.covariance).eval()
        answer = self.likelihood(process(x))
        self.likelihood.train(mode)  # which the process shares, and has switched
        return answer.mean.unsqueeze(2), answer.variance.unsqueeze(2)

    def predict(self, episodes: Episodes) -> Tensor:
        return self.predictive(episodes)[0]


class TaskGP(Learner):
    """A Gaussian process with an RBF kernel that shares nothing between tasks: the baseline that does not meta-learn.

    Length scale, variance and noise maximise the marginal likelihood of the task's own support set (C. E. Rasmussen,
    C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press 2006, chapter 5), or stay as they are given.

    Parameters
    ----------
    lengthscale, scale, noise : float
        Of the kernel: its length, and the standard deviations of function and noise. Where the search starts.
    steps : int
        Of Adam with the learning rate ``lr``. 0: the kernel stays as it is given.
    lr : float
    """

    def __init__(
        self, lengthscale: float = 1.0, scale: float = 1.0, noise: float = 0.3, steps: int = 0, lr: float = 0.1
    ) -> None:
        super().__init__()
        self.lengthscale, self.scale, self.noise, self.steps, self.lr = lengthscale, scale, noise, steps, lr

    def predictive(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Mean and variance of the queries' values after the support set, ``[tasks, queries, 1]`` each."""
        tasks = torch.Size([len(episodes)])
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(batch_shape=tasks), batch_shape=tasks)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=tasks)
        kernel, likelihood = kernel.to(episodes.support_x), likelihood.to(episodes.support_x)
        kernel.outputscale, kernel.base_kernel.lengthscale = self.scale**2, self.lengthscale
        likelihood.noise = self.noise**2
        x, y = episodes.support_x, episodes.support_y[..., 0]
        gp = _Process(x, y, likelihood, kernel) if x.shape[1] else _Process(None, None, likelihood, kernel)
        if self.steps and x.shape[1]:
            with torch.enable_grad():
                optimiser = torch.optim.Adam(gp.parameters(), lr=self.lr)
                marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, gp.train())
                for _ in range(self.steps):
                    optimiser.zero_grad()
                    (-marginal(gp(x), y).sum()).backward()
                    optimiser.step()
        gp.eval()
        answer = likelihood(gp(episodes.query_x))
        return answer.mean.detach().unsqueeze(2), answer.variance.detach().unsqueeze(2)

    def predict(self, episodes: Episodes) -> Tensor:
        return self.predictive(episodes)[0]


class _Process(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor | None, y: Tensor | None, likelihood: nn.Module, covariance: nn.Module) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covariance = gpytorch.means.ZeroMean(), covariance

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covariance(x))


class GaussianPrototypes(ProtoNet):
    r"""Classes as normal distributions in embedding space, with a prior over their means.

    .. math:: f(x) \mid y = k \sim \mathcal N(\mu_k, \sigma^2),\qquad \mu_k \sim \mathcal N(m_0, s_0^2),

    in each dimension by itself. After ``n`` examples of a class with the mean :math:`c_k`, its own mean has the
    variance and the expectation

    .. math:: s_n^2 = \frac{1}{1/s_0^2 + n/\sigma^2},\qquad
              m_n = s_n^2 \Bigl(\frac{m_0}{s_0^2} + \frac{n\, c_k}{\sigma^2}\Bigr),

    and a query is scored by the density of :math:`\mathcal N(m_n, \sigma^2 + s_n^2)`. Where the prior is flat this is a
    Prototypical Network; where it is not, a class with few examples is drawn towards what classes look like, and is
    wider.

    Compare J. Harrison, A. Sharma, C. Finn, M. Pavone, Continuous Meta-Learning without Tasks, NeurIPS 2020,
    https://arxiv.org/abs/1912.08866, section 4.2.

    Parameters
    ----------
    net : Module
        The embedding, ``[examples, ...] -> [examples, features]``.
    features : int
    """

    def __init__(self, net: nn.Module, features: int) -> None:
        super().__init__(net)
        self.features = features
        self.prior_mean = nn.Parameter(torch.zeros(features))
        self.log_prior_std = nn.Parameter(torch.zeros(features))
        self.log_std = nn.Parameter(torch.zeros(features))

    def predict(self, episodes: Episodes) -> Tensor:
        """Log densities, ``[tasks, queries, ways]``: with a softmax, the posterior of the classes."""
        support, query = self.embed_both(episodes)
        members = nn.functional.one_hot(episodes.support_y, episodes.ways).to(support.dtype).mT  # [tasks, ways, n]
        count = members.sum(2, keepdim=True)
        noise, prior = (2 * self.log_std).exp(), (2 * self.log_prior_std).exp()
        variance = 1 / (1 / prior + count / noise)  # [tasks, ways, features]
        mean = variance * (self.prior_mean / prior + members @ support / noise)
        each = gaussian_nll(mean.unsqueeze(1), (noise + variance).unsqueeze(1), query.unsqueeze(2))
        return -each.sum(3)
