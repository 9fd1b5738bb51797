import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from torch import nn

from metabook import Episodes, evaluate, fit, load, save
from metabook.data import Sinusoids
from metabook.learners import ALPaCA, DeepKernelTransfer, GaussianPrototypes, ProtoNet, StudentALPaCA, TaskGP
from metabook.learners.bayes import gaussian_nll
from metabook.nets import MLP


@pytest.fixture
def tasks():
    generator = torch.Generator().manual_seed(0)
    numbers = [
        torch.randn(2, n, d, generator=generator, dtype=torch.float64) for n, d in ((4, 3), (4, 1), (5, 3), (5, 1))
    ]
    return Episodes(*numbers)


def by_sklearn(kernel, noise, episodes):
    """Means and variances of the noisy values, task by task."""
    answers = []
    for task in range(len(episodes)):
        gp = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None)
        gp.fit(episodes.support_x[task].numpy(), episodes.support_y[task, :, 0].numpy())
        mean, std = gp.predict(episodes.query_x[task].numpy(), return_std=True)
        answers.append((mean, std**2 + noise**2))
    return (torch.tensor(np.array(each)).unsqueeze(2) for each in zip(*answers))


def test_alpaca_is_the_gaussian_process_with_a_linear_kernel(tasks):
    learner = ALPaCA(nn.Identity(), 3, noise=0.5).double()
    mean, variance = learner.predictive(tasks)
    # A prior precision of one in units of the noise's: weights with the variance noise^2.
    wanted_mean, wanted_variance = by_sklearn(ConstantKernel(0.25) * DotProduct(sigma_0=1e-6), 0.5, tasks)
    torch.testing.assert_close(mean[:, -1], wanted_mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(variance[:, -1], wanted_variance, atol=1e-6, rtol=0)


def test_alpacas_prefixes_are_what_fewer_points_give(tasks):
    learner = ALPaCA(MLP(3, (8,), 4).double(), 4, noise=0.2).double()
    with torch.no_grad():
        learner.prior_mean.normal_()
        learner.below.normal_()
    every = learner.predictive(tasks)
    for points in (1, 3):
        fewer = Episodes(tasks.support_x[:, :points], tasks.support_y[:, :points], tasks.query_x, tasks.query_y)
        for one, other in zip(every, learner.predictive(fewer), strict=True):
            torch.testing.assert_close(one[:, points], other[:, -1])
    prior_mean, prior_variance = (each[:, 0] for each in every)
    phi, (mean, precision) = learner.net(tasks.query_x), learner.prior()
    torch.testing.assert_close(prior_mean, phi @ mean)
    spread = (phi @ torch.linalg.inv(precision) * phi).sum(2, keepdim=True)
    torch.testing.assert_close(prior_variance, 0.04 * (1 + spread))


def test_alpaca_is_surer_with_every_point(tasks):
    _, variance = ALPaCA(nn.Identity(), 3).double().predictive(tasks)
    assert (variance.diff(dim=1) < 0).all()


def test_alpaca_learns_the_prior_that_tasks_come_from():
    """Lines through a known point: the prior's mean and spread are found, and intervals hold what they promise."""

    class Lines:
        def sample(self, tasks, step=0):
            generator = torch.Generator().manual_seed(step)
            slope = 2 + 0.5 * torch.randn(tasks, 1, 1, generator=generator)
            x = torch.rand(tasks, 8, 1, generator=generator) * 2
            y = slope * x + 0.1 * torch.randn(tasks, 8, 1, generator=generator)
            return Episodes(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])

    learner = ALPaCA(nn.Identity(), 1, noise=0.5)
    fit(learner, Lines(), steps=400, tasks=64, lr=3e-2, anneal="cosine", progress=False)
    assert learner.prior_mean.item() == pytest.approx(2, abs=0.1)
    assert learner.log_noise.exp().item() == pytest.approx(0.1, rel=0.1)
    episodes = Lines().sample(2000, step=1000)
    with torch.no_grad():
        mean, variance = learner.predictive(episodes)
    inside = ((episodes.query_y.unsqueeze(1) - mean).abs() < 1.96 * variance.sqrt()).double().mean((0, 2, 3))
    assert ((inside > 0.93) & (inside < 0.97)).all()


def test_deep_kernel_transfer_is_the_gaussian_process_with_its_kernel(tasks):
    learner = DeepKernelTransfer(nn.Identity(), noise=0.3).double()
    learner.covariance.outputscale, learner.covariance.base_kernel.lengthscale = 2.0, 1.5
    wanted = by_sklearn(ConstantKernel(2.0) * RBF(1.5), 0.3, tasks)
    with torch.no_grad():
        for ours, theirs in zip(learner.predictive(tasks), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    x, y = torch.cat([tasks.support_x, tasks.query_x], 1), torch.cat([tasks.support_y, tasks.query_y], 1)[..., 0]
    gram = ConstantKernel(2.0) * RBF(1.5)
    covariances = [torch.tensor(gram(each.numpy())) + 0.09 * torch.eye(9, dtype=torch.float64) for each in x]
    density = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), torch.stack(covariances))
    torch.testing.assert_close(learner.loss(tasks), -density.log_prob(y).mean() / 9, atol=1e-6, rtol=0)


def test_deep_kernel_transfer_with_a_linear_kernel_is_alpaca(tasks):
    """A prior precision of one in units of the noise's is a kernel with the scale noise^2."""
    alpaca, deep = ALPaCA(nn.Identity(), 3, noise=0.5).double(), DeepKernelTransfer(nn.Identity(), 0.5, "linear")
    deep.double().covariance.outputscale = 0.25
    with torch.no_grad():
        prefixes = alpaca.predictive(tasks)
        for points in (0, 1, 4):
            fewer = Episodes(tasks.support_x[:, :points], tasks.support_y[:, :points], tasks.query_x, tasks.query_y)
            for one, other in zip(prefixes, deep.predictive(fewer), strict=True):
                torch.testing.assert_close(one[:, points], other, atol=1e-5, rtol=0)
    assert deep.training  # as before the prediction
    assert deep.likelihood.training


def test_deep_kernel_transfer_knows_its_kernels():
    with pytest.raises(ValueError, match="rbf, linear, not 'cosine'"):
        DeepKernelTransfer(nn.Identity(), kernel="cosine")


def test_student_alpaca_is_the_ratio_of_marginal_likelihoods(tasks):
    """The predictive density of one more point is p(all of them) / p(those seen), each a multivariate Student's."""
    learner = StudentALPaCA(nn.Identity(), 3, noise=0.7, shape=1.5).double()
    with torch.no_grad():
        learner.prior_mean.normal_()
        learner.below.normal_()
        df, location, scale = learner.student(tasks)
    (mean, precision), a0 = learner.prior(), 1.5
    b0 = a0 * 0.49

    def log_marginal(x, y):
        """Student's with 2 a_0 degrees of freedom, located at x W_0, with the shape b_0/a_0 (I + x Lambda_0^-1 x')."""
        shape = b0 / a0 * (np.eye(len(x)) + x @ np.linalg.inv(precision.detach().numpy()) @ x.T)
        return stats.multivariate_t.logpdf(y, x @ mean[:, 0].detach().numpy(), shape, df=2 * a0)

    for task in range(2):
        for points in (1, 2, 4):
            x, y = tasks.support_x[task, :points].numpy(), tasks.support_y[task, :points, 0].numpy()
            for query in (0, 3):
                more_x = np.vstack([x, tasks.query_x[task, query].numpy()])
                more_y = np.append(y, tasks.query_y[task, query, 0].numpy())
                wanted = log_marginal(more_x, more_y) - log_marginal(x, y)
                ours = stats.t.logpdf(
                    more_y[-1], df[task, points].item(), location[task, points, query], scale[task, points, query]
                )
                assert ours.item() == pytest.approx(wanted, abs=1e-6)


def test_student_alpaca_finds_the_noise_of_each_task():
    generator = torch.Generator().manual_seed(0)
    noise = torch.tensor([0.1, 2.0]).view(2, 1, 1)
    x = torch.randn(2, 400, 3, generator=generator)
    y = x.sum(2, keepdim=True) + noise * torch.randn(2, 400, 1, generator=generator)
    learner = StudentALPaCA(nn.Identity(), 3)
    nn.init.ones_(learner.prior_mean)
    _, _, scale = learner.student(Episodes(x, y, x[:, :5], y[:, :5]))
    torch.testing.assert_close(scale[:, -1].mean(1), noise[:, 0], rtol=0.1, atol=0)


def test_student_alpaca_with_a_sure_prior_of_the_noise_is_alpaca(tasks):
    normal, student = ALPaCA(nn.Identity(), 3, 1, 0.5), StudentALPaCA(nn.Identity(), 3, 0.5, shape=1e8)
    (mean, variance), (_, location, scale) = normal.double().predictive(tasks), student.double().student(tasks)
    torch.testing.assert_close(location, mean)
    torch.testing.assert_close(scale.square(), variance, rtol=1e-5, atol=0)


def test_a_fixed_gaussian_process_is_that_of_scikit_learn(tasks):
    for ours, theirs in zip(
        TaskGP(1.5, 2.0, 0.3).predictive(tasks), by_sklearn(ConstantKernel(4.0) * RBF(1.5), 0.3, tasks), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    empty = Episodes(tasks.support_x[:, :0], tasks.support_y[:, :0], tasks.query_x, tasks.query_y)
    mean, variance = TaskGP(1.5, 2.0, 0.3, steps=5).predictive(empty)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.full_like(variance, 4.09))


def test_a_gaussian_process_for_each_task_finds_the_kernel_of_scikit_learn():
    episodes = Sinusoids(30, 20, noise=0.3).sample(3)
    ours = TaskGP(steps=150).predictive(episodes)
    for task, (mean, variance) in enumerate(zip(*ours, strict=True)):
        gp = GaussianProcessRegressor(ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(0.09))
        gp.fit(episodes.support_x[task].double().numpy(), episodes.support_y[task, :, 0].double().numpy())
        wanted, std = gp.predict(episodes.query_x[task].double().numpy(), return_std=True)
        np.testing.assert_allclose(mean[:, 0], wanted, atol=0.05)
        np.testing.assert_allclose(variance[:, 0].sqrt(), std, atol=0.05)


def test_they_are_saved_with_their_kernel_and_their_prior(tmp_path):
    episodes = Sinusoids(4, 5).sample(2)
    for learner in (
        StudentALPaCA(MLP(1, (8,), 4), 4, noise=0.2, shape=3.0),
        DeepKernelTransfer(MLP(1, (8,), 4), 0.2, "linear"),
    ):
        fit(learner, Sinusoids(), steps=1, progress=False)
        save(learner, tmp_path / "learner.safetensors")
        again = load(tmp_path / "learner.safetensors")
        for one, other in zip(learner.predictive(episodes), again.predictive(episodes), strict=True):
            assert torch.equal(one, other)


def test_deep_kernels_learn_sinusoids():
    torch.manual_seed(0)
    learner = DeepKernelTransfer(MLP(1, (40, 40), 8))
    before = evaluate(learner, Sinusoids(seed=1), tasks=100).mean
    fit(learner, Sinusoids(), steps=100, tasks=16, lr=1e-2, progress=False)
    assert evaluate(learner, Sinusoids(seed=1), tasks=100).mean < 0.7 * before


def test_gaussian_prototypes_with_a_flat_prior_are_prototypes(tasks):
    labels = torch.tensor([[0, 1, 0, 1]] * 2)
    episodes = Episodes(tasks.support_x, labels, tasks.query_x, torch.zeros(2, 5).long(), torch.zeros(2, 2))
    learner = GaussianPrototypes(nn.Identity(), 3).double()
    with torch.no_grad():
        learner.log_prior_std.fill_(10)  # flat
        # Two examples a class: a query's variance is (1 + 1/2) sigma^2, and a logit -d^2 / (2 variance).
        learner.log_std.fill_(0.5 * math.log(1 / 3))
    ours, theirs = learner.predict(episodes), ProtoNet(nn.Identity()).predict(episodes)
    torch.testing.assert_close(ours.log_softmax(2), theirs.log_softmax(2), atol=1e-5, rtol=0)


def test_gaussian_prototypes_by_hand():
    """Prior N(0, 1), noise 1, one example at 2: the mean's posterior is N(1, 1/2), a query's density N(1, 3/2)."""
    episodes = Episodes(
        torch.tensor([[[2.0], [-4.0]]]),
        torch.tensor([[0, 1]]),
        torch.tensor([[[0.5]]]),
        torch.zeros(1, 1).long(),
        torch.zeros(1, 2),
    )
    logits = GaussianPrototypes(nn.Identity(), 1).predict(episodes)
    normal = torch.distributions.Normal(torch.tensor([1.0, -2.0]), math.sqrt(1.5))
    torch.testing.assert_close(logits[0, 0], normal.log_prob(torch.tensor(0.5)))


def test_gaussian_nll_is_minus_the_log_density():
    mean, variance, y = torch.randn(5), torch.rand(5) + 0.1, torch.randn(5)
    torch.testing.assert_close(
        gaussian_nll(mean, variance, y), -torch.distributions.Normal(mean, variance.sqrt()).log_prob(y)
    )
