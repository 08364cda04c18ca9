"""The report of a study: one self-contained page that works without a network."""

from .writer import ReportError, build_figures, check_report_path, render_report, write_report

__all__ = [
    "ReportError",
    "build_figures",
    "check_report_path",
    "render_report",
    "write_report",
]
