"""`paredown front`: the Pareto front of a study."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from .options import DEFAULT_STORAGE, StorageOption, StudyArgument, print_json, results


def front(
    study: StudyArgument,
    output: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="Form of the output.")
    ] = "table",
    all_trials: Annotated[
        bool, typer.Option("--all", help="Show all trials, not only the front.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Show the Pareto front of accuracy, size and latency.

    The json and csv forms have the bits and pruning ratio of each layer.

    Example: paredown front digits --format csv --all > trials.csv
    """
    from ..front import front_csv, front_json, front_notes, front_table
    from ..storage import read_study

    record = read_study(storage, study)
    if output == "json":
        print_json(front_json(record, all_trials=all_trials))
    elif output == "csv":
        sys.stdout.write(front_csv(record, all_trials=all_trials))
    else:
        results().print(front_table(record, all_trials=all_trials))
        for note in front_notes(record):
            results().print(note, markup=False, highlight=False, soft_wrap=True)
