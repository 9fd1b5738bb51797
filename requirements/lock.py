"""Resolve lock.in for every supported Python and write lock.txt (run by `make lock`)."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
# What a CUDA build of torch brings along follows from torch's own version and the platform.
PLATFORM = re.compile(r"^(nvidia-|cuda-|triton$)")
HEADER = """\
# Exact versions of everything that lock.in leads to, for Python {pythons}.
# Written by `make lock`: do not edit. The CUDA packages that torch brings on some platforms are left to torch.
"""


def resolve(python: str) -> dict[str, str]:
    """Name and version of each distribution that lock.in leads to on one Python version, without installing any."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--python-version", python, "--only-binary", ":all:", "--target", folder]
        subprocess.run([*command, "--report", str(report), "-r", str(HERE / "lock.in")], check=True)
        found = (item["metadata"] for item in json.loads(report.read_text())["install"])
        return {re.sub(r"[-_.]+", "-", m["name"]).lower(): m["version"].partition("+")[0] for m in found}


def merge(resolved: dict[str, dict[str, str]]) -> list[str]:
    """One line a distribution, with an environment marker where the Python versions disagree."""
    lines = []
    for name in sorted({name for versions in resolved.values() for name in versions if not PLATFORM.match(name)}):
        wanted = {python: versions.get(name) for python, versions in resolved.items()}
        if len(set(wanted.values())) == 1:
            lines.append(f"{name}=={wanted[PYTHONS[0]]}")
        else:
            lines += [f'{name}=={v} ; python_version == "{python}"' for python, v in wanted.items() if v]
    return lines


def main() -> None:
    lines = merge({python: resolve(python) for python in PYTHONS})
    part = HERE / "lock.txt.part"
    part.write_text(HEADER.format(pythons=" and ".join(PYTHONS)) + "\n".join(lines) + "\n")
    os.replace(part, HERE / "lock.txt")
    print(f"{len(lines)} lines in {HERE / 'lock.txt'}")


if __name__ == "__main__":
    main()
