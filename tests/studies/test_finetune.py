import os
import subprocess
import sys
from pathlib import Path

import pytest

from paredown.studies.config import make_config
from paredown.studies.engine import run_study
from paredown.studies.errors import StudyError
from paredown.studies.finetune import FinetuneOptions, finetune_trial
from paredown.studies.records import StudyRecord
from paredown.studies.storage import load_model, read_study

TASK = """
import torch
from torch import nn
from paredown.evaluators.task import Data, Task

def make_task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3)
    ).eval()
    inputs = torch.randn(128, 1, 8, 8)
    with torch.no_grad():
        data = Data(inputs, model(inputs).argmax(dim=1))
    return Task("tiny", model, inputs[:1], inputs, data, train=TRAIN)
"""


def make_study(folder: Path, *, has_data: bool = True) -> StudyRecord:
    (folder / "tiny.py").write_text(TASK.replace("TRAIN", "data" if has_data else "None"))
    options = {
        "task": f"{folder}/tiny.py:make_task",
        "runtime": "onnxruntime",
        "storage": f"sqlite:///{folder}/paredown.db",
        "trials": 5,
        "accuracy": "ptq",
        "space": {"weight_bits": (2,), "include_float": False},
    }
    return run_study(make_config(options))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return make_study(tmp_path_factory.mktemp("study"))


def worst(study: StudyRecord) -> int:
    return min(study.complete, key=lambda trial: trial.values[0]).number


@pytest.mark.slow
@pytest.mark.parametrize("distill", [True, False])
def test_a_trial_gets_better_and_becomes_a_new_one(study: StudyRecord, distill: bool) -> None:
    said: list[str] = []
    number = worst(study)
    options = FinetuneOptions(epochs=12, batch_size=16, distill=distill)

    added = finetune_trial(study, number, options, report=said.append)

    assert added is not None
    record = read_study(study.storage, study.name)
    assert record.trial(added.number) == added
    before = record.trial(number)
    assert added.finetuned_from == number
    assert added.candidate == before.candidate
    assert added.values[0] > before.values[0]
    assert added.size_bytes == before.size_bytes
    assert added.latency_us is not None
    assert load_model(record, added) != load_model(record, before)
    assert any(line.startswith("fine-tuning: epoch 12 of 12") for line in said)
    assert record.n_finished == len(record.complete)


@pytest.mark.slow
def test_a_study_goes_on_beside_fine_tuned_trials(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    finetune_trial(study, worst(study), FinetuneOptions(epochs=1))
    options = {
        "task": study.task,
        "runtime": "onnxruntime",
        "storage": study.storage,
        "trials": 8,
        "accuracy": "ptq",
        "space": {"weight_bits": (2,), "include_float": False},
    }
    record = run_study(make_config(options))
    assert sum(trial.finetuned_from is not None for trial in record.trials) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "message"), [(0, "is the uncompressed model"), (99, "has no trial 99")]
)
def test_what_cannot_be_fine_tuned_is_named(study: StudyRecord, number: int, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        finetune_trial(study, number, FinetuneOptions(epochs=1))


@pytest.mark.slow
def test_a_task_without_training_data_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, has_data=False)
    with pytest.raises(StudyError, match="must have training data"):
        finetune_trial(study, 1, FinetuneOptions(epochs=1))


@pytest.mark.slow
def test_a_changed_task_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    text = (tmp_path / "tiny.py").read_text()
    (tmp_path / "tiny.py").write_text(text.replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(StudyError, match="changed since it began"):
        finetune_trial(study, 1, FinetuneOptions(epochs=1))


@pytest.mark.slow
def test_processes_of_torchrun_train_together(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "paredown.studies.cli", "finetune", study.name, "--trial", "1", "--epochs", "1",
        "--storage", study.storage, "--format", "json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = read_study(study.storage, study.name)
    assert [trial.finetuned_from for trial in record.trials[len(study.trials) :]] == [1]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FinetuneOptions(**{"epochs": 1, **wrong})  # type: ignore[arg-type]  # each is a number
