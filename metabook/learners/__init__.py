"""Learners: one file a family, one interface for all."""

from metabook.learners.base import Learner, task_losses
from metabook.learners.baselines import FineTune, NearestNeighbour, PretrainedNearestMean
from metabook.learners.maml import MAML
from metabook.learners.prototypes import ProtoNet

__all__ = ["MAML", "FineTune", "Learner", "NearestNeighbour", "PretrainedNearestMean", "ProtoNet", "task_losses"]
