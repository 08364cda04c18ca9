"""`paredown report`: write a study as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORAGE, StorageOption, StudyArgument


def report(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write a study as one interactive page that works without a network.

    Example: paredown report digits -o report.html
    """
    from ..report import check_report_path, write_report
    from ..storage import read_study

    check_report_path(output)
    print(write_report(read_study(storage, study), output))
