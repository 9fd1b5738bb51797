"""Learners: one file a family, one interface for all."""

from metabook.learners.base import Learner, task_losses
from metabook.learners.baselines import FineTune, NearestNeighbour, PretrainedLinearProbe, PretrainedNearestMean
from metabook.learners.bayes import ALPaCA, DeepKernelTransfer, GaussianPrototypes, StudentALPaCA, TaskGP
from metabook.learners.black_box import LearnedOptimiser, NeuralProcess
from metabook.learners.maml import ANIL, MAML, MetaSGD
from metabook.learners.matching import MatchingNet
from metabook.learners.prototypes import ProtoNet
from metabook.learners.relation import RelationNet
from metabook.learners.reptile import Reptile
from metabook.learners.transformer import InContextTransformer

__all__ = [
    "ANIL",
    "MAML",
    "ALPaCA",
    "DeepKernelTransfer",
    "FineTune",
    "GaussianPrototypes",
    "InContextTransformer",
    "LearnedOptimiser",
    "Learner",
    "MatchingNet",
    "MetaSGD",
    "NearestNeighbour",
    "NeuralProcess",
    "PretrainedLinearProbe",
    "PretrainedNearestMean",
    "ProtoNet",
    "RelationNet",
    "Reptile",
    "StudentALPaCA",
    "TaskGP",
    "task_losses",
]
