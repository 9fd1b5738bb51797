"""Is it maintained? When the libraries that the book names were released, as the package index dates them.

Asks pip, which must be at least 26.0 and be set up for an index that dates its files. Writes ``results/tools.json``:
for each library its newest version, the month in which that came, and how many releases there were by each 1 January.
Counted are releases that the Python running this can install.

    python benchmarks/tools.py
    python benchmarks/tools.py --only learn2learn --name try_tools

Files in a folder that pip is told to look in have no dates; the benchmark then stops and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from tqdm import tqdm

from metabook import presets, results

LIBRARIES = (
    "torch",
    "tensorflow",
    "jax",
    "transformers",
    "peft",
    "learn2learn",
    "torchopt",
    "easyfsl",
    "higher",
    "torchmeta",
    "gym",
    "gymnasium",
    "minigrid",
    "gpytorch",
    "jupyter-book",
)
FIRST_YEAR = 2018


def releases(name: str, before: date | None = None) -> list[str]:
    """Versions of a library, newest first, that were there before a day; none is a possible answer."""
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--json", "--disable-pip-version-check"]
    dated = [] if before is None else ["--uploaded-prior-to", f"{before.isoformat()}T00:00:00Z"]
    done = subprocess.run([*command, *dated], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        # A version with a plus sign is a build of somebody's own ("2.13.0+cpu").
        return [version for version in json.loads(done.stdout)["versions"] if "+" not in version]
    if before is not None and "No matching distribution" in done.stderr:
        return []
    reason = done.stderr.strip().splitlines()[-1]
    raise SystemExit(f"pip cannot look {name} up: {reason}; connect it to a package index")


def months(start: date, end: date) -> list[date]:
    """First days of the months after ``start`` up to ``end``."""
    counted = range(start.year * 12 + start.month, end.year * 12 + end.month)
    return [date(number // 12, number % 12 + 1, 1) for number in counted]


def history(name: str, today: date) -> dict[str, Any]:
    """One row of the record."""
    if undated := releases(name, date(1990, 1, 1)):
        raise SystemExit(
            f"{name} {undated[0]} has no date: leave out folders of your own (PIP_CONFIG_FILE={os.devnull})"
        )
    newest = releases(name)[0]
    years = [date(year, 1, 1) for year in range(FIRST_YEAR, today.year + 1)]
    known = {year: releases(name, year) for year in years}
    later = [year for year in years if newest in known[year]]
    # The newest version came before the first 1 January that knows it, or else in this year.
    end = later[0] if later else today.replace(day=1)
    candidates = months(date(end.year - 1, 1, 1) if later else date(today.year, 1, 1), end)
    low, high = 0, len(candidates)  # bisection: candidates before `low` do not know it, those from `high` on do
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if newest in releases(name, candidates[middle]) else (middle + 1, high)
    after = candidates[low] if low < len(candidates) else date(end.year + end.month // 12, end.month % 12 + 1, 1)
    month = date(after.year - (after.month == 1), (after.month - 2) % 12 + 1, 1)
    return {
        "name": name,
        "newest": newest,
        "month": month.isoformat()[:7],
        "releases": {str(year.year): len(found) for year, found in known.items()},
        "now": len(releases(name)),
    }


def main(
    name: Annotated[str, typer.Option(help="Of the record.")] = "tools",
    only: Annotated[list[str] | None, typer.Option(help="A library to look up; give it once for each.")] = None,
) -> None:
    """Look the libraries up and write the record."""
    measured, today = results.circumstances(), datetime.now(UTC).date()
    wanted = only or list(LIBRARIES)
    with ThreadPoolExecutor(2) as pool:  # an index is nobody's load test
        rows = list(tqdm(pool.map(lambda each: history(each, today), wanted), total=len(wanted), unit="library"))
    typer.echo(results.write(name, {"measured": measured, "settings": {"today": today.isoformat()}, "rows": rows}))


if __name__ == "__main__":
    presets.run(main, only=["learn2learn"])
