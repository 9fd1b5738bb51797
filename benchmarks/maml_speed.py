r"""MAML's training step, and the sampling of episodes: metabook and learn2learn side by side.

Both do the same work in one process, on one thread, in turns; what is compared is CPU time. The meta-gradients are
compared too. Peak memory is measured in a process of its own for each side. Writes ``results/maml_speed.json``.

    python benchmarks/maml_speed.py
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from metabook import Episodes, EpisodeSampler, LabelledData, peers, presets, results
from metabook.data import Sinusoids
from metabook.learners import MAML
from metabook.nets import MLP, Conv4

#: Name, network, tasks, shots, queries, inner steps, first order.
CASES = {
    "sinusoids, MLP 40-40, 25 tasks": ("mlp", 1, 25, 10, 10, 1, False),
    "sinusoids, MLP 40-40, 100 tasks": ("mlp", 1, 100, 10, 10, 1, False),
    "Conv4, 5w1s, 1 query, 16 tasks": ("conv", 5, 16, 1, 1, 1, False),
    "Conv4, 5w1s, 1 query, 32 tasks": ("conv", 5, 32, 1, 1, 1, False),
    "Conv4, 5w1s, 1 query, 16 tasks, 5 steps": ("conv", 5, 16, 1, 1, 5, False),
    "Conv4, 5w1s, 1 query, 32 tasks, 5 steps": ("conv", 5, 32, 1, 1, 5, False),
    "Conv4, 5w1s, 1 query, 16 tasks, first order": ("conv", 5, 16, 1, 1, 1, True),
    "Conv4, 20w1s, 1 query, 16 tasks": ("conv", 20, 16, 1, 1, 1, False),
    "Conv4, 5w1s, 15 queries, 4 tasks": ("conv", 5, 4, 1, 15, 1, False),
}
CASES = presets.sized(CASES, dict(list(CASES.items())[:3]))
RATE = {"mlp": 0.01, "conv": 0.4}


def characters(classes: int = 60) -> LabelledData:
    """Random images in the shape of characters: their content does not change the time."""
    x = torch.randint(0, 2, (classes * 20, 1, 28, 28), dtype=torch.uint8) * 255
    return LabelledData(
        x, torch.arange(classes).repeat_interleave(20), tuple(map(str, range(classes))), ("a",) * classes
    )


def setting(case: str) -> tuple[nn.Module, nn.Module, Episodes, float, int, bool]:
    """Our network, a learn2learn user's with the same weights, the tasks, and the inner loop."""
    kind, ways, tasks, shots, queries, steps, first_order = CASES[case]
    torch.manual_seed(0)
    if kind == "mlp":
        net = MLP()
        episodes = Sinusoids(shots, queries).sample(tasks)
        names = ("support_x", "support_y", "query_x", "query_y")
        numbers = {name: getattr(episodes, name).to(torch.get_default_dtype()) for name in names}
        return net, deepcopy(net), replace(episodes, **numbers), RATE[kind], steps, first_order
    net = Conv4(ways, 64, "stride", norm="batch")
    # An ordinary net for learn2learn: BatchNorm2d in training mode.
    theirs = Conv4(ways, 64, "stride", norm="running")
    theirs.load_state_dict(net.state_dict(), strict=False)
    episodes = EpisodeSampler(characters(), ways, shots, queries).sample(tasks)
    images = {name: getattr(episodes, name).to(torch.get_default_dtype()) for name in ("support_x", "query_x")}
    return net, theirs, replace(episodes, **images), RATE[kind], steps, first_order


def step_of_ours(case: str) -> tuple[Callable[[], Any], nn.Module]:
    net, _, episodes, rate, steps, first_order = setting(case)
    learner = MAML(net, rate, steps, first_order)

    def step() -> None:
        net.zero_grad()
        learner.accumulate_gradients(episodes)

    return step, net


def step_of_theirs(case: str) -> tuple[Callable[[], Any], nn.Module]:
    _, net, episodes, rate, steps, first_order = setting(case)
    meta = peers.learn2learn_algorithms().MAML(net, lr=rate, first_order=first_order)
    criterion = F.mse_loss if episodes.regression else F.cross_entropy

    def step() -> None:
        net.zero_grad()
        for sx, sy, qx, qy in zip(episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y):
            clone = meta.clone()
            for _ in range(steps):
                clone.adapt(criterion(clone(sx), sy))
            (criterion(clone(qx), qy) / len(episodes)).backward()

    return step, net


SIDES = {"metabook": step_of_ours, "learn2learn": step_of_theirs}


class Images(Dataset):
    """Float images in memory, with integers as labels, as learn2learn's own Omniglot gives them."""

    def __init__(self, pool: LabelledData) -> None:
        self.x, self.y = pool.x.float() / 255, pool.y.tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i], self.y[i]


#: Name, queries a class, and what learn2learn draws from. With tensors as labels, a TensorDataset's, it is slower.
SAMPLING = {
    "sampling 16 tasks, 5w1s, 1 query": (1, Images),
    "sampling 16 tasks, 5w1s, 1 query, from a TensorDataset": (1, lambda p: TensorDataset(p.x.float() / 255, p.y)),
    "sampling 16 tasks, 5w1s, 15 queries": (15, Images),
    "sampling 16 tasks, 5w1s, 15 queries, from a TensorDataset": (15, lambda p: TensorDataset(p.x.float() / 255, p.y)),
}
SAMPLING = presets.sized(SAMPLING, dict(list(SAMPLING.items())[:1]))


def samplers(case: str) -> dict[str, Callable[[], Any]]:
    """Supports and queries of new tasks, as float images with the labels 0 to 4. Learn2learn's tasks are a list."""
    queries, dataset = SAMPLING[case]
    pool = characters(242)
    ours = EpisodeSampler(pool, 5, 1, queries)
    data = peers.learn2learn().data
    images = data.MetaDataset(dataset(pool))
    wanted = [
        data.transforms.FusedNWaysKShots(images, n=5, k=1 + queries),
        data.transforms.LoadData(images),
        data.transforms.RemapLabels(images),
        data.transforms.ConsecutiveLabels(images),
    ]
    theirs = data.Taskset(images, wanted, num_tasks=-1)  # -1: each task is drawn anew, none is kept
    support = torch.arange(5 * (1 + queries)) % (1 + queries) == 0  # the labels are sorted: the first of each class

    def tasks_of_theirs() -> list[tuple[torch.Tensor, ...]]:
        tasks = [theirs.sample() for _ in range(16)]
        return [(x[support], y[support], x[~support], y[~support]) for x, y in tasks]

    count = iter(range(10**9))
    return {"metabook": lambda: ours.sample(16, next(count)), "learn2learn": tasks_of_theirs}


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """CPU seconds of each side's calls, so many of each in turn, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 2):
        for name, call in sides.items():
            started = time.process_time()
            for _ in range(calls):
                call()
            seconds[name].append((time.process_time() - started) / calls)
    return {name: each[2:] for name, each in seconds.items()}


def peak_memory(case: str, side: str) -> float | None:
    """MiB that steps take on top of what the process holds before and after. Call it in a new process; on Linux."""
    if sys.platform != "linux":
        return None
    torch.set_num_threads(1)
    step, _ = SIDES[side](case)
    step()  # loads code, and makes the gradients' tensors
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A number of KiB from the system's account of this process."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def difference(case: str) -> float:
    """Largest difference of the two meta-gradients in float64, as a share of the largest entry."""
    torch.set_default_dtype(torch.float64)
    try:
        grads = []
        for side in SIDES.values():
            step, net = side(case)
            step()
            grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    finally:
        torch.set_default_dtype(torch.float32)
    return float((grads[0] - grads[1]).abs().max() / grads[1].abs().max())


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles and minima, and the ratio of the medians."""
    each = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        each[name] = {"median_cpu_seconds": middle, "quartiles": [low, high], "fastest": min(values)}
    return {**each, "ratio": each["learn2learn"]["median_cpu_seconds"] / each["metabook"]["median_cpu_seconds"]}


def main(rounds: Annotated[int, typer.Option(help="Calls of each side that count.")] = 21) -> None:
    """Compare, and write the record."""
    torch.set_num_threads(1)
    measured, rows = results.circumstances(), []
    for case in tqdm(CASES, unit="case"):
        steps = {name: side(case)[0] for name, side in SIDES.items()}
        # A call that takes a few milliseconds: ten in a turn, or what the other side left in the caches would count.
        calls = 10 if case.startswith("sinusoids") else 1
        row: dict[str, Any] = {"case": case, **summary(in_turns(steps, rounds, calls))}
        row["gradient_difference"] = difference(case)
        for name in SIDES:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                row[name]["peak_memory_mib"] = pool.submit(peak_memory, case, name).result()
        rows.append(row)
    rows += [{"case": case, **summary(in_turns(samplers(case), rounds, calls=10))} for case in SAMPLING]
    settings = {"rounds": rounds, "threads": 1, "learn2learn": peers.learn2learn().__version__}
    typer.echo(results.write("maml_speed", {"measured": measured, "settings": settings, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, rounds=2)
