"""`paredown search`: run a study, or go on with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    DEFAULT_STORAGE,
    DataOption,
    ExcludeOption,
    StudyFileArgument,
    TaskOption,
    TextFormatOption,
    ThreadsOption,
    TieOption,
    messages,
    print_json,
    results,
)

if TYPE_CHECKING:
    from ..config import StudyConfig
    from ..observer import StopSignal
    from ..records import StudyRecord

INTERRUPTED = 130


def search(
    file: StudyFileArgument = None,
    task: TaskOption = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the study; default: the task's.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Finished trials of the study, over all its runs (60)."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no trial after this time.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all randomness (0).")] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Optuna storage (sqlite:///paredown.db)."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@CONNECTION]",
            help="Hardware profile, or its TOML file (local); a latency for each if repeated.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
    runtime: Annotated[
        str | None, typer.Option(metavar="NAME", help="Runtime whose latency counts (tvm).")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Search this too: memory, energy; may be repeated."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="guided, tpe, nsga2, nsga3, gp, qmc, random (guided)."),
    ] = None,
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            "--early-stopping/--whole-trials",
            help="Give a candidate up as soon as it cannot reach the front any more (default).",
        ),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="METHOD", help="How activation ranges are found.")
    ] = None,
    accuracy: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Weights of trials: shared (cut out of one trained network), finetune (trained "
            "for each) or ptq (no training); default: shared where the task has training data.",
        ),
    ] = None,
    shared_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of the shared network's training.")
    ] = None,
    finetune_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs of each trial in mode finetune; default: the task's."),
    ] = None,
    tie: TieOption = None,
    exclude: ExcludeOption = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Least accuracy of a feasible trial.")
    ] = None,
    max_latency_us: Annotated[
        float | None, typer.Option(help="Largest latency of a feasible trial.")
    ] = None,
    max_size_bytes: Annotated[
        int | None, typer.Option(help="Largest size of a feasible trial.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="How many times faster than the uncompressed model.")
    ] = None,
    min_shrink: Annotated[
        float | None, typer.Option(help="How many times smaller than the uncompressed model.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Most accuracy that may be lost.")
    ] = None,
    output: TextFormatOption = "table",
) -> None:
    """Search pruning ratios and bit widths of a trained model on a device.

    Ctrl-C ends after the trial in hand, a second one at once. The same command goes on with the
    study.

    Example: paredown search --task digits --trials 60 --min-accuracy 0.98
    """
    if file is not None and not file.is_file():
        raise typer.BadParameter(f"Study file '{file}' does not exist. A task goes after --task.")
    if file is None and task is None:
        raise typer.BadParameter("Give --task TASK or a study file. See --help for examples.")
    from ..config import make_config

    config = make_config(
        {
            "task": task,
            "study": study,
            "trials": trials,
            "timeout": timeout,
            "seed": seed,
            "storage": storage,
            "profile": profile[0] if profile and len(profile) == 1 else profile or None,
            "threads": threads,
            "data": None if data is None else str(data),
            "runtime": runtime,
            "objectives": objective or None,
            "sampler": sampler,
            "early_stopping": early_stopping,
            "calibration": calibration,
            "accuracy": accuracy,
            "shared_epochs": shared_epochs,
            "finetune_epochs": finetune_epochs,
            "space": {"tie": tie, "exclude": exclude or None},
            "constraints": {
                "min_accuracy": min_accuracy,
                "max_latency_us": max_latency_us,
                "max_size_bytes": max_size_bytes,
                "min_speedup": min_speedup,
                "min_shrink": min_shrink,
                "max_accuracy_drop": max_accuracy_drop,
            },
        },
        file,
    )
    record = _run(config)
    if output == "json":
        from ..front import front_json

        print_json(front_json(record))
    else:
        _print_result(record, config)


def _run(config: StudyConfig) -> StudyRecord:
    """Run the study with its display and the handling of Ctrl-C."""
    console = messages()
    from ..observer import StopSignal
    from ..progress import make_progress

    with make_progress(console) as progress:
        progress.preparing("starting")
        from ..engine import run_study

        def say() -> None:
            progress.message(
                "Ending after the trial in hand; Ctrl-C again stops at once. The same command "
                "goes on with the study."
            )

        stop = StopSignal(say)
        with _interrupts(stop):
            try:
                return run_study(config, observer=progress, stop=stop)
            except KeyboardInterrupt:
                progress.message("Stopped. The same command goes on with the study.")
                raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _interrupts(stop: StopSignal) -> Iterator[None]:
    """Let Ctrl-C end the study after the trial in hand, a second one or SIGTERM at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.interrupt(at_once=number == signal.SIGTERM)

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            # The study has been ended: a second Ctrl-C that comes late has nothing left to stop.
            signal.signal(number, signal.SIG_IGN if stop.is_interrupted else handler)


def _print_result(record: StudyRecord, config: StudyConfig) -> None:
    from ..front import front_notes, front_table

    console = results()
    front = record.front()
    console.print(front_table(record))
    points = f"{len(front)} point{'s' * (len(front) != 1)}"
    trials = f"{record.n_finished} trial{'s' * (record.n_finished != 1)}"
    console.print(
        f"\n{points} on the front of study '{record.name}' after {trials}.", highlight=False
    )
    for note in front_notes(record):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if not front:
        console.print("No trial meets the constraints; `--all` of `paredown front` shows them.")
        return
    storage = "" if config.storage == DEFAULT_STORAGE else f" --storage {config.storage}"
    pick = "min:size_bytes" if record.why_no_latency else "min:latency_us"
    if record.metric_name == "accuracy" and record.baseline is not None:
        pick = f"accuracy>={record.baseline.values[0] - 0.005:.4f},{pick}"
    for command in (
        f"paredown report {record.name} -o report.html{storage}",
        f'paredown export {record.name} --pick "{pick}" -o bundle{storage}',
    ):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
