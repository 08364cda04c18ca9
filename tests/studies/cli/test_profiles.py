import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paredown.hw_profiles import HardwareProfile, load_profile

RunCli = Callable[..., Any]


def test_list(run_cli: RunCli) -> None:
    answer = run_cli("profiles", "list")

    assert answer.status == 0
    assert "x86-64-v3" in answer.out


def test_list_as_json(run_cli: RunCli) -> None:
    names = [
        profile["name"]
        for profile in json.loads(run_cli("profiles", "list", "--format", "json").out)
    ]

    assert "x86-64-v3" in names


def test_show_prints_a_profile_that_can_be_read_again(run_cli: RunCli) -> None:
    answer = run_cli("profiles", "show", "x86-64-v3")

    assert HardwareProfile.from_toml(answer.out) == load_profile("x86-64-v3")


def test_show_of_an_unknown_profile(run_cli: RunCli) -> None:
    answer = run_cli("profiles", "show", "x86-64-v33")

    assert answer.status == 1
    assert "x86-64-v3" in answer.err


def test_detect(run_cli: RunCli) -> None:
    answer = run_cli("profiles", "detect", "--format", "json")

    assert json.loads(answer.out)["name"] == "local"


def test_detect_writes_a_file_that_describes_this_machine(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "My-Board.toml"
    answer = run_cli("profiles", "detect", "-o", str(file))

    assert answer.status == 0
    assert load_profile(file) == replace(load_profile("local"), name="my-board")


def test_detect_refuses_a_file_that_no_study_would_take_for_a_profile(
    run_cli: RunCli, tmp_path: Path
) -> None:
    answer = run_cli("profiles", "detect", "-o", str(tmp_path / "board"))

    assert answer.status == 2
    assert not (tmp_path / "board").exists()
