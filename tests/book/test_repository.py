"""Which address the buttons lead to: never one that nobody gave."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from _press import repository


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://example.org/owner/book.git", "https://example.org/owner/book"),
        ("https://user:secret@example.org/owner/book/", "https://example.org/owner/book"),
        ("git@example.org:owner/book.git", "https://example.org/owner/book"),
        ("ssh://git@example.org:22/owner/book.git", "https://example.org/owner/book"),
        ("/srv/git/book.git", ""),
        ("file:///srv/git/book.git", ""),
        ("https://localhost/owner/book", ""),
        ("https://example.org", ""),
        ('https://example.org/a"; import os', ""),
        ("", ""),
    ],
)
def test_only_public_addresses_without_credentials_are_used(given: str, expected: str) -> None:
    assert repository.clean(given) == expected


def test_the_first_that_is_known_is_taken(tmp_path: Path) -> None:
    config = {"repository": {"url": "https://example.org/from/config"}}
    environment = {"GITHUB_REPOSITORY": "from/actions"}
    assert repository.find(config, tmp_path, {"BOOK_REPOSITORY_URL": "https://example.org/own/own", **environment}) == (
        "https://example.org/own/own"
    )
    assert repository.find(config, tmp_path, environment) == "https://github.com/from/actions"
    assert repository.find(config, tmp_path, {}) == "https://example.org/from/config"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", "git@example.org:from/origin.git"], check=True)
    assert repository.find(config, tmp_path, {}) == "https://example.org/from/origin"


@pytest.mark.parametrize("config", [{}, {"repository": None}, {"repository": {"url": ""}}])
def test_nothing_is_made_up(config: dict, tmp_path: Path) -> None:
    assert repository.find(config, tmp_path, {}) == ""
