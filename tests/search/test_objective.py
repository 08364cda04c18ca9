"""With the real parts, and ONNX Runtime to build and run."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from paredown.evaluators.accuracy import predict
from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.task import Data, Task
from paredown.evaluators.timing import LatencyProtocol
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.early_stopping import Belief, Gate, StoppedEarly
from paredown.search.objective import Objective
from paredown.search.space import SearchSpace

pytestmark = pytest.mark.slow

RUNTIME = "onnxruntime"
PROTOCOL = LatencyProtocol(budget_s=0.1, warm_up_s=0.01, tolerance=0.05)


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 4),
    ).eval()
    inputs = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(dim=1)
    return Task("small", model, inputs[:1], inputs, Data(inputs, targets))


@pytest.fixture(scope="module")
def space(task: Task) -> SearchSpace:
    return SearchSpace.from_model(task.model, task.example_input, load_profile("local"))


@pytest.fixture(scope="module")
def compressor(task: Task, space: SearchSpace) -> Compressor:
    return Compressor(task, space)


@pytest.fixture
def objective(task: Task, compressor: Compressor, tmp_path: Path) -> Iterator[Objective]:
    profile = load_profile("local")
    with (
        Worker(profile.threads, preload=(RUNTIME,)) as worker,
        Objective(task, compressor, worker, RUNTIME, profile, tmp_path, PROTOCOL) as objective,
    ):
        yield objective


def test_first_candidate_becomes_the_baseline(objective: Objective, space: SearchSpace) -> None:
    steps: list[str] = []

    baseline = objective.evaluate(space.baseline(), steps.append)
    smaller = objective.evaluate(space.uniform(8))

    assert steps[0] == "compressing"
    assert steps[-1] == "measuring"
    assert baseline.accuracy == 1.0
    assert baseline.latency is not None
    assert baseline.latency.ratio is None
    assert baseline.latency_us == baseline.latency.latency_us
    assert smaller.size_bytes < baseline.size_bytes / 3
    assert baseline.coded_size_bytes == baseline.size_bytes  # in float
    assert smaller.coded_size_bytes is not None
    assert smaller.coded_size_bytes <= smaller.size_bytes
    assert smaller.latency is not None
    assert smaller.latency.ratio is not None
    assert baseline.latency_us is not None
    assert smaller.latency_us == smaller.latency.ratio * baseline.latency_us
    onnx.checker.check_model(onnx.load(smaller.model))


def test_baseline_of_an_earlier_run_keeps_its_latency(
    objective: Objective, compressor: Compressor, space: SearchSpace
) -> None:
    objective.use_baseline(compressor.compress(space.baseline()).model, 1000.0)

    again = objective.evaluate(space.baseline())

    assert again.latency is not None
    assert again.latency.ratio is not None
    assert again.latency.ratio == pytest.approx(1.0, rel=0.2)
    assert again.latency_us == again.latency.ratio * 1000.0


def test_files_are_discarded_but_for_the_baseline(
    objective: Objective, space: SearchSpace
) -> None:
    baseline = objective.evaluate(space.baseline())
    smaller = objective.evaluate(space.uniform(8))

    objective.discard(baseline)
    objective.discard(smaller)

    assert not baseline.model.exists()
    assert baseline.artifact.exists()
    assert not smaller.artifact.exists()


def test_failure_leaves_the_objective_usable(
    objective: Objective, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective.evaluate(space.baseline())
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "save", lambda model, path: Path(path).write_bytes(b"no model"))
        with pytest.raises(EvaluationError):
            objective.evaluate(space.uniform(8))

    assert objective.evaluate(space.uniform(7)).accuracy > 0


def test_measuring_again_leaves_nothing(
    objective: Objective, space: SearchSpace, tmp_path: Path
) -> None:
    objective.evaluate(space.baseline())
    evaluation = objective.evaluate(space.uniform(8))
    kept = tmp_path / "kept"
    kept.mkdir()
    model = evaluation.model.rename(kept / "model.onnx")
    before = set(tmp_path.rglob("*"))
    (latency,) = objective.measure_again(model)
    assert latency.ratio is not None
    assert set(tmp_path.rglob("*")) == before


def test_a_candidate_is_given_up_before_it_is_built(
    objective: Objective, space: SearchSpace, tmp_path: Path
) -> None:
    baseline = objective.evaluate(space.baseline())
    before = set(tmp_path.iterdir())
    steps: list[str] = []
    better = np.array([[-1.1, 1.0, 0.0]])
    gate = Gate(better, (4,))

    with pytest.raises(StoppedEarly, match="trial 4 is better in everything") as info:
        objective.evaluate(space.uniform(8), steps.append, gate)

    accuracy, size_bytes, latency_us = info.value.estimates
    assert accuracy is not None
    assert 0 <= accuracy <= 1
    assert size_bytes is not None
    assert size_bytes < baseline.size_bytes / 3
    assert latency_us is None
    assert "compiling" not in steps
    objective.evaluate(space.uniform(7))  # its files come after those of the first are removed
    assert not list(tmp_path.glob(f"{space.uniform(8).digest}*"))
    assert before <= set(tmp_path.iterdir())


def test_a_candidate_is_given_up_while_it_is_timed(
    compressor: Compressor, space: SearchSpace, tmp_path: Path
) -> None:
    inputs = torch.randn(4096, 1, 8, 8)
    outputs = predict(compressor.task.model, inputs)
    data = Data(inputs, outputs.argmax(dim=1))
    task = dataclasses.replace(compressor.task, validation=data)
    profile = load_profile("local")
    long = LatencyProtocol(goal=1e-9, budget_s=3.0, warm_up_s=0.01)
    with (
        Worker(1, preload=(RUNTIME,)) as worker,
        Objective(task, compressor, worker, RUNTIME, profile, tmp_path, long) as objective,
    ):
        objective.evaluate(space.baseline())
        accuracy = objective.evaluate(space.uniform(4)).accuracy
        kept = set(tmp_path.iterdir())
        # So near that all samples are needed to tell.
        gate = Gate(np.array([[-accuracy - 1e-6, 1.0, 0.0]]), (4,))
        (tmp_path / f"{space.uniform(4).digest}.onnx").unlink()
        start = time.perf_counter()
        with pytest.raises(StoppedEarly, match="trial 4 is better") as info:
            objective.evaluate(space.uniform(4), gate=gate)
        assert time.perf_counter() - start < 2.5
        assert info.value.estimates[0] == accuracy
        # What was still being timed is out of the way, and its files are gone.
        found = objective.evaluate(space.uniform(7))
        assert found.latency is not None
        left = set(tmp_path.iterdir()) - {found.model, found.artifact}
        assert {path.stem.partition(".")[0] for path in kept - left} == {space.uniform(4).digest}


def test_what_is_known_to_its_end_is_no_longer_given_up(
    objective: Objective, space: SearchSpace
) -> None:
    objective.evaluate(space.baseline())
    whole = objective.evaluate(space.uniform(8))
    assert whole.latency_us is not None
    # It is expected to be fast, and turns out to be slow.
    best = np.array([[-1.1, 1.0, 0.5 * whole.latency_us]])
    gate = Gate(best, (4,), latencies_us=(Belief(0.1 * whole.latency_us, 1e-3),))
    assert objective.evaluate(space.uniform(8), gate=gate).accuracy == whole.accuracy


def test_an_open_gate_changes_nothing(objective: Objective, space: SearchSpace) -> None:
    objective.evaluate(space.baseline())
    whole = objective.evaluate(space.uniform(8))
    gated = objective.evaluate(space.uniform(8), gate=Gate(np.empty((0, 3)), ()))
    assert gated.accuracy == whole.accuracy
    assert gated.size_bytes == whole.size_bytes


def test_a_draft_is_enough_to_give_up(task: Task, space: SearchSpace, tmp_path: Path) -> None:
    train = Data(task.calibration, task.validation.targets)
    settings = CompressionSettings(finetune_epochs=1, finetune_batch_size=16)
    trained = Compressor(dataclasses.replace(task, train=train), space, settings)
    profile = load_profile("local")
    everything, nothing = Gate(np.array([[-1.0, 1.0, 0.0]]), (4,)), Gate(np.empty((0, 3)), ())
    steps: list[str] = []
    with (
        Worker(profile.threads, preload=(RUNTIME,)) as worker,
        Objective(task, trained, worker, RUNTIME, profile, tmp_path, PROTOCOL) as objective,
    ):
        objective.evaluate(space.baseline())
        for bits in (8, 7, 6, 5, 4):  # before that nothing is known of what training does
            for ratio in (0.0, 0.5):
                objective.evaluate(space.uniform(bits, 8, ratio), gate=nothing)
        with pytest.raises(StoppedEarly, match="trial 4 is better") as info:
            objective.evaluate(space.uniform(2, 8, 0.75), steps.append, everything)
    assert "fine-tuning" not in steps
    assert info.value.estimates[0] is not None
    assert info.value.estimates[1] is not None


def test_a_bound_on_size_stops_at_once(objective: Objective, space: SearchSpace) -> None:
    objective.evaluate(space.baseline())
    gate = Gate(np.empty((0, 3)), (), limits=(np.inf, 10.0, np.inf))
    with pytest.raises(StoppedEarly, match=r"its size is .* beyond the bound of 10") as info:
        objective.evaluate(space.uniform(8), gate=gate)
    assert info.value.estimates[0] is None


def test_a_probe_times_without_a_trial(
    objective: Objective, space: SearchSpace, tmp_path: Path
) -> None:
    baseline = objective.evaluate(space.baseline())
    before = set(tmp_path.iterdir())
    (sample,) = objective.probe(space.uniform(8))
    assert sample.latency_us is not None
    assert baseline.latency_us is not None
    assert 0 < sample.latency_us < 10 * baseline.latency_us
    assert sample.times is None  # ONNX Runtime does not tell its layers apart
    assert set(tmp_path.iterdir()) == before
