"""Meta-training and evaluation: two functions that serve every learner of the book."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from metabook.episodes import Episodes, TaskSource
from metabook.learners import Learner, task_losses
from metabook.storage import StorageError, describe, read_tensors, write_tensors

__all__ = ["Evaluation", "History", "choose_device", "ci95", "evaluate", "fit", "seconds_per_step", "seed_everything"]


def choose_device(device: str = "auto") -> torch.device:
    """The device called ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; auto takes the best there is.

    Raises
    ------
    ValueError
        For another name, or a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if device not in available:
        raise ValueError(f"device must be auto, {', '.join(available)}, not {device!r}")
    if not available[device]:
        raise ValueError(f"this machine has no {device} device: choose auto or cpu")
    return torch.device(device)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (initial weights are drawn from torch's)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global generator is what other libraries draw from)
    torch.manual_seed(seed)


@dataclass
class History:
    """What happened in :func:`fit`: the loss of every step, and the seconds of the last call."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}
ANNEAL: dict[str | None, Callable[[float], float]] = {
    None: lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


def fit(
    learner: Learner,
    source: TaskSource,
    *,
    steps: int,
    tasks: int = 16,
    lr: float = 1e-3,
    anneal: str | None = None,
    optimiser: str = "adam",
    weight_decay: float = 0.0,
    average: float = 0.0,
    clip: float | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    origin: dict[str, Any] | None = None,
    save_seconds: float = 30.0,
    progress: bool = True,
) -> History:
    """Meta-train a learner in place: ``steps`` updates, each on ``tasks`` tasks.

    Step ``i`` is a function of the weights, the optimiser's state, ``seed`` and ``i`` alone: a run
    that is interrupted at any moment and started again with the same arguments ends, on a CPU with
    the same number of threads, in bit-identical weights.

    Parameters
    ----------
    learner : Learner
    source : TaskSource
        Draws the meta-batch of each step.
    steps, tasks : int
    lr, weight_decay : float
        Of the outer optimiser.
    anneal : {"cosine", "linear"}, optional
        How the learning rate falls to zero over ``steps``; None: not at all.
    optimiser : {"adam", "sgd"}
        AdamW, which with no weight decay is Adam; or plain stochastic gradient descent.
    average : float
        If positive, the decay of an exponential moving average of the weights, which replaces
        them at the end.
    clip : float, optional
        Largest norm of the meta-gradient.
    seed : int
        For whatever is random inside the learner (dropout, ...).
    checkpoint : path, optional
        File in which the run's state is kept and from which it resumes.
    origin : dict, optional
        JSON-ready description of the source; a checkpoint with another one is refused.
    save_seconds : float
        Time between checkpoints, in seconds. One is always written at the end.
    progress : bool
        Show a progress bar.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the learner has nothing to train, there are no steps or tasks, or an option has no such value.
    StorageError
        If the checkpoint belongs to another run, or cannot be written.
    FloatingPointError
        If the loss is not finite; the last checkpoint is kept.
    """
    for name, number in (("steps", steps), ("tasks", tasks)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if anneal not in ANNEAL:
        raise ValueError(f"anneal must be one of {', '.join(map(str, ANNEAL))}, not {anneal!r}")
    if optimiser not in OPTIMISERS:
        raise ValueError(f"optimiser must be one of {', '.join(OPTIMISERS)}, not {optimiser!r}")
    parameters = [p for p in learner.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(learner).__name__} has no parameters to train")
    run = _Run(
        learner,
        optimiser=OPTIMISERS[optimiser](parameters, lr=lr, weight_decay=weight_decay),
        averaged=_moving_average(learner, average) if average else None,
        settings=dict(
            steps=steps,
            tasks=tasks,
            lr=lr,
            anneal=anneal,
            optimiser=optimiser,
            weight_decay=weight_decay,
            average=average,
            clip=clip,
            seed=seed,
            origin=origin or {},
        ),
    )
    if checkpoint is not None and Path(checkpoint).exists():
        run.read(Path(checkpoint))
    elif checkpoint is not None:
        run.write(Path(checkpoint))  # a place that cannot be written is found out before the work, not after
    started = saved = time.monotonic()
    learner.train()
    done = len(run.history.losses)
    bar = tqdm(range(done, steps), initial=done, total=steps, disable=not progress, unit="step", desc="meta-training")
    with torch.random.fork_rng(), bar:
        for step in bar:
            torch.manual_seed(_step_seed(seed, step))
            for group in run.optimiser.param_groups:
                group["lr"] = lr * ANNEAL[anneal](step / steps)
            run.optimiser.zero_grad()
            loss = learner.accumulate_gradients(source.sample(tasks, step)).item()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}: lower the learning rate or the inner rate"
                )
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            run.optimiser.step()
            if run.averaged is not None:
                run.averaged.update_parameters(learner)
            run.history.losses.append(loss)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if checkpoint is not None and (time.monotonic() - saved > save_seconds or step + 1 == steps):
                run.write(Path(checkpoint))
                saved = time.monotonic()
    if run.averaged is not None:
        learner.load_state_dict(run.averaged.module.state_dict())
    learner.eval()
    run.history.seconds = time.monotonic() - started
    return run.history


def seconds_per_step(
    learner: Learner,
    source: TaskSource,
    *,
    steps: int = 8,
    clock: Callable[[], float] = time.process_time,
    **arguments: Any,
) -> float:
    """How long a meta-training step takes, found on a copy: what a budget of time divides by.

    Parameters
    ----------
    learner, source, **arguments
        Of :func:`fit`.
    steps : int
        So many are timed, after two that pay for what is set up once.
    clock : callable
        Of seconds: CPU time, or :func:`time.monotonic`.

    Returns
    -------
    float
    """
    copy = deepcopy(learner)
    fit(copy, source, steps=2, **arguments, progress=False)
    started = clock()
    fit(copy, source, steps=steps, **arguments, progress=False)
    return (clock() - started) / steps


def _moving_average(learner: Learner, decay: float) -> AveragedModel:
    return AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


@dataclass
class _Run:
    """The state of a meta-training run: all that the next step depends on."""

    learner: Learner
    optimiser: torch.optim.Optimizer
    averaged: AveragedModel | None
    settings: dict[str, Any]
    history: History = field(default_factory=History)

    def _header(self) -> dict[str, Any]:
        return {"run": {"learner": describe(self.learner), **self.settings}}

    def write(self, path: Path) -> None:
        tensors = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        tensors["losses"] = torch.tensor(self.history.losses, dtype=torch.float64)
        write_tensors(path, tensors, self._header())

    def read(self, path: Path) -> None:
        tensors, header = read_tensors(path)
        theirs, ours = header.get("run"), self._header()["run"]
        if theirs is None:
            raise StorageError(f"{path} is not the checkpoint of a run")
        if differ := [key for key in ours if theirs.get(key) != ours[key]]:
            raise StorageError(
                f"{path} belongs to another run (it differs in {', '.join(differ)}): "
                "give the same arguments to resume it, or another place for a new run"
            )
        self.learner.load_state_dict(_part(tensors, "learner."))
        if self.averaged is not None:
            self.averaged.load_state_dict(_part(tensors, "averaged."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.history.losses = tensors["losses"].tolist()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Evaluation:
    """Scores of one or several learners (one a seed) on the same test tasks.

    Parameters
    ----------
    scores : ndarray [seeds, tasks]
        Accuracy in [0, 1], or mean squared error, of each task.
    metric : {"accuracy", "mse"}
    transductive : bool
        Whether an answer could depend on the other queries of its task.
    """

    scores: np.ndarray
    metric: str
    transductive: bool

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def ci95(self) -> float:
        """Half-width of the 95 % confidence interval over tasks, each task averaged over the seeds."""
        return ci95(self.scores.mean(0))

    @property
    def seeds_ci95(self) -> float | None:
        """Half-width of the 95 % confidence interval over seeds; None for a single one."""
        return ci95(self.scores.mean(1)) if len(self.scores) > 1 else None

    def record(self) -> dict[str, Any]:
        """The summary as JSON-ready data."""
        return {
            "metric": self.metric,
            "mean": self.mean,
            "ci95": self.ci95,
            "seeds_ci95": self.seeds_ci95,
            "seed_means": self.scores.mean(1).tolist(),
            "tasks": self.scores.shape[1],
            "transductive": self.transductive,
        }

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"{100 * self.mean:.1f} ± {100 * self.ci95:.1f} %"
        return f"{self.mean:.3g} ± {self.ci95:.2g}"


def ci95(values: np.ndarray) -> float:
    """Half-width of Student's 95 % confidence interval for the mean of ``values [n]``."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else math.inf


@torch.no_grad()
def evaluate(
    learner: Learner | Sequence[Learner],
    source: TaskSource,
    *,
    tasks: int = 600,
    chunk: int = 20,
    one_by_one: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Judge a learner, or one a seed, by the queries of ``tasks`` tasks.

    Parameters
    ----------
    learner : Learner or sequence of Learner
        Several are judged on the same tasks.
    source : TaskSource
    tasks : int
    chunk : int
        Tasks drawn and adapted at a time; with the source's seed it fixes which tasks are drawn.
    one_by_one : bool
        Ask each query alone, so that a transductive learner cannot look at the others (inductive
        evaluation; as many adaptations as queries). No different for an inductive learner.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Evaluation
    """
    learners = [learner] if isinstance(learner, Learner) else list(learner)
    modes = [each.training for each in learners]
    scores: list[list[Tensor]] = [[] for _ in learners]
    starts = range(0, tasks, chunk)
    for each in learners:
        each.eval()
    for step, start in enumerate(tqdm(starts, disable=not progress, unit="chunk", desc="evaluating")):
        episodes = source.sample(chunk, step)[: tasks - start]
        for each, collected in zip(learners, scores, strict=True):
            collected.append(_scores(each, episodes, one_by_one and each.transductive))
    for each, mode in zip(learners, modes, strict=True):
        each.train(mode)
    return Evaluation(
        scores=torch.stack([torch.cat(collected) for collected in scores]).double().cpu().numpy(),
        metric="mse" if episodes.regression else "accuracy",
        transductive=not one_by_one and any(each.transductive for each in learners),
    )


def _scores(learner: Learner, episodes: Episodes, one_by_one: bool) -> Tensor:
    """Accuracy or squared error of each task, ``[tasks]``."""
    width = 1 if one_by_one else episodes.query_x.shape[1]
    parts = zip(episodes.query_x.split(width, 1), episodes.query_y.split(width, 1), strict=True)
    outputs = torch.cat([learner.predict(replace(episodes, query_x=x, query_y=y)) for x, y in parts], 1)
    if episodes.regression:
        return task_losses(outputs, episodes.query_y)
    return (outputs.argmax(2) == episodes.query_y).float().mean(1)
