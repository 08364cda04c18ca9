from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from numpy.typing import NDArray

from paredown.evaluators.layer_times import LayerTimes
from paredown.search.candidate import Candidate
from paredown.search.knowledge.latency_model import (
    LatencyModel,
    LatencySample,
    probe_candidates,
)
from paredown.search.knowledge.sizes import Choices
from paredown.search.space import LayerInfo, PruningGroup, SearchSpace

WIDTHS = (2, 4, 6, 8, 32)
SHAPES = {"a": (64, 32, 3, 3), "b": (64, 64, 3, 3), "c": (128, 64, 1, 1), "d": (10, 128)}
SPACE = SearchSpace(
    (),
    tuple(
        LayerInfo(name, "conv", shape, 1000 * prod(shape), (1, shape[0], 8, 8), WIDTHS, (7, 8))
        for name, shape in SHAPES.items()
    ),
)


def truth(candidate: Candidate) -> LayerTimes:
    """Times that go with the weights, and with the bits by a law of each layer's own."""
    times = {}
    for place, (name, choice) in enumerate(candidate.layers):
        bits = 20 if choice.is_float else choice.weight_bits
        times[name] = prod(SHAPES[name]) / 1e3 * (0.2 + (0.05 + 0.01 * place) * bits)
    return LayerTimes(times, 3.0)


def sample(candidate: Candidate) -> LatencySample:
    """The whole network is a little faster than its layers timed in place."""
    times = truth(candidate)
    return LatencySample(candidate, times, 0.95 * times.total_us - 2.0)


def errors(model: LatencyModel, n: int = 100) -> NDArray[np.float64]:
    rng = np.random.default_rng(7)
    candidates = [SPACE.random(rng) for _ in range(n)]
    mean, _ = model.predict(Choices.of(SPACE, candidates))
    measured = np.array([sample(c).latency_us for c in candidates])
    found: NDArray[np.float64] = np.abs(mean / measured - 1.0)
    return found


@pytest.fixture
def model() -> LatencyModel:
    baseline = sample(SPACE.baseline())
    assert baseline.latency_us is not None
    model = LatencyModel(SPACE, baseline.latency_us)
    model.add(baseline)
    return model


def test_float16_is_judged_by_what_is_known_of_float() -> None:
    layers = tuple(replace(layer, weight_bits=(*WIDTHS[:-1], 16, 32)) for layer in SPACE.layers)
    space = SearchSpace((), layers)
    model = LatencyModel(space, 1000.0)
    untimed = [space.uniform(bits) for bits in (8, 16, 32)]
    eight, half, whole = model.predict_layers(Choices.of(space, untimed)).sum(axis=1)
    assert eight < half == whole
    for bits in (2, 8, 32):
        model.add(sample(space.uniform(bits)))
    eight, half, whole = model.predict_layers(Choices.of(space, untimed)).sum(axis=1)
    assert abs(half - whole) < 0.1 * abs(half - eight)


def test_few_networks_tell_about_many(model: LatencyModel) -> None:
    for candidate in probe_candidates(SPACE, 8, seed=0):
        model.add(sample(candidate))
    assert model.n_timed == 9
    assert np.median(errors(model)) < 0.02
    assert errors(model).max() < 0.15


def test_measured_trials_correct_it(model: LatencyModel) -> None:
    for candidate in probe_candidates(SPACE, 4, seed=0):
        model.add(LatencySample(candidate, truth(candidate), None))  # layers alone
    before = np.median(errors(model))
    rng = np.random.default_rng(0)
    for _ in range(20):
        model.add(sample(SPACE.random(rng)))
    assert np.median(errors(model)) < before
    _, deviation = model.predict(Choices.of(SPACE, [SPACE.uniform(4)]))
    assert 0 < deviation[0] < 0.05 * model.baseline_us


def test_what_was_timed_is_predicted(model: LatencyModel) -> None:
    known = SPACE.uniform(4)
    model.add(sample(known))
    layers = model.predict_layers(Choices.of(SPACE, [known]))[0]
    assert layers == pytest.approx(list(truth(known).layers_us.values()), rel=0.01)


def test_without_layers_it_goes_by_operations() -> None:
    model = LatencyModel(SPACE, 100.0)
    fast, slow = SPACE.uniform(4), SPACE.baseline()
    mean, deviation = model.predict(Choices.of(SPACE, [slow, fast]))
    assert mean[1] < mean[0]
    assert mean[0] == pytest.approx(105.0)  # and what does not go with operations
    assert (deviation > 0).all()
    model.add(LatencySample(fast, None, 20.0))
    model.add(LatencySample(slow, None, 100.0))
    corrected, _ = model.predict(Choices.of(SPACE, [fast]))
    assert abs(corrected[0] - 20.0) < abs(mean[1] - 20.0)


def test_a_candidate_counts_once_however_often_it_is_asked(model: LatencyModel) -> None:
    once, _ = model.predict(Choices.of(SPACE, [SPACE.uniform(4)]))
    many, _ = model.predict(Choices.of(SPACE, [SPACE.uniform(4), SPACE.uniform(8)] * 3))
    assert many[::2] == pytest.approx(once[0])


def test_probes_show_every_width_of_every_layer() -> None:
    probes = probe_candidates(SPACE, 10, seed=0)
    assert len(probes) == 10
    for name in SHAPES:
        assert {probe.layer_choices[name].weight_bits for probe in probes} == set(WIDTHS)
    assert probes == probe_candidates(SPACE, 10, seed=0)
    assert probes != probe_candidates(SPACE, 10, seed=1)


def test_samples_survive_json() -> None:
    found = sample(SPACE.uniform(4))
    assert LatencySample.from_json(json.loads(json.dumps(found.to_json()))) == found
    bare = LatencySample(SPACE.uniform(4), None, None)
    assert LatencySample.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_counts_of_a_pruned_space_reach_the_layers() -> None:
    group = PruningGroup("a", 64, (32, 64), ("a",))
    space = SearchSpace((group,), SPACE.layers)
    choices = Choices.of(space, [space.uniform(8), space.uniform(8, pruning_ratio=0.5)])
    assert choices.kept.tolist() == [[64], [32]]
    assert len(choices) == 2
