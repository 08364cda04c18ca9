"""Records, fronts and tables of studies with several devices or none; nothing is run."""

import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.console import Console

from paredown.evaluators.measurement import Latency
from paredown.hw_profiles import load_profile
from paredown.search.candidate import Candidate
from paredown.search.device_timing import DeviceLatency
from paredown.studies.checks import check_profiles, check_same_study
from paredown.studies.config import make_config
from paredown.studies.errors import StudyError
from paredown.studies.front import best_elsewhere, front_notes, front_table
from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.selection import SelectionError, select_trial

NewRecord = Callable[..., StudyRecord]
BOARD = dataclasses.replace(load_profile("x86-64"), name="board")


def latency(us: float) -> Latency:
    return Latency(us, 0.1, 10, False, 1, 100.0, us / 100)


def trial(
    number: int, accuracy: float, size: int, here: float | None, board: float | None
) -> TrialRecord:
    others = () if board is None else (DeviceLatency("board", board, 0.1, latency(board)),)
    return TrialRecord(
        number=number,
        state="complete",
        candidate=Candidate((), ()),
        accuracy=accuracy,
        size_bytes=size,
        latency_us=here,
        latency=None if here is None else latency(here),
        is_baseline=number == 0,
        is_feasible=True,
        others=others,
    )


@pytest.fixture
def two_devices(new_record: NewRecord) -> StudyRecord:
    trials = [
        trial(0, 0.95, 1000, 100.0, 400.0),
        trial(1, 0.95, 400, 50.0, 300.0),
        trial(2, 0.95, 500, 60.0, 100.0),
        trial(3, 0.80, 100, 10.0, 10.0),  # fastest of all, but it loses too much
        trial(4, 0.94, 600, 70.0, 310.0),  # dominated everywhere
    ]
    return new_record(trials, other_profiles=(BOARD,))


def test_each_device_is_an_objective(two_devices: StudyRecord) -> None:
    assert two_devices.objectives == ("accuracy", "size_bytes", "latency_us", "latency_us@board")
    assert two_devices.trial(1).values == (0.95, 400.0, 50.0, 300.0)
    assert two_devices.costs(two_devices.trials).shape == (5, 4)
    assert [t.number for t in two_devices.front()] == [3, 1, 2]


def test_each_device_has_its_front(two_devices: StudyRecord) -> None:
    assert [t.number for t in two_devices.front_on(0)] == [3, 1]
    assert [t.number for t in two_devices.front_on(1)] == [3, 2, 1]


def test_the_best_of_one_device_is_looked_at_on_the_other(two_devices: StudyRecord) -> None:
    first, second = best_elsewhere(two_devices)
    assert (first.trial, first.best_on, first.runs_on) == (1, "x86-64-v3", "board")
    assert first.speedup == pytest.approx(400 / 300)
    assert first.own_speedup == pytest.approx(4.0)
    assert (second.trial, second.best_on, second.runs_on) == (2, "board", "x86-64-v3")
    assert second.speedup == pytest.approx(100 / 60)
    assert second.own_speedup == pytest.approx(2.0)


def text_of(study: StudyRecord) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(front_table(study))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_table_shows_both_latencies(two_devices: StudyRecord) -> None:
    text = text_of(two_devices)
    assert "board latency" in text
    assert "300.0 us" in text
    assert "4.00x" in text


@pytest.mark.parametrize(
    ("connection", "emulated", "cell", "why"),
    [
        ("compile-only", False, "not measured", "latency needs the device"),
        ("rpc://pi:9090", True, "emulated", "is emulated, so its times are no latency"),
    ],
)
def test_a_study_without_latency_says_why(
    new_record: NewRecord, connection: str, emulated: bool, cell: str, why: str
) -> None:
    profile = dataclasses.replace(BOARD, connection=connection, emulated=emulated)
    trials = [trial(0, 0.95, 1000, None, None), trial(1, 0.94, 300, None, None)]
    study = new_record(trials, profile=profile)
    assert study.objectives == ("accuracy", "size_bytes")
    assert {t.number for t in study.front()} == {0, 1}
    assert why in front_notes(study)[0]
    assert cell in text_of(study)
    with pytest.raises(SelectionError, match="needs a study with latencies"):
        select_trial(study, "min:latency_us")
    assert select_trial(study, "min:size_bytes").number == 1


def test_hindrances_are_told_once(new_record: NewRecord) -> None:
    noted = dataclasses.replace(latency(50.0), notes=("a core ran at 50% of its frequency",))
    other = dataclasses.replace(latency(50.0), notes=("a core ran at 48% of its frequency",))
    trials = [
        dataclasses.replace(trial(i, 0.9, 100 + i, 50.0, None), latency=one)
        for i, one in enumerate((noted, other, latency(50.0)))
    ]
    assert front_notes(new_record(trials)) == [
        "In 2 measurement(s): a core ran at 50% of its frequency."
    ]


def test_a_study_goes_on_with_the_same_devices_only(two_devices: StudyRecord) -> None:
    check_same_study(two_devices, two_devices)
    elsewhere = dataclasses.replace(BOARD, connection="rpc://board:9090")
    check_same_study(two_devices, dataclasses.replace(two_devices, other_profiles=(elsewhere,)))
    for changed in ((), (dataclasses.replace(BOARD, threads=2),)):
        with pytest.raises(StudyError, match="profile"):
            check_same_study(two_devices, dataclasses.replace(two_devices, other_profiles=changed))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"profile": ["x86-64", "x86-64"]}, "must name each device once, but got x86-64, x86-64"),
        ({"profile": ["x86-64", "aarch64@compile-only"]}, "'aarch64' is compile-only"),
        ({"profile": ["x86-64", "x86-64-v3"], "threads": 1}, "`threads` must be left"),
        ({"profile": "x86-64@rpc://a:1", "runtime": "onnxruntime"}, "must be 'tvm' on a device"),
    ],
)
def test_profiles_that_do_not_go_together_are_refused(
    options: dict[str, object], match: str
) -> None:
    with pytest.raises(StudyError, match=match):
        check_profiles(make_config({"task": "x", **options}))


def test_device_latencies_survive_storage() -> None:
    value = DeviceLatency("board", 12.5, 0.5, latency(13.0))
    assert DeviceLatency.from_json(value.to_json()) == value
    with pytest.raises(ValueError, match="must be 1, but got 7"):
        DeviceLatency.from_json({**value.to_json(), "version": 7})
