"""Run the chapters, each in a kernel of its own, and only those whose outputs can have changed.

nbclient runs them and not papermill, which takes a cell tagged ``raises-exception`` for a failure of the notebook.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from tqdm import tqdm
from traitlets import Type

from . import kernel, twins
from .flatten import Index
from .layout import PROJECT, Book, Page

PACKAGE = "metabook"
_HERE = Path(__file__).resolve().parent
_TIMEOUT = {"smoke": 300, "book": 900}  # seconds a cell; none at full
_FORGOTTEN = {"METABOOK_PRESET", "METABOOK_CACHE"}


@dataclass(frozen=True)
class Outcome:
    """What became of one chapter.

    Parameters
    ----------
    page : Page
    fresh : bool
        Whether it was executed now.
    failure : str
        Cell and last line of the error; empty if all went well.
    measured : dict
        ``seconds``, ``cpu_seconds``, ``memory_mib`` of the execution that the outputs are from.
    warnings : tuple of str
        What the chapter wrote to its error stream.
    """

    page: Page
    fresh: bool
    failure: str = ""
    measured: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()


# --- Keys ---------------------------------------------------------------------------------------------------------


def _digest(*parts: bytes | str) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()


class _Bodiless(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = []
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        node.body = []
        return node


def fingerprint(path: Path, how: str) -> str:
    """Digest of a dependency: a whole ``file``, its ``outline`` without function bodies, a ``folder`` as a list."""
    if not path.exists():
        return "absent"
    if how == "folder":
        return _digest(*sorted(entry.name for entry in path.iterdir() if entry.name != "__pycache__"))
    if how == "outline":
        return _digest(ast.dump(_Bodiless().visit(ast.parse(path.read_bytes()))))
    return _digest(path.read_bytes())


def base_key(notebook: dict[str, Any], preset: str, project: Path = PROJECT) -> str:
    """Digest of what is known before the execution: the cells, the preset, and the environment."""
    code = [[cell["source"], cell["metadata"].get("tags")] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    lock = project / "requirements" / "lock.txt"
    settings = {k: v for k, v in os.environ.items() if k.startswith("METABOOK_") and k not in _FORGOTTEN}
    versions = [f"{name} {_version(name)}" for name in ("torch", "numpy", "matplotlib")]
    return _digest(
        json.dumps([code, preset, platform.python_version(), versions, settings], sort_keys=True),
        lock.read_bytes() if lock.exists() else b"",
        *((_HERE / name).read_bytes() for name in ("kernel.py", "execute.py")),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def dependencies(report: dict[str, Any], project: Path) -> dict[str, list[str]]:
    """``{path: [how, digest]}`` of what a kernel reported; paths of the project are relative to it."""
    wanted = [*((path, "outline") for path in report["imported"]), *((path, "file") for path in report["ran"])]
    wanted += [*((path, "file") for path in report["read"]), *((path, "folder") for path in report["listed"])]
    if report["opaque"]:
        wanted += [(str(path), "file") for path in sorted((project / PACKAGE).rglob("*.py"))]
    return {_relative(path, project): [how, fingerprint(Path(path), how)] for path, how in wanted}


def _relative(path: str, project: Path) -> str:
    inside = Path(path).is_relative_to(project)
    return Path(path).relative_to(project).as_posix() if inside else path


def is_current(state: dict[str, Any], key: str, project: Path = PROJECT) -> bool:
    """Whether outputs of an earlier execution are what a new one would give."""
    return state.get("key") == key and all(
        fingerprint(project / path, how) == digest for path, (how, digest) in state["dependencies"].items()
    )


def stale(book: Book, preset: str, project: Path = PROJECT) -> list[Page]:
    """The chapters that :func:`run` would execute."""
    index = Index(book)
    return [page for page in book.notebooks if _kept(book, page, twins.build(index, page), preset, project) is None]


def _kept(book: Book, page: Page, notebook: dict[str, Any], preset: str, project: Path) -> dict[str, Any] | None:
    """The state that an earlier execution left, if its outputs are those of a new one."""
    done = book.executed(preset) / f"{page.name}.ipynb"
    sidecar = done.with_suffix(".json")
    if not (done.exists() and sidecar.exists()):
        return None
    state = json.loads(sidecar.read_text(encoding="utf-8"))
    return state if is_current(state, base_key(notebook, preset, project), project) else None


# --- Execution ----------------------------------------------------------------------------------------------------


class _OwnInterpreter(KernelSpecManager):
    """Every kernel is the Python that runs the press, whatever kernels the machine has."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=make_ipkernel_cmd(extra_arguments=["--log-level=ERROR"]), display_name="Python 3", language="python"
        )


class _KernelManager(AsyncKernelManager):
    kernel_spec_manager_class = Type(_OwnInterpreter)

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return _OwnInterpreter(parent=self)


def run(
    book: Book, preset: str, *, only: Sequence[str] = (), force: bool = False, jobs: int = 2, project: Path = PROJECT
) -> list[Outcome]:
    """Execute chapters into ``_build/executed/<preset>``, several at a time.

    Parameters
    ----------
    book : Book
    preset : str
    only : sequence of str
        Names of pages; all if empty.
    force : bool
        Also those whose outputs are current.
    jobs : int
        Kernels at a time.
    project : Path
        Where the package and the lock are.

    Returns
    -------
    list of Outcome
        One a chapter, in reading order; failures are among them and do not stop the others.
    """
    index = Index(book)
    pages = [page for page in book.notebooks if not only or page.name in only or page.source.stem in only]
    return asyncio.run(_all(index, pages, preset, force, jobs, project))


async def _all(
    index: Index, pages: Sequence[Page], preset: str, force: bool, jobs: int, project: Path
) -> list[Outcome]:
    free = asyncio.Semaphore(jobs)
    with tqdm(total=len(pages), desc=f"executing ({preset})", unit="chapter") as bar:

        async def one(page: Page) -> Outcome:
            notebook = twins.build(index, page)
            async with free:
                outcome = await _one(index.book, page, notebook, preset, force, project)
            if outcome.failure:
                bar.write(f"FAILED {page.name}: {outcome.failure}")
            elif outcome.fresh and outcome.measured:
                bar.write(f"{page.name}: {outcome.measured['seconds']:.0f} s, {outcome.measured['memory_mib']:.0f} MiB")
            bar.update()
            return outcome

        return list(await asyncio.gather(*(one(page) for page in pages)))


async def _one(book: Book, page: Page, notebook: dict[str, Any], preset: str, force: bool, project: Path) -> Outcome:
    done = book.executed(preset) / f"{page.name}.ipynb"
    sidecar = done.with_suffix(".json")
    if not force and (state := _kept(book, page, notebook, preset, project)):
        return Outcome(page, fresh=False, measured=state["measured"], warnings=tuple(state["warnings"]))
    key = base_key(notebook, preset, project)
    for old in (sidecar, done):
        old.unlink(missing_ok=True)
    node = nbformat.reads(twins.serialise(notebook).decode(), as_version=4)
    watched = _watched(node, book, project)
    failure = await _execute(watched, preset, project)
    node.cells = watched.cells[1:-1]
    _anonymise(node, project)
    if not failure:
        failure = _unexpected(node)
    done.parent.mkdir(parents=True, exist_ok=True)
    failed = done.with_suffix(".failed.ipynb")
    if failure:
        _write(failed, nbformat.writes(node))
        return Outcome(page, fresh=True, failure=failure)
    failed.unlink(missing_ok=True)
    report = _report(watched)
    measured = {name: round(report[name], 2) for name in ("seconds", "cpu_seconds", "memory_mib")}
    said = _said(node)
    state = {"key": key, "dependencies": dependencies(report, project), "measured": measured, "warnings": said}
    _write(done, nbformat.writes(node))
    _write(sidecar, json.dumps(state, indent=1))
    return Outcome(page, fresh=True, measured=measured, warnings=tuple(said))


def _watched(node: NotebookNode, book: Book, project: Path) -> NotebookNode:
    """The notebook between two cells of ours."""
    ignored = [str(project / name) for name in (".git", ".venv", "_build")] + [str(book.build)]
    first = (
        f"import sys; sys.path.insert(0, {str(_HERE.parent)!r}); from _press import kernel; sys.path.pop(0)\n"
        f"kernel.start({str(project)!r}, {PACKAGE!r}, {ignored!r})\ndel kernel, sys"
    )
    last = (
        "from _press import kernel; from IPython.display import display\n"
        "display({kernel.MIME: kernel.report()}, raw=True)"
    )
    copy = nbformat.from_dict(node)
    copy.cells = [nbformat.v4.new_code_cell(first), *node.cells, nbformat.v4.new_code_cell(last)]
    return copy


async def _execute(node: NotebookNode, preset: str, project: Path) -> str:
    """Run in place; the failure in one line, or nothing."""
    environment = os.environ | {
        "METABOOK_PRESET": preset,
        "OMP_NUM_THREADS": "1",  # chapters share the cores, and two threads that contend are slower than one
        "PYTHONPATH": os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    folder = tempfile.mkdtemp(prefix="chapter-")  # whatever a chapter writes beside itself goes with it
    client = NotebookClient(
        node,
        timeout=_TIMEOUT.get(preset),
        kernel_name="python3",
        kernel_manager_class=_KernelManager,
        record_timing=False,
        coalesce_streams=True,  # what one cell prints is one text, however slowly it came
        resources={"metadata": {"path": folder}},
    )
    started: list[int] = []
    client.on_cell_execute = lambda cell, cell_index: started.append(cell_index)
    try:
        await client.async_execute(env=environment)
    except CellExecutionError as error:
        return f"{_place(node, started)}: {error.ename}: {_last_line(error.evalue)}"
    except Exception as error:  # a kernel that died or hung
        return f"{_place(node, started)}: {type(error).__name__}: {_last_line(str(error))}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _place(node: NotebookNode, started: Sequence[int]) -> str:
    """The code cell in which the execution ended, as the author counts and sees it."""
    if not started:
        return "before the first cell"
    ours = 2  # the watching cell, and the one that installs on Colab
    number = sum(cell.cell_type == "code" for cell in node.cells[: started[-1] + 1]) - ours
    text = next((line for line in node.cells[started[-1]].source.splitlines() if line.strip()), "")
    return f"code cell {number} ({text.strip()[:60]})"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _unexpected(node: NotebookNode) -> str:
    """A cell that had to fail and did not."""
    for cell in node.cells:
        tags = cell.metadata.get("tags", [])
        if "raises-exception" in tags and not any(output.output_type == "error" for output in cell.outputs):
            return f"a cell tagged raises-exception raised nothing: {cell.source.splitlines()[0][:60]}"
    return ""


def _anonymise(node: NotebookNode, project: Path) -> None:
    """Take the places of this machine out of tracebacks and messages."""
    folders = {str(project): "", str(Path(sys.prefix)): "python"}
    folders |= {
        f"~/{Path(f).relative_to(Path.home())}": to for f, to in folders.items() if Path(f).is_relative_to(Path.home())
    }

    def clean(text: str) -> str:
        for folder, to in folders.items():
            text = text.replace(f"{folder}{os.sep}", to and f"{to}{os.sep}")
        return re.sub(r"[\w/.~-]*/ipykernel_\d+/\d+\.py", "cell", text)

    for output in (output for cell in node.cells for output in cell.get("outputs", [])):
        if output.output_type == "stream":
            output.text = clean(output.text)
        elif output.output_type == "error":
            output.evalue = clean(output.evalue)
            output.traceback = [clean(line) for line in output.traceback]


def _said(node: NotebookNode) -> list[str]:
    """The error stream without progress bars."""
    streams = (o for cell in node.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    return [output.text.strip() for output in streams if output.name == "stderr" and not is_progress(output.text)]


def is_progress(text: str) -> bool:
    """Whether an error stream is that of a progress bar."""
    return "\r" in text or "it/s]" in text or "IProgress not found" in text


def _report(node: NotebookNode) -> dict[str, Any]:
    return node.cells[-1].outputs[-1].data[kernel.MIME]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def failures(outcomes: Iterable[Outcome]) -> list[str]:
    """One line a failed chapter."""
    return [f"{outcome.page.name}: {outcome.failure}" for outcome in outcomes if outcome.failure]


def glued(book: Book, page: Page, preset: str) -> dict[str, str]:
    """What the executed chapter handed to its prose: ``{name: text}``."""
    node = nbformat.read(book.executed(preset) / f"{page.name}.ipynb", as_version=4)
    found: dict[str, str] = {}
    for output in (output for cell in node.cells for output in cell.get("outputs", [])):
        scrap = output.get("metadata", {}).get("scrapbook")
        if scrap:
            found[scrap["name"]] = output.data.get(f"{scrap['mime_prefix']}text/plain", "")
    return found


def records_read(book: Book, page: Page, preset: str) -> list[str]:
    """Names of the records that the executed chapter read."""
    state = json.loads((book.executed(preset) / f"{page.name}.json").read_text(encoding="utf-8"))
    paths = [Path(path) for path in state["dependencies"]]
    return sorted(path.stem for path in paths if path.parts[:-1] == ("results",) and path.suffix == ".json")
