"""Writes a study as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...hw_profiles.errors import ParedownError
from ..records import StudyRecord
from .figures import front_3d, hypervolume_figure, projection
from .maps import bits_map, pruning_map
from .page import render_page
from .view import ReportView


class ReportError(ParedownError):
    """The report cannot be written."""


def write_report(record: StudyRecord, path: str | os.PathLike[str]) -> Path:
    """Write the report of a study; the page works from a file and without a network.

    The file appears complete or not at all.

    Args:
        record: The study, as `read_study` returns it.
        path: The HTML file to write; an older one is replaced.

    Returns:
        The path written.

    Raises:
        ReportError: If the file cannot be written.
    """
    path = Path(path)
    check_report_path(path)
    page = render_report(record)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ReportError(f"The report cannot be written to '{path}': {error}.") from error
    return path


def check_report_path(path: Path) -> None:
    """Refuse a path that cannot become a file, before any work is done."""
    folder = path.parent
    if not folder.is_dir():
        raise ReportError(
            f"The report cannot be written to '{path}': the folder '{folder}' does not exist. "
            "Create it, or pass another path."
        )
    if path.is_dir():
        raise ReportError(f"'{path}' is a folder. Pass the path of an HTML file.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ReportError(f"'{path}' must be writable, but it is not. Pass another path.")


def render_report(record: StudyRecord, *, written: date | None = None) -> str:
    """Return the page of a study as a string.

    Args:
        record: The study.
        written: Date in the page's header; today by default.
    """
    # plotly ships no type information; the import waits until a page is asked for.
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # no types

    view = ReportView.from_record(record)
    try:
        own_version = version("paredown")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own_version = "(not installed)"
    return render_page(
        view,
        build_figures(view),
        plotly_js=get_plotlyjs(),
        written=written or date.today(),
        version=own_version,
    )


def build_figures(view: ReportView) -> Mapping[str, Mapping[str, Any]]:
    """Return the figures that the study has data for, by the id of their element."""
    figures: dict[str, dict[str, Any]] = {}
    if not view.plotted:
        return figures
    accuracy, size, latency = view.accuracy, view.size, view.latency
    plots = [("accuracy-size", size, accuracy)]
    if latency is not None:
        plots.insert(0, ("accuracy-latency", latency, accuracy))
        plots.append(("size-latency", latency, size))
        figures["front-3d"] = {
            "figure": front_3d(view),
            "axes": [latency.field, size.field, accuracy.field],
        }
        for other in view.others:
            plots.append((f"accuracy-{other.field}", other, accuracy))
            plots.append((f"devices-{other.field}", latency, other))
        plots += [(f"accuracy-{axis.field}", axis, accuracy) for axis in view.further]
    for name, x, y in plots:
        figures[name] = {"figure": projection(view, x, y), "axes": [x.field, y.field]}
    history = hypervolume_figure(view)
    if history["data"]:
        figures["hypervolume"] = {"figure": history}
    columns = [trial.number for trial in view.front]
    for name, figure in (("bits-map", bits_map(view)), ("pruning-map", pruning_map(view))):
        if figure["data"][0]["y"]:
            figures[name] = {"figure": figure, "columns": columns}
    return figures
