"""`paredown space`: what a study would search."""

from __future__ import annotations

from typing import Annotated

import typer

from ._steps import show_steps
from .options import (
    DataOption,
    ExcludeOption,
    StudyFileArgument,
    TaskOption,
    TextFormatOption,
    ThreadsOption,
    TieOption,
    print_json,
    results,
)


def space(
    file: StudyFileArgument = None,
    task: TaskOption = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Hardware profile, or its TOML file (local)."),
    ] = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
    tie: TieOption = None,
    exclude: ExcludeOption = None,
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
