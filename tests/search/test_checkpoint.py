import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from paredown.search.checkpoint import (
    CheckpointError,
    check_writable,
    digest_tensors,
    locked,
    read_checkpoint,
    write_checkpoint,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    value = {"n": 3, "weights": {"a": torch.arange(4.0)}, "names": ["x"]}
    write_checkpoint(tmp_path / "a.pt", value)
    found = read_checkpoint(tmp_path / "a.pt")
    assert found["n"] == 3
    torch.testing.assert_close(found["weights"], value["weights"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "flipped", "no tensors"])
def test_what_is_not_whole_is_not_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.pt"
    write_checkpoint(path, torch.arange(100))
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(b"text without a checksum")
    assert read_checkpoint(path) is None


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"must be writable.*PAREDOWN_CACHE"):
        check_writable(tmp_path / "file" / "folder", "PAREDOWN_CACHE")


def hold(path: Path, seconds: float, ready: "multiprocessing.synchronize.Event") -> None:
    with locked(path):
        ready.set()
        time.sleep(seconds)


@pytest.mark.slow
def test_lock_is_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "a.pt", 0.3, ready))
    other.start()
    ready.wait()
    start = time.monotonic()
    with locked(tmp_path / "a.pt"):
        assert time.monotonic() - start > 0.2
    other.join()


def test_digest_changes_with_names_types_shapes_and_values() -> None:
    base = torch.arange(4.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.int()},
        {"a": base.reshape(2, 2)},
        {"a": base + 1},
    ]
    assert len({digest_tensors(tensors) for tensors in variants}) == len(variants)
    assert digest_tensors({"a": base}) == digest_tensors({"a": base.clone()})
