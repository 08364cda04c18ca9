from collections.abc import Callable
from pathlib import Path
from typing import Any

from paredown.studies.records import StudyRecord

RunCli = Callable[..., Any]
NewStudy = Callable[..., StudyRecord]


def test_the_page_is_written_and_named(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    record = stored_study()
    page = tmp_path / "page.html"
    answer = run_cli("report", "linear", "-o", page, "--storage", record.storage)
    assert (answer.status, answer.out) == (0, f"{page}\n")
    assert "<title>linear" in page.read_text()


def test_a_bad_place_or_study_is_an_error(
    run_cli: RunCli, stored_study: NewStudy, tmp_path: Path
) -> None:
    record = stored_study()
    answer = run_cli("report", "linear", "-o", tmp_path / "no" / "x.html")
    assert answer.status == 1
    assert "does not exist. Create it" in answer.err
    answer = run_cli("report", "other", "-o", tmp_path / "x.html", "--storage", record.storage)
    assert answer.status == 1
    assert "Study 'other' must be in storage" in answer.err
    assert not (tmp_path / "x.html").exists()
