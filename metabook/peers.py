"""The libraries that metabook is compared with, imported so that a lean environment can hold them.

`learn2learn <https://github.com/learnables/learn2learn>`_ 0.2.0 is the reference of the tests, the
peer of the benchmarks and the subject of a chapter; nothing else in metabook needs it. Its
``__init__`` imports ``gym``, ``torchvision`` and others which its algorithms never use, and which
are large or no longer maintained. Here its algorithms are imported without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

__all__ = ["learn2learn", "learn2learn_algorithms"]

_NEEDED = ("utils", "algorithms", "data")
_WELCOME = ("optim", "nn")
_INSTALL = "pip install --upgrade pip && pip install --no-deps -r requirements/learn2learn.txt"


def learn2learn() -> ModuleType:
    """The package ``learn2learn``: as ``import learn2learn`` gives it, or what works of it.

    Where a dependency of its is missing or broken, ``learn2learn.algorithms`` (MAML, MetaSGD, GBML),
    ``.data`` (MetaDataset, TaskDataset, transforms), ``.utils``, ``.optim`` and ``.nn`` are there,
    ``.vision``, ``.gym`` and ``.text`` are not. A later ``import learn2learn`` gives the same module.

    Raises
    ------
    ImportError
        If it is not installed, or its algorithms cannot be imported; the message says how to install it.
    """
    if "learn2learn" in sys.modules:
        return sys.modules["learn2learn"]
    spec = importlib.util.find_spec("learn2learn")
    if spec is None or spec.loader is None:
        raise ImportError(f"learn2learn is not installed: in the book's checkout, run `{_INSTALL}`")
    package = importlib.util.module_from_spec(spec)
    # The package is entered by hand because the import statement would throw it away when its __init__ fails:
    # this way its __path__ stays, and modules that hold a reference to it see what is added later.
    sys.modules["learn2learn"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like, in code that is not ours
        try:
            spec.loader.exec_module(package)
        except Exception:  # ImportError in a lean environment, others where an old gym meets a new NumPy
            _import_without_init(package)
    return package


def learn2learn_algorithms() -> ModuleType:
    """``learn2learn.algorithms``, of :func:`learn2learn`: ``MAML``, ``MetaSGD``, ``GBML``."""
    return learn2learn().algorithms


def _import_without_init(package: ModuleType) -> None:
    """Do for the modules that need only torch what the package's ``__init__`` would have done."""
    for name in (*_NEEDED, *_WELCOME):
        try:
            importlib.import_module(f"learn2learn.{name}")  # which sets it as the package's attribute
        except Exception as error:
            if name in _NEEDED:
                del sys.modules["learn2learn"]
                message = f"learn2learn.{name} cannot be imported ({error}): install it anew with `{_INSTALL}`"
                raise ImportError(message) from error
    utils = vars(package.utils)
    vars(package).update({name: value for name, value in utils.items() if not name.startswith("_")})
