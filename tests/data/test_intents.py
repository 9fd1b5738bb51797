from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metabook import EpisodeSampler, data
from metabook.data import DataError
from metabook.data.intents import SPLITS

intents_module = sys.modules["metabook.data.intents"]  # metabook.data.intents is the function
ALL = "+".join(SPLITS)


# --- Generated -----------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def test_there_are_enough_intents_domains_and_messages() -> None:
    pool = data.intents(ALL)
    assert len(pool) >= 60
    assert len(set(pool.groups)) >= 6
    assert set(pool.counts.tolist()) == {60}
    assert data.intents("test", messages=100).counts.unique().tolist() == [100]
    assert all(len(data.intents(split)) >= 10 for split in SPLITS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_message_occurs_twice_in_one_intent_or_in_two(seed: int) -> None:
    pool = data.intents(ALL, seed=seed)
    assert len({plain(text) for text in pool.texts}) == len(pool.texts)


def test_no_domain_and_no_intent_is_in_two_splits() -> None:
    pools = [data.intents(split) for split in SPLITS]
    for which in ("groups", "names"):
        members = [set(getattr(pool, which)) for pool in pools]
        assert len(set.union(*members)) == sum(map(len, members))


def test_the_messages_are_a_function_of_the_seed_and_the_same_on_every_machine() -> None:
    pool = data.intents(ALL, seed=3)
    intents_module._generated.cache_clear()
    assert data.intents(ALL, seed=3).texts == pool.texts
    assert data.intents(ALL, seed=4).texts != pool.texts
    # Changes with the templates, and with nothing else.
    assert hashlib.sha256("\n".join(pool.texts).encode()).hexdigest()[:16] == "1582ead11b35c364"


def test_a_split_does_not_depend_on_which_others_are_taken() -> None:
    assert data.intents("test+train").texts == data.intents("test").texts + data.intents("train").texts


def test_every_slot_is_filled_and_none_is_idle() -> None:
    grammar = intents_module._grammar()
    assert not [text for text in data.intents(ALL).texts if re.search(r"[{}()|<>]|  ", text)]
    lines = [line for templates in grammar.templates.values() for line in templates]
    lines += [value for values in grammar.slots.values() for value in values]
    assert {name for line in lines for name in re.findall(r"\{(\w+)\}", line)} == set(grammar.slots)
    assert all(len(set(values)) == len(values) for values in grammar.slots.values())


def test_the_manner_varies() -> None:
    texts = data.intents("train").texts
    for pattern in (r"\?$", r"\.$", r"[a-z]$", r"^[A-Z]", r"^[a-z]", r"^(hi|hello|hey)\b", r"\b(please|thanks)$"):
        assert 0.01 < sum(bool(re.search(pattern, text)) for text in texts) / len(texts) < 0.9, pattern


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "travel"}, "no split 'travel': take train, validation, test"),
        ({"messages": 0}, "at least 1"),
        ({"messages": 500}, "do not make 500 different messages: take fewer"),
    ],
)
def test_what_cannot_be_generated(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.intents(**arguments)


@pytest.mark.parametrize("within_group", [0.0, 1.0])
def test_no_support_text_is_among_the_queries(within_group: float) -> None:
    pool = data.intents("test")
    episodes = EpisodeSampler(pool, ways=5, shots=5, queries=20, within_group=within_group).sample(30)
    assert episodes.support_x.dtype == torch.int64
    for task in range(30):
        support, queries = ([pool.texts[row] for row in x[task]] for x in (episodes.support_x, episodes.query_x))
        assert len(set(support) | set(queries)) == 5 * 25
        classes = episodes.classes[task]
        assert torch.equal(pool.y[episodes.query_x[task]], classes[episodes.query_y[task]])
        if within_group:
            assert len({pool.groups[c] for c in classes.tolist()}) == 1


def test_load_and_fetch_by_name() -> None:
    assert data.load("intents", "test", seed=5, messages=30).texts == data.intents("test", seed=5, messages=30).texts
    assert [path.name for path in data.fetch("intents")] == ["intents.txt"]
    with pytest.raises(ValueError, match="intents has no option 'size'"):
        data.load("intents", "test", size=28)


# --- Published -----------------------------------------------------------------------------------------------------

DOMAINS = {"bank": ["pay", "owe", "lend"], "home": ["lamp", "door", "heat"]}
SPLIT = {"train": ["owe", "lamp"], "valid": ["pay", "door"], "test": ["heat", "lend"]}


@pytest.fixture
def published(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own copy of a small CLINC150 and BANKING77."""
    own = tmp_path / "own"
    names = [name for members in DOMAINS.values() for name in members]
    sizes = {"train": 4, "val": 2, "test": 3}
    content = {part: [[f"{name} {part} {i}", name] for name in names for i in range(n)] for part, n in sizes.items()}
    content |= {f"oos_{part}": [[f"other {part} {i}", "oos"] for i in range(n)] for part, n in sizes.items()}
    content["val"].append(["pay train 0", "pay"])  # a message that one intent has twice
    files = {"clinc150/data_full.json": json.dumps(content), "clinc150/domains.json": json.dumps(DOMAINS)}
    for file in ("train", "test"):
        rows = "".join(f'"\n{name}, {file} {i}\n",{name}\n' for name in names for i in range(3))
        files[f"banking77/{file}.csv"] = "text,category\n" + rows
    for number in (1, 2):
        for part, members in SPLIT.items():
            for name in ("OOS", "BANKING77"):
                listed = members if number == 1 else members[::-1]
                files[f"fewshot_splits/{name}/{number:02}/labels.{part}.txt"] = "".join(f"{m}\n" for m in listed)
    for name, text in files.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("METABOOK_DATA", str(own))
    return own


def test_clinc150_takes_all_messages_of_a_splits_classes(published: Path) -> None:
    pool = data.clinc150("validation")
    assert pool.names == ("pay", "door")
    assert pool.groups == ("bank", "home")
    assert pool.counts.tolist() == [9, 9]  # the repeated message once
    assert pool.texts[:3] == ("pay train 0", "pay train 1", "pay train 2")
    assert data.load("clinc150", "train", split_number=2).names == ("lamp", "owe")


def test_clinc150_has_a_class_of_what_belongs_to_none(published: Path) -> None:
    pool = data.clinc150("test+out_of_scope")
    assert pool.names == ("heat", "lend", "out_of_scope")
    assert pool.counts.tolist() == [9, 9, 9]
    assert pool.texts[-1] == "other test 2"


def test_banking77_in_its_class_splits(published: Path) -> None:
    pool = data.banking77("train+test")
    assert pool.names == ("owe", "lamp", "heat", "lend")
    assert set(pool.groups) == {"banking"}
    assert pool.counts.tolist() == [6] * 4
    assert pool.texts[0] == "owe, train 0"  # the file's line breaks around it are gone


@pytest.mark.parametrize("load", [data.clinc150, data.banking77])
@pytest.mark.parametrize(
    ("arguments", "message"), [({"split": "dev"}, "no split 'dev'"), ({"split_number": 6}, "between 1 and 5")]
)
def test_a_split_that_there_is_not(published: Path, load, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**arguments)


DAMAGES = [
    ("clinc150/data_full.json", '{"train": [["a", ', "damaged or cut off"),
    ("clinc150/data_full.json", "[]", "not laid out as CLINC150"),
    ("clinc150/data_full.json", '{"train": [["a", "pay", 3]]}', "not laid out as CLINC150"),
    ("clinc150/domains.json", "[1]", "not laid out as CLINC150"),
    ("banking77/train.csv", "", "no column 'text'"),
    ("banking77/train.csv", "text,label\na,pay\n", "no column 'category'"),
    ("banking77/train.csv", "text,category\na\n", "cut off or empty"),
    ("banking77/test.csv", 'text,category\n"a', "line 2: not CSV"),
    ("fewshot_splits/OOS/01/labels.test.txt", "pay\nrent\n", "no messages of the class 'rent'"),
    ("fewshot_splits/BANKING77/01/labels.test.txt", "\udcff", "line 1: not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES)
def test_a_damaged_copy_is_an_error_of_one_line_that_names_it(published: Path, name, content, message) -> None:
    (published / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        (data.banking77 if "BANKING" in name.upper() else data.clinc150)("test")
    assert str(published / name) in str(caught.value) or name.endswith("domains.json")
    assert "\n" not in str(caught.value)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server with the small sets where their repositories have them, and no copies of the user's own."""
    root = tmp_path / "mirror"
    names = [path.relative_to(published).as_posix() for path in published.rglob("*.*")]
    for name in names:
        folder, *inner, file = name.split("/")
        repository, commit, inside = intents_module.ORIGINS[folder]
        inner = [inner[0], "few_shot", inner[1]] if inner else []
        target = root.joinpath(repository, commit, inside, *inner, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((published / name).read_bytes())
    hashes = {name: hashlib.sha256((published / name).read_bytes()).hexdigest() for name in names}
    server = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=root))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    host = f"http://127.0.0.1:{server.server_port}/{{repository}}/{{path}}"
    monkeypatch.setattr(intents_module, "HOSTS", (host,))
    monkeypatch.setattr(intents_module, "_hashes", lambda: hashes)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("METABOOK_DATA")
    yield root
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_files_are_fetched_once(mirror: Path, cache: Path, published: Path, monkeypatch) -> None:
    fetched = [data.clinc150("test+out_of_scope"), data.banking77("train", split_number=2)]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2 + 1 + 2 + 1
    monkeypatch.setattr(intents_module, "HOSTS", ())
    assert data.clinc150("test+out_of_scope").texts == fetched[0].texts
    monkeypatch.setenv("METABOOK_DATA", str(published))
    assert data.banking77("train", split_number=2).texts == fetched[1].texts


def test_fetch_takes_all_class_splits(mirror: Path, cache: Path) -> None:
    for name, own in (("clinc150", "OOS"), ("banking77", "BANKING77")):
        paths = data.fetch(name)
        assert len(paths) == 2 + 2 * 3
        assert all(path.is_file() and path.is_relative_to(cache) for path in paths)
        assert {path.parts[-3] for path in paths if path.name.startswith("labels")} == {own}


@pytest.mark.parametrize("name", ["data_full.json", "labels.test.txt"])
def test_a_file_that_is_not_the_known_one_is_refused_and_leaves_nothing(mirror: Path, cache: Path, name: str) -> None:
    for path in mirror.rglob(name):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="wrong hash") as caught:
        data.clinc150("test")
    assert "load('intents')" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and name in path.name]
    assert not list(cache.rglob("*tmp*"))


def test_every_file_has_an_address_and_a_hash() -> None:
    hashes = intents_module._hashes()
    assert len(hashes) == 4 + 2 * 5 * 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes.values())
    assert {name.split("/")[0] for name in hashes} == set(intents_module.ORIGINS)
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for _, commit, _ in intents_module.ORIGINS.values())


OWN = Path(os.environ.get("METABOOK_DATA", ""))
real = pytest.mark.skipif(
    not all((OWN / name).is_file() for name in intents_module._hashes()),
    reason="METABOOK_DATA names no folder with clinc150, banking77 and fewshot_splits",
)


@real
def test_the_real_files_are_the_known_ones() -> None:
    for name, digest in intents_module._hashes().items():
        assert hashlib.sha256((OWN / name).read_bytes()).hexdigest() == digest, name


@real
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("load", "sizes"), [(data.clinc150, [50, 50, 50]), (data.banking77, [25, 25, 27])])
def test_the_real_class_splits(load, sizes: list[int], number: int) -> None:
    pools = [load(split, split_number=number) for split in SPLITS]
    assert [len(pool) for pool in pools] == sizes
    assert len({name for pool in pools for name in pool.names}) == sum(sizes)


@real
def test_the_real_messages() -> None:
    clinc = data.clinc150(ALL)
    assert sorted(clinc.counts.unique().tolist()) == [149, 150]  # "hey what's up" is there twice
    assert len(clinc.texts) == 22_499
    assert len(set(clinc.groups)) == 10
    assert len(data.clinc150("out_of_scope").texts) == 1_200
    banking = data.banking77(ALL)
    assert len(banking.texts) == len(set(banking.texts)) == 13_071
    assert (int(banking.counts.min()), int(banking.counts.max())) == (75, 227)
