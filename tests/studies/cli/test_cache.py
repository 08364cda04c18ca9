import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.evaluators.tvm.files import SharedFolder

RunCli = Callable[..., Any]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    SharedFolder(tmp_path / "kernels" / "cpu").get("a", ".o", lambda path: path.write_text("123"))
    return tmp_path / "kernels"


def test_list(run_cli: RunCli, kernels: Path) -> None:
    (target,) = json.loads(run_cli("cache", "list", "--format", "json").out)

    assert target["path"] == str(kernels / "cpu")
    assert target["n_kernels"] == 1


def test_prune(run_cli: RunCli, kernels: Path) -> None:
    assert "0.0 MB freed" in run_cli("cache", "prune").out
    assert list(kernels.rglob("*.o"))

    run_cli("cache", "prune", "--days", "0")

    assert not list(kernels.rglob("*.o"))
