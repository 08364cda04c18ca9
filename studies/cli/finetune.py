"""`paredown finetune`: train one trial for longer, as a new trial of its study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._steps import show_steps
from .options import (
    DEFAULT_STORAGE,
    StorageOption,
    StudyArgument,
    TextFormatOption,
    print_json,
    results,
)


def finetune(
    study: StudyArgument,
    trial: Annotated[
        int, typer.Option("--trial", min=0, metavar="N", help="Number of the trial.")
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the task's training data.")] = 3,
    distill: Annotated[
        bool,
        typer.Option(
            "--distill/--no-distill", help="Follow the uncompressed model, not the labels."
        ),
    ] = True,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one step.")] = 64,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What layers compute in.")
    ] = "float32",
    log_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write figures for TensorBoard there.")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    form: TextFormatOption = "table",
) -> None:
    """Train a trial's candidate with its quantization and add it to the study as a new trial.

    Several processes train together under torchrun:
    torchrun --nproc-per-node 4 -m paredown.studies.cli finetune digits --trial 7

    Example: paredown finetune digits --trial 7 --epochs 5
    """
    from ..finetune import FinetuneOptions, finetune_trial
    from ..front import describe_trial, trial_json
    from ..storage import read_study

    options = FinetuneOptions(epochs, lr, batch_size, distill, precision, log_dir)
    with show_steps() as tell:
        record = read_study(storage, study)
        added = finetune_trial(record, trial, options, report=tell)
    if added is None:  # one of the further processes
        return
    record = read_study(storage, study)
    if form == "json":
        print_json(trial_json(added, record))
        return
    before = describe_trial(record.trial(trial), record)
    results().print(before, describe_trial(added, record), sep="\n", highlight=False)
