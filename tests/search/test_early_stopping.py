from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.search.early_stopping import DraftAccuracies, Gate

# Accuracies of 0.9 and 0.8, negated.
COSTS = np.array([[-0.9, 1000.0, 50.0], [-0.8, 500.0, 30.0]])


def test_a_candidate_goes_on_while_it_may_reach_the_front() -> None:
    gate = Gate(COSTS, (3, 7))
    assert gate.verdict(2000.0) is None  # nothing is known of its accuracy
    assert gate.verdict(2000.0, (60.0,), accuracy=0.91) is None
    assert gate.verdict(900.0, (60.0,), accuracy=0.85) is None
    assert gate.verdict(2000.0, accuracy=0.85) is None  # it may be fast


def test_it_is_given_up_when_a_trial_is_better_in_everything() -> None:
    gate = Gate(COSTS, (3, 7), latencies_us=(55.0,))
    reason = gate.verdict(2000.0, accuracy=0.85)
    assert reason is not None
    assert reason.startswith("trial 3 is better in everything (accuracy 0.8500 at best")
    assert Gate(COSTS, (3, 7)).verdict(600.0, (31.0,), accuracy=0.7) is not None
    # An equal one is not worse.
    assert Gate(COSTS, (3, 7)).verdict(500.0, (30.0,), accuracy=0.8) is None


def test_constraints_are_checked_by_what_is_known() -> None:
    gate = Gate(np.empty((0, 3)), (), limits=(-0.85, 800.0, inf), latencies_us=(10.0,))
    assert gate.verdict(700.0) is None
    assert gate.verdict(801.0) == "its size is 801 at best, beyond the bound of 800"
    reason = gate.verdict(700.0, accuracy=0.8)
    assert reason == "its accuracy is 0.8 at best, beyond the bound of 0.85"
    lower = Gate(np.empty((0, 3)), (), (0.5, inf, inf), higher_is_better=False)
    assert lower.verdict(700.0, accuracy=0.4) is None
    assert lower.verdict(700.0, accuracy=0.6) is not None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_what_ends_up_on_the_front_is_never_given_up(seed: int, n_devices: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.random((6, 2 + n_devices))
    final = rng.random(2 + n_devices)
    accuracy, size, *latencies = final.tolist()
    is_dominated = ((costs <= final).all(axis=1) & (costs < final).any(axis=1)).any()
    expected = tuple(latency * rng.random() for latency in latencies)
    gate = Gate(costs, range(6), (inf,) * len(final), False, expected)
    looks = [
        gate.verdict(size),
        gate.verdict(size, accuracy=accuracy - rng.random()),
        gate.verdict(size, latencies, accuracy - 0.1 * rng.random()),
    ]
    if not is_dominated:
        assert looks == [None] * 3
    assert (gate.verdict(size, latencies, accuracy) is not None) == is_dominated


# ---- drafts


def test_little_is_said_of_models_before_some_are_done() -> None:
    drafts = DraftAccuracies()
    for _ in range(9):
        drafts.add(0.1, 0.9)
    assert drafts.predict(0.1) is None
    drafts.add(0.1, 0.9)
    found = drafts.predict(0.1)
    assert found is not None
    assert found[0] == pytest.approx(0.9)


@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_models_reach_what_their_drafts_promise(bend: float) -> None:
    def reached(distance: float) -> float:
        return 0.93 - 0.3 * distance + bend * distance**2 + rng.normal(0, 0.004)

    rng = np.random.default_rng(0)
    is_inside = []
    for _ in range(300):
        drafts = DraftAccuracies()
        for distance in rng.uniform(0.02, 0.3, 40):
            drafts.add(distance, reached(distance))
        distance = rng.uniform(0.01, 0.29)
        found = drafts.predict(distance)
        assert found is not None
        mean, deviation = found
        assert 0.002 < deviation < 0.02
        is_inside.append(abs(reached(distance) - mean) < 3 * deviation)
    assert np.mean(is_inside) > 0.97


def test_what_is_nearer_than_all_drafts_may_reach_more_and_what_is_further_does_not() -> None:
    rng = np.random.default_rng(0)
    drafts = DraftAccuracies()
    for distance in np.linspace(0.11, 0.13, 12).tolist():
        drafts.add(distance, 0.93 - 0.3 * distance + rng.normal(0, 0.001))
    nearer, inside, further = (drafts.predict(distance) for distance in (0.0, 0.12, 0.5))
    assert nearer is not None
    assert inside is not None
    assert further is not None
    assert nearer[1] > 5 * inside[1]
    assert further == drafts.predict(0.13)


def test_drafts_as_far_tell_more_than_others() -> None:
    drafts = DraftAccuracies()
    for distance in np.linspace(0.01, 0.03, 30).tolist():
        drafts.add(distance, 0.93 - 0.3 * distance)
    for distance in np.linspace(2.0, 3.0, 30).tolist():  # as good as guessing
        drafts.add(distance, 0.1)
    found = drafts.predict(0.02)
    assert found is not None
    assert found[0] == pytest.approx(0.924)
    assert found[1] < 1e-6
