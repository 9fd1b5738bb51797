"""The pages: Jupyter Book makes them from the woven sources; nothing is executed here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import repository, twins
from .errors import PressError
from .flatten import Index
from .layout import PROJECT, Book

_HERE = Path(__file__).resolve().parent


def build(book: Book, source: Path) -> Path:
    """Make the HTML, every warning an error; not at all if nothing that goes into it has changed.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    PressError
        If Jupyter Book reports a warning or an error; its messages have been printed.
    """
    index = book.build / "html" / "index.html"
    stamp = book.build / "html.stamp"
    machinery, everything = _keys(book, source)
    before = stamp.read_text().split() if stamp.exists() and index.exists() else []
    if before == [machinery, everything]:
        return index
    stamp.unlink(missing_ok=True)
    if before[:1] != [machinery]:  # what makes the pages has changed: Sphinx would renew only those whose text has
        for folder in (".doctrees", "html"):
            shutil.rmtree(book.build / folder, ignore_errors=True)
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*program, "build", str(source), "-W", "-n", "--keep-going", "-q"]
    command += ["--config", str(book.config_file), "--path-output", str(book.build.parent)]
    path = os.pathsep.join([str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PRESS_REPOSITORY_URL": repository.find(book.config, book.folder)}
    if subprocess.run(command, env=environment, check=False).returncode:
        # Sphinx does not repeat the warnings of pages that it need not read again: it must read all the next time.
        shutil.rmtree(book.build / ".doctrees", ignore_errors=True)
        raise PressError("the pages could not be made: the messages above say where")
    _offer_twins(book)
    stamp.write_text(f"{machinery} {everything}")
    return index


def _offer_twins(book: Book) -> None:
    """What the pages offer for download: the notebook that any Jupyter can show, not the one that Sphinx read."""
    labels = Index(book)
    for page in book.notebooks:
        target = book.build / "html" / "_sources" / f"{page.name}.ipynb"
        target.write_bytes(twins.serialise(twins.build(labels, page)))


def _keys(book: Book, source: Path) -> tuple[str, str]:
    """Digests of what makes the pages, and of that and their sources."""
    address = repository.find(book.config, book.folder).encode()
    lock = PROJECT / "requirements" / "lock.txt"
    tools = [book.config_file, *sorted(_HERE.glob("*.py")), *filter(Path.exists, [lock]), *source.glob("_toc.yml")]
    texts = sorted(path for path in source.rglob("*") if path.is_file())
    machinery = _digest(tools, address)
    return machinery, _digest(texts, machinery.encode())


def _digest(files: list[Path], start: bytes) -> str:
    hashed = hashlib.sha256(start)
    for path in files:
        hashed.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def serve(book: Book, port: int) -> None:
    """Serve the pages on this machine until interrupted."""
    folder = book.build / "html"
    if not (folder / "index.html").exists():
        raise PressError("there are no pages yet: run `make book` first")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise PressError(f"cannot serve on port {port} ({error.strerror}): choose another with --port") from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
