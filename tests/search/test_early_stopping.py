from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.search.early_stopping import Belief, DraftAccuracies, Gate

# Accuracies of 0.9 and 0.8, negated.
COSTS = np.array([[-0.9, 1000.0, 50.0], [-0.8, 500.0, 30.0]])


def test_a_candidate_goes_on_while_it_may_reach_the_front() -> None:
    gate = Gate(COSTS, (3, 7))
    assert gate.verdict(2000.0) is None  # nothing is known of its accuracy
    assert gate.verdict(2000.0, (Belief(60.0),), Belief(0.91)) is None
    assert gate.verdict(900.0, (Belief(60.0),), Belief(0.85)) is None
    assert gate.verdict(2000.0, accuracy=Belief(0.85)) is None  # it may be fast
    assert gate.verdict(2000.0, (Belief(60.0),), Belief(0.85, 0.04)) is None
    assert gate.verdict(2000.0, (Belief(60.0, 8.0),), Belief(0.85)) is None
    assert gate.verdict(2000.0, (Belief(60.0),), Belief(0.0, inf)) is None


def test_it_is_given_up_when_a_trial_is_better_in_everything() -> None:
    gate = Gate(COSTS, (3, 7), latencies_us=(Belief(55.0, 2.0),))
    reason = gate.verdict(2000.0, accuracy=Belief(0.85, 0.01))
    assert reason == "trial 3 is better in everything (accuracy 0.85 ± 0.01, 2000 bytes)"
    assert Gate(COSTS, (3, 7)).verdict(600.0, (Belief(31.0),), Belief(0.7)) is not None
    # An equal one is not worse.
    assert Gate(COSTS, (3, 7)).verdict(500.0, (Belief(30.0),), Belief(0.8)) is None


def test_it_is_given_up_when_each_of_several_trials_may_be_the_better_one() -> None:
    costs = np.array([[-0.9, 1000.0, 50.0], [-0.88, 1000.0, 45.0]])
    gate = Gate(costs, (3, 7), latencies_us=(Belief(50.0, 2.0),))
    reason = gate.verdict(2000.0, accuracy=Belief(0.8, 0.01))
    assert reason is not None
    assert reason.startswith("trial 7 is better")
    both = gate.verdict(2000.0, accuracy=Belief(0.8785, 0.0025))
    assert both is None
    gate = Gate(costs, (3, 7), latencies_us=(Belief(51.0, 1.0),))
    both = gate.verdict(2000.0, accuracy=Belief(0.8755, 0.003))
    assert both is not None
    assert both.startswith("trial 7 or another is better")


def test_constraints_are_checked_by_what_is_known() -> None:
    gate = Gate(np.empty((0, 3)), (), limits=(-0.85, 800.0, inf), latencies_us=(Belief(10.0),))
    assert gate.verdict(700.0) is None
    assert gate.verdict(800.0) is None
    assert gate.verdict(801.0) == "its size is 801, beyond the bound of 800"
    assert gate.verdict(700.0, accuracy=Belief(0.8, 0.04)) is None
    reason = gate.verdict(700.0, accuracy=Belief(0.8, 0.01))
    assert reason == "its accuracy is 0.8 ± 0.01, beyond the bound of 0.85"
    lower = Gate(np.empty((0, 3)), (), (0.5, inf, inf), higher_is_better=False)
    assert lower.verdict(700.0, accuracy=Belief(0.4)) is None
    assert lower.verdict(700.0, accuracy=Belief(0.6)) is not None


@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_what_is_known_for_certain_decides(seed: int, n_devices: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.random((6, 2 + n_devices))
    final = rng.random(2 + n_devices)
    accuracy, size, *latencies = final.tolist()
    is_dominated = ((costs <= final).all(axis=1) & (costs < final).any(axis=1)).any()
    expected = tuple(Belief(latency, 0.1) for latency in latencies)
    gate = Gate(costs, range(6), (inf,) * len(final), False, expected)
    exact = [Belief(latency) for latency in latencies]
    assert gate.verdict(size) is None
    assert (gate.verdict(size, exact, Belief(accuracy)) is not None) == is_dominated


@pytest.mark.parametrize("n_devices", [1, 2])
def test_what_may_end_up_on_the_front_is_hardly_ever_given_up(n_devices: int) -> None:
    rng = np.random.default_rng(n_devices)
    n_wrong = n_given_up = 0
    for _ in range(600):
        costs = rng.random((8, 2 + n_devices))
        final = rng.random(2 + n_devices)
        deviations = rng.uniform(0.02, 0.2, 2 + n_devices)
        guessed = final + deviations * rng.standard_normal(2 + n_devices)
        expected = tuple(map(Belief, guessed[2:], deviations[2:]))
        gate = Gate(costs, range(8), (inf,) * len(final), False, expected)
        reason = gate.verdict(final[1], accuracy=Belief(guessed[0], deviations[0]))
        is_dominated = (costs <= final).all(axis=1).any()
        n_given_up += reason is not None
        n_wrong += reason is not None and not is_dominated
    assert n_given_up > 30
    assert n_wrong / n_given_up < 0.06


def test_two_sources_tell_more_than_each() -> None:
    one, other = Belief(0.8, 0.02), Belief(0.9, 0.01)
    both = one.with_evidence(other)
    assert both == other.with_evidence(one)
    assert both.mean == pytest.approx(0.88)
    assert both.deviation == pytest.approx(1 / np.hypot(50, 100))
    assert one.with_evidence(None) == one
    assert one.with_evidence(Belief(0.0, inf)) == Belief(0.0, inf).with_evidence(one) == one
    assert one.with_evidence(Belief(0.7)) == Belief(0.7).with_evidence(one) == Belief(0.7)


# ---- drafts


def test_little_is_said_of_models_before_some_are_done() -> None:
    drafts = DraftAccuracies()
    for _ in range(9):
        drafts.add(0.1, 0.9)
    assert drafts.predict(0.1) is None
    drafts.add(0.1, 0.9)
    found = drafts.predict(0.1)
    assert found is not None
    assert found.mean == pytest.approx(0.9)


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
        assert 0.002 < found.deviation < 0.02
        is_inside.append(abs(reached(distance) - found.mean) < 3 * found.deviation)
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
    assert nearer.deviation > 5 * inside.deviation
    assert further == drafts.predict(0.13)


def test_drafts_as_far_tell_more_than_others() -> None:
    drafts = DraftAccuracies()
    for distance in np.linspace(0.01, 0.03, 30).tolist():
        drafts.add(distance, 0.93 - 0.3 * distance)
    for distance in np.linspace(2.0, 3.0, 30).tolist():  # as good as guessing
        drafts.add(distance, 0.1)
    found = drafts.predict(0.02)
    assert found is not None
    assert found.mean == pytest.approx(0.924)
    assert found.deviation < 1e-6
