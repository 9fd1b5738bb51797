"""The table of run time and peak memory that each chapter shows, from the committed record."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

PRESETS = ("smoke", "book", "full")


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for one chapter; no rows if nothing was measured.

    Parameters
    ----------
    record : dict
        ``{"presets": {preset: {"seconds", "cpu_seconds", "memory_mib", "device", "date"}}}``.
    """
    head = ["preset", "run time", "CPU time", "peak memory", "measured on"]
    presets = record.get("presets", {})
    rows = [
        [
            f"`{preset}`",
            duration(presets[preset]["seconds"]),
            duration(presets[preset]["cpu_seconds"]),
            memory(presets[preset]["memory_mib"]),
            f"{presets[preset]['device']}, {presets[preset]['date']}",
        ]
        for preset in PRESETS
        if preset in presets
    ]
    return head, rows


def overview(measured: Mapping[str, dict[str, float]], earlier: Collection[str] = ()) -> str:
    """What a run of the book cost: a line for each chapter, the most expensive first, and the sums.

    Parameters
    ----------
    measured : mapping
        ``{chapter: {"seconds", "cpu_seconds", "memory_mib"}}``.
    earlier : collection of str
        The chapters whose outputs, and so whose costs, are those of an earlier run.
    """
    lines = [["chapter", "run time", "CPU time", "peak memory", ""], ["---"] * 5]
    for name, cost in sorted(measured.items(), key=lambda item: -item[1]["cpu_seconds"]):
        lines.append([name, *_cells(cost), "unchanged, measured earlier" if name in earlier else ""])
    total = {key: sum(cost[key] for cost in measured.values()) for key in ("seconds", "cpu_seconds")}
    total["memory_mib"] = max((cost["memory_mib"] for cost in measured.values()), default=0.0)
    lines.append([f"all {len(measured)}", *_cells(total), "sums; the largest peak"])
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _cells(cost: Mapping[str, float]) -> list[str]:
    return [duration(cost["seconds"]), duration(cost["cpu_seconds"]), memory(cost["memory_mib"])]


def duration(seconds: float) -> str:
    """Two significant figures are as much as a run on another machine can confirm."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


NOT_YET = "The run time and memory of this chapter have not been recorded yet."


def markdown(record: dict[str, Any]) -> str:
    """The table as Markdown."""
    head, rows = table(record)
    if not rows:
        return f"*{NOT_YET}*"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
