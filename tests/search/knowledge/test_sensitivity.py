from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from paredown.evaluators.task import Data, Task
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.knowledge.sensitivity import (
    Losses,
    Sensitivities,
    measure_sensitivities,
)
from paredown.search.space import SearchSpace, SpaceSettings


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 4),
    ).eval()
    inputs = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(dim=1)
    task = Task("small", model, inputs[:1], inputs, Data(inputs, targets))
    settings = SpaceSettings(activation_bits=(7, 8))
    profile = load_profile("x86-64-v3")
    space = SearchSpace.from_model(task.model, task.example_input, profile, settings)
    return Compressor(task, space, CompressionSettings())


@pytest.mark.slow
def test_fewer_bits_and_channels_hurt_more(compressor: Compressor) -> None:
    inputs = compressor.task.calibration
    seen: list[str] = []
    found = measure_sensitivities(compressor, inputs, budget_s=600.0, report=seen.append)
    options = compressor.space.options()
    assert found.losses.keys() == options.keys()
    for name, values in options.items():
        table = found.losses[name]
        assert tuple(table) == found.measured[name] == values
        losses = list(table.values())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == 0.0
    assert found.losses["weight_bits/2"][0] > 10 * found.losses["weight_bits/2"][4]
    assert found.losses["keep/0"][8] > 0.0
    assert any("weight_bits/5" in line for line in seen)
    again = Sensitivities.from_json(json.loads(json.dumps(found.to_json())))
    assert again.losses == found.losses


@pytest.mark.slow
def test_what_there_was_no_time_for_is_interpolated(compressor: Compressor) -> None:
    found = measure_sensitivities(compressor, compressor.task.calibration, budget_s=0.0)
    options = compressor.space.options()
    assert len(found.measured["weight_bits/2"]) < len(options["weight_bits/2"])
    for name, values in options.items():
        losses = list(found.losses[name].values())
        assert tuple(found.losses[name]) == values
        assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_what_was_cut_off_goes_on(compressor: Compressor) -> None:
    class CutError(Exception):
        pass

    inputs = compressor.task.calibration
    kept: dict[str, dict[int, float]] = {}
    first: list[str] = []
    rest: list[str] = []
    whole: list[str] = []

    def keep(losses: Losses) -> None:
        kept.update({name: dict(table) for name, table in losses.items()})
        if len(first) == 7:
            raise CutError

    with pytest.raises(CutError):
        measure_sensitivities(compressor, inputs, budget_s=600.0, report=first.append, keep=keep)
    resumed = measure_sensitivities(
        compressor, inputs, budget_s=600.0, report=rest.append, known=kept
    )
    at_once = measure_sensitivities(compressor, inputs, budget_s=600.0, report=whole.append)
    assert first + rest == whole
    assert resumed == at_once


def test_losses_add_up() -> None:
    found = Sensitivities({"a": {0: 0.5, 2: 0.0}, "b": {8: 0.25, 16: 0.125, 24: 0.0}}, {})
    total = found.total(["b", "a", "c"], np.array([[8, 0, 1], [16, 2, 1], [24, 0, 1]]))
    assert total.tolist() == [0.75, 0.125, 0.5]


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="Version of sensitivities must be 1, but got 2"):
        Sensitivities.from_json({"version": 2})
