from __future__ import annotations

import copy
import dataclasses
import time
import weakref
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.candidate import Candidate
from paredown.search.compression.pruning import prune
from paredown.search.errors import SpaceError
from paredown.search.space import SearchSpace, SpaceSettings

Build = Callable[[str], tuple[nn.Module, Tensor]]

NAMES = ("residual", "concat", "separable", "grouped", "shuffle", "mlp")


def without_channels(model: nn.Module, candidate: Candidate, space: SearchSpace) -> nn.Module:
    """Return a whole model in which no layer reads the channels that a candidate removes."""
    masked = copy.deepcopy(model)
    plans = zip(space.groups, space.channel_groups, candidate.pruning, strict=True)
    for group, plan, (_, ratio) in plans:
        for unit in plan.removed(group.kept(ratio)):
            for (name, side), idxs in unit.items():
                layer = masked.get_submodule(name)
                if side == "in" and getattr(layer, "groups", 1) == 1:
                    assert isinstance(layer.weight, Tensor)
                    is_transposed = isinstance(layer, nn.ConvTranspose2d)
                    with torch.no_grad():
                        layer.weight.movedim(0 if is_transposed else 1, 0)[list(idxs)] = 0.0
    return masked


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_model_is_the_whole_one_without_the_channels(
    build: Build, profile: HardwareProfile, name: str
) -> None:
    model, data = build(name)
    space = SearchSpace.from_model(model, data, profile, SpaceSettings(max_pruning_ratio=0.9))
    rng = np.random.default_rng(0)
    data = torch.randn(4, *data.shape[1:])
    for candidate in [space.uniform(8, 8, 0.9), *(space.random(rng) for _ in range(5))]:
        pruned = prune(model, candidate, space)
        with torch.no_grad():
            want = without_channels(model, candidate, space)(data)
            torch.testing.assert_close(pruned(data), want, rtol=1e-4, atol=1e-5)
        for group, (_, ratio) in zip(space.groups, candidate.pruning, strict=True):
            if len(group.layers) == 1:
                layer = pruned.get_submodule(group.name)
                assert isinstance(layer.weight, Tensor)
                assert group.kept(ratio) in layer.weight.shape[:2]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_prune_changes_nothing(
    build: Build, profile: HardwareProfile, name: str
) -> None:
    model, data = build(name)
    space = SearchSpace.from_model(model, data, profile)
    pruned = prune(model, space.baseline(), space)
    assert pruned is not model
    before, after = model.state_dict(), pruned.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_pruning_repeats_itself(build: Build, profile: HardwareProfile) -> None:
    results = []
    for _ in range(2):
        model, data = build("residual")
        space = SearchSpace.from_model(model, data, profile)
        results.append(prune(model, space.uniform(8, 8, 0.5), space).state_dict())
    first, second = results
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_higher_ratio_removes_a_superset(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    space = SearchSpace.from_model(model, data, profile, SpaceSettings(max_pruning_ratio=0.9))
    for group, plan in zip(space.groups, space.channel_groups, strict=True):
        kept = [{unit[group.name, "out"] for unit in plan.removed(k)} for k in group.kept_options]
        assert all(more < less for less, more in pairwise(kept))
        assert kept[-1] == set()


def test_module_names_and_modes_stay(build: Build, profile: HardwareProfile) -> None:
    model, data = build("separable")
    space = SearchSpace.from_model(model, data, profile)
    pruned = prune(model.train(), space.uniform(8, 8, 0.5), space)
    assert dict(pruned.named_modules()).keys() == dict(model.named_modules()).keys()
    assert pruned.training
    expand = pruned.get_submodule("depthwise.0")
    assert isinstance(expand, nn.Conv2d)
    assert (expand.in_channels, expand.out_channels, expand.groups) == (16, 16, 16)


def test_a_pruned_model_does_not_stay_alive(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    space = SearchSpace.from_model(model, data, profile)
    pruned = prune(model, space.uniform(8, 8, 0.5), space)
    seen = [weakref.ref(module) for module in pruned.modules()]
    pruned(data)
    del pruned
    assert all(ref() is None for ref in seen)


def test_a_pruned_model_can_be_trained(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    space = SearchSpace.from_model(model, data, profile)
    pruned = prune(model, space.uniform(8, 8, 0.5), space)
    pruned(data).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_a_candidate_of_another_space_is_refused(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    space = SearchSpace.from_model(model, data, profile)
    foreign = dataclasses.replace(space.baseline(), pruning=(("other", 0.5),))
    with pytest.raises(SpaceError, match="'other' is none of them"):
        prune(model, foreign, space)


@pytest.mark.slow
def test_a_large_model_is_pruned_fast(profile: HardwareProfile) -> None:
    widths = [3, 64, 128, 256, 512, 512, 512]
    model = nn.Sequential()
    for n_in, n_out in pairwise(widths):
        model.extend([nn.Conv2d(n_in, n_out, 3), nn.BatchNorm2d(n_out), nn.ReLU()])
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)])
    space = SearchSpace.from_model(model, torch.zeros(1, 3, 16, 16), profile)
    start = time.perf_counter()
    prune(model, space.uniform(8, 8, 0.5), space)
    assert time.perf_counter() - start < 0.5  # takes 0.02 s
