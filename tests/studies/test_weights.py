from pathlib import Path

import pytest
import torch
from torch import nn

from paredown.evaluators.task import Data, Task
from paredown.hw_profiles.catalog import load_profile
from paredown.search.compression.sparsity import Sparsity
from paredown.studies.config import make_config
from paredown.studies.errors import StudyError
from paredown.studies.records import StudySettings
from paredown.studies.weights import (
    accuracy_mode,
    compression_settings,
    make_space,
    shared_weights,
)


def make_task(*, has_data: bool = True, finetune_epochs: int = 0) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    inputs = torch.randn(40, 8)
    data = Data(inputs, torch.arange(40) % 4)
    return Task(
        "tiny", model, inputs[:1], inputs, data,
        train=data if has_data else None, finetune_epochs=finetune_epochs,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "has_data", "mode"),
    [
        ({}, True, "shared"),
        ({}, False, "ptq"),
        ({"shared_epochs": 2}, True, "shared"),
        ({"finetune_epochs": 2}, True, "finetune"),
        ({"finetune_epochs": 0}, True, "ptq"),
        ({"accuracy": "ptq"}, True, "ptq"),
        ({"accuracy": "finetune"}, True, "finetune"),
    ],
)
def test_mode_follows_from_settings_and_data(
    settings: dict[str, object], has_data: bool, mode: str
) -> None:
    chosen = StudySettings(**settings)  # type: ignore[arg-type]  # each has its type
    assert accuracy_mode(chosen, make_task(has_data=has_data)) == mode


@pytest.mark.parametrize("mode", ["shared", "finetune"])
def test_training_needs_data(mode: str) -> None:
    with pytest.raises(StudyError, match=f"'{mode}' needs data to train on, but task 'tiny'"):
        accuracy_mode(StudySettings(accuracy=mode), make_task(has_data=False))


@pytest.mark.parametrize(
    ("settings", "task_epochs", "epochs"),
    [({"accuracy": "finetune"}, 0, 1), ({"accuracy": "finetune"}, 3, 3), ({}, 3, 0),
     ({"finetune_epochs": 2}, 3, 2)],
)  # fmt: skip
def test_epochs_of_each_trial(settings: dict[str, object], task_epochs: int, epochs: int) -> None:
    chosen = StudySettings(**settings)  # type: ignore[arg-type]  # each has its type
    task = make_task(finetune_epochs=task_epochs)
    assert compression_settings(chosen, task).finetune_epochs == epochs


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (0.75, Sparsity(0.75)), ("0.75", Sparsity(0.75)), ("2:4", Sparsity(0.5, 4))],
)
def test_sparsity_is_a_share_or_a_pattern(given: object, expected: Sparsity | None) -> None:
    config = make_config({"task": "x", "space": {"sparsity": given}})
    assert compression_settings(config.settings(), make_task()).sparsity == expected


def test_a_single_bit_is_on_offer_when_asked_for() -> None:
    task, profile = make_task(), load_profile("x86-64-v3")
    usual = make_space(StudySettings(), task, profile)
    asked = make_space(StudySettings(weight_bits=(1, 2, 8)), task, profile)
    assert usual.layers[0].weight_bits[0] == 2
    assert asked.layers[0].weight_bits == (1, 2, 8, 32)


def test_shared_network_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    task = make_task()
    said: list[str] = []
    for weights in ((4, 8), (4, 8)):
        settings = StudySettings(shared_epochs=1, weight_bits=weights, seed=len(said))
        space = make_space(settings, task, load_profile("x86-64-v3"))
        assert shared_weights(settings, task, space, said.append) is not None
    assert said[-1].startswith("shared network from the cache")
    assert shared_weights(StudySettings(accuracy="ptq"), task, space, said.append) is None
