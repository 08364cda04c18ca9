"""Options and consoles that several commands share. Must stay quick to import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

DEFAULT_STORAGE = "sqlite:///paredown.db"

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]
StorageOption = Annotated[
    str,
    typer.Option("--storage", metavar="URL", help="Optuna storage, or path of an SQLite file."),
]
StudyFileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[STUDY.TOML]", help="Study file; options override what it says."),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TASK", help="digits, fashion-mnist, or path/to/task.py:make_task."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of an inference; default: the profile's."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of the task's data.")
]
TieOption = Annotated[
    str | None,
    typer.Option("--tie", metavar="WHAT", help="Choose once per layer, block or stage."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="PATTERN", help="Layers that stay as they are; may be repeated."
    ),
]
TextFormat = Literal["table", "json"]
TextFormatOption = Annotated[TextFormat, typer.Option("--format", help="Form of the output.")]

# Wide enough for the tables where the output is a file or a pipe.
_PLAIN_WIDTH = 160


def messages() -> Console:
    """Return the console for messages: stderr."""
    return Console(stderr=True)


def results() -> Console:
    """Return the console for results: stdout."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """Write a result as JSON to stdout."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
