from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from paredown.evaluators.task import TaskError
from paredown.hw_profiles import ProfileError
from paredown.studies.bundle import Bundle, read_bundle, sha256_of
from paredown.studies.export import export_trial
from paredown.studies.records import StudyRecord
from paredown.studies.verification import VerificationError, VerificationResult
from paredown.studies.verify import verify_bundle

NewStudy = Callable[..., StudyRecord]


def rewrite(folder: Path, bundle: Bundle) -> None:
    """Write a description whose own checksum fits."""
    (folder / "bundle.json").write_text(json.dumps(bundle.to_json()))


@pytest.fixture
def folder(stored_study: NewStudy, tmp_path: Path) -> Path:
    export_trial(stored_study(), 1, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.slow
def test_a_bundle_is_verified(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = verify_bundle(folder, storage=f"sqlite:///{tmp_path}/paredown.db", report=said.append)
    assert result.is_ok
    assert result.failures == ()
    assert result.is_same_data
    assert [check.difference_points for check in result.accuracies] == [0.0, 0.0]
    assert [check.runtime for check in result.accuracies] == ["onnxruntime", "onnxruntime"]
    assert result.outputs is not None
    assert (result.outputs.n_samples, result.outputs.n_predictions_differ) == (120, 0)
    assert result.latency is not None
    assert result.latency.recorded_us == 10.0
    assert result.latency.now.ratio is not None
    assert result.latency.latency_us == pytest.approx(20.0 * result.latency.now.ratio)
    assert "loading the task" in said
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["ok"] is True
    assert plain["accuracy"]["model.onnx"]["runtime"] == "onnxruntime"


@pytest.mark.slow
def test_the_file_of_another_runtime_is_verified(stored_study: NewStudy, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    bundle = export_trial(stored_study("litert"), 1, tmp_path / "bundle")
    assert (bundle.library, bundle.runtime) == ("model.tflite", "litert")
    assert bundle.versions["litert"]
    result = verify_bundle(tmp_path / "bundle", storage=f"sqlite:///{tmp_path}/paredown.db")
    assert result.failures == ()
    assert [(check.file, check.runtime) for check in result.accuracies] == [
        ("model.tflite", "litert"),
        ("model.onnx", "onnxruntime"),
    ]
    assert result.latency is not None
    assert result.latency.now.ratio is not None


@pytest.mark.slow
def test_without_its_study_a_bundle_has_raw_latency(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    url = f"sqlite:///{tmp_path}/other.db"
    result = verify_bundle(folder, storage=url, report=said.append)
    assert result.is_ok
    assert result.latency is not None
    assert result.latency.latency_us is None
    assert result.latency.now.latency_us > 0
    assert any("latency without the uncompressed model" in text for text in said)


@pytest.mark.slow
def test_another_accuracy_is_a_failure(folder: Path) -> None:
    bundle = read_bundle(folder)
    accuracy = bundle.metrics.accuracy - 0.01
    rewrite(folder, replace(bundle, metrics=replace(bundle.metrics, accuracy=accuracy)))
    result = verify_bundle(folder)
    assert not result.is_ok
    for failure, file in zip(
        result.failures, ("model-onnxruntime.onnx", "model.onnx"), strict=True
    ):
        assert f"accuracy of '{file}' must be within 0.83 points" in failure
        assert "+1.000" in failure
    assert verify_bundle(folder, tolerance_points=1.0).is_ok


@pytest.mark.slow
def test_one_sample_more_or_less_is_no_failure(folder: Path) -> None:
    bundle = read_bundle(folder)
    for n_samples, is_ok in ((1, True), (2, False)):  # of 120
        accuracy = bundle.metrics.accuracy - n_samples / 120
        rewrite(folder, replace(bundle, metrics=replace(bundle.metrics, accuracy=accuracy)))
        assert verify_bundle(folder).is_ok is is_ok
        assert not verify_bundle(folder, tolerance_points=0.0).is_ok


@pytest.mark.slow
def test_the_library_may_run_on_a_part_of_the_samples(folder: Path) -> None:
    result = verify_bundle(folder, n_samples=50)
    assert result.is_ok
    assert [check.n_samples for check in result.accuracies] == [50, 120]
    assert result.accuracies[0].difference_points == 0.0
    assert result.outputs is not None
    assert result.outputs.n_samples == 50
    with pytest.raises(ValueError, match="`n_samples` must be 1 or more, but got 0"):
        verify_bundle(folder, n_samples=0)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("raspberry-pi-4@rpc://127.0.0.1:9090", r"is for x86_64, but 'raspberry-pi-4@.*aarch64"),
        ("x86-64", r"is x86_64, without .*avx"),
        ("local@compile-only", "must have a device to run on"),
    ],
)
def test_another_device_must_be_able_to_run_it(folder: Path, name: str, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        verify_bundle(folder, profile=name)


def test_a_tampered_file_is_named_and_not_run(folder: Path) -> None:
    model = folder / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    (folder / "profile.toml").unlink()
    result = verify_bundle(folder)
    assert result.changed_files == {"model.onnx": "changed", "profile.toml": "missing"}
    assert result.failures == (
        "File 'model.onnx' is changed.",
        "File 'profile.toml' is missing.",
    )
    assert result.accuracies == ()
    assert json.loads(json.dumps(result.to_json()))["ok"] is False


def test_a_profile_of_another_cpu_is_refused(folder: Path) -> None:
    path = folder / "profile.toml"
    path.write_text(path.read_text().replace("features = [", 'features = [\n    "no_such_flag",'))
    bundle = read_bundle(folder)
    rewrite(folder, replace(bundle, sha256={**bundle.sha256, path.name: sha256_of(path)}))
    with pytest.raises(ProfileError, match="no_such_flag"):
        verify_bundle(folder)


def test_a_task_that_moved_can_be_named(folder: Path, tmp_path: Path) -> None:
    source = (tmp_path / "linear_task.py").read_text()
    (tmp_path / "linear_task.py").unlink()
    with pytest.raises(TaskError, match="must exist"):
        verify_bundle(folder)
    larger = source.replace("4, 4", "5, 5").replace("Linear(16", "Linear(25")
    (tmp_path / "larger.py").write_text(larger)
    with pytest.raises(VerificationError, match=r"shape \(1, 4, 4\) that the bundle takes"):
        verify_bundle(folder, task=f"{tmp_path}/larger.py:make_task")


def test_a_tolerance_is_a_number(folder: Path) -> None:
    with pytest.raises(ValueError, match="`tolerance_points` must be >= 0"):
        verify_bundle(folder, tolerance_points=float("nan"))


@pytest.mark.slow
def test_a_tvm_library_is_exported_verified_and_run(
    stored_study: NewStudy, tmp_path: Path
) -> None:
    record = stored_study("tvm")
    folder = tmp_path / "bundle"
    bundle = export_trial(record, 1, folder)
    assert bundle.library == "model.so"
    assert {"model.so", "run.py"} <= set(bundle.sha256)
    result: VerificationResult = verify_bundle(folder, storage=record.storage)
    assert result.is_ok
    assert [check.file for check in result.accuracies] == ["model.so", "model.onnx"]
    assert result.latency is not None
    assert result.latency.now.ratio is not None
