"""`paredown measure`: latency of any ONNX file in several runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import TextFormatOption, print_json, results

if TYPE_CHECKING:
    from ...evaluators.latency import RuntimeComparison


def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL.ONNX", help="ONNX file.")],
    runtimes: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Runtimes, separated by commas; all: what is here."),
    ] = "tvm,onnxruntime",
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="Hardware profile, or its TOML file.")
    ] = "local",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of an inference; default: the profile's.")
    ] = None,
    output: TextFormatOption = "table",
) -> None:
    """Time an ONNX file in several runtimes, interleaved, each in its own process.

    The ratio is the time over that of the first runtime in the same moments: below 1 is faster.
    The difference is that of the outputs from its, as a share of the largest.

    Example: paredown measure model.onnx --runtimes tvm,onnxruntime,openvino,litert
    """
    names = [name.strip() for name in runtimes.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise typer.BadParameter(f"--runtimes must name each runtime once, but got '{runtimes}'.")
    from ...evaluators.latency import compare_runtimes
    from ...evaluators.runtimes import get_runtime, installed_runtimes, require_installed
    from ...hw_profiles import check_runs_here, load_profile

    if names == ["all"]:
        names = list(installed_runtimes())

    device = load_profile(profile)
    if threads is not None:
        device = device.with_threads(threads)
    check_runs_here(device)
    for name in names:
        require_installed(get_runtime(name))
    compared = compare_runtimes(model, names, device)
    if output == "json":
        print_json(_plain(model, device.threads, compared))
    else:
        _print_table(compared)
    if all(comparison.error is not None for comparison in compared.values()):
        raise typer.Exit(1)


def _plain(model: Path, threads: int, compared: dict[str, RuntimeComparison]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name, comparison in compared.items():
        latency = comparison.latency
        answer[name] = {
            "version": comparison.version,
            "latency_us": None if latency is None else latency.latency_us,
            "spread_us": None if latency is None else latency.spread_us,
            "ratio": None if latency is None else latency.ratio,
            "n_runs": None if latency is None else latency.n_runs,
            "is_noisy": None if latency is None else latency.is_noisy,
            "peak_memory_bytes": None if latency is None else latency.peak_memory_bytes,
            "energy_mj": None if latency is None else latency.energy_mj,
            "difference": comparison.difference,
            "error": comparison.error,
        }
    return {"model": str(model), "threads": threads, "runtimes": answer}


def _print_table(compared: dict[str, RuntimeComparison]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("runtime", "version"):
        table.add_column(column)
    for column in ("latency", "spread", "ratio", "difference"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, comparison in compared.items():
        latency = comparison.latency
        if latency is None:
            table.add_row(name, comparison.version, *[""] * 4, f"failed: {comparison.error}")
            continue
        ratio = "" if latency.ratio is None else f"{latency.ratio:.3f}"
        table.add_row(
            name,
            comparison.version,
            f"{latency.latency_us:.1f} us",
            f"±{latency.spread_us:.1f}",
            ratio,
            "" if comparison.difference is None else f"{comparison.difference:.1e}",
            "noisy" if latency.is_noisy else "",
        )
    results().print(table)
