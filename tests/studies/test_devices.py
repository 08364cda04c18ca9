"""Studies whose devices are not this machine: behind RPC, emulated, several, or none at all."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from paredown.evaluators.devices.packing import pack_server
from paredown.evaluators.devices.pool import DevicePool
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import load_profile
from paredown.studies.config import make_config
from paredown.studies.engine import run_study
from paredown.studies.errors import StudyError
from paredown.studies.export import export_trial
from paredown.studies.front import best_elsewhere, front_csv, front_json, front_notes
from paredown.studies.guide import read_knowledge
from paredown.studies.observer import Observer
from paredown.studies.records import StudyRecord, TrialRecord
from paredown.studies.report import write_report
from paredown.studies.storage import load_model, open_storage, read_study
from paredown.studies.verify import verify_bundle
from tests.rpc.processes import DeviceServer, Tracker, free_port

pytestmark = pytest.mark.slow

TASK = """
import torch
from torch import nn
from paredown.evaluators.task import Data, Task

def make_task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()
    inputs = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        data = Data(inputs, model(inputs).argmax(dim=1))
    return Task("small", model, inputs[:1], inputs, data)
"""

Options = dict[str, Any]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "small.py").write_text(TASK)
    return {
        "task": f"{tmp_path}/small.py:make_task",
        "storage": f"sqlite:///{tmp_path}/paredown.db",
        "trials": 4,
    }


def write_profile(folder: Path, base: str, **values: object) -> str:
    path = folder / f"{values.get('name', 'board')}.toml"
    lines = [f"base = {json.dumps(base)}", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    path.write_text("\n".join(lines))
    return str(path)


class Listener(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.when_finished: Callable[[TrialRecord], None] = lambda trial: None

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trial_finished(self, trial: TrialRecord, study: StudyRecord) -> None:
        self.when_finished(trial)


def test_a_study_stops_when_its_device_dies_and_goes_on_when_it_is_back(
    options: Options, tmp_path: Path
) -> None:
    with DeviceServer(tmp_path, free_port()) as server:
        options["profile"] = write_profile(
            tmp_path,
            "local",
            name="board",
            connection=f"rpc://{server.address}",
            job_timeout_s=8,
        )
        listener = Listener()

        def kill_after_the_second(trial: TrialRecord) -> None:
            if trial.number == 1:
                server.kill()

        listener.when_finished = kill_after_the_second
        with pytest.raises(StudyError, match=r"No device behind rpc://.* nothing that was fin"):
            run_study(make_config(options), observer=listener)
        found = read_study(options["storage"], "small")
        assert [trial.state for trial in found.trials] == ["complete", "complete", "failed"]
        assert found.n_finished == 2
        server.start()
        record = run_study(make_config(options))
    assert record.n_finished == 4
    assert all(trial.latency_us is not None for trial in record.complete)
    assert record.profile.connection.startswith("rpc://")


def test_without_its_device_a_study_does_not_begin(options: Options, tmp_path: Path) -> None:
    options["profile"] = f"local@rpc://127.0.0.1:{free_port()}"
    with pytest.raises(Exception, match="nothing listens there"):
        run_study(make_config(options))


def test_two_devices_give_two_latencies(options: Options, tmp_path: Path) -> None:
    with DeviceServer(tmp_path, free_port()) as server:
        other = write_profile(
            tmp_path, "x86-64", name="old-pc", connection=f"rpc://{server.address}"
        )
        record = run_study(make_config({**options, "profile": ["local", other], "trials": 7}))
    knowledge = read_knowledge(open_storage(options["storage"]), record.name)
    assert knowledge is not None
    assert {len(probe) for probe in knowledge.probes} == {2}  # one look at each device
    timed_again = [trial for trial in record.front() if not trial.is_baseline]
    assert {len(latencies) for trial in timed_again for latencies in trial.again} == {2}
    assert record.objectives == ("accuracy", "size_bytes", "latency_us", "latency_us@old-pc")
    assert [profile.name for profile in record.profiles] == ["local", "old-pc"]
    for trial in record.complete:
        assert len(trial.values) == 4
        assert trial.latency_on("old-pc") is not None
    assert record.baseline is not None
    assert record.speedup_on("old-pc", record.baseline) == 1.0
    rows = best_elsewhere(record)
    assert {(row.best_on, row.runs_on) for row in rows} == {
        ("local", "old-pc"),
        ("old-pc", "local"),
    }
    plain = front_json(record)
    assert plain["other_profiles"] == ["old-pc"]
    assert set(plain["front"][0]["others"]) == {"old-pc"}
    assert "latency_us@old-pc" in front_csv(record).splitlines()[0]
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "Latency on old-pc" in page
    assert "Between the devices" in page
    with pytest.raises(StudyError, match="has other profiles"):
        run_study(make_config({**options, "profile": "local"}))


def test_memory_is_searched_as_well(options: Options) -> None:
    record = run_study(make_config({**options, "objectives": ["memory"], "trials": 7}))
    assert record.objectives[3:] == ("peak_memory_bytes",)
    assert record.n_finished == 7
    for trial in record.complete:
        assert trial.latency is not None
        assert trial.values[3] == trial.latency.peak_memory_bytes
    with pytest.raises(StudyError, match=r"has setting objectives \[\"memory\"\]"):
        run_study(make_config({**options, "trials": 8}))


def test_compile_only_gives_accuracy_and_size(options: Options, tmp_path: Path) -> None:
    listener = Listener()
    only = make_config({**options, "profile": "x86-64@compile-only", "trials": 7})
    record = run_study(only, observer=listener)
    assert record.n_finished == 7
    assert not listener.messages  # the search is the same as with a device
    knowledge = read_knowledge(open_storage(options["storage"]), record.name)
    assert knowledge is not None
    assert knowledge.probes == ()
    assert record.objectives == ("accuracy", "size_bytes")
    assert {trial.latency_us for trial in record.complete} == {None}
    assert record.front()
    assert "latency needs the device" in front_notes(record)[0]
    page = write_report(record, tmp_path / "report.html").read_text()
    assert "latency needs the device" in page
    bundle = export_trial(record, record.front()[0].number, tmp_path / "bundle")
    assert bundle.metrics.latency_us is None
    assert "not timed" in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_a_gpu_that_is_not_there_gives_accuracy_and_size(options: Options) -> None:
    record = run_study(make_config({**options, "profile": "a100", "trials": 2}))
    assert record.n_finished == 2
    assert all(trial.state == "complete" for trial in record.trials)
    assert record.why_no_latency is not None


def test_a_bundle_is_verified_on_a_device_at_hand(options: Options, tmp_path: Path) -> None:
    record = run_study(make_config({**options, "profile": "x86-64@compile-only", "trials": 2}))
    export_trial(record, 1, tmp_path / "bundle")
    with DeviceServer(tmp_path, free_port()) as server:
        result = verify_bundle(tmp_path / "bundle", profile=f"x86-64@rpc://{server.address}")
    assert result.failures == ()
    assert result.device == f"rpc://{server.address}"
    assert [check.n_samples for check in result.accuracies] == [64, 64]
    assert result.latency is not None
    assert (result.latency.recorded_us, result.latency.latency_us) == (None, None)


@pytest.fixture
def emulated_board(
    arm_sysroot: Path, tmp_path: Path, tracker_of_devices: Tracker
) -> Iterator[DeviceServer]:
    pack_server(tmp_path / "device.pyz")
    with DeviceServer(
        tmp_path,
        free_port(),
        key="a72",
        tracker=tracker_of_devices.port,
        command=[arm_sysroot / "python", tmp_path / "device.pyz"],
        environment={"ARM_CPU": "cortex-a72"},
    ) as server:
        yield server


@pytest.fixture
def tracker_of_devices(tmp_path: Path) -> Iterator[Tracker]:
    with Tracker(tmp_path, free_port()) as tracker:
        yield tracker


def test_an_emulated_board_yields_right_outputs_and_no_latency(
    options: Options, tmp_path: Path, emulated_board: DeviceServer, tracker_of_devices: Tracker
) -> None:
    profile = tmp_path / "a72.toml"
    profile.write_text(
        'base = "aarch64"\nname = "a72"\n'
        f'connection = "tracker://127.0.0.1:{tracker_of_devices.port}/a72"\n'
        '[target]\nmcpu = "cortex-a72"\n'
    )
    listener = Listener()
    record = run_study(make_config({**options, "profile": str(profile)}), observer=listener)
    assert any("is emulated" in text for text in listener.messages)
    assert record.profile.emulated
    assert {trial.latency_us for trial in record.complete} == {None}
    assert "emulated" in front_notes(record)[0]
    quantized = next(trial for trial in record.complete if trial.number == 1)
    check_bits(record, quantized, tmp_path)
    export_trial(record, quantized, tmp_path / "bundle")
    result = verify_bundle(tmp_path / "bundle", n_samples=8)
    assert result.failures == ()
    assert result.device == record.profile.connection
    assert result.outputs is not None
    assert (result.outputs.n_samples, result.outputs.n_outputs_differ) == (8, 0)
    assert result.latency is None


def check_bits(record: StudyRecord, trial: TrialRecord, folder: Path) -> None:
    """Compare the outputs of device, of TVM here and of ONNX Runtime."""
    model = folder / "quantized.onnx"
    onnx.save(load_model(record, trial), model)
    inputs = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
    here = load_profile("x86-64")
    with Worker(1) as worker:
        worker.build("tvm", model, folder / "here.so", here)
        on_x86 = worker.predict("tvm", folder / "here.so", inputs)
    with DevicePool(record.profile) as pool:
        pool.build("tvm", model, folder / "there.so", record.profile)
        on_device = pool.predict("tvm", folder / "there.so", inputs)
    np.testing.assert_array_equal(on_device, on_x86)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options)
    reference = np.concatenate([session.run(None, {"input": x[None]})[0] for x in inputs])
    np.testing.assert_allclose(on_device, reference, rtol=0, atol=1e-6 * np.abs(reference).max())
