"""Settings of every test process: one thread each, and a cache inside the checkout that all of them share."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Before torch or a notebook's kernel starts: two workers of two threads each are slower than two of one.
os.environ["OMP_NUM_THREADS"] = "1"
# Building the glyphs takes seconds: once for all workers and runs (a file's name follows from what it depends on),
# and never in the user's own cache.
os.environ["METABOOK_CACHE"] = str(ROOT / "_build" / "cache" / "tests")

import torch  # noqa: E402

torch.set_num_threads(1)

import pytest  # noqa: E402

from metabook import LabelledData  # noqa: E402


@pytest.fixture(scope="session")
def make_pool():
    """A pool of easy classes: each a random picture, its examples the picture with some noise."""

    def make(classes=6, instances=8, dtype=torch.float32, groups=("a",)):
        generator = torch.Generator().manual_seed(0)
        templates = torch.rand(classes, 1, 1, 28, 28, generator=generator, dtype=dtype)
        noise = torch.rand(classes, instances, 1, 28, 28, generator=generator, dtype=dtype)
        return LabelledData(
            x=(0.6 * templates + 0.4 * noise).flatten(0, 1),
            y=torch.arange(classes).repeat_interleave(instances),
            names=tuple(f"class{c}" for c in range(classes)),
            groups=tuple(groups[c % len(groups)] for c in range(classes)),
        )

    return make


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; where there is none, the test is skipped and says so."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium browser on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
