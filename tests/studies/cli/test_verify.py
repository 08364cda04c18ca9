import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.studies.export import export_trial
from paredown.studies.records import StudyRecord

RunCli = Callable[..., Any]
NewStudy = Callable[..., StudyRecord]


@pytest.mark.slow
def test_a_sound_bundle_is_verified(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    record, folder = stored_study(), tmp_path / "bundle"
    export_trial(record, 1, folder)
    answer = run_cli("verify", folder, "--storage", record.storage)
    assert answer.status == 0, answer.err
    assert "5 of 5 as exported" in answer.out
    assert "+0.000 points (onnxruntime)" in answer.out
    assert "0 of 120 predictions differ; of the outputs, 0 of 120 differ" in answer.out
    assert "recorded 10.0 ± 0.1 us (0.500 of float), now" in answer.out
    assert answer.out.endswith("Verified.\n")
    assert "running model.onnx: 0 of 120 samples" in answer.err


def test_a_tampered_bundle_has_status_1(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    export_trial(stored_study(), 1, folder)
    (folder / "candidate.json").write_text("{}")
    answer = run_cli("verify", folder)
    assert answer.status == 1
    assert "1 of 5 are not as exported" in answer.out
    assert "File 'candidate.json' is changed." in answer.err
    answer = run_cli("verify", folder, "--format", "json")
    assert answer.status == 1
    assert json.loads(answer.out)["changed_files"] == {"candidate.json": "changed"}


def test_another_folder_is_an_error(run_cli: RunCli, tmp_path: Path) -> None:
    answer = run_cli("verify", tmp_path)
    assert answer.status == 1
    assert "must be a bundle" in answer.err
