"""What a task is: labelled examples, the episodes drawn from them, and the sampler that draws.

An *N-way K-shot task* is a small data set of its own: ``N`` classes with ``K`` labelled *support*
examples each, from which a learner has to adapt, and *query* examples on which it is judged.
Everywhere in metabook the leading dimension of an :class:`Episodes` counts tasks, so that a
meta-batch is one set of tensors and not a list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["EpisodeSampler", "Episodes", "LabelledData", "TaskSource", "generator_for"]


@dataclass(frozen=True)
class Episodes:
    """A meta-batch of tasks.

    Parameters
    ----------
    support_x : Tensor [tasks, ways * shots, ...]
        Inputs to adapt to (float images ``[..., channels, height, width]``, numbers, token ids).
    support_y : Tensor [tasks, ways * shots] or [tasks, shots, outputs]
        Class indices ``0 .. ways - 1`` within the task (int64), or regression targets (float).
    query_x, query_y : Tensor
        The same for the examples on which the adapted learner is judged; never seen in support.
    classes : Tensor [tasks, ways], optional
        For classification from a fixed pool, which class of the pool each task label stands for.
        Few-shot learners must not read it; a classifier that is pre-trained on the pool does.

    Raises
    ------
    ValueError
        If the parts disagree in the number of tasks, or inputs and targets in the number of examples.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        tasks = {part.shape[0] for part in vars(self).values() if part is not None}
        if len(tasks) != 1:
            raise ValueError(f"the parts of an episode disagree in the number of tasks: {sorted(tasks)}")
        for name, x, y in (("support", self.support_x, self.support_y), ("query", self.query_x, self.query_y)):
            if x.shape[1] != y.shape[1]:
                raise ValueError(f"{name}: {x.shape[1]} inputs a task but {y.shape[1]} targets")

    def _parts(self) -> dict[str, Tensor]:
        return {name: part for name, part in vars(self).items() if part is not None}

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.support_x)

    def __getitem__(self, tasks: slice) -> Episodes:
        """The episodes of a slice of the tasks."""
        return replace(self, **{name: part[tasks] for name, part in self._parts().items()})

    @property
    def regression(self) -> bool:
        """Whether targets are real numbers rather than classes."""
        return self.support_y.is_floating_point()

    @property
    def ways(self) -> int:
        """Number of classes a task, which is also the number of logits (regression: of outputs)."""
        if self.regression:
            return self.support_y.shape[-1]
        return self.classes.shape[1] if self.classes is not None else int(self.support_y.max()) + 1

    @property
    def device(self) -> torch.device:
        return self.support_x.device

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes on another device."""
        return replace(self, **{name: part.to(device) for name, part in self._parts().items()})

    def split(self, tasks: int) -> Iterator[Episodes]:
        """Chunks of at most ``tasks`` tasks, to bound memory."""
        return (self[start : start + tasks] for start in range(0, len(self), tasks))


class TaskSource(Protocol):
    """What ``fit`` and ``evaluate`` draw tasks from: a pure function of a step number."""

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` tasks; the same ``step`` always gives the same tasks."""
        ...


@dataclass(frozen=True)
class LabelledData:
    """Labelled examples in tensors: the pool that few-shot tasks are drawn from.

    Parameters
    ----------
    x : Tensor [examples, ...]
        Inputs, sorted by class. Images are ``uint8 [examples, channels, height, width]``.
    y : Tensor [examples]
        Class of each example, ``0 .. classes - 1``, non-decreasing.
    names : sequence of str
        Name of each class.
    groups : sequence of str
        The group (for characters: the alphabet) that each class belongs to.
    """

    x: Tensor
    y: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} examples but {len(self.y)} labels")
        if len(self.names) != len(self.groups):
            raise ValueError(f"{len(self.names)} class names but {len(self.groups)} groups")
        if len(self.y) and (
            bool((self.y.diff() < 0).any()) or not 0 <= int(self.y[0]) <= int(self.y[-1]) < len(self.names)
        ):
            raise ValueError("labels must be sorted and lie between 0 and the number of names")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def counts(self) -> Tensor:
        """Number of examples of each class, ``[classes]``."""
        return torch.bincount(self.y, minlength=len(self))

    def select(self, classes: Sequence[int]) -> LabelledData:
        """The data of some classes only, renumbered in the order given."""
        starts = self.counts.cumsum(0) - self.counts
        rows = [torch.arange(int(starts[c]), int(starts[c] + self.counts[c])) for c in classes]
        return LabelledData(
            x=self.x[torch.cat(rows)] if rows else self.x[:0],
            y=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows], dtype=torch.long)),
            names=tuple(self.names[c] for c in classes),
            groups=tuple(self.groups[c] for c in classes),
        )

    def in_groups(self, groups: Sequence[str]) -> LabelledData:
        """The classes of some groups, for splits in which no alphabet is on both sides."""
        if unknown := sorted(set(groups) - set(self.groups)):
            raise ValueError(f"no such group: {', '.join(unknown)}; there are {', '.join(sorted(set(self.groups)))}")
        return self.select([c for c, group in enumerate(self.groups) if group in set(groups)])

    def __add__(self, other: LabelledData) -> LabelledData:
        """Both pools, the other's classes after this one's."""
        y = torch.cat([self.y, other.y + len(self)])
        return LabelledData(torch.cat([self.x, other.x]), y, self.names + other.names, self.groups + other.groups)


def generator_for(*keys: Any) -> torch.Generator:
    """A CPU random generator whose stream is a function of ``keys`` alone (say seed and step).

    Deriving a generator from the step number instead of carrying one along makes every draw
    repeatable by itself: a resumed run needs no generator state, and two learners see the same tasks.
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class EpisodeSampler:
    """Draws N-way K-shot tasks from data that stays on the device.

    Classes are drawn without replacement for each task, and so are the examples of a class:
    no class stands twice in a task and no support example is asked again as a query.

    Parameters
    ----------
    data : LabelledData
    ways, shots, queries : int
        Classes a task, support examples a class, query examples a class.
    seed : int
        With the step number, fixes what :meth:`sample` draws.
    within_group : float
        Probability that the classes of a task all come from one group (a harder task: the
        characters of one alphabet resemble each other). Groups with too few classes are left out.
    transform : callable, optional
        ``transform(images, generator) -> images``, applied to the drawn float inputs
        ``[examples, ...]`` of all tasks at once: data augmentation.
    device : torch.device or str
        Where the data lives and the episodes are made.

    Raises
    ------
    ValueError
        If there are fewer classes than ways, or a class has fewer than ``shots + queries`` examples
        (the message names the class).
    """

    def __init__(
        self,
        data: LabelledData,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        seed: int = 0,
        within_group: float = 0.0,
        transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if ways > len(data):
            raise ValueError(f"{ways}-way tasks need {ways} classes, but the data has {len(data)}")
        counts = data.counts
        scarce = int(counts.argmin())
        if counts[scarce] < shots + queries:
            raise ValueError(
                f"{shots} shots and {queries} queries need {shots + queries} examples a class, "
                f"but class {data.names[scarce]!r} has {int(counts[scarce])}"
            )
        self.data, self.ways, self.shots, self.queries = data, ways, shots, queries
        self.seed, self.within_group, self.transform = seed, within_group, transform
        self.device = torch.device(device)
        self._x = data.x.to(self.device)
        self._counts, self._starts = counts.numpy(), (counts.cumsum(0) - counts).numpy()
        self._most, self._even = int(counts.max()), bool((counts == counts[0]).all())
        self._labels = np.tile(np.arange(ways), shots + queries)
        names = sorted(set(data.groups))
        membership = torch.tensor([[group == name for group in data.groups] for name in names])  # [groups, classes]
        self._groups = membership[membership.sum(1) >= ways]
        if within_group and not len(self._groups):
            raise ValueError(f"within_group: no group has the {ways} classes that a {ways}-way task needs")

    def sample(self, tasks: int, step: int = 0) -> Episodes:
        """Draw ``tasks`` tasks: a pure function of the sampler's settings, its seed and ``step``.

        Returns
        -------
        Episodes
            ``support_x [tasks, ways * shots, ...]`` ordered by shot, then class (class ``c`` of
            every shot is at ``c, c + ways, ...``); queries likewise; ``uint8`` inputs become
            floats in ``[0, 1]``.
        """
        generator = generator_for("episodes", self.seed, step)
        classes = self._draw_classes(tasks, generator)  # [tasks, ways]
        parts = [self.ways * self.shots, self.ways * self.queries]
        # A random order of each class's examples: those that do not exist sort last.
        keys = torch.rand(tasks, self.ways, self._most, generator=generator, dtype=torch.float32).numpy()
        if not self._even:
            keys[np.arange(self._most) >= self._counts[classes][..., None]] = -1.0
        rows = _places_of_largest(keys, self.shots + self.queries) + self._starts[classes][..., None]
        # One gather for the whole meta-batch, in the order task, example, class. The pool stays in bytes: a copy
        # in floats takes four times the memory, and gathering from it takes as long as converting what was drawn.
        x = self._x.index_select(0, torch.from_numpy(rows.swapaxes(1, 2).ravel()).to(self.device))
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        x = self.transform(x, generator) if self.transform else x
        x = x.view(tasks, sum(parts), *x.shape[1:])
        # The episodes own their labels: writing to them is safe.
        y = torch.from_numpy(np.broadcast_to(self._labels, (tasks, sum(parts))).copy()).to(self.device)
        (support_x, query_x), (support_y, query_y) = x.split(parts, 1), y.split(parts, 1)
        return Episodes(support_x, support_y, query_x, query_y, torch.from_numpy(classes).to(self.device))

    def _draw_classes(self, tasks: int, generator: torch.Generator) -> np.ndarray:
        keys = torch.rand(tasks, len(self.data), generator=generator, dtype=torch.float32)
        if self.within_group:
            inside = torch.rand(tasks, generator=generator, dtype=torch.float32) < self.within_group
            group = self._groups[torch.randint(len(self._groups), (tasks,), generator=generator)]
            keys[inside.unsqueeze(1) & ~group] = -1.0
        return _places_of_largest(keys.numpy(), self.ways)


def _places_of_largest(keys: np.ndarray, count: int) -> np.ndarray:
    """Indices ``[..., count]`` of the largest keys, largest first: float32 in [0, 1), or -1 to come last.

    Such floats are in the same order as their bits read as integers. With its place behind it in one wider integer, a
    key is partitioned and sorted by numpy's vector instructions, two to four times as fast as ``topk``.
    """
    ranked = keys.view(np.int32).astype(np.int64)
    ranked <<= 32
    ranked |= np.arange(keys.shape[-1])
    if keys.shape[-1] > 64:  # a shorter row is sorted whole sooner than it is partitioned first
        ranked.partition(keys.shape[-1] - count)
        ranked = ranked[..., -count:]
    return np.sort(ranked)[..., : -count - 1 : -1] & 0xFFFFFFFF
