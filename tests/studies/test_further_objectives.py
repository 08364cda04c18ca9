"""Studies that search memory or energy beside accuracy, size and latency."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from paredown.evaluators.measurement import EvaluationError, Latency
from paredown.search.candidate import Candidate
from paredown.search.objective import Evaluation
from paredown.studies.front import front_json, front_table
from paredown.studies.outcomes import further_measures
from paredown.studies.records import StudyRecord, StudySettings, TrialRecord
from paredown.studies.report import write_report
from paredown.studies.selection import SelectionError, select_trial

NewRecord = Callable[..., StudyRecord]


def trial(number: int, size: int, memory: int) -> TrialRecord:
    latency = Latency(50.0, 0.1, 10, False, 1, 100.0, 0.5, peak_memory_bytes=memory)
    return TrialRecord(
        number,
        "complete",
        Candidate((), ()),
        0.9,
        size,
        50.0,
        0.1,
        latency,
        is_baseline=number == 0,
        is_feasible=True,
        further=(("peak_memory_bytes", float(memory)),),
    )


@pytest.fixture
def study(new_record: NewRecord) -> StudyRecord:
    trials = [trial(0, 1000, 9_000_000), trial(1, 500, 8_000_000), trial(2, 600, 2_000_000)]
    return new_record(trials, settings=StudySettings(objectives=("memory",)))


def test_memory_is_an_objective(study: StudyRecord) -> None:
    assert study.objectives == ("accuracy", "size_bytes", "latency_us", "peak_memory_bytes")
    assert study.n_latencies == 1
    assert study.trial(2).values == (0.9, 600.0, 50.0, 2e6)
    assert {t.number for t in study.front()} == {1, 2}  # the second is larger, but takes less
    assert select_trial(study, "min:peak_memory_bytes").number == 2
    with pytest.raises(SelectionError, match="`energy_mj` of trial"):
        select_trial(study, "min:energy_mj")


def test_it_is_shown(study: StudyRecord, tmp_path: Path) -> None:
    file = io.StringIO()
    Console(file=file, width=160).print(front_table(study))
    assert "memory" in file.getvalue()
    assert "2.00 MB" in file.getvalue()
    assert front_json(study)["front"][0]["peak_memory_bytes"] in (2e6, 8e6)
    page = write_report(study, tmp_path / "report.html").read_text()
    assert "Accuracy and peak memory" in page
    assert "Peak memory: 2.00 MB" in page


def test_what_a_device_does_not_tell_is_an_error(study: StudyRecord) -> None:
    latency = Latency(50.0, 0.1, 10, False, 1, 100.0, 0.5)
    model = Path("model.onnx")
    evaluation = Evaluation(Candidate((), ()), 0.9, 600, 50.0, 0.1, latency, model, model)
    with pytest.raises(EvaluationError, match="Objective 'memory' must be measured, but"):
        further_measures(evaluation, study)
