"""Writing files so that nothing is ever lost: whole in their place, or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["UserError", "folder_of", "replacing"]


class UserError(RuntimeError):
    """Something that the user can mend; the message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """The folder of ``path`` is there in the block; if the block fails, what was made for it goes again if empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # something else was put there
                folder.rmdir()
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in the place of ``path``, which it takes when the block ends well.

    Until then it stands beside its place under another name. Readers see the old file or the whole
    new one, and a failure of any kind leaves nothing behind.

    Raises
    ------
    OSError
        If the folder cannot be made or written to, or has no room.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with folder_of(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
