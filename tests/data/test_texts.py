from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metabook.data import DataError, TextData, read_texts
from metabook.episodes import LabelledData

MESSAGES = [("on", "light"), ("tea", "food"), ("off", "light"), ("pie", "food"), ("jazz", "music"), ("on ", "light")]


@pytest.fixture
def pool() -> TextData:
    return TextData.of(MESSAGES, {"light": "home", "music": "home", "food": "shop"})


def test_texts_are_sorted_by_class_and_kept_once(pool: TextData) -> None:
    assert pool.texts == ("on", "off", "tea", "pie", "jazz")
    assert pool.names == ("light", "food", "music")
    assert pool.groups == ("home", "shop", "home")
    assert pool.x.tolist() == [0, 1, 2, 3, 4]
    assert pool.y.tolist() == [0, 0, 1, 1, 2]


def test_a_class_without_a_group_is_its_own() -> None:
    assert TextData.of(MESSAGES).groups == ("light", "food", "music")


@pytest.mark.parametrize(
    ("take", "names", "texts"),
    [
        (lambda pool: pool.select([2, 0]), ("music", "light"), ("jazz", "on", "off")),
        (lambda pool: pool.select([]), (), ()),
        (lambda pool: pool.in_groups(["shop"]), ("food",), ("tea", "pie")),
        (lambda pool: pool.select([1]) + pool.select([0]), ("food", "light"), ("tea", "pie", "on", "off")),
    ],
)
def test_the_texts_go_with_their_classes(pool: TextData, take, names, texts) -> None:
    taken = take(pool)
    assert isinstance(taken, TextData)
    assert (taken.names, taken.texts) == (names, texts)
    assert taken.x.tolist() == list(range(len(texts)))
    for row, c in zip(taken.x.tolist(), taken.y.tolist()):
        assert (taken.texts[row], taken.names[c]) in MESSAGES


def test_features_take_the_place_of_the_rows(pool: TextData) -> None:
    lengths = torch.tensor([[float(len(text))] for text in pool.texts])
    encoded = pool.with_features(lengths)
    assert not isinstance(encoded, TextData)
    assert torch.equal(encoded.x, lengths)
    assert (encoded.names, encoded.groups) == (pool.names, pool.groups)
    with pytest.raises(ValueError, match="2 examples but 5 labels"):
        pool.with_features(lengths[:2])


def test_rows_that_do_not_number_the_texts(pool: TextData) -> None:
    with pytest.raises(ValueError, match="0 to 4"):
        TextData(pool.x.flip(0), pool.y, pool.names, pool.groups, pool.texts)


def test_texts_and_numbers_do_not_add_up(pool: TextData) -> None:
    with pytest.raises(TypeError):
        pool + LabelledData(pool.x, pool.y, pool.names, pool.groups)


# --- The user's own files ------------------------------------------------------------------------------------------


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv(tmp_path: Path) -> None:
    content = '\ufefftext,label,note\r\n"tea, please",food,x\r\n"two\nlines",food,\r\n\r\non,light,\r\n'
    pool = read_texts(write(tmp_path, "own.csv", content))
    assert pool.names == pool.groups == ("food", "light")
    assert pool.texts == ("tea, please", "two lines", "on")


def test_jsonl(tmp_path: Path) -> None:
    rows = [
        {"q": "on\u2028now", "c": 7, "d": "home"},
        {"q": "tea", "c": 3, "d": "shop"},
        {"q": "off", "c": 7, "d": "home"},
    ]
    path = write(tmp_path, "own.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    pool = read_texts(path, text="q", label="c", group="d")
    assert pool.names == ("3", "7")
    assert pool.groups == ("shop", "home")
    assert pool.texts == ("tea", "on now", "off")


BAD = [
    ("a.csv", "", r"line 1: no column 'text' \(it has nothing\)"),
    ("a.csv", "text,class\na,b\n", r"line 1: no column 'label' \(it has text, class\)"),
    ("a.csv", "text,label\na,b\nc\n", "line 3: 'label' is missing"),
    ("a.csv", "text,label\na,b\n  ,c\n", "line 3: 'text' is empty"),
    ("a.csv", "text,label\na,b\nc, d,e\n", "line 3: more fields than the header"),
    ("a.csv", 'text,label\na,b\n"c"d,e\n', "line 3: not CSV"),
    ("a.csv", b"text,label\na,b\nc\xff,d\n", "line 3: not UTF-8"),
    ("a.csv", "text,label\n", "holds no texts"),
    ("a.csv", "text,label\na,b\nc,b\n", "holds only the class 'b'"),
    ("a.csv", "text,label,group\na,b,x\nc,b,y\n", "line 3: class 'b' is of group 'y' here but of 'x' above"),
    ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "c"\n', "line 2: not JSON"),
    ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
    ("a.jsonl", '["a", "b"]', "line 1: not a JSON object"),
    ("a.jsonl", '\n{"text": "a"}', "line 2: 'label' is missing"),
    ("a.jsonl", '{"text": ["a"], "label": "b"}', "line 1: 'text' is not a string"),
    ("a.jsonl", '{"text": "a", "label": true}', "line 1: 'label' is not a string"),
    ("a.jsonl", '{"text": "a", "label": ""}', "line 1: 'label' is empty"),
    ("a.jsonl", "", "holds no texts"),
    ("a.txt", "a b", "neither .csv nor .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_file_that_cannot_be_used_is_an_error_of_one_line(tmp_path: Path, name, content, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own.csv: cannot be read \(No such file"):
        read_texts(tmp_path / "own.csv")
