"""Policies: networks that turn what an agent sees into a distribution over what it does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from metabook import batched
from metabook.batched import Parameters
from metabook.nets import MLP

__all__ = ["CategoricalPolicy", "GaussianPolicy"]


class CategoricalPolicy(nn.Module):
    """Chooses one of several actions, with the network's outputs as logits.

    Parameters
    ----------
    net : Module
        From what is seen, as a vector, to the logits: say an ``MLP``, or for a table a ``Linear`` without bias.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def distribution(self, params: Parameters, x: Tensor) -> Distribution:
        """Of the actions of every task's own copy of the policy.

        Parameters
        ----------
        params : dict of str to Tensor [tasks, ...]
        x : Tensor [tasks, examples, ...]
        """
        return Categorical(logits=self._outputs(params, x), validate_args=False)

    def _outputs(self, params: Parameters, x: Tensor) -> Tensor:
        own = {name.removeprefix("net."): p for name, p in params.items() if name.startswith("net.")}
        return batched.forward(self.net, own, x)


class GaussianPolicy(CategoricalPolicy):
    """Chooses real numbers: normal about the network's outputs, with standard deviations that are learnt.

    Parameters
    ----------
    net : MLP
    std : float
        Every standard deviation at the start.
    """

    def __init__(self, net: MLP, std: float = 1.0) -> None:
        super().__init__(net)
        self.std = std
        self.log_std = nn.Parameter(torch.full((net.outputs,), math.log(std)))

    def distribution(self, params: Parameters, x: Tensor) -> Distribution:
        scale = params["log_std"].exp().unsqueeze(1)
        return Independent(Normal(self._outputs(params, x), scale, validate_args=False), 1, validate_args=False)
