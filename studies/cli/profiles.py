"""`paredown profiles`: the hardware profiles, and the one of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import TextFormatOption, messages, print_json, results

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile

profiles_app = typer.Typer(no_args_is_help=True, help="Show the hardware profiles.")


@profiles_app.command("list")
def list_command(output: TextFormatOption = "table") -> None:
    """List the profiles of the catalog.

    Example: paredown profiles list
    """
    from rich.table import Table

    from ...hw_profiles import list_profiles

    profiles = list_profiles()
    if output == "json":
        print_json([_plain(profile) for profile in profiles])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "arch", "kernels", "threads", "connection", "description"):
        table.add_column(column, overflow="fold")
    for profile in profiles:
        table.add_row(
            profile.name,
            profile.arch,
            profile.isa,
            str(profile.threads),
            profile.connection,
            profile.description,
        )
    results().print(table)


@profiles_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, or path of a TOML file.")],
    output: TextFormatOption = "table",
) -> None:
    """Show one profile as TOML, the form in which it can be edited and used.

    Example: paredown profiles show local > board.toml
    """
    from ...hw_profiles import load_profile

    _print(load_profile(name), output)


@profiles_app.command("detect")
def detect_command(
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.TOML", help="Write the profile there."),
    ] = None,
    output: TextFormatOption = "table",
) -> None:
    """Detect this machine and show its profile, or write it to a file that is named after it.

    Example: paredown profiles detect -o my-board.toml
    """
    from dataclasses import replace

    from ...hw_profiles import detect_profile

    profile = detect_profile()
    if file is None:
        _print(profile, output)
        return
    if file.suffix != ".toml":
        raise typer.BadParameter(f"The file of a profile must end in .toml, but got '{file}'.")
    profile = replace(profile, name=file.stem.lower())
    file.write_text(profile.to_toml(), encoding="utf-8")
    messages().print(f"Profile '{profile.name}' is in {file}; use it with --profile {file}.")


@profiles_app.command("check")
def check_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME[@CONNECTION]", help="Name, or path of a TOML file.")
    ],
    output: TextFormatOption = "table",
) -> None:
    """Try whether a study can use a profile: compile, link, reach the device, run, time.

    The exit status is 1 when a step fails; its line says what is missing.

    Example: paredown profiles check aarch64@rpc://192.168.1.20:9090
    """
    from dataclasses import asdict

    from ...evaluators.devices.checking import check_profile
    from ...hw_profiles import load_profile

    words = {True: "ok", False: "FAILED", None: "-"}
    found = []
    for result in check_profile(load_profile(name)):
        found.append(result)
        if output != "json":
            line = f"{result.step:<8} {words[result.is_ok]:<7} {result.detail}"
            results().print(line, markup=False, highlight=False, soft_wrap=True)
    if output == "json":
        print_json([asdict(result) for result in found])
    if any(result.is_ok is False for result in found):
        raise typer.Exit(1)


def _print(profile: HardwareProfile, output: str) -> None:
    if output == "json":
        print_json(_plain(profile))
    else:
        print(profile.to_toml(), end="")


def _plain(profile: HardwareProfile) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(profile.to_toml())
