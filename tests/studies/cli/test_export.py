import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paredown.studies.bundle import read_bundle
from paredown.studies.records import StudyRecord

RunCli = Callable[..., Any]
NewStudy = Callable[..., StudyRecord]


def test_a_trial_is_exported_by_number(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    record, folder = stored_study(), tmp_path / "bundle"
    answer = run_cli("export", "linear", "--trial", 0, "-o", folder, "--storage", record.storage)
    assert answer.status == 0
    files = [Path(line) for line in answer.out.splitlines()]
    assert set(files) == set(folder.iterdir())
    assert f"paredown verify {folder}" in answer.err
    assert read_bundle(folder).trial == 0


def test_a_trial_is_picked(run_cli: RunCli, stored_study: NewStudy, tmp_path: Path) -> None:
    record, folder = stored_study(), tmp_path / "bundle"
    answer = run_cli(
        "export", "linear", "--pick", "speedup>=1.5,max:accuracy", "-o", folder,
        "--storage", record.storage, "--format", "json",
    )  # fmt: skip
    assert answer.status == 0
    described = json.loads(answer.out)
    assert (described["folder"], described["trial"]) == (str(folder), 1)


def test_no_fitting_point_is_an_error_that_names_the_nearest(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    record, folder = stored_study(), tmp_path / "bundle"
    answer = run_cli(
        "export", "linear", "--pick", "latency_us<=9,max:accuracy", "-o", folder,
        "--storage", record.storage,
    )  # fmt: skip
    assert answer.status == 1
    assert "The nearest is trial 1" in answer.err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Give either --trial N or --pick"),
        (("--trial", 1, "--pick", "max:accuracy"), "Give either --trial N or --pick"),
        (("--trial", 1, "--all"), "--all goes with --pick"),
        (("--pick", "acc>1,max:accuracy"), "names no known"),
    ],
)
def test_wrong_usage_has_its_own_status(
    run_cli: RunCli, options: tuple[object, ...], message: str
) -> None:
    answer = run_cli("export", "linear", "-o", "bundle", *options)
    assert answer.status == 2
    assert message in " ".join(answer.err.split())


def test_a_full_folder_is_refused_before_the_study_is_read(
    run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    answer = run_cli("export", "linear", "--trial", 1, "-o", tmp_path)
    assert answer.status == 1
    assert "must be empty or new" in answer.err
