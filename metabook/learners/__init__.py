"""Learners: one file a family, one interface for all."""

from metabook.learners.base import Learner, task_losses
from metabook.learners.baselines import FineTune, NearestNeighbour, PretrainedNearestMean
from metabook.learners.maml import ANIL, MAML, MetaSGD
from metabook.learners.prototypes import ProtoNet
from metabook.learners.reptile import Reptile

__all__ = [
    "ANIL",
    "MAML",
    "FineTune",
    "Learner",
    "MetaSGD",
    "NearestNeighbour",
    "PretrainedNearestMean",
    "ProtoNet",
    "Reptile",
    "task_losses",
]
