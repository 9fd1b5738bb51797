"""Files: where data lies, how it is fetched and checked, and what is cached.

Data are looked for in this order:

1. the folder that the environment variable ``METABOOK_DATA`` names: the user's own copies,
   taken as they are (``METABOOK_DATA/omniglot/images_evaluation.zip``);
2. the cache (``METABOOK_CACHE``, else the user's cache folder): earlier downloads, checked by hash each time;
3. the network: into the cache, beside its final name first, and moved there only if the hash is right.

Whatever a user can mend is a :class:`DataError` of one line that says how. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pooch
from tqdm import tqdm

from metabook.files import UserError, folder_of, replacing

__all__ = [
    "DataError",
    "cache_folder",
    "cached_arrays",
    "data_folder",
    "file_hash",
    "find_or_fetch",
    "load_npz",
    "save_npz",
]

Arrays = dict[str, np.ndarray]
CONNECT_SECONDS, READ_SECONDS = 10, 60
_log = logging.getLogger("metabook")
_said: set[str] = set()


class DataError(UserError):
    """Data that is missing, damaged or cannot be stored; the message is one line and says what to do."""


class _DownloadError(Exception):
    """One address failed; the next may serve."""


def data_folder() -> Path | None:
    """The folder of the user's own data, from ``METABOOK_DATA``.

    Raises
    ------
    DataError
        If the variable is set but names no folder.
    """
    value = os.environ.get("METABOOK_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(f"METABOOK_DATA is {value}, which is not a folder: correct it or unset it")
    return folder


def cache_folder() -> Path:
    """The folder of downloads and decoded data, from ``METABOOK_CACHE`` or the system's custom; it need not exist."""
    value = os.environ.get("METABOOK_CACHE")
    return Path(value).expanduser() if value else Path(pooch.os_cache("metabook"))


def find_or_fetch(
    name: str, urls: Sequence[str], known_hash: str, *, otherwise: str = "", folder: bool = False
) -> Path:
    """Path of a data file: the user's own, else the cached download, else downloaded now.

    Parameters
    ----------
    name : str
        Path below the data folder and below the cache, with forward slashes.
    urls : sequence of str
        Where to download it from, tried in this order.
    known_hash : str
        ``md5:...`` or ``sha256:...`` of the download. The user's own files are not checked.
    otherwise : str
        What else the reader can do when the file cannot be had; ends the error message.
    folder : bool
        Whether an extracted archive, a folder called as the file without its suffix, will do as well.

    Raises
    ------
    DataError
        If the file is not there and cannot be downloaded, comes with another hash, or cannot be stored.
    """
    own = data_folder()
    if own is not None:
        candidates = [own / name] + ([(own / name).with_suffix("")] if folder else [])
        for path in candidates:
            if path.exists():
                return path
    target = cache_folder() / name
    if _intact(target, known_hash):
        return target
    reason = "there is no address to download it from"
    for number, url in enumerate(urls):
        try:
            return _download(url, target, known_hash)
        except _DownloadError as error:
            reason = str(error) if number == 0 else reason
    has = f"METABOOK_DATA ({own}) does not hold {name}" if own else f"set METABOOK_DATA to a folder that holds {name}"
    raise DataError(f"{target.name}: {reason}; {has}{'; ' if otherwise else ''}{otherwise}")


def _intact(path: Path, known_hash: str) -> bool:
    algorithm, _, digest = known_hash.partition(":")
    try:
        return path.is_file() and file_hash(path, algorithm) == digest
    except OSError:
        return False


def _download(url: str, target: Path, known_hash: str) -> Path:
    """Download one file with a progress bar; on any failure leave nothing behind."""
    import requests.exceptions

    # pooch announces each download in a long line of its own; the progress bar is enough.
    pooch.get_logger().setLevel(logging.WARNING)
    # pooch puts in the true total; a bar without one has no truth value, for which pooch asks first.
    bar = tqdm(desc=target.name, total=1, unit="B", unit_scale=True, leave=False, delay=0.5)
    get = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=(CONNECT_SECONDS, READ_SECONDS))
    try:
        with folder_of(target), bar:
            pooch.retrieve(url, known_hash, fname=target.name, path=target.parent, downloader=get)
    except requests.exceptions.Timeout:
        raise _DownloadError("cannot be downloaded (no answer in time)") from None
    except requests.exceptions.ConnectionError:
        raise _DownloadError("cannot be downloaded (no connection)") from None
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else "error"
        raise _DownloadError(f"cannot be downloaded (HTTP {status})") from None
    except requests.exceptions.RequestException as error:
        raise _DownloadError(f"cannot be downloaded ({type(error).__name__})") from None
    except OSError as error:  # after the above, which are OSErrors as well
        reason = error.strerror or str(error)
        raise DataError(
            f"{target.name}: cannot be stored in {target.parent} ({reason}): set METABOOK_CACHE to a folder with room"
        ) from None
    except ValueError:  # pooch's error for a wrong hash
        raise _DownloadError(f"what {url} sends is not the known file (wrong hash)") from None
    return target


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz atomically: readers see the old file or the whole new one, and a failure leaves nothing.

    Raises
    ------
    OSError
        If the folder cannot be written to or has no room.
    """
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_npz(path: Path) -> Arrays | None:
    """All arrays of an npz, or None if it is missing or damaged. Object arrays (pickles) are refused."""
    try:
        # Opened here: np.load does not close a file that it finds to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def cached_arrays(name: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """What ``build()`` returns, kept as an npz in the cache.

    Parameters
    ----------
    name : str
        Start of the file's name.
    key : str
        Everything that the arrays depend on: another key is another file.
    build : callable
        Makes the arrays; called if there is no intact cache of them. A cache that cannot be written is
        no error: one line is logged, and the arrays are built again next time.
    """
    path = cached_path(name, key)
    arrays = load_npz(path)
    if arrays is not None:
        return arrays
    arrays = build()
    try:
        save_npz(path, arrays)
    except OSError as error:
        _say_once(
            f"metabook: {path.parent} cannot be written to ({error.strerror or error}): "
            f"{name} is built anew each time; set METABOOK_CACHE to a folder with room"
        )
    return arrays


def cached_path(name: str, key: str) -> Path:
    """Where :func:`cached_arrays` keeps them."""
    return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message)
