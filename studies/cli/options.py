"""Options and consoles that several commands share. Must stay quick to import."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

DEFAULT_STORAGE = "sqlite:///paredown.db"

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")]
StorageOption = Annotated[
    str,
    typer.Option("--storage", metavar="URL", help="Optuna storage, or path of an SQLite file."),
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
