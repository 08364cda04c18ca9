from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from paredown.search.candidate import Candidate, LayerChoice
from paredown.studies.records import INTERRUPTED, StudyRecord, TrialRecord
from paredown.studies.report.view import ReportView, bits_text, uniform_label

NewRecord = Callable[..., StudyRecord]


def candidate(*bits: int, ratio: float = 0.0) -> Candidate:
    layers = tuple((f"conv{i}", LayerChoice.of(width, 8)) for i, width in enumerate(bits))
    return Candidate(pruning=(("conv0", ratio),), layers=layers)


def test_every_trial_with_values_is_in_one_group(synthetic_study: StudyRecord) -> None:
    view = ReportView.from_record(synthetic_study)
    baseline = synthetic_study.baseline
    assert baseline is not None
    numbers = [t.number for group in (view.front, view.dominated, view.infeasible) for t in group]
    assert len(numbers) == len(set(numbers))
    assert {*numbers, baseline.number} == {t.number for t in synthetic_study.complete}
    assert [t.number for t in view.failed] == [17, 33, 41]
    assert [label for label, _ in view.uniform] == ["W8A8", "W6A8", "W4A8", "W3A8"]


def test_an_interrupted_trial_is_no_failure(new_record: NewRecord) -> None:
    trials = [TrialRecord(0, "failed", error=INTERRUPTED), TrialRecord(1, "failed", error="no")]
    assert [t.number for t in ReportView.from_record(new_record(trials)).failed] == [1]


def test_the_headline_keeps_to_the_budget(synthetic_study: StudyRecord) -> None:
    view = ReportView.from_record(synthetic_study)
    best = view.headline()
    assert best.balanced is not None
    assert best.fastest is not None
    assert best.smallest is not None
    near = [t for t in view.front if not t.is_baseline and (view.loss(t) or 0.0) <= 0.005]
    assert best.fastest.latency_us == min(t.latency_us for t in near if t.latency_us)
    assert best.smallest.size_bytes == min(t.size_bytes for t in near if t.size_bytes)


def test_there_is_no_headline_without_a_baseline(synthetic_study: StudyRecord) -> None:
    view = ReportView.from_record(replace(synthetic_study, baseline=None))
    assert view.headline().balanced is None
    assert view.change_text(view.front[0]) == "\u2013"


def test_a_metric_that_is_no_share_keeps_its_unit(synthetic_study: StudyRecord) -> None:
    view = ReportView.from_record(replace(synthetic_study, higher_is_better=False))
    worst = min(synthetic_study.complete, key=lambda t: t.values[0])
    assert not view.is_share
    assert view.accuracy.title == "Accuracy"
    assert view.loss(worst) == pytest.approx(-(0.9829 - worst.values[0]), abs=1e-3)


@pytest.mark.parametrize(
    ("made", "label", "bits"),
    [
        (candidate(4, 4), "W4A8", "4"),
        (candidate(4, 4, ratio=0.5), None, "4"),
        (candidate(32, 32), "float", "float"),
        (candidate(3, 8), None, "3\u20138, mean 5.5"),
        (candidate(3, 8, 32), None, "3\u20138, mean 5.5, 1 float"),
        (candidate(4, 4, 32), None, "4, 1 float"),
        (candidate(16, 16), "float16", "float16"),
        (candidate(16, 32, 16), None, "2 float16, 1 float"),
        (candidate(4, 16, 32), None, "4, 1 float16, 1 float"),
    ],
)
def test_candidates_have_short_names(made: Candidate, label: str | None, bits: str) -> None:
    assert uniform_label(made) == label
    assert bits_text(made) == bits


@pytest.mark.parametrize(
    ("storage", "option"),
    [
        ("sqlite:///paredown.db", ""),
        ("sqlite:////home/me/paredown.db", ""),
        ("", ""),
        ("sqlite:///other.db", " --storage sqlite:///other.db"),
        (
            "postgresql://me:secret@host/studies",
            " --storage 'postgresql://me:***@host/studies'",
        ),
    ],
)
def test_the_export_command_names_an_unusual_storage_without_its_password(
    synthetic_study: StudyRecord, storage: str, option: str
) -> None:
    record = replace(synthetic_study, storage=storage, name="my study")
    command = ReportView.from_record(record).export_command(record.trials[1])
    assert command == f"paredown export 'my study' --trial 1 -o 'my study-1'{option}"
