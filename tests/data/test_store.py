from __future__ import annotations

import errno
import hashlib
import http.server
import logging
import pickle
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from metabook import data
from metabook.data import DataError, store

CONTENT = b"some data" * 50_000
HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        content = {"/right": CONTENT, "/wrong": CONTENT[::-1], "/short": CONTENT}.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/short" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = http.server.HTTPServer(("127.0.0.1", 0), _Handler)
    httpd.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def url(server: http.server.HTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_download_is_kept_and_not_repeated(cache: Path, server) -> None:
    for _ in range(2):
        path = store.find_or_fetch("set/file.bin", [url(server, "right")], HASH)
        assert path == cache / "set" / "file.bin"
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/right"]
    assert files(cache) == [path]


def test_a_damaged_download_is_fetched_again(cache: Path, server) -> None:
    path = store.find_or_fetch("file.bin", [url(server, "right")], HASH)
    path.write_bytes(CONTENT[:100])
    assert store.find_or_fetch("file.bin", [url(server, "right")], HASH).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("path", "message"), [("wrong", "wrong hash"), ("missing", "HTTP 404"), ("short", "download|hash")]
)
def test_a_bad_download_is_one_line_and_leaves_nothing(cache: Path, server, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        store.find_or_fetch("set/file.bin", [url(server, path)], HASH, otherwise="or do something else")
    assert "\n" not in str(caught.value)
    assert "set METABOOK_DATA to a folder that holds set/file.bin; or do something else" in str(caught.value)
    assert files(cache) == []


def test_a_bad_download_leaves_an_old_one_alone(cache: Path, server) -> None:
    cache.mkdir()
    (cache / "other.bin").write_bytes(b"other")
    with pytest.raises(DataError):
        store.find_or_fetch("file.bin", [url(server, "wrong")], HASH)
    assert files(cache) == [cache / "other.bin"]


def test_the_next_address_is_tried(cache: Path, server) -> None:
    addresses = [
        f"http://127.0.0.1:{closed_port()}/x",
        url(server, "missing"),
        url(server, "wrong"),
        url(server, "right"),
    ]
    assert store.find_or_fetch("file.bin", addresses, HASH).read_bytes() == CONTENT
    assert server.asked == ["/missing", "/wrong", "/right"]


def test_no_network_and_no_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    address = f"http://127.0.0.1:{closed_port()}/"
    monkeypatch.setattr("metabook.data.store.CONNECT_SECONDS", 2)
    import sys

    monkeypatch.setattr(sys.modules["metabook.data.omniglot"], "URLS", (address,))
    with pytest.raises(DataError) as caught:
        data.omniglot("test")
    message = str(caught.value)
    assert "no connection" in message
    assert "METABOOK_DATA" in message
    assert "omniglot/images_evaluation.zip" in message
    assert "--data glyphs" in message
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert files(cache) == []


def test_the_users_own_file_comes_first_and_is_not_checked(cache: Path, tmp_path: Path, server, monkeypatch) -> None:
    (tmp_path / "own" / "set").mkdir(parents=True)
    (tmp_path / "own" / "set" / "file.bin").write_bytes(b"my own")
    monkeypatch.setenv("METABOOK_DATA", str(tmp_path / "own"))
    assert store.find_or_fetch("set/file.bin", [url(server, "right")], HASH).read_bytes() == b"my own"
    assert store.find_or_fetch("set/else.bin", [url(server, "right")], HASH) == cache / "set" / "else.bin"
    assert server.asked == ["/right"]


def test_a_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METABOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"METABOOK_DATA is .*nowhere, which is not a folder"):
        store.data_folder()


def test_a_cache_that_cannot_hold_a_download(tmp_path: Path, server, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METABOOK_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.delenv("METABOOK_DATA", raising=False)
    with pytest.raises(DataError, match=r"cannot be stored.*METABOOK_CACHE"):
        store.find_or_fetch("file.bin", [url(server, "right")], HASH)


def test_a_full_disk_during_a_download(cache: Path, server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pooch.core.shutil.move", full)
    with pytest.raises(DataError, match=r"No space left on device.*METABOOK_CACHE"):
        store.find_or_fetch("file.bin", [url(server, "right")], HASH)
    assert files(cache) == []


def make() -> dict[str, np.ndarray]:
    return {"x": np.arange(50_000, dtype=np.int64), "names": np.array(["α", "beta"])}


def test_arrays_are_built_once(cache: Path) -> None:
    calls = []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return make()

    first, second = (store.cached_arrays("set", "key", build) for _ in range(2))
    assert len(calls) == 1
    for name, array in make().items():
        assert np.array_equal(first[name], array)
        assert np.array_equal(second[name], array)
        assert second[name].dtype == array.dtype
    store.cached_arrays("set", "another key", build)
    assert len(calls) == 2
    assert [path.suffix for path in files(cache)] == [".npz", ".npz"]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_cache_file_is_rebuilt(cache: Path, keep: float) -> None:
    store.cached_arrays("set", "key", make)
    (path,) = files(cache)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert np.array_equal(store.cached_arrays("set", "key", make)["x"], make()["x"])
    assert store.load_npz(path) is not None


def test_a_cache_file_with_wrong_bytes_is_rebuilt(cache: Path) -> None:
    store.cached_arrays("set", "key", make)
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    path.write_bytes(bytes(content))
    assert np.array_equal(store.cached_arrays("set", "key", make)["x"], make()["x"])


def test_a_pickle_in_the_cache_is_not_loaded(cache: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    path = store.cached_path("set", "key")
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Trap()))
    assert store.load_npz(path) is None
    np.savez(path, x=np.array([Trap()], dtype=object))
    assert store.load_npz(path) is None
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["metabook.data.store.os.replace", "metabook.data.store.np.savez_compressed"])
def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch, caplog, code: int, where: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, "the disk says no")

    monkeypatch.setattr(where, fail)
    monkeypatch.setattr("metabook.data.store._said", set())
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            assert np.array_equal(store.cached_arrays("set", "key", make)["x"], make()["x"])
    assert not warned
    assert len(caplog.messages) == 1
    assert "METABOOK_CACHE" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert files(cache) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arrays.npz"
    store.save_npz(path, {"x": np.ones(3)})

    def interrupt(file, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("metabook.data.store.np.savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save_npz(path, {"x": np.zeros(3)})
    assert files(tmp_path) == [path]
    assert np.array_equal(store.load_npz(path)["x"], np.ones(3))


def test_omniglot_without_a_writable_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = data.omniglot("test")
    (folder / "in_the_way").write_text("")
    monkeypatch.setenv("METABOOK_CACHE", str(folder / "in_the_way" / "cache"))
    assert torch.equal(data.omniglot("test").x, expected.x)
