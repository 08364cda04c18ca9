"""The whole path with the real parts: a small task of the user's own, ONNX Runtime, SQLite."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from paredown.hw_profiles import ParedownError, load_profile
from paredown.search.candidate import Candidate
from paredown.studies.config import make_config
from paredown.studies.engine import run_study
from paredown.studies.errors import StudyError
from paredown.studies.observer import Observer
from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.storage import load_model, read_study

TASK = """
import torch
from torch import nn
from paredown.evaluators.task import Data, Task

OPTIONS = dict(nan=False, labels=4, operator=False)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean(dim=(2, 3))
        if OPTIONS["operator"]:
            x = torch.fft.fft(x).real
        return self.head(x)

def make_task():
    torch.manual_seed(0)
    model = Net().eval()
    inputs = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(dim=1) % OPTIONS["labels"]
        if OPTIONS["labels"] > 4:
            targets[3] = OPTIONS["labels"] - 1
        if OPTIONS["nan"]:
            model.conv2.weight[0, 0, 0, 0] = float("nan")
    data = Data(inputs, targets)
    return Task("small", model, inputs[:1], inputs, data, train=data)
"""

Options = dict[str, Any]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "small.py").write_text(TASK)
    return {
        "task": f"{tmp_path}/small.py:make_task",
        "runtime": "onnxruntime",
        "storage": f"sqlite:///{tmp_path}/paredown.db",
        "trials": 6,
    }


class Listener(Observer):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.trials: list[TrialRecord] = []

    def trial_step(self, number: int, step: str) -> None:
        self.steps.append(step)

    def trial_finished(self, trial: TrialRecord, study: StudyRecord) -> None:
        self.trials.append(trial)


@pytest.mark.slow
def test_study_runs_and_goes_on(options: Options) -> None:
    listener = Listener()

    record = run_study(make_config(options), observer=listener)

    assert record.name == "small"
    assert record.n_finished == 6
    told = [(t.number, t.state, t.candidate, t.accuracy) for t in listener.trials]
    assert told == [(t.number, t.state, t.candidate, t.accuracy) for t in record.trials]
    front = [t for t in record.front() if not t.is_baseline]
    assert any(len(t.again) == 1 for t in front)  # the front was timed again at the end
    assert record.baseline is not None
    assert record.baseline.accuracy == 1.0
    assert {"compressing", "compiling", "measuring"} <= set(listener.steps)
    for trial in record.complete:
        model = load_model(record, trial)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        candidate = Candidate.from_json(json.loads(metadata["paredown.candidate"]))
        assert candidate == trial.candidate
        onnx.checker.check_model(model)

    again = run_study(make_config({**options, "trials": 8}))

    assert [t.candidate for t in again.trials[:6]] == [t.candidate for t in record.trials]
    assert [t.accuracy for t in again.trials[:6]] == [t.accuracy for t in record.trials]
    assert again.n_finished == 8
    assert len({trial.candidate for trial in again.complete}) == len(again.complete)


@pytest.mark.slow
def test_runtime_is_part_of_a_study(options: Options) -> None:
    pytest.importorskip("ai_edge_litert")
    config = {**options, "runtime": "litert", "trials": 2}

    record = run_study(make_config(config))

    assert record.settings.runtime == "litert"
    assert [trial.error for trial in record.trials] == [None, None]
    assert record.trials[1].latency is not None
    assert record.trials[1].latency.baseline_us is not None
    with pytest.raises(StudyError, match="runtime 'litert', but this run asks for 'onnxruntime'"):
        run_study(make_config(options))


@pytest.mark.slow
def test_fine_tuning_and_constraints(options: Options) -> None:
    constraints = {"min_accuracy": 0.9, "max_size_bytes": 9000}
    config = make_config({**options, "finetune_epochs": 1, "constraints": constraints})

    record = run_study(config)

    assert record.settings.finetune_epochs == 1
    for trial in record.front():
        assert trial.accuracy is not None
        assert trial.accuracy >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "has setting seed 0, but this run asks for 1"),
        ({"finetune_epochs": 2}, "has setting finetune_epochs unset, but this run asks for 2"),
        ({"task": "digits", "study": "small"}, "has task '.*small.py:make_task', .* 'digits'"),
        ({"profile": "other"}, "has profile 'local', but this run asks for 'other'"),
        ({"space": {"max_pruning_ratio": 0.5}}, "max_pruning_ratio 0.75, .* asks for 0.5"),
    ],
)
def test_study_goes_on_only_with_the_same_options(
    options: Options, tmp_path: Path, changed: Options, message: str
) -> None:
    if changed.get("profile") == "other":
        text = load_profile("local").to_toml().replace('name = "local"', 'name = "other"')
        (tmp_path / "other.toml").write_text(text)
        changed = {"profile": f"{tmp_path}/other.toml"}
    run_study(make_config({**options, "trials": 1}))

    with pytest.raises(ParedownError, match=message):
        run_study(make_config({**options, **changed}))


@pytest.mark.slow
def test_study_does_not_go_on_with_another_model(options: Options, tmp_path: Path) -> None:
    run_study(make_config({**options, "trials": 1}))
    (tmp_path / "small.py").write_text(TASK.replace("manual_seed(0)", "manual_seed(1)"))

    with pytest.raises(ParedownError, match="task's model or data have changed"):
        run_study(make_config(options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan=True", "'conv2.weight' holds 1 NaN"),
        ("labels=9", "must be classes 0..3 .* mislabelled"),
        ("operator=True", r"(?i)fft|complex|DFT"),
    ],
)
def test_broken_tasks_begin_no_study(
    options: Options, tmp_path: Path, fault: str, message: str
) -> None:
    name = fault.partition("=")[0]
    broken = re.sub(rf"{name}=\w+", fault, TASK, count=1)
    (tmp_path / "small.py").write_text(broken)

    with pytest.raises(ParedownError, match=message):
        run_study(make_config(options))
    with pytest.raises(ParedownError, match="which has: none"):
        read_study(options["storage"], "small")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "nosuch"}, "Task must be one of"),
        ({"profile": "nosuch"}, "nosuch"),
        ({"profile": "aarch64"}, "must fit this machine"),
        ({"runtime": "nosuch"}, "runtime must be one of"),
        ({"sampler": "nosuch"}, "`sampler` must be one of"),
        ({"calibration": "nosuch"}, "`calibration` must be one of"),
        ({"threads": 4096}, "4096"),
        ({"task": "digits", "constraints": {"min_accuracy": 1.5}}, "between 0 and 1"),
        ({"storage": "/proc/nothing/paredown.db"}, "folder"),
    ],
)
def test_wrong_options_begin_no_work(
    options: Options, tmp_path: Path, changed: Options, message: str
) -> None:
    (tmp_path / "small.py").write_text("raise RuntimeError('this must not be loaded')\n")

    with pytest.raises(ParedownError, match=message):
        run_study(make_config({**options, **changed}))
    assert not (tmp_path / "paredown.db").exists()


@pytest.mark.slow
def test_size_that_no_candidate_can_have(options: Options) -> None:
    config = make_config({**options, "constraints": {"max_size_bytes": 10}})

    with pytest.raises(ParedownError, match=r"`max_size_bytes` must be at least \d+"):
        run_study(config)


@pytest.fixture
def start(options: Options, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the search as a user does, in a process of its own."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "paredown.studies.cli", "search", *arguments]
        for name in ("task", "runtime", "storage"):
            command += [f"--{name}", options[name]]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    return run


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"'{text}' never came.")


@pytest.mark.slow
def test_ctrl_c_ends_after_the_trial_in_hand(
    options: Options, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("--trials", "1000")
    wait_for(process, "trial 1:")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)

    assert "Ending after the trial in hand" in rest
    assert process.returncode == 0
    record = read_study(options["storage"], "small")
    assert all(trial.state == "complete" for trial in record.trials)
    assert 2 <= record.n_finished <= 4


@pytest.mark.slow
def test_second_ctrl_c_stops_at_once(
    options: Options, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("--trials", "1000")
    wait_for(process, "trial 1:")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)

    assert process.returncode in (0, 130)
    record = read_study(options["storage"], "small")
    assert record.n_finished >= 2
    assert {trial.state for trial in record.trials} <= {"complete", "failed"}


def as_first_measured(trial: TrialRecord) -> TrialRecord:
    """Leave out what changes as the front is measured again, when a search ends."""
    return replace(trial, latency_us=None, latency_spread_us=None, again=())


@pytest.mark.slow
def test_killed_search_resumes(
    options: Options, start: Callable[..., subprocess.Popen[str]]
) -> None:
    for seconds in (0.5, 0.2):
        process = start("--trials", "1000")
        wait_for(process, "] trial ")  # whichever it is: the first run may have come far
        time.sleep(seconds)
        process.kill()
        process.communicate(timeout=30)

    before = read_study(options["storage"], "small")
    record = run_study(make_config({**options, "trials": before.n_finished + 2}))

    assert record.n_finished == before.n_finished + 2
    kept = [as_first_measured(trial) for trial in record.trials if trial.is_finished]
    assert kept[: before.n_finished] == [
        as_first_measured(trial) for trial in before.trials if trial.is_finished
    ]
    assert not [trial for trial in record.trials if trial.state == "running"]
    assert os.path.exists(options["storage"].removeprefix("sqlite:///"))
