"""Kernels that were not used for long go, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from paredown.evaluators.tvm.cache import KNOBS_FILE
from paredown.evaluators.tvm.cache_folders import list_targets, prune
from paredown.evaluators.tvm.files import SharedFolder

HOUR_S = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = SharedFolder(tmp_path / "target")
    for name in ("new", "old"):
        path = files.get(name, ".o", lambda path: path.write_text("12345"))
        if name == "old":
            os.utime(path, (0, time.time() - 2 * HOUR_S))
    files.update_table(KNOBS_FILE, {"conv": {"best": []}})
    return tmp_path


def test_list(folder: Path) -> None:
    (target,) = list_targets(folder)
    assert (target.n_kernels, target.n_workloads) == (2, 1)
    assert target.size_bytes > 10
    assert target.last_used == pytest.approx(time.time(), abs=60)


def test_no_folder_is_an_empty_list(tmp_path: Path) -> None:
    assert list_targets(tmp_path / "none") == []
    assert prune(0.0, tmp_path / "none") == 0


def test_prune_keeps_what_is_used(folder: Path) -> None:
    assert prune(HOUR_S, folder) == 5
    (target,) = list_targets(folder)
    assert (target.n_kernels, target.n_workloads) == (1, 1)


def test_use_keeps_a_kernel(folder: Path) -> None:
    SharedFolder(folder / "target").get("old", ".o", lambda path: path.write_text("12345"))
    assert prune(HOUR_S, folder) == 0
