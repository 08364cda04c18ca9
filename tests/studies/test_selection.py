from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.selection import (
    QUANTITIES,
    Condition,
    Objective,
    SelectionError,
    SelectionSyntaxError,
    parse_selection,
    quantity,
    select_trial,
)

NewRecord = Callable[..., StudyRecord]


def trial(number: int, accuracy: float, size: int, latency: float, **more: object) -> TrialRecord:
    values = {"state": "complete", "is_feasible": True, **more}
    return TrialRecord(
        number,
        accuracy=accuracy,
        size_bytes=size,
        latency_us=latency,
        **values,  # type: ignore[arg-type]  # a test's shorthand
    )


@pytest.fixture
def record(new_record: NewRecord) -> StudyRecord:
    return new_record(
        [
            trial(0, 0.98, 4000, 400.0, is_baseline=True),
            trial(1, 0.975, 1000, 200.0),
            trial(2, 0.96, 700, 150.0),
            trial(3, 0.97, 1200, 190.0),
            trial(4, 0.95, 900, 300.0),  # dominated
            TrialRecord(5, "failed", error="no"),
        ]
    )


def test_an_expression_is_parsed_in_order() -> None:
    selection = parse_selection(" accuracy >= 0.97, size_bytes<1e6 ,min:latency_us,max: accuracy")
    assert selection.conditions == (
        Condition("accuracy", ">=", 0.97),
        Condition("size_bytes", "<", 1e6),
    )
    assert selection.objectives == (Objective("latency_us", False), Objective("accuracy", True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy>=0.9,min:latency_us", "'acuracy>=0.9' names no known.*mean 'accuracy'"),
        ("accuracy>=97%,min:latency_us", "'accuracy>=97%' must compare with a finite number"),
        ("accuracy>=nan,min:latency_us", "finite number, but 'nan'"),
        ("least:latency_us", "'least:latency_us' must begin with min: or max:"),
        ("accuracy=>0.9,min:latency_us", "'accuracy=>0.9' in .* is neither"),
        ("accuracy>=0.9", "must have an objective, but has none"),
        ("min:latency_us,", "has an empty part"),
        ("", "has an empty part"),
    ],
)
def test_a_wrong_part_is_named_and_the_grammar_shown(text: str, message: str) -> None:
    with pytest.raises(SelectionSyntaxError, match=message) as caught:
        parse_selection(text)
    assert "min:QUANTITY" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("accuracy>=0.97,min:latency_us", 3),
        ("accuracy>0.97,min:latency_us", 1),
        ("min:size_bytes", 2),
        ("max:accuracy", 0),
        ("accuracy_drop<=0.5,max:speedup", 1),
        ("accuracy_drop<=1,max:shrink", 1),
        ("speedup==2,max:accuracy", 1),
        ("shrink>=3.3,latency_us<195,min:accuracy", 2),
    ],
)
def test_conditions_filter_and_objectives_decide(
    record: StudyRecord, text: str, number: int
) -> None:
    assert select_trial(record, text).number == number


def test_later_objectives_break_ties(new_record: NewRecord) -> None:
    tied = [trial(0, 0.9, 100, 50.0), trial(1, 0.9, 90, 60.0), trial(2, 0.9, 95, 55.0)]
    assert select_trial(new_record(tied), "max:accuracy,min:size_bytes").number == 1
    assert select_trial(new_record(tied), "max:accuracy").number == 0


def test_all_trials_may_be_picked_from(record: StudyRecord) -> None:
    text = "latency_us>=300,min:accuracy"
    assert select_trial(record, text).number == 0
    assert select_trial(record, text, all_trials=True).number == 4


def test_the_nearest_point_is_named_with_what_it_misses(record: StudyRecord) -> None:
    with pytest.raises(SelectionError, match="None of the 4 points on the front") as caught:
        select_trial(record, "accuracy>=0.975,latency_us<=190,min:size_bytes")
    message = str(caught.value)
    # Trial 1 misses the latency by 5 %, trial 3 the accuracy by 0.5 %: the latter is nearer.
    assert "The nearest is trial 3 with accuracy 0.9700, size_bytes 1200" in message
    assert "accuracy>=0.975 fails by 0.005 (it is 0.97)" in message
    assert "latency_us<=190 fails" not in message


def test_a_drop_is_a_loss_where_lower_is_better(record: StudyRecord) -> None:
    errors = replace(record, higher_is_better=False)
    assert quantity(errors, errors.trial(2), "accuracy_drop") == -2.0
    assert quantity(record, record.trial(2), "accuracy_drop") == 2.0


@pytest.mark.parametrize("name", ["speedup", "shrink", "accuracy_drop"])
def test_a_comparison_needs_the_baseline(record: StudyRecord, name: str) -> None:
    with pytest.raises(SelectionError, match=f"`{name}` compares with the uncompressed"):
        select_trial(replace(record, baseline=None), f"min:{name}")


def test_an_empty_study_has_nothing_to_pick(new_record: NewRecord) -> None:
    failed = TrialRecord(0, "failed", error="no")
    with pytest.raises(SelectionError, match="no points on the front to pick from"):
        select_trial(new_record([failed]), "min:latency_us")


@given(
    name=st.sampled_from(sorted(QUANTITIES)),
    op=st.sampled_from([">=", "<=", ">", "<", "=="]),
    bound=st.floats(-1e6, 1e6, allow_nan=False),
    value=st.floats(-1e6, 1e6, allow_nan=False),
)
def test_a_violation_is_zero_exactly_when_the_condition_holds(
    name: str, op: str, bound: float, value: float
) -> None:
    condition = Condition(name, op, bound)
    assert (condition.violation(value) == 0.0) == condition.holds(value)
