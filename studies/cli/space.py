"""`paredown space`: what a study would search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._steps import show_steps
from .options import TextFormatOption, print_json, results


def space(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY.TOML]", help="Study file; options override what it says."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="digits, fashion-mnist, or path/to/task.py:make_task."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Hardware profile, or its TOML file (local)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of an inference; default: the profile's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the task's data.")
    ] = None,
    tie: Annotated[
        str | None, typer.Option(metavar="WHAT", help="Choose once per layer, block or stage.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers that stay as they are; may be repeated."),
    ] = None,
    is_timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Time the layers of the uncompressed model.")
    ] = True,
    output: TextFormatOption = "table",
) -> None:
    """Show the layers of a model, what each costs on the device, and what may vary.

    Example: paredown space --task digits --tie block --exclude classifier
    """
    if file is None and task is None:
        raise typer.BadParameter("Give --task TASK or a study file. See --help for an example.")
    from ..config import make_config
    from ..space_view import space_notes, space_table, view_space

    config = make_config(
        {
            "task": task,
            "profile": profile,
            "threads": threads,
            "data": None if data is None else str(data),
            "space": {"tie": tie, "exclude": exclude or None},
        },
        file,
    )
    with show_steps() as tell:
        view = view_space(config, tell, is_timed=is_timed)
    if output == "json":
        print_json(view.to_json())
        return
    console = results()
    console.print(space_table(view))
    for note in space_notes(view):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
