"""The Pareto front of a study as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..search.candidate import Candidate
from .records import StudyRecord, TrialRecord

FORMATS = ("table", "json", "csv")

_CSV_COLUMNS = (
    "trial",
    "state",
    "is_baseline",
    "is_feasible",
    "accuracy",
    "size_bytes",
    "latency_us",
    "latency_spread_us",
    "speedup",
    "shrink",
    "is_noisy",
    "seconds",
    "error",
)


def summarize(candidate: Candidate) -> str:
    """Return a candidate in a few words: its widths and the mean share of channels removed."""
    widths = {choice.weight_bits for _, choice in candidate.layers}
    bits = "/".join("float" if width == 32 else str(width) for width in sorted(widths))
    ratios = [ratio for _, ratio in candidate.pruning]
    pruned = sum(ratios) / len(ratios) if ratios else 0.0
    unit = "" if bits == "float" else " bits"
    return f"{bits}{unit}, {pruned:.0%} pruned"


def describe_trial(trial: TrialRecord, study: StudyRecord) -> str:
    """Return a trial and its result in one line."""
    name = f"trial {trial.number}"
    if trial.state == "failed":
        return f"{name} failed: {_first_line(trial.error)}"
    if trial.state == "stopped early":
        return f"{name} stopped early: {_first_line(trial.error)}"
    if trial.state != "complete":
        return f"{name} is {trial.state}"
    accuracy, size_bytes, latency_us = trial.values
    text = (
        f"{name}: {study.metric_name} {accuracy:.4f}, {format_bytes(size_bytes)}, "
        f"{latency_us:.1f} us{_factors(trial, study)}"
    )
    if trial.candidate is not None:
        text += f", {'uncompressed' if trial.is_baseline else summarize(trial.candidate)}"
    if trial.finetuned_from is not None:
        text += f", fine-tuned from trial {trial.finetuned_from}"
    return text if trial.is_feasible else f"{text}, not feasible"


def trial_json(trial: TrialRecord, study: StudyRecord) -> dict[str, Any]:
    """Return a trial as plain JSON values: its measures, and bits and ratios per layer."""
    return {
        "trial": trial.number,
        "state": trial.state,
        "is_baseline": trial.is_baseline,
        "is_feasible": trial.is_feasible,
        "accuracy": trial.accuracy,
        "size_bytes": trial.size_bytes,
        "latency_us": trial.latency_us,
        "latency_spread_us": trial.latency_spread_us,
        "speedup": study.speedup(trial),
        "shrink": study.shrink(trial),
        "latency": None if trial.latency is None else trial.latency.to_json(),
        "candidate": None if trial.candidate is None else trial.candidate.to_json(),
        "seconds": trial.seconds,
        "finetuned_from": trial.finetuned_from,
        "error": trial.error,
    }


def front_json(study: StudyRecord, *, all_trials: bool = False) -> dict[str, Any]:
    """Return the front as plain JSON values, with all trials beside it if asked for."""
    answer: dict[str, Any] = {
        "study": study.name,
        "task": study.task,
        "metric": study.metric_name,
        "higher_is_better": study.higher_is_better,
        "profile": study.profile.name,
        "runtime": study.settings.runtime,
        "threads": study.threads,
        "n_trials": study.n_finished,
        "baseline": None if study.baseline is None else trial_json(study.baseline, study),
        "front": [trial_json(trial, study) for trial in study.front()],
    }
    if all_trials:
        answer["trials"] = [trial_json(trial, study) for trial in study.trials]
    return answer


def front_csv(study: StudyRecord, *, all_trials: bool = False) -> str:
    """Return a CSV table of the front, or of all trials; bits and ratios are columns too."""
    trials = study.trials if all_trials else study.front()
    rows = [_csv_row(trial, study) for trial in trials]
    columns = list(_CSV_COLUMNS)
    for row in rows:
        columns.extend(key for key in row if key not in columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def front_table(
    study: StudyRecord, *, all_trials: bool = False, max_rows: int | None = None
) -> Table:
    """Return a Rich table of the front, fastest first, with the baseline as its last row.

    Args:
        study: The study.
        all_trials: Whether to show every trial in the order of their numbers.
        max_rows: Show at most so many points of the front, spread evenly over it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("trial", study.metric_name, "size", "latency", "spread", "faster", "smaller"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("bits, pruning")
    baseline = () if study.baseline is None else (study.baseline,)
    if all_trials:
        shown: Sequence[TrialRecord] = study.trials
    else:
        front = [trial for trial in study.front() if not trial.is_baseline]
        shown = (*_spread(front, max_rows), *baseline)
    best = {trial.number for trial in study.front()}
    for trial in shown:
        on_front = all_trials and trial.number in best
        table.add_row(*_cells(trial, study), style="bold green" if on_front else _style(trial))
    return table


def format_bytes(size: float) -> str:
    """Return a size with three figures or so, in units of 1000 bytes."""
    if size < 1000:
        return f"{size:.0f} B"
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.2f} MB"


def _first_line(error: str | None) -> str:
    return (error or "unknown").partition("\n")[0]


def _factors(trial: TrialRecord, study: StudyRecord) -> str:
    speedup, shrink = study.speedup(trial), study.shrink(trial)
    if trial.is_baseline or speedup is None or shrink is None:
        return ""
    return f" ({speedup:.2f}x faster, {shrink:.2f}x smaller)"


def _csv_row(trial: TrialRecord, study: StudyRecord) -> dict[str, Any]:
    values = trial_json(trial, study)
    row = {name: values.get(name) for name in _CSV_COLUMNS}
    row["is_noisy"] = None if trial.latency is None else trial.latency.is_noisy
    if trial.candidate is not None:
        for name, ratio in trial.candidate.pruning:
            row[f"pruning_ratio/{name}"] = round(ratio, 6)
        for name, choice in trial.candidate.layers:
            row[f"weight_bits/{name}"] = choice.weight_bits
            row[f"activation_bits/{name}"] = choice.activation_bits
    return row


def _spread(trials: Sequence[TrialRecord], max_rows: int | None) -> Sequence[TrialRecord]:
    if max_rows is None or len(trials) <= max_rows:
        return trials
    step = (len(trials) - 1) / (max_rows - 1)
    return [trials[round(i * step)] for i in range(max_rows)]


def _cells(trial: TrialRecord, study: StudyRecord) -> tuple[str, ...]:
    number = str(trial.number)
    if trial.state != "complete":
        note = trial.state if not trial.error else f"{trial.state}: {_first_line(trial.error)}"
        return (number, "", "", "", "", "", "", note)
    accuracy, size_bytes, latency_us = trial.values
    speedup, shrink = study.speedup(trial), study.shrink(trial)
    note = "" if trial.candidate is None else summarize(trial.candidate)
    if trial.is_baseline:
        note = "uncompressed"
    if not trial.is_feasible:
        note += " (not feasible)"
    return (
        number,
        f"{accuracy:.4f}",
        format_bytes(size_bytes),
        f"{latency_us:.1f} us",
        "" if trial.latency_spread_us is None else f"±{trial.latency_spread_us:.1f}",
        "" if speedup is None else f"{speedup:.2f}x",
        "" if shrink is None else f"{shrink:.2f}x",
        note,
    )


def _style(trial: TrialRecord) -> str | None:
    if trial.is_baseline:
        return "dim"
    return "red" if trial.state == "failed" else None
