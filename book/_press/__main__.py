"""Run as ``python book/_press COMMAND``."""

import sys
from pathlib import Path

# Python put this folder on the path; the package is the folder itself.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from _press.cli import app  # noqa: E402

if __name__ == "__main__":
    app(prog_name="book/_press")
