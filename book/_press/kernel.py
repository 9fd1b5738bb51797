"""Inside the kernel that executes a chapter: which files the chapter depends on, and what it cost.

A chapter has to be executed again when something changed that its outputs can depend on. Of the package's modules
that is everything in those of which a function ran, and of those that were merely imported (``metabook.learners``
imports every learner) all but the bodies of functions, since only the rest ran. To know which functions ran, the
first statement of each function that is compiled here notes its file: a set insertion, where a profiler would slow
every call. Files of the project that were opened for reading count as well, and so do listed folders. A chapter that
starts other Python processes, which nothing here can see, depends on the whole package.

Standard library only: this runs before the chapter's first cell.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

MIME = "application/vnd.book-press+json"
_NOTE = "__press_note__"
_HARMLESS = {"git", "uname", "ldconfig", "nvidia-smi", "lscpu", "gcc", "cc", "ld", "file"}
_PROCESSES = ("multiprocessing.popen_fork", "multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver")

_ran: set[str] = set()
_loaded: set[str] = set()
_read: set[str] = set()
_listed: set[str] = set()
_opaque: set[str] = set()


class _Noting(ast.NodeTransformer):
    """Adds the note to the outermost functions: what is nested runs only if they do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._note(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return self._note(node)

    def _note(self, node: Any) -> Any:
        note = ast.Expr(ast.Call(ast.Name(_NOTE, ast.Load()), [ast.Constant(self.path)], []))
        ast.copy_location(note, node.body[-1])
        # A docstring stays the first statement.
        node.body.insert(int(ast.get_docstring(node, clean=False) is not None), note)
        return ast.fix_missing_locations(node)


class _Loader(SourceFileLoader):
    """Compiles from source each time; the compiled file of the ordinary import has no notes."""

    def get_code(self, fullname: str) -> Any:
        _loaded.add(self.path)
        tree = _Noting(self.path).visit(ast.parse(self.get_data(self.path), self.path))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def start(project: str, package: str, ignored: Sequence[str]) -> None:
    """Begin to note; ``ignored`` are folders of the project that hold no inputs."""
    root = os.path.join(os.path.abspath(project), "")
    outside = tuple(os.path.join(os.path.abspath(folder), "") for folder in ignored)
    setattr(builtins, _NOTE, _ran.add)
    sys.meta_path.insert(0, _Finder(package))

    def watch(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))
            if not writes and (found := inside(path)):
                _read.add(found)
        elif event in ("os.listdir", "os.scandir"):
            if found := inside(arguments[0]):
                _listed.add(found)
        elif event == "subprocess.Popen":
            if os.path.basename(os.fsdecode(arguments[0] or arguments[1][0])) not in _HARMLESS:
                _opaque.add(str(arguments[0]))
        elif event in ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"):
            _opaque.add(event)

    def inside(path: Any) -> str | None:
        """The path, if it is in the project and not read by an import."""
        if isinstance(path, int):
            return None
        full = os.path.abspath(os.fsdecode(path if path is not None else "."))
        if not full.startswith(root) or full.startswith(outside) or full.endswith(".pyc"):
            return None
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return None
            frame = frame.f_back  # type: ignore[assignment]
        return full

    sys.addaudithook(watch)


def report() -> dict[str, Any]:
    """What was noted, and what the kernel's process has cost so far."""
    opaque = sorted(_opaque) + [name for name in _PROCESSES if name in sys.modules]
    return {
        "ran": sorted(_ran),
        "imported": sorted(_loaded - _ran),
        "read": sorted(_read),
        "listed": sorted(_listed),
        "opaque": opaque,
        "seconds": time.time() - _started(),
        "cpu_seconds": sum(os.times()[:4]),
        "memory_mib": _peak_mib(),
    }


def _started() -> float:
    import psutil

    return psutil.Process().create_time()


def _peak_mib() -> float:
    """Peak resident memory; ``ru_maxrss``, where there is nothing better, can be the parent's from before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
