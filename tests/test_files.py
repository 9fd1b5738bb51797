import pytest

from metabook.files import UserError, folder_of, replacing


def test_a_file_appears_whole_and_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "x"
    with replacing(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["x"]


def test_a_failure_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "deep" / "deeper" / "x") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


def test_a_failure_keeps_the_old_file_and_its_neighbours(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "x"):
        raise ValueError("mine")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_folders_that_hold_something_stay(tmp_path):
    with pytest.raises(OSError, match="later"), folder_of(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").touch()
        raise OSError("later")
    assert (tmp_path / "a" / "other").exists()


def test_messages_are_one_line():
    assert str(UserError("a\n   message ")) == "a message"
