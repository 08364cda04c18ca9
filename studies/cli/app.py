"""The application: its commands, and the one place that turns errors into messages."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ...hw_profiles.errors import ParedownError
from .cache import cache_app
from .device import device_app
from .explain import explain
from .export import export
from .finetune import finetune
from .front import front
from .measure import measure
from .profiles import profiles_app
from .report import report
from .search import search
from .space import space
from .verify import verify

FAILED = 1

app = typer.Typer(
    name="paredown",
    help="Prune and quantize a trained model for a device: the front of accuracy, size and "
    "measured latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(space)
app.command()(search)
app.command()(front)
app.command()(report)
app.command()(explain)
app.command()(finetune)
app.command()(export)
app.command()(verify)
app.command()(measure)
app.add_typer(profiles_app, name="profiles")
app.add_typer(cache_app, name="cache")
app.add_typer(device_app, name="device")


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"paredown {version('paredown')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show it, then end."
        ),
    ] = False,
) -> None:
    del debug, version  # `main` takes --debug out of the arguments, wherever it stands


def main() -> None:
    """Run the command line; errors become a message on stderr and exit status 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    is_debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="paredown")
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; nothing more can be written, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:  # a user is shown one line, whatever went wrong
        if is_debug:
            raise
        print(f"paredown: {_message(error)}", file=sys.stderr)
        sys.exit(FAILED)


def _message(error: Exception) -> str:
    """Return what to tell the user about an error."""
    if isinstance(error, ParedownError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"'{error.filename}': " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    hint = "This may be a fault of Paredown; --debug shows the traceback."
    return f"{type(error).__name__}: {error}\n{hint}"
