from collections.abc import Callable

import pytest

from paredown.studies.records import Constraints, StudyRecord, TrialRecord


def trial(
    number: int, accuracy: float, size: int, latency: float, feasible: bool = True
) -> TrialRecord:
    return TrialRecord(
        number,
        "complete",
        accuracy=accuracy,
        size_bytes=size,
        latency_us=latency,
        is_baseline=number == 0,
        is_feasible=feasible,
    )


def test_front_leaves_out_dominated_and_infeasible_trials(
    new_record: Callable[..., StudyRecord],
) -> None:
    trials = [
        trial(0, 0.99, 1000, 100.0),
        trial(1, 0.98, 250, 60.0),
        trial(2, 0.97, 250, 60.0),  # trial 1 is better
        trial(3, 0.90, 100, 40.0, feasible=False),
        trial(4, 0.95, 125, 70.0),
        TrialRecord(5, "failed", error="compile"),
    ]

    study = new_record(trials)

    assert [t.number for t in study.front()] == [1, 4, 0]


def test_front_of_a_metric_that_is_better_when_lower(
    new_record: Callable[..., StudyRecord],
) -> None:
    trials = [trial(0, 0.1, 100, 10.0), trial(1, 0.2, 100, 10.0)]

    study = new_record(trials, higher_is_better=False)

    assert [t.number for t in study.front()] == [0]


def test_speedup_and_shrink_are_against_the_baseline(
    new_record: Callable[..., StudyRecord],
) -> None:
    study = new_record([trial(0, 0.99, 1000, 100.0), trial(1, 0.98, 250, 40.0)])

    assert study.speedup(study.trial(1)) == 2.5
    assert study.shrink(study.trial(1)) == 4.0


def test_speedup_without_baseline_is_unknown(new_record: Callable[..., StudyRecord]) -> None:
    study = new_record([trial(1, 0.98, 250, 40.0)])

    assert study.speedup(study.trial(1)) is None


def test_unknown_trial_is_an_error(new_record: Callable[..., StudyRecord]) -> None:
    with pytest.raises(ValueError, match="has no trial 7"):
        new_record([]).trial(7)


def test_finished_trials_are_those_with_a_result_of_their_own(
    new_record: Callable[..., StudyRecord],
) -> None:
    trials = [
        trial(0, 0.99, 1000, 100.0),
        TrialRecord(1, "failed", error="the compiler crashed"),
        TrialRecord(2, "failed", error="interrupted"),
        TrialRecord(3, "failed"),
        TrialRecord(4, "running"),
        TrialRecord(5, "duplicate"),
    ]

    study = new_record(trials)

    assert [t.number for t in trials if t.is_finished] == [0, 1]
    assert study.n_finished == 2


def test_complete_trial_needs_its_values() -> None:
    with pytest.raises(ValueError, match="must have accuracy, size and latency"):
        TrialRecord(3, "complete", accuracy=0.9)


def test_violations_are_positive_where_a_bound_is_broken() -> None:
    constraints = Constraints(min_accuracy=0.9, max_latency_us=50.0, max_size_bytes=1000)

    missed = constraints.violations(0.85, 900, 60.0)

    assert missed == pytest.approx(
        {"min_accuracy": 0.05, "max_latency_us": 10.0, "max_size_bytes": -100.0}
    )


def test_accuracy_bound_is_an_upper_one_where_lower_is_better() -> None:
    missed = Constraints(min_accuracy=0.2).violations(0.1, 1, 1.0, higher_is_better=False)

    assert missed["min_accuracy"] == pytest.approx(-0.1)


@pytest.mark.parametrize("field", ["max_latency_us", "max_size_bytes"])
def test_bounds_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be positive"):
        Constraints(**{field: 0})


def test_relative_bounds_become_absolute_ones() -> None:
    baseline = (0.97, 1000.0, 80.0)
    wanted = Constraints(min_speedup=2.0, min_shrink=3.0, max_accuracy_drop=0.5)
    assert wanted.resolve(baseline) == Constraints(0.965, 40.0, 333)
    both = Constraints(0.968, 30.0, 500, 2.0, 3.0, 0.5)
    assert both.resolve(baseline) == Constraints(0.968, 30.0, 333)
    assert Constraints().resolve(baseline) == Constraints()
    # Where lower is better, a drop is a rise.
    lower = Constraints(max_accuracy_drop=2.0).resolve((0.5, 1.0, 1.0), higher_is_better=False)
    assert lower.min_accuracy == 0.52
    with pytest.raises(ValueError, match="`min_speedup` must be positive, but got 0"):
        Constraints(min_speedup=0.0)
