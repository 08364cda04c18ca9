"""`paredown explain`: why a point of a study looks as it does."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    DEFAULT_STORAGE,
    StorageOption,
    StudyArgument,
    TextFormatOption,
    print_json,
    results,
)


def explain(
    study: StudyArgument,
    pick: Annotated[
        str,
        typer.Option(
            metavar="EXPR", help="Which point, such as accuracy>=0.97,min:latency_us; or a number."
        ),
    ] = "min:latency_us",
    storage: StorageOption = DEFAULT_STORAGE,
    output: TextFormatOption = "table",
) -> None:
    """Show which layers hurt and which pay, and what a point of the front makes of them.

    Example: paredown explain digits --pick "accuracy_drop<=0.5,min:latency_us"
    """
    from ..explain import explain_study, explanation_notes, explanation_table
    from ..storage import read_study

    record = read_study(storage, study)
    explanation = explain_study(record, pick)
    if output == "json":
        print_json(explanation.to_json())
        return
    console = results()
    console.print(explanation_table(explanation))
    for note in explanation_notes(explanation, record):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
