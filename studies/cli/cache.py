"""`paredown cache`: the kernels that were compiled on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import TextFormatOption, print_json, results

cache_app = typer.Typer(no_args_is_help=True, help="Show and prune the compiled kernels.")
_DAY_S = 86400.0


@cache_app.command("list")
def list_command(output: TextFormatOption = "table") -> None:
    """List the targets that kernels were compiled for.

    The folder can be copied to another machine of the same profile, settings included.

    Example: paredown cache list
    """
    from datetime import datetime

    from rich.table import Table

    from ...evaluators.tvm.cache_folders import list_targets

    targets = list_targets()
    if output == "json":
        print_json([{**asdict(target), "path": str(target.path)} for target in targets])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("folder", "kernels", "workloads", "MB", "last used"):
        table.add_column(heading, justify="left" if heading == "folder" else "right")
    for target in targets:
        used = datetime.fromtimestamp(target.last_used).strftime("%Y-%m-%d")
        counts = (str(target.n_kernels), str(target.n_workloads))
        table.add_row(str(target.path), *counts, f"{target.size_bytes / 1e6:.1f}", used)
    results().print(table)


@cache_app.command("prune")
def prune_command(
    days: Annotated[
        float, typer.Option("--days", min=0.0, help="Keep what was used in so many days.")
    ] = 30.0,
) -> None:
    """Remove compiled kernels that were not used lately; settings found by timing stay.

    Example: paredown cache prune --days 7
    """
    from ...evaluators.tvm.cache_folders import prune

    freed = prune(days * _DAY_S)
    results().print(f"{freed / 1e6:.1f} MB freed.")
