"""A folder that several processes share, with files that may be spoiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.tvm.files import SharedFolder


class Maker:
    """Writes a file and counts how often it had to."""

    def __init__(self, text: str = "content") -> None:
        self.text, self.calls = text, 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.write_text(self.text)


def test_file_is_made_once(tmp_path: Path) -> None:
    make = Maker()
    first = SharedFolder(tmp_path / "a" / "b").get("name", ".txt", make)
    second = SharedFolder(tmp_path / "a" / "b").get("name", ".txt", make)
    assert first == second
    assert first.read_text() == "content"
    assert make.calls == 1


@pytest.mark.parametrize("spoiled", ["", "cont", "contents", "confent"])
def test_spoiled_file_is_made_again(tmp_path: Path, spoiled: str) -> None:
    make = Maker()
    path = SharedFolder(tmp_path).get("name", ".txt", make)
    path.write_text(spoiled)
    assert SharedFolder(tmp_path).get("name", ".txt", make).read_text() == "content"
    assert make.calls == 2


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no more")

    folder = SharedFolder(tmp_path)
    with pytest.raises(RuntimeError, match="no more"):
        folder.get("name", ".txt", fail)
    assert list(tmp_path.iterdir()) == []
    assert folder.get("name", ".txt", Maker()).read_text() == "content"


def test_table_keeps_what_others_added(tmp_path: Path) -> None:
    one, other = SharedFolder(tmp_path), SharedFolder(tmp_path)
    one.update_table("table.json", {"a": 1})
    other.update_table("table.json", {"b": [2]})
    one.update_table("table.json", {"a": 3})
    assert one.read_table("table.json") == {"a": 3, "b": [2]}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '"text"'])
def test_spoiled_table_is_empty_and_can_be_written(tmp_path: Path, text: str) -> None:
    folder = SharedFolder(tmp_path)
    (tmp_path / "table.json").write_text(text)
    assert folder.read_table("table.json") == {}
    folder.update_table("table.json", {"a": 1})
    assert json.loads((tmp_path / "table.json").read_text()) == {"a": 1}


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EvaluationError, match=r"must be writable, but .*file/b.* is not: .*PAREDOWN"
    ):
        SharedFolder(tmp_path / "file" / "b")


def test_folder_that_vanished_is_an_error(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path / "a")
    (tmp_path / "a").rmdir()
    with pytest.raises(EvaluationError, match="must be writable"):
        folder.get("name", ".txt", Maker())
    with pytest.raises(EvaluationError, match="must be writable"):
        folder.update_table("table.json", {})
