import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

RunCli = Callable[..., Any]

COMMANDS = ("space", "explain", "search", "front", "report", "export", "verify", "measure")


def test_help_lists_the_commands(run_cli: RunCli) -> None:
    answer = run_cli("--help")

    assert answer.status == 0
    assert all(command in answer.out for command in (*COMMANDS, "profiles"))


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), *(("profiles", n) for n in ("list", "show"))]
)
def test_each_command_has_help_with_an_example(run_cli: RunCli, command: tuple[str, ...]) -> None:
    answer = run_cli(*command, "--help")

    assert answer.status == 0
    assert f"Example: paredown {' '.join(command)}" in answer.out


def test_version(run_cli: RunCli) -> None:
    assert run_cli("--version").out.startswith("paredown 0.")


@pytest.mark.parametrize(
    "arguments", [("nosuch",), ("front",), ("front", "x", "--format", "xml"), ("search",)]
)
def test_wrong_usage_ends_with_2(run_cli: RunCli, arguments: tuple[str, ...]) -> None:
    answer = run_cli(*arguments)

    assert answer.status == 2
    assert answer.out == ""
    assert "Usage:" in answer.err


def test_error_is_a_message_and_status_1(run_cli: RunCli, tmp_path: object) -> None:
    answer = run_cli("front", "digits", "--storage", f"{tmp_path}/missing.db")

    assert answer.status == 1
    assert answer.out == ""
    assert answer.err.startswith("paredown: Storage")
    assert "Traceback" not in answer.err


def test_debug_shows_the_traceback(run_cli: RunCli, tmp_path: object) -> None:
    with pytest.raises(Exception, match="must exist"):
        run_cli("front", "digits", "--debug", "--storage", f"{tmp_path}/missing.db")


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from paredown.studies.cli import app;"
        "print([m for m in ('torch', 'tvm', 'optuna', 'pydantic', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert answer.stdout.decode().strip() == "[]"


def test_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m paredown.studies.cli profiles show x86-64 | true"
    answer = subprocess.run(["sh", "-c", command], capture_output=True, check=False)

    assert b"Traceback" not in answer.stderr
