from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.search.candidate import FLOAT_LAYER, Candidate, LayerChoice, digest_of, width_name

CHOICES = st.one_of(
    st.just(FLOAT_LAYER),
    st.just(LayerChoice(16, 32)),
    st.builds(LayerChoice, st.integers(2, 8), st.sampled_from((7, 8))),
)
CANDIDATES = st.builds(
    lambda pruning, layers: Candidate(tuple(pruning.items()), tuple(layers.items())),
    st.dictionaries(st.text(), st.floats(0, 1, exclude_max=True)),
    st.dictionaries(st.text(), CHOICES),
)
EXAMPLE = Candidate((("conv", 0.5),), (("conv", LayerChoice(4)), ("fc", FLOAT_LAYER)))


@given(CANDIDATES)
def test_json_round_trip_keeps_value_order_and_hash(candidate: Candidate) -> None:
    read = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert read == candidate
    assert hash(read) == hash(candidate)
    assert read.digest == candidate.digest


def test_json_form_is_stable() -> None:
    assert EXAMPLE.to_json() == {
        "version": 1,
        "pruning": {"conv": 0.5},
        "layers": {
            "conv": {"weight_bits": 4, "activation_bits": 8},
            "fc": {"weight_bits": 32, "activation_bits": 32},
        },
    }
    # Stored studies know their trials by this: it must never change for version 1.
    assert EXAMPLE.digest == "c1818ccc854d5642"


def test_digest_of_canonical_json() -> None:
    # sha256 of {"a":1,"b":[2]}
    assert digest_of({"b": [2], "a": 1}) == digest_of({"a": 1, "b": [2]}) == "0855bfc20eb6cfaa"


def test_lookups_by_name() -> None:
    assert EXAMPLE.pruning_ratios == {"conv": 0.5}
    assert EXAMPLE.layer_choices["fc"].is_float
    assert not EXAMPLE.layer_choices["conv"].is_float


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "match"),
    [
        (0, 8, "`weight_bits` must lie between 1 and 8, or be 16 or 32 for float, but got 0"),
        (9, 8, "`weight_bits` must lie between"),
        (4, 3, "`activation_bits` must lie between 4 and 8 in an integer layer, but got 3"),
        (4, 32, "`activation_bits` must lie between 4 and 8"),
        (32, 8, "`activation_bits` must be 32 where `weight_bits` is 32"),
        (16, 8, "`activation_bits` must be 32 where `weight_bits` is 16"),
    ],
)
def test_layer_choice_checks_itself(weight_bits: int, activation_bits: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LayerChoice(weight_bits, activation_bits)


def test_only_the_weights_of_a_float_layer_may_be_halved() -> None:
    assert LayerChoice.of(16, 7) == LayerChoice(16, 32)
    assert LayerChoice.of(32, 8) == FLOAT_LAYER
    assert LayerChoice.of(4, 7) == LayerChoice(4, 7)
    assert LayerChoice(16, 32).is_float
    assert [width_name(bits) for bits in (1, 8, 16, 32)] == ["1", "8", "float16", "float"]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_candidate_refuses_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), but group 'conv' has"):
        Candidate((("conv", ratio),), ())


def test_candidate_refuses_a_repeated_name() -> None:
    with pytest.raises(ValueError, match="`layers` must name each entry once, but 'fc' repeats"):
        Candidate((), (("fc", FLOAT_LAYER), ("fc", FLOAT_LAYER)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "`version` of a candidate must be 1, but got 2"),
        ({"version": None}, "`version` of a candidate must be 1, but got None"),
        ({"layers": {"fc": {"weight_bits": 4}}}, "KeyError"),
        ({"layers": {"fc": 4}}, "TypeError"),
        ({"layers": {"fc": {"weight_bits": 9, "activation_bits": 8}}}, "between 1 and 8"),
        ({"pruning": [1]}, "AttributeError"),
    ],
)
def test_from_json_refuses_what_it_does_not_know(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Candidate.from_json({**EXAMPLE.to_json(), **change})
