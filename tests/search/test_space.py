from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.candidate import FLOAT_LAYER, Candidate, LayerChoice
from paredown.search.space import (
    LayerInfo,
    LayerRule,
    PruningGroup,
    SearchSpace,
    SpaceError,
    SpaceSettings,
)

Build = Callable[[str], tuple[nn.Module, Tensor]]

# Counts off the grid, one with a single width, and two activation widths.
SPACE = SearchSpace(
    (
        PruningGroup("stem", 64, (16, 24, 32, 40, 48, 56, 64), ("stem", "block.conv2")),
        PruningGroup("block.conv1", 20, (8, 16, 20), ("block.conv1",)),
    ),
    (
        LayerInfo("stem", "conv", (64, 3, 3, 3), 1728, (1, 64, 8, 8), (4, 8, 32), (8,)),
        LayerInfo("block.conv1", "conv", (20, 64, 3, 3), 1, (1, 20, 8, 8), (3, 4, 6), (7, 8)),
        LayerInfo("fc", "linear", (10, 64), 640, (1, 10), (8,), (8,)),
    ),
)


def ask(space: SearchSpace, params: dict[str, int]) -> Candidate:
    return space.suggest(optuna.trial.FixedTrial(params))


def test_parameters_are_readable_integers_in_steps() -> None:
    study = optuna.create_study()
    trial = study.ask()
    SPACE.suggest(trial)
    limits = {
        name: (d.low, d.high, d.step)
        for name, d in trial.distributions.items()
        if isinstance(d, optuna.distributions.IntDistribution)
    }
    assert limits == {
        "keep/stem": (16, 64, 8),
        "keep/block.conv1": (8, 24, 8),
        "weight_bits/stem": (0, 2, 1),
        "weight_bits/block.conv1": (0, 2, 1),
        "activation_bits/block.conv1": (0, 1, 1),
    }


def test_suggest_by_hand() -> None:
    candidate = ask(
        SPACE,
        {
            "keep/stem": 48,
            "keep/block.conv1": 24,
            "weight_bits/stem": 2,
            "weight_bits/block.conv1": 1,
            "activation_bits/block.conv1": 0,
        },
    )
    assert candidate == Candidate(
        (("stem", 0.25), ("block.conv1", 0.0)),
        (("stem", FLOAT_LAYER), ("block.conv1", LayerChoice(4, 7)), ("fc", LayerChoice(8))),
    )


@given(st.integers(0, 2**32 - 1))
def test_params_are_the_inverse_of_suggest(seed: int) -> None:
    candidate = SPACE.random(np.random.default_rng(seed))
    SPACE.check(candidate)
    assert ask(SPACE, SPACE.params(candidate)) == candidate
    stored = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert SPACE.params(stored) == SPACE.params(candidate)


def test_an_enqueued_candidate_is_what_the_trial_gets() -> None:
    study = optuna.create_study()
    wanted = SPACE.uniform(4, 7, 0.5)
    study.enqueue_trial(SPACE.params(wanted))
    assert SPACE.suggest(study.ask()) == wanted


def test_baseline_belongs_to_every_space() -> None:
    baseline = SPACE.baseline()
    assert set(baseline.layer_choices.values()) == {FLOAT_LAYER}
    assert set(baseline.pruning_ratios.values()) == {0.0}
    SPACE.check(baseline)
    with pytest.raises(
        SpaceError, match=r"in layer 'block\.conv1', but the candidate asks for 32"
    ):
        SPACE.params(baseline)


def test_float16_is_a_width_of_layers_in_floating_point() -> None:
    space = SearchSpace(
        (),
        (
            LayerInfo("conv", "conv", (8, 3, 3, 3), 1, (1, 8, 8, 8), (8, 16, 32), (7, 8)),
            LayerInfo("fc", "linear", (10, 8), 80, (1, 10), (16, 32), (7, 8)),
        ),
    )
    assert set(space.options()) == {
        "weight_bits/conv",
        "activation_bits/conv",
        "weight_bits/fc",  # no width of its input: it computes in float32
    }
    half = space.uniform(16, 7)
    assert set(half.layer_choices.values()) == {LayerChoice(16, 32)}
    assert ask(space, space.params(half)) == half
    assert half != space.baseline()


@pytest.mark.parametrize("asked", [(8, 16), (16, 8, 32)])
def test_float16_is_on_offer_where_it_is_asked_for(
    asked: tuple[int, ...], build: Build, profile: HardwareProfile
) -> None:
    model, example = build("mlp")

    def widths(device: HardwareProfile, **settings: Any) -> set[tuple[int, ...]]:
        given = SpaceSettings(max_pruning_ratio=0.0, **settings)
        space = SearchSpace.from_model(model, example, device, given)
        return {layer.weight_bits for layer in space.layers}

    assert widths(profile, weight_bits=asked) == {(8, 16, 32)}
    assert widths(profile, weight_bits=asked, include_float=False) == {(8, 16)}
    assert widths(profile) == {(*profile.weight_bits, 32)}
    assert widths(dataclasses.replace(profile, weight_bits=(4, 16))) == {(4, 16, 32)}


def test_uniform_takes_the_nearest_option() -> None:
    candidate = SPACE.uniform(5, 7, 0.4)
    assert candidate.layer_choices == {
        "stem": LayerChoice(4, 8),
        "block.conv1": LayerChoice(6, 7),  # 4 is as near: the larger one
        "fc": LayerChoice(8, 8),
    }
    # 38.4 of 64 and 12 of 20 channels.
    assert candidate.pruning_ratios == {"stem": 1 - 40 / 64, "block.conv1": 1 - 16 / 20}
    assert SPACE.uniform(32, 8, 0.99).pruning_ratios == {"stem": 0.75, "block.conv1": 0.6}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: {"pruning": c.pruning[:1]}, "every group .* 'block.conv1' is missing"),
        (lambda c: {"layers": (*c.layers, ("x", FLOAT_LAYER))}, "layers .* but 'x' is none"),
        (lambda c: {"layers": c.layers[::-1]}, "in the order of its space"),
        (lambda c: {"pruning": (("stem", 0.3), c.pruning[1])}, r"'stem', .* keeps 44.8 of 64"),
        (lambda c: {"pruning": (("stem", 0.9), c.pruning[1])}, r"one of \(16, .* group 'stem'"),
        (
            lambda c: {"layers": (("stem", LayerChoice(5)), *c.layers[1:])},
            r"`weight_bits` must be one of \(4, 8, 32\) in layer 'stem', .* asks for 5",
        ),
        (
            lambda c: {"layers": (("stem", LayerChoice(8, 7)), *c.layers[1:])},
            r"`activation_bits` must be one of \(8,\) in layer 'stem', .* asks for 7",
        ),
    ],
)
def test_check_names_what_does_not_fit(
    change: Callable[[Candidate], dict[str, object]], match: str
) -> None:
    candidate = SPACE.uniform(8)
    wrong = dataclasses.replace(candidate, **change(candidate))  # type: ignore[arg-type]  # any
    with pytest.raises(SpaceError, match=match):
        SPACE.check(wrong)


def test_a_group_needs_a_choice() -> None:
    with pytest.raises(ValueError, match="`kept_options` must hold two values or more and end"):
        PruningGroup("conv", 8, (8,), ("conv",))


def test_space_of_a_residual_network(build: Build, profile: HardwareProfile) -> None:
    space = SearchSpace.from_model(*build("residual"), profile)
    assert [(g.name, g.kept_options, g.layers) for g in space.groups] == [
        ("stem.0", (8, 16), ("stem.0", "left.2.0")),
        ("left.0.0", (8, 16, 24), ("left.0.0",)),
        ("skip", (8, 16, 24, 32), ("skip", "down.2.0")),
        ("down.0.0", (8, 16, 24, 32), ("down.0.0",)),
    ]
    assert space.unprunable == (("head", "its outputs are the model's output"),)
    stem, head = space.layers[0], space.layers[-1]
    assert stem == LayerInfo(
        "stem.0",
        "conv",
        (16, 3, 3, 3),
        16 * 64 * 27,
        (1, 16, 8, 8),
        (2, 3, 4, 5, 6, 7, 8, 32),
        (8,),
    )
    assert (head.name, head.kind, head.macs, head.output_shape) == ("head", "linear", 320, (1, 10))


def test_the_limit_on_pruning_holds(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    half = SearchSpace.from_model(model, data, profile, SpaceSettings(max_pruning_ratio=0.5))
    assert [g.kept_options[0] for g in half.groups] == [8, 16, 16, 16]
    little = SearchSpace.from_model(model, data, profile, SpaceSettings(max_pruning_ratio=0.1))
    assert little.groups == ()
    assert "cannot shrink in steps of 8" in dict(little.unprunable)["stem.0"]
    none = SearchSpace.from_model(model, data, profile, SpaceSettings(max_pruning_ratio=0.0))
    assert none.groups == ()
    assert none.unprunable == ()
    assert none.layers == half.layers


def test_the_widths_are_those_asked_for(build: Build, profile: HardwareProfile) -> None:
    asked = SpaceSettings(weight_bits=(8, 4), activation_bits=(8, 7), include_float=False)
    space = SearchSpace.from_model(*build("mlp"), profile, asked)
    assert {layer.weight_bits for layer in space.layers} == {(4, 8)}
    assert {layer.activation_bits for layer in space.layers} == {(7, 8)}


def test_activations_of_few_bits_must_be_asked_for(build: Build, profile: HardwareProfile) -> None:
    model, data = build("mlp")
    rule = LayerRule("0", activation_bits=(4, 5, 6))
    space = SearchSpace.from_model(model, data, profile, SpaceSettings(rules=(rule,)))
    assert [layer.activation_bits for layer in space.layers] == [(4, 5, 6), (8,), (8,)]
    eight = dataclasses.replace(profile, activation_bits=(8,))
    with pytest.raises(SpaceError, match=r"`activation_bits` .* layer '0' asks for 4"):
        SearchSpace.from_model(model, data, eight, SpaceSettings(rules=(rule,)))


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (SpaceSettings(weight_bits=(4, 9)), r"`weight_bits` .* layer '0' asks for 9\. Pick"),
        (SpaceSettings(activation_bits=(3, 8)), "`activation_bits` .* layer '0' asks for 3"),
    ],
)
def test_a_width_without_kernel_is_refused(
    build: Build, profile: HardwareProfile, asked: SpaceSettings, match: str
) -> None:
    with pytest.raises(SpaceError, match=match):
        SearchSpace.from_model(*build("mlp"), profile, asked)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"max_pruning_ratio": 1.0}, "`max_pruning_ratio` must lie in"),
        ({"activation_bits": ()}, "`activation_bits` must hold at least one width"),
        ({"weight_bits": (), "include_float": False}, "`weight_bits` must hold at least one"),
    ],
)
def test_settings_check_themselves(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SpaceSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_model_that_does_not_run_names_the_module(
    build: Build, profile: HardwareProfile
) -> None:
    model, _ = build("residual")
    with pytest.raises(SpaceError, match=r"of shape \(1, 4, 8, 8\), but module 'stem.0' \(Conv2d"):
        SearchSpace.from_model(model, torch.zeros(1, 4, 8, 8), profile)


def test_a_model_without_layers_is_refused(profile: HardwareProfile) -> None:
    with pytest.raises(SpaceError, match="at least one convolution or linear layer, but 'ReLU'"):
        SearchSpace.from_model(nn.ReLU(), torch.zeros(1, 4), profile)


def test_the_digest_tells_spaces_apart(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    space = SearchSpace.from_model(model, data, profile)
    assert SearchSpace.from_model(model, data, profile).digest == space.digest
    other = SearchSpace.from_model(model, data, profile, SpaceSettings(include_float=False))
    assert other.digest != space.digest


def test_the_model_is_left_alone_and_not_kept(build: Build, profile: HardwareProfile) -> None:
    model, data = build("residual")
    model.train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    space = SearchSpace.from_model(model, data, profile)
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    assert len(space.groups) == 4


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ratio=st.floats(0, 1), channels=st.integers(8, 200))
def test_kept_counts_are_multiples(profile: HardwareProfile, ratio: float, channels: int) -> None:
    model = nn.Sequential(nn.Linear(4, channels), nn.ReLU(), nn.Linear(channels, 2))
    limit = SpaceSettings(max_pruning_ratio=min(ratio, 0.99))
    for group in SearchSpace.from_model(model, torch.zeros(1, 4), profile, limit).groups:
        assert group.kept_options[-1] == channels
        assert all(kept % 8 == 0 for kept in group.kept_options[:-1])
        assert group.kept_options[0] >= channels * (1 - limit.max_pruning_ratio) - 1e-6


# ---- rules and ties


def tied(settings: SpaceSettings, build: Build, profile: HardwareProfile) -> SearchSpace:
    model, example = build("residual")
    return SearchSpace.from_model(model, example, profile, settings)


def test_rules_and_exclusions_hold_for_the_layers_they_fit(
    build: Build, profile: HardwareProfile
) -> None:
    settings = SpaceSettings(
        rules=(
            LayerRule("left.*", max_pruning_ratio=0.4, weight_bits=(4, 8)),
            LayerRule("left.2.*", weight_bits=(8,), include_float=False),
        ),
        exclude=("head", "down.*"),
    )
    space = tied(settings, build, profile)
    bits = {layer.name: layer.weight_bits for layer in space.layers}
    assert bits["left.0.0"] == (4, 8, 32)
    assert bits["left.2.0"] == (8,)
    assert bits["head"] == bits["down.0.0"] == (32,)
    groups = {group.name: group.kept_options for group in space.groups}
    assert groups == {"left.0.0": (16, 24)}  # 0.4 of 24 channels; the others are bound below 0.4
    reasons = dict(space.unprunable)
    assert reasons["down.0.0"] == "the settings keep its channels"


def test_a_pattern_must_fit_a_layer(build: Build, profile: HardwareProfile) -> None:
    with pytest.raises(SpaceError, match=r"'lift\.\*' fits none of stem\.0, left\.0\.0"):
        tied(SpaceSettings(exclude=("lift.*",)), build, profile)
    with pytest.raises(ValueError, match="`tie` must be one of"):
        SpaceSettings(tie="network")


def test_tied_layers_and_groups_choose_once(build: Build, profile: HardwareProfile) -> None:
    space = tied(SpaceSettings(tie="stage", weight_bits=(4, 8)), build, profile)
    free = tied(SpaceSettings(weight_bits=(4, 8)), build, profile)
    assert space.digest != free.digest
    trial = optuna.create_study().ask()
    candidate = space.suggest(trial)
    assert trial.params.keys() == {
        "keep/stem.0", "keep/skip", "weight_bits/stem.0", "weight_bits/skip", "weight_bits/head",
    }  # fmt: skip
    choices = candidate.layer_choices
    assert choices["stem.0"] == choices["left.0.0"] == choices["left.2.0"]
    assert space.params(candidate) == trial.params


def test_blocks_are_the_numbered_modules(build: Build, profile: HardwareProfile) -> None:
    space = tied(SpaceSettings(tie="block", weight_bits=(4, 8)), build, profile)
    names = {n for n in space.params(space.uniform(4)) if n.startswith("weight_bits")}
    assert names == {
        f"weight_bits/{name}"
        for name in ("stem.0", "left.0.0", "left.2.0", "skip", "down.0.0", "down.2.0", "head")
    }
    space = tied(SpaceSettings(tie=(("left.*", "down.*"),)), build, profile)
    names = {n for n in space.params(space.uniform(4)) if n.startswith("weight_bits")}
    assert names == {f"weight_bits/{n}" for n in ("stem.0", "left.0.0", "skip", "head")}


@given(st.integers(0, 2**32 - 1))
def test_tied_params_are_the_inverse_of_suggest(seed: int) -> None:
    space = dataclasses.replace(
        SPACE,
        layers=(SPACE.layers[0], dataclasses.replace(SPACE.layers[0], name="b"), SPACE.layers[2]),
        group_leaders=(1, 1),
        layer_leaders=(0, 0, 2),
    )
    candidate = space.random(np.random.default_rng(seed))
    space.check(candidate)
    assert ask(space, space.params(candidate)) == candidate
    assert space.params(candidate).keys() == {"keep/block.conv1", "weight_bits/stem"}
    ratio = candidate.pruning_ratios["block.conv1"]
    assert abs(candidate.pruning_ratios["stem"] - ratio) <= 4 / 64 + 1e-9


def test_a_candidate_that_breaks_a_tie_is_refused() -> None:
    space = dataclasses.replace(SPACE, group_leaders=(1, 1))
    broken = SPACE.uniform(8)
    broken = dataclasses.replace(broken, pruning=(("stem", 0.5), ("block.conv1", 0.0)))
    with pytest.raises(SpaceError, match="group 'stem' must keep 64 channels, but keeps 32"):
        space.check(broken)


def test_tied_layers_need_a_common_width(build: Build, profile: HardwareProfile) -> None:
    settings = SpaceSettings(
        tie=(("stem.*", "head"),),
        include_float=False,
        rules=(LayerRule("stem.0", weight_bits=(4,)), LayerRule("head", weight_bits=(8,))),
    )
    with pytest.raises(SpaceError, match="Tied layers must have a width in common"):
        tied(settings, build, profile)
