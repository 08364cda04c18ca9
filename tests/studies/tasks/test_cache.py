from pathlib import Path

import pytest
import torch
from torch import nn

from paredown.hw_profiles.errors import ParedownError
from paredown.studies.tasks.cache import cache_dir, cached_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Training:
    """Counts its runs and leaves weights that are told apart."""

    def __init__(self) -> None:
        self.n_runs = 0

    def __call__(self, model: nn.Module) -> None:
        self.n_runs += 1
        for parameter in model.parameters():
            nn.init.constant_(parameter, float(self.n_runs))


def load(training: Training, seed: int = 0, said: list[str] | None = None) -> nn.Module:
    report = (said if said is not None else []).append
    return cached_model("net", {"seed": seed}, nn.Linear(3, 2), training, report)


def test_model_is_trained_once() -> None:
    training = Training()

    first, second = load(training), load(training)

    assert training.n_runs == 1
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    assert not second.training


def test_other_recipe_is_another_model(folder: Path) -> None:
    training = Training()
    load(training)
    load(training, seed=1)

    assert training.n_runs == 2
    assert len(list((folder / "models").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_broken_file_is_noticed_and_replaced(folder: Path, damage: str) -> None:
    training = Training()
    load(training)
    (path,) = (folder / "models").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"truncate": bytes(content[:200]), "flip": bytes(content), "empty": b""}
    path.write_bytes(kept[damage])
    said: list[str] = []

    load(training, said=said)
    load(training)

    assert training.n_runs == 2
    assert "broken" in said[0]


def test_interrupted_training_leaves_nothing(folder: Path) -> None:
    def stop(model: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_model("net", {}, nn.Linear(3, 2), stop, print)
    assert list((folder / "models").iterdir()) == []


def test_unwritable_cache_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "file"))
    training = Training()

    with pytest.raises(ParedownError, match="must be writable"):
        load(training)
    assert training.n_runs == 0


def test_cache_lies_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAREDOWN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/paredown")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "paredown"
