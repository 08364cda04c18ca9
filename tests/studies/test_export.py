from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.hw_profiles import HardwareProfile, load_profile
from paredown.search.candidate import Candidate
from paredown.studies.bundle import (
    Bundle,
    BundleError,
    find_changed_files,
    read_bundle,
    read_candidate,
    read_profile,
)
from paredown.studies.errors import StorageError
from paredown.studies.export import check_export_folder, export_trial, required_features
from paredown.studies.records import StudyRecord

NewStudy = Callable[..., StudyRecord]


def test_a_bundle_holds_what_was_measured(stored_study: NewStudy, tmp_path: Path) -> None:
    record = stored_study()
    trial = record.trials[1]
    folder = tmp_path / "out" / "bundle"
    said: list[str] = []

    bundle = export_trial(record, 1, folder, report=said.append)

    assert read_bundle(folder) == bundle
    assert find_changed_files(folder, bundle) == {}
    library = "model-onnxruntime.onnx"
    names = {"model.onnx", library, "candidate.json", "profile.toml", "README.md"}
    assert {path.name for path in folder.iterdir()} == {*names, "bundle.json"}
    assert set(bundle.sha256) == names
    assert trial.model_file is not None
    stored = Path(record.models_dir) / trial.model_file
    assert (folder / "model.onnx").read_bytes() == stored.read_bytes()
    assert read_candidate(folder) == trial.candidate
    assert read_profile(folder) == record.profile
    assert (bundle.library, bundle.runtime, bundle.threads) == (library, "onnxruntime", 1)
    assert bundle.metrics.accuracy == trial.accuracy
    assert bundle.metrics.baseline_latency_us == 20.0
    assert bundle.latency == trial.latency
    assert [(s.name, s.shape, s.dtype) for s in (*bundle.inputs, *bundle.outputs)] == [
        ("input", (1, 1, 4, 4), "float32"),
        ("output", (1, 10), "float32"),
    ]
    assert {"paredown", "tvm", "onnxruntime", "torch"} <= set(bundle.versions)
    assert said == [f"building for '{record.profile.name}' with onnxruntime"]
    assert list(folder.parent.iterdir()) == [folder]


def test_others_may_read_a_bundle(stored_study: NewStudy, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    export_trial(stored_study(), 1, tmp_path / "bundle")
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_readme_says_what_the_trial_is(stored_study: NewStudy, tmp_path: Path) -> None:
    export_trial(stored_study(), 1, tmp_path / "bundle")
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert text.startswith("# Trial 1 of study 'linear'")
    assert "3.78 times smaller and 2.00 times faster" in text
    assert "paredown verify" in text
    assert "run.py" not in text  # the runtime is not tvm


def test_a_folder_with_content_is_kept(stored_study: NewStudy, tmp_path: Path) -> None:
    record = stored_study()
    folder = tmp_path / "bundle"
    export_trial(record, 1, folder)
    with pytest.raises(BundleError, match=r"must be empty or new.*--force"):
        export_trial(record, 0, folder)
    assert read_bundle(folder).trial == 1
    export_trial(record, 0, folder, force=True)
    assert read_bundle(folder).trial == 0
    assert [path.name for path in tmp_path.glob("*bundle*")] == ["bundle"]


def test_force_replaces_nothing_but_a_bundle(stored_study: NewStudy, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("...")
    with pytest.raises(BundleError, match="it is something else"):
        export_trial(stored_study(), 1, folder, force=True)
    assert (folder / "chapter1.tex").exists()


def test_an_empty_folder_is_filled(stored_study: NewStudy, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    export_trial(stored_study(), 1, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").study == "linear"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="must be a folder, but it is something else"):
        check_export_folder(tmp_path / "file")
    with pytest.raises(BundleError, match=r"'.*file' must be a writable folder"):
        check_export_folder(tmp_path / "file" / "bundle")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_is_refused_before_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="must be a writable folder"):
        check_export_folder(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("number", "message"),
    [(2, "must be complete to be exported, but it is running"), (7, "has no trial 7. See them")],
)
def test_only_a_complete_trial_can_be_exported(
    stored_study: NewStudy, tmp_path: Path, number: int, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        export_trial(stored_study(), number, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_lost_model_is_an_error(stored_study: NewStudy, tmp_path: Path) -> None:
    record = stored_study()
    for path in Path(record.models_dir).iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        export_trial(record, 1, tmp_path / "bundle")


@pytest.mark.slow
def test_a_failed_build_leaves_nothing(stored_study: NewStudy, tmp_path: Path) -> None:
    record = stored_study("tvm")
    model_file = record.trials[1].model_file
    assert model_file is not None
    path = Path(record.models_dir) / model_file
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(EvaluationError, match="NoSuchOperator"):
        export_trial(record, 1, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_description_survives_the_round_trip(stored_study: NewStudy, tmp_path: Path) -> None:
    bundle = export_trial(stored_study(), 1, tmp_path / "bundle")
    assert Bundle.from_json(json.loads(json.dumps(bundle.to_json()))) == bundle
    without = replace(bundle, latency=None)
    assert Bundle.from_json(without.to_json()) == without


def test_a_changed_description_is_found(stored_study: NewStudy, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_trial(stored_study(), 1, folder)
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    data["metrics"]["accuracy"] = 1.0
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="checksum does not fit its content"):
        read_bundle(folder)
    path.write_text(json.dumps({**data, "version": 9}))
    with pytest.raises(BundleError, match="`version` of a bundle must be 1, but got 9"):
        read_bundle(folder)
    path.write_text("{")
    with pytest.raises(BundleError, match="must be readable JSON"):
        read_bundle(folder)
    path.write_text("[]")
    with pytest.raises(BundleError, match="must hold a JSON object"):
        read_bundle(folder)


def test_another_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no `bundle.json`. Make one with"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="is no folder"):
        read_bundle(tmp_path / "missing")


def test_features_cover_kernels_and_compiler() -> None:
    profile: HardwareProfile = load_profile("x86-64-v3")
    assert {"avx2", "fma", "bmi2"} <= set(required_features(profile))
    assert required_features(profile) == tuple(sorted(required_features(profile)))


def test_the_candidate_is_plain_json(stored_study: NewStudy, tmp_path: Path) -> None:
    record = stored_study()
    export_trial(record, 1, tmp_path / "bundle")
    text = (tmp_path / "bundle" / "candidate.json").read_text()
    assert Candidate.from_json(json.loads(text)) == record.trials[1].candidate
