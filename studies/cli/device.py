"""`paredown device`: let studies on other machines measure on this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import messages

device_app = typer.Typer(
    no_args_is_help=True, help="Let studies on other machines measure on this one."
)


@device_app.command(
    "serve",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve_command(context: typer.Context) -> None:
    """Serve this machine as a device until the command is ended; --help shows its options.

    It listens on 127.0.0.1 unless --host says otherwise. TVM RPC has no authentication: clients
    on other machines should come through an SSH tunnel.

    Example: paredown device serve --port 9090 --key my-board
    """
    from ...evaluators.device_server.__main__ import main

    main(context.args)


@device_app.command("pack")
def pack_command(
    file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.PYZ", help="The file to write.")
    ] = Path("paredown-device.pyz"),
) -> None:
    """Write the server as one file, for a board that has python, numpy and tvm but not Paredown.

    Example: paredown device pack -o paredown-device.pyz
    """
    from ...evaluators.devices.packing import pack_server

    pack_server(file)
    messages().print(
        f"Copy {file} to the board and run it there: python3 {file.name} --port 9090",
        highlight=False,
        soft_wrap=True,
    )
