"""Where the book's repository is, if anybody has said so. An owner is never made up: a notebook installs from there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCP_LIKE = re.compile(r"^(?:[\w.-]+@)?(?P<host>[\w.-]+\.[\w-]+):(?P<path>[\w./~-]+)$")


def clean(url: str) -> str:
    """An https address without credentials and ``.git``, or nothing if it is no public address.

    >>> clean("git@example.org:owner/book.git")
    'https://example.org/owner/book'
    """
    url = url.strip()
    if found := _SCP_LIKE.match(url):
        url = f"https://{found['host']}/{found['path']}"
    found = re.match(
        r"^(?:https?|ssh|git)://(?:[^@/]+@)?(?P<host>[\w.-]+\.[a-z]{2,})(?::\d+)?/(?P<path>[\w./~-]+)$", url
    )
    if not found:
        return ""
    return f"https://{found['host']}/{found['path'].strip('/').removesuffix('.git')}"


def configured(config: Mapping[str, Any]) -> str:
    """The address that ``_config.yml`` gives, or nothing."""
    return clean((config.get("repository") or {}).get("url") or "")


def find(config: Mapping[str, Any], folder: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The first known of BOOK_REPOSITORY_URL, GITHUB_REPOSITORY, the git origin and ``_config.yml``, or nothing."""
    if url := clean(environment.get("BOOK_REPOSITORY_URL", "")):
        return url
    if name := environment.get("GITHUB_REPOSITORY", "").strip():
        return clean(f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}")
    return clean(_origin(folder)) or configured(config)


def _origin(folder: Path) -> str:
    command = ["git", "-C", str(folder), "config", "--get", "remote.origin.url"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:  # no git
        return ""
