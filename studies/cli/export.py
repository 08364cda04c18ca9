"""`paredown export`: write a trial as a folder that can be deployed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._steps import show_steps
from .options import (
    DEFAULT_STORAGE,
    StorageOption,
    StudyArgument,
    TextFormatOption,
    messages,
    print_json,
)

if TYPE_CHECKING:
    from ..bundle import Bundle


def export(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
    ],
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, metavar="N", help="Number of the trial.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR",
            help="Conditions and objectives, such as accuracy_drop<=0.5,max:speedup, on accuracy, "
            "size_bytes, latency_us, speedup, shrink, accuracy_drop (points).",
        ),
    ] = None,
    all_trials: Annotated[
        bool, typer.Option("--all", help="Pick among all trials, not only the front.")
    ] = False,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(
            "--finetune",
            min=1,
            metavar="EPOCHS",
            help="Train the trial first, as `finetune` does.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that is there already.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    form: TextFormatOption = "table",
) -> None:
    """Export one trial: the ONNX file that was measured, and the library built from it.

    Example: paredown export digits --pick "accuracy>=0.97,min:latency_us" -o bundle
    """
    if (trial is None) == (pick is None):
        raise typer.BadParameter("Give either --trial N or --pick EXPR.")
    if all_trials and pick is None:
        raise typer.BadParameter("--all goes with --pick.")
    from ..selection import SelectionSyntaxError, parse_selection, select_trial

    try:
        selection = None if pick is None else parse_selection(pick)
    except SelectionSyntaxError as error:
        raise typer.BadParameter(str(error)) from error
    from ..export import check_export_folder, export_trial
    from ..storage import read_study

    check_export_folder(output, force=force)
    record = read_study(storage, study)
    chosen: int
    if selection is not None:
        chosen = select_trial(record, selection, all_trials=all_trials).number
    else:
        assert trial is not None  # checked above
        chosen = trial
    with show_steps() as tell:
        if finetune_epochs is not None:
            from ..finetune import FinetuneOptions, finetune_trial

            added = finetune_trial(record, chosen, FinetuneOptions(finetune_epochs), report=tell)
            assert added is not None  # `export` is no command for several processes
            record, chosen = read_study(storage, study), added.number
        bundle = export_trial(record, chosen, output, force=force, report=tell)
    if form == "json":
        print_json({"folder": str(output), **bundle.to_json()})
    else:
        _print(bundle, output)


def _print(bundle: Bundle, output: Path) -> None:
    from ..bundle import BUNDLE_FILE, RUN_FILE

    for name in (*bundle.sha256, BUNDLE_FILE):
        print(output / name)
    metrics = bundle.metrics
    folder = shlex.quote(str(output))
    lines = [
        f"Trial {bundle.trial} of study '{bundle.study}': {bundle.task.metric_name} "
        f"{metrics.accuracy:.4f}, {metrics.size_bytes} bytes, {metrics.latency_us:.1f} us.",
        f"Check it with `paredown verify {folder}`.",
    ]
    if RUN_FILE in bundle.sha256:
        lines.append(f"Run it with `python {shlex.quote(str(output / RUN_FILE))} --time 200`.")
    for line in lines:
        messages().print(line, markup=False, highlight=False, soft_wrap=True)
