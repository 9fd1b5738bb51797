"""Learners and run states on disk: one safetensors file each, described by JSON in its header.

Nothing here is pickled, so opening a file never runs code from it.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from metabook import learners
from metabook.files import UserError, replacing

__all__ = ["StorageError", "build", "describe", "load", "read_tensors", "save", "write_bytes", "write_tensors"]


class StorageError(UserError):
    """A file that cannot be written or read, or is not what it should be; the message says what to do."""


def describe(module: nn.Module) -> dict[str, Any]:
    """The constructor call that would build ``module``, as JSON-ready data.

    Works for learners and networks of metabook: their constructors keep each argument as an
    attribute of the same name (scikit-learn's convention).
    """
    names, kind = list(inspect.signature(type(module)).parameters), type(module).__name__
    if names == ["args", "kwargs"]:
        names = []  # no constructor of its own
    if not all(hasattr(module, name) for name in names):
        return {"class": kind, "layers": str(module)}  # a reader's own: enough to tell it from others, not to build it
    arguments = {name: getattr(module, name) for name in names}
    described = {name: describe(value) if isinstance(value, nn.Module) else value for name, value in arguments.items()}
    return json.loads(json.dumps({"class": kind, **described}))  # as it will be read back, with lists for tuples


def build(description: dict[str, Any]) -> nn.Module:
    """Build the freshly initialised module that a description describes.

    Raises
    ------
    StorageError
        If it names a class that is neither a learner nor a network of metabook.
    """
    arguments = {name: build(value) if isinstance(value, dict) else value for name, value in description.items()}
    name = str(arguments.pop("class", None))
    for module in ("learners", "nets", "rl"):  # imported here: some of metabook.rl builds upon this module
        namespace = importlib.import_module(f"metabook.{module}")
        kind = getattr(namespace, name) if name in namespace.__all__ else None
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return kind(**arguments)
    raise StorageError(f"no learner or network is called {name!r}: register yours in metabook, or build it in code")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    StorageError
        If the place cannot be written (a full or read-only disk, a missing permission); nothing is left behind.
    """
    try:
        with replacing(Path(path)) as file:
            file.write(content)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write {path}: {reason}; free some space or name another folder") from error


def write_tensors(path: Path | str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write named tensors with a JSON header, atomically."""
    content = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_bytes(path, to_bytes(content, metadata={"metabook": json.dumps(header)}))


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: the tensors and the header.

    Raises
    ------
    StorageError
        If the file is missing, damaged, or was not written by metabook.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["metabook"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StorageError(f"{path} is damaged or was not written by metabook ({error})") from error


def save(learner: learners.Learner, path: Path | str) -> None:
    """Save a trained learner: weights in safetensors, its description as JSON in the header.

    Parameters
    ----------
    learner : Learner
        Built from metabook's classes, so that :func:`load` can build it again.
    path : path
        Usually ``something.safetensors``; replaced atomically if it exists.

    Raises
    ------
    StorageError
        If the file cannot be written, or the learner is not built from metabook's classes.
    """
    description = describe(learner)
    build(description)  # what could not be loaded again is not saved
    write_tensors(path, learner.state_dict(), {"learner": description})


def load(path: Path | str, device: str = "cpu") -> learners.Learner:
    """Load a learner that :func:`save` wrote, in evaluation mode.

    Parameters
    ----------
    path : path
        The file, or the folder of a run (``metabook train --out``), in which it is ``learner.safetensors``.
    device : str

    Raises
    ------
    StorageError
        If the file is missing, damaged, or does not hold a learner.
    """
    path = Path(path)
    path = path / "learner.safetensors" if path.is_dir() else path
    tensors, header = read_tensors(path)
    if "learner" not in header:
        raise StorageError(f"{path} does not hold a learner")
    learner = build(header["learner"])
    if not isinstance(learner, learners.Learner):
        raise StorageError(f"{path} does not hold a learner")
    try:
        learner.load_state_dict(tensors)
    except RuntimeError as error:
        raise StorageError(f"{path}: weights and description disagree") from error
    return learner.to(device).eval()
