"""A study as a finished search leaves it, made from real candidates without running anything."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import optuna
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.measurement import Latency
from paredown.evaluators.timing import LatencyProtocol
from paredown.hw_profiles.catalog import load_profile
from paredown.search import device_timing
from paredown.search.candidate import FLOAT_LAYER, Candidate, LayerChoice
from paredown.studies.records import StudyRecord, StudySettings, TrialRecord
from paredown.studies.storage import (
    create_study,
    load_optuna_study,
    open_storage,
    read_study,
    save_model,
    set_trial_attributes,
    trial_id_of,
)

LAYERS = {
    "stem": 432, "stage1.conv1": 2304, "stage1.conv2": 2304, "stage2.conv1": 4608,
    "stage2.conv2": 9216, "stage2.shortcut": 512, "stage3.conv1": 18432, "stage3.conv2": 36864,
    "stage3.shortcut": 2048, "head": 640,
}  # fmt: skip
GROUPS = ("stem", "stage1.conv1", "stage2.conv1", "stage2.conv2", "stage3.conv1", "stage3.conv2")
BASELINE_US = 412.0


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time candidates for a moment: these tests look at the study, not at its figures."""
    short = partial(LatencyProtocol, warm_up_s=0.01, budget_s=0.2)
    monkeypatch.setattr(device_timing, "LatencyProtocol", short)


def make_candidate(bits: dict[str, int], ratios: dict[str, float]) -> Candidate:
    choices = {n: FLOAT_LAYER if bits[n] == 32 else LayerChoice(bits[n]) for n in LAYERS}
    return Candidate(
        pruning=tuple((name, ratios.get(name, 0.0)) for name in GROUPS),
        layers=tuple(choices.items()),
    )


def complete_trial(
    number: int, candidate: Candidate, rng: random.Random, *, is_baseline: bool = False
) -> TrialRecord:
    bits = candidate.layer_choices
    kept = 1.0 - sum(ratio for _, ratio in candidate.pruning) / len(GROUPS)
    size = sum(n * bits[name].weight_bits / 8 for name, n in LAYERS.items()) * kept + 900
    work = sum(n * (1.0 if bits[name].is_float else 0.12 + 0.06 * bits[name].weight_bits)
               for name, n in LAYERS.items()) / sum(LAYERS.values())  # fmt: skip
    coarse = sum(2.0 ** (-1.6 * min(choice.weight_bits, 8)) for choice in bits.values())
    harm = 0.25 * coarse + 0.06 * (1 - kept) ** 2
    latency = BASELINE_US * (0.12 + 0.88 * work * kept) * rng.uniform(0.985, 1.015)
    noise = 0.0 if is_baseline else rng.gauss(0, 0.0015)
    ratio = latency / BASELINE_US
    return TrialRecord(
        number=number,
        state="complete",
        candidate=candidate,
        accuracy=round(max(0.1, min(0.9875, 0.9833 - harm + noise)), 4),
        size_bytes=round(size),
        coded_size_bytes=round(0.9 * size),
        latency_us=latency,
        latency_spread_us=latency * rng.uniform(0.004, 0.02),
        latency=Latency(
            latency_us=latency * 1.1,
            spread_us=latency * 0.01,
            n_runs=4000,
            is_noisy=False,
            threads=1,
            baseline_us=BASELINE_US * 1.1,
            ratio=ratio,
        ),
        is_baseline=is_baseline,
        seconds=2.0,
        model_file=f"model-{number}",
        is_feasible=True,
    )


def make_record(trials: list[TrialRecord], **changes: object) -> StudyRecord:
    values: dict[str, object] = {
        "name": "digits",
        "task": "digits",
        "metric_name": "accuracy",
        "higher_is_better": True,
        "profile": load_profile("x86-64-v3"),
        "threads": 1,
        "settings": StudySettings(),
        "baseline": next((trial for trial in trials if trial.is_baseline), None),
        "trials": tuple(trials),
        "storage": "sqlite:///paredown.db",
        "models_dir": "paredown-models",
    }
    return StudyRecord(**(values | changes))  # type: ignore[arg-type]  # a test's shorthand


@pytest.fixture
def new_record() -> Callable[..., StudyRecord]:
    """Make a study from trials and changed fields."""
    return make_record


@pytest.fixture
def synthetic_study() -> StudyRecord:
    """A study of 60 trials: baseline, uniform widths, random candidates and failures."""
    rng = random.Random(0)
    floats = dict.fromkeys(LAYERS, 32)
    trials = [complete_trial(0, make_candidate(floats, {}), rng, is_baseline=True)]
    for number, width in enumerate((8, 6, 4, 3), start=1):
        uniform = make_candidate(dict.fromkeys(LAYERS, width), {})
        trials.append(complete_trial(number, uniform, rng))
    for number in range(5, 60):
        centre = rng.choice((4, 5, 6, 7))
        bits = {name: max(2, min(8, centre + rng.randint(-2, 2))) for name in LAYERS}
        if rng.random() < 0.15:
            bits["stem"] = 32
        ratios = {name: rng.choice((0.0, 0.0, 0.125, 0.25, 0.5, 0.625)) for name in GROUPS}
        candidate = make_candidate(bits, ratios)
        if number in (17, 33):
            error = "The build took longer than its limit of 120 s.\nstage3.conv1: still compiling"
            trials.append(TrialRecord(number, "failed", candidate, error=error))
        elif number == 41:
            error = "The worker process was killed by SIGSEGV <while running> the model."
            trials.append(TrialRecord(number, "failed", candidate, error=error))
        else:
            trials.append(complete_trial(number, candidate, rng))
    return make_record(trials)


TASK_SOURCE = '''
"""Ten classes, told apart by a linear model."""
import torch
from paredown.evaluators.task import Data, Task

def make_task():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(120, 1, 4, 4, generator=generator)
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    return Task("linear", model.eval(), inputs[:1], inputs[:20], Data(inputs, targets))
'''


def linear_model(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Return the task's model as the files of a study are: one sample, static shapes."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "1.weight", "1.bias"], ["output"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weight, "1.weight"), numpy_helper.from_array(bias, "1.bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def stored_study(tmp_path: Path) -> Callable[..., StudyRecord]:
    """Make a study in a real storage: the float model, and one with coarse weights."""

    def make(runtime: str = "onnxruntime") -> StudyRecord:
        # Slow to import, and few tests of this folder need them.
        from paredown.studies.engine import digest_task, digest_validation
        from paredown.studies.tasks import load_task

        task_file = tmp_path / "linear_task.py"
        task_file.write_text(TASK_SOURCE)
        spec = f"{task_file}:make_task"
        task = load_task(spec)
        state = {name: value.numpy() for name, value in task.model.state_dict().items()}
        url = f"sqlite:///{tmp_path}/paredown.db"
        storage = open_storage(url)
        description = make_record(
            [],
            name="linear",
            task=spec,
            task_digest=digest_task(task),
            validation_digest=digest_validation(task),
            profile=load_profile("local"),
            settings=StudySettings(runtime=runtime),
        )
        create_study(storage, description)
        study = load_optuna_study(storage, "linear", optuna.samplers.RandomSampler(seed=0))
        layer = FLOAT_LAYER
        for number, (step, latency_us) in enumerate(((0.0, 20.0), (0.5, 10.0))):
            weight = state["1.weight"]
            coarse = np.round(weight / step) * np.float32(step) if step else weight
            file = tmp_path / f"{number}.onnx"
            onnx.save(linear_model(coarse.astype(np.float32), state["1.bias"]), file)
            outputs = task.validation.inputs.flatten(1).numpy() @ coarse.T + state["1.bias"]
            accuracy = float((outputs.argmax(1) == task.validation.targets.numpy()).mean())
            trial = study.ask()
            attributes = {
                "candidate": Candidate((), (("1", layer),)).to_json(),
                "accuracy": accuracy,
                "size_bytes": 680 - 500 * number,
                "latency_us": latency_us,
                "latency_spread_us": 0.1,
                "latency": Latency(
                    latency_us, 0.1, 100, False, 1, 20.0, latency_us / 20
                ).to_json(),
                "is_baseline": number == 0,
                "model_file": save_model(storage, trial, file),
            }
            trial_id = trial_id_of(storage, "linear", trial.number)
            set_trial_attributes(storage, trial_id, attributes)
            study.tell(trial, (accuracy, float(680 - 500 * number), latency_us))
            layer = LayerChoice(4)
        study.ask()  # a trial that is still running
        return read_study(url, "linear")

    return make
