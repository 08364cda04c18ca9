from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.compression.pruning import prune
from paredown.search.knowledge.sizes import Choices, LayerSizes
from paredown.search.space import SearchSpace, SpaceSettings

Build = Callable[[str], tuple[nn.Module, Tensor]]


@pytest.mark.parametrize("name", ["residual", "concat", "separable", "grouped", "mlp"])
def test_channels_and_weights_are_those_of_the_pruned_model(
    name: str, build: Build, profile: HardwareProfile
) -> None:
    model, example = build(name)
    space = SearchSpace.from_model(model, example, profile)
    rng = np.random.default_rng(0)
    candidates = [space.baseline(), *(space.random(rng) for _ in range(4))]
    sizes = LayerSizes(space)
    choices = Choices.of(space, candidates)
    ins, outs = sizes.channels(choices.kept)
    weights = sizes.weights(choices.kept)
    for row, candidate in enumerate(candidates):
        pruned = prune(model, candidate, space)
        for column, layer in enumerate(space.layers):
            module = pruned.get_submodule(layer.name)
            names = ("in_features", "out_features")
            if not isinstance(module, nn.Linear):
                names = ("in_channels", "out_channels")
            got = (ins[row, column], outs[row, column])
            assert got == tuple(getattr(module, n) for n in names), layer.name
            assert isinstance(module.weight, Tensor)
            assert weights[row, column] == module.weight.numel()


def test_bytes_by_hand(profile: HardwareProfile) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
    settings = SpaceSettings(weight_bits=(3, 8, 16))
    space = SearchSpace.from_model(model, torch.zeros(1, 3, 8, 8), profile, settings)
    candidates = [
        space.baseline(),
        space.uniform(16),
        space.uniform(3),
        space.uniform(8, pruning_ratio=0.5),
    ]
    sizes = LayerSizes(space).size_bytes(Choices.of(space, candidates))
    assert sizes.tolist() == [
        [4 * 432 + 64, 4 * 128 + 32],
        [2 * 432 + 64, 2 * 128 + 32],
        [162 + 128, 48 + 64],
        [216 + 64, 64 + 64],
    ]
