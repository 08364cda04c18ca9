from __future__ import annotations

import torch
from torch import nn

from paredown.search.compression.importance import rank_units
from paredown.search.compression.units import Unit


def units_of(n: int, *places: tuple[str, str]) -> list[Unit]:
    return [dict.fromkeys(places, (idx,)) for idx in range(n)]


def filled(layer: nn.Linear | nn.Conv2d, rows: list[list[float]]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows).reshape(layer.weight.shape))
    return layer


def test_larger_weights_come_first_and_ties_keep_their_order() -> None:
    model = nn.Sequential(filled(nn.Linear(1, 4), [[1.0], [-3.0], [2.0], [1.0]]))
    assert rank_units(model, units_of(4, ("0", "out"))) == (1, 2, 0, 3)


def test_every_layer_of_a_unit_counts_alike() -> None:
    model = nn.Sequential(
        filled(nn.Linear(1, 3), [[100.0], [200.0], [100.0]]),
        filled(nn.Linear(3, 1), [[0.1, 0.1, 0.3]]),
    )
    # Squares over their mean: (1, 4, 1) / 2 and (1, 1, 9) / 3.67.
    assert rank_units(model, units_of(3, ("0", "out"), ("1", "in"))) == (2, 1, 0)


def test_a_block_counts_as_a_whole() -> None:
    model = nn.Sequential(filled(nn.Linear(1, 4), [[3.0], [0.0], [2.5], [2.5]]))
    blocks: list[Unit] = [{("0", "out"): (0, 1)}, {("0", "out"): (2, 3)}]
    assert rank_units(model, blocks) == (1, 0)


def test_modules_without_a_weight_for_each_channel_do_not_count() -> None:
    model = nn.Sequential(
        filled(nn.Linear(1, 2), [[1.0], [2.0]]), nn.PReLU(), nn.BatchNorm1d(2, affine=False)
    )
    units = units_of(2, ("0", "out"), ("1", "out"), ("2", "out"))
    assert rank_units(model, units) == (1, 0)


def test_weights_of_zero_do_not_count() -> None:
    model = nn.Sequential(filled(nn.Linear(1, 2), [[0.0], [0.0]]))
    assert rank_units(model, units_of(2, ("0", "out"))) == (0, 1)
