import io
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from paredown.studies.progress import LiveProgress, LogProgress, duration, make_progress
from paredown.studies.records import StudyRecord


def part(study: StudyRecord, n: int) -> StudyRecord:
    return replace(study, trials=study.trials[:n])


def test_lines_for_a_log(synthetic_study: StudyRecord) -> None:
    out = io.StringIO()
    with make_progress(Console(file=out)) as progress:
        assert isinstance(progress, LogProgress)
        progress.preparing("loading the task")
        progress.preparing("loading the task")
        progress.started(part(synthetic_study, 16), 60)
        progress.trial_finished(synthetic_study.trials[16], part(synthetic_study, 17))
        progress.trial_finished(synthetic_study.trials[17], part(synthetic_study, 18))
        progress.message("The time limit is reached.")

    lines = out.getvalue().splitlines()
    assert lines[0] == "loading the task"
    assert "60 trials on profile 'x86-64-v3', tvm, 1 thread(s); 16 done already" in lines[1]
    assert lines[2].startswith("[17/60, ")
    assert " left] trial 16: accuracy" in lines[2]
    assert "trial 17 failed: The build took longer" in lines[3]
    assert lines[-1] == "The time limit is reached."


def test_display_in_a_terminal(synthetic_study: StudyRecord) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=40, color_system=None)
    with make_progress(console) as progress:
        assert isinstance(progress, LiveProgress)
        progress.preparing("training the base model: epoch 3 of 18, 4:00 min left")
        console.print(progress)
        progress.started(part(synthetic_study, 30), 60)
        assert synthetic_study.trials[30].candidate is not None
        progress.trial_started(30, synthetic_study.trials[30].candidate)
        progress.trial_step(30, "compiling")
        progress.trial_finished(synthetic_study.trials[30], part(synthetic_study, 31))
        progress.trial_finished(synthetic_study.trials[33], part(synthetic_study, 34))
        console.print(progress)

    text = out.getvalue()
    assert "epoch 3 of 18" in text
    assert "trial 30: " in text
    assert "compiling" in text
    assert "34/60" in text
    assert "uncompressed" in text
    assert "trial 33 failed" in text


def test_study_without_trials_has_a_display(new_record: Callable[..., StudyRecord]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveProgress(console) as progress:
        progress.started(new_record([]), 5)


def test_durations_in_words() -> None:
    assert [duration(s) for s in (7.4, 65, 3700)] == ["7 s", "1 min 05 s", "1 h 01 min"]
