"""`paredown verify`: check that a bundle is what its trial measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._steps import show_steps
from .options import DEFAULT_STORAGE, StorageOption, TextFormatOption, messages, print_json

if TYPE_CHECKING:
    from ..verification import AccuracyCheck, LatencyCheck, VerificationResult


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The exported bundle.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the task's data.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task, if it moved since the export.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@CONNECTION]",
            help="Device to run the library on; default: the one of the study.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Run the library on N samples only, on a slow device."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="POINTS",
            help="Largest difference in accuracy; above 0, one sample more or less is allowed.",
        ),
    ] = 0.03,
    storage: StorageOption = DEFAULT_STORAGE,
    form: TextFormatOption = "table",
) -> None:
    """Check a bundle's files, its accuracy on all validation data, and its latency.

    The exit status is 1 when a file was changed or an accuracy is not the trial's. Latency is
    shown beside the recorded one; where the study's storage is found, both are in proportion to
    the uncompressed model.

    The library runs on the device that the study reached, or on one that --profile names.

    Example: paredown verify bundle --data ./fashion-mnist
    """
    from ..verify import verify_bundle

    with show_steps() as tell:
        result = verify_bundle(
            folder,
            storage=storage,
            task=task,
            data_dir=None if data is None else str(data),
            profile=profile,
            n_samples=samples,
            tolerance_points=tolerance,
            report=tell,
        )
    if form == "json":
        print_json(result.to_json())
    else:
        _print(result)
    for failure in result.failures:
        messages().print(f"paredown: {failure}", markup=False, highlight=False, soft_wrap=True)
    if not result.is_ok:
        raise typer.Exit(1)


def _print(result: VerificationResult) -> None:
    bundle = result.bundle
    print(f"Bundle     {result.folder}: trial {bundle.trial} of study '{bundle.study}'")
    n_files = len(bundle.sha256)
    if result.changed_files:
        print(f"Files      {len(result.changed_files)} of {n_files} are not as exported")
        return
    print(f"Files      {n_files} of {n_files} as exported")
    name = bundle.task.metric_name.capitalize()
    print(f"{name:<10} {'trial':<12} {bundle.metrics.accuracy:.4f}")
    for check in result.accuracies:
        print(
            f"{'':<10} {check.file:<12} {check.accuracy:.4f}  {check.difference_points:+.3f} "
            f"points ({check.runtime}{_part(check, result)})"
        )
    if result.device not in (None, "local", "compile-only"):
        print(f"Device     {result.device} ran {bundle.library}")
    _print_outputs(result)
    if result.latency is not None:
        _print_latency(result.latency)
    if result.is_same_data is False:
        print("Task       its validation data are not those of the study")
    print("Verified." if result.is_ok else "Not verified.")


def _part(check: AccuracyCheck, result: VerificationResult) -> str:
    """Say how many samples an accuracy is of, where it is of a part."""
    whole = max(other.n_samples for other in result.accuracies)
    return "" if check.n_samples == whole else f", of {check.n_samples} samples"


def _print_outputs(result: VerificationResult) -> None:
    outputs = result.outputs
    if outputs is None:
        return
    n = outputs.n_samples
    text = f"{outputs.n_outputs_differ} of {n} differ beyond rounding"
    if outputs.n_outputs_differ:
        text += f", by {outputs.max_difference:.3g} at most"
    if outputs.n_predictions_differ is not None:
        text = f"{outputs.n_predictions_differ} of {n} predictions differ; of the outputs, {text}"
    print(f"Outputs    {text}")


def _print_latency(latency: LatencyCheck) -> None:
    spread = "" if latency.recorded_spread_us is None else f" ± {latency.recorded_spread_us:.1f}"
    recorded_us = latency.recorded_us
    recorded = "not recorded" if recorded_us is None else f"recorded {recorded_us:.1f}{spread} us"
    now = latency.now
    if latency.latency_us is not None and now.ratio is not None and recorded_us is not None:
        change = 100.0 * (latency.latency_us / recorded_us - 1.0)
        share = (
            "" if latency.recorded_ratio is None else f" ({latency.recorded_ratio:.3f} of float)"
        )
        text = (
            f"{recorded}{share}, now {latency.latency_us:.1f} us ({now.ratio:.3f} of float), "
            f"{change:+.1f} %"
        )
    else:
        text = f"{recorded}, now {now.latency_us:.1f} ± {now.spread_us:.1f} us without a baseline"
    print(f"Latency    {text}{', noisy' if now.is_noisy else ''}")
