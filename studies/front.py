"""The Pareto front of a study as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..search.candidate import FLOAT_WIDTHS, Candidate, width_name
from ..search.device_timing import DeviceLatency
from .records import StudyRecord, TrialRecord

FORMATS = ("table", "json", "csv")
ELSEWHERE_LOSS = 0.005  # of the metric: what the trials compared between devices may lose

_CSV_COLUMNS = (
    "trial",
    "state",
    "is_baseline",
    "is_feasible",
    "accuracy",
    "size_bytes",
    "coded_size_bytes",
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
    bits = "/".join(width_name(width) for width in sorted(widths))
    ratios = [ratio for _, ratio in candidate.pruning]
    pruned = sum(ratios) / len(ratios) if ratios else 0.0
    unit = "" if widths <= set(FLOAT_WIDTHS) else " bits"
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
    accuracy, size_bytes, *_ = trial.values
    measured = [f"{study.metric_name} {accuracy:.4f}", format_bytes(size_bytes)]
    measured += [f"{latency_us:.1f} us" for latency_us in trial.latencies_us]
    measured += [further_text(name, value) for name, value in trial.further]
    text = f"{name}: {', '.join(measured)}{_factors(trial, study)}"
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
        "coded_size_bytes": trial.coded_size_bytes,
        "latency_us": trial.latency_us,
        "latency_spread_us": trial.latency_spread_us,
        "speedup": study.speedup(trial),
        "shrink": study.shrink(trial),
        "latency": None if trial.latency is None else trial.latency.to_json(),
        "peak_memory_bytes": None if trial.latency is None else trial.latency.peak_memory_bytes,
        "energy_mj": None if trial.latency is None else trial.latency.energy_mj,
        "others": {other.profile: _other_json(other, trial, study) for other in trial.others},
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
        "other_profiles": [profile.name for profile in study.other_profiles],
        "why_no_latency": study.why_no_latency,
        "runtime": study.settings.runtime,
        "threads": study.threads,
        "n_trials": study.n_finished,
        "baseline": None if study.baseline is None else trial_json(study.baseline, study),
        "front": [trial_json(trial, study) for trial in study.front()],
    }
    if study.other_profiles:
        answer["best_elsewhere"] = [asdict(row) for row in best_elsewhere(study)]
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
    further = study.settings.objectives
    headers = ("trial", study.metric_name, "size", *_latency_headers(study), "smaller", *further)
    for header in headers:
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


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How the fastest trial of one device's front does on another device."""

    trial: int
    best_on: str
    runs_on: str
    speedup: float | None  # on the other device, against the uncompressed model there
    own_speedup: float | None  # of that device's own fastest trial


def best_elsewhere(study: StudyRecord) -> tuple[Elsewhere, ...]:
    """Compare the devices of a study: what is fastest on one, on each of the others.

    Per device the fastest trial is that of its front which loses at most `ELSEWHERE_LOSS` of the
    metric, so that the trials do about the same.
    """
    if not study.other_profiles:
        return ()
    best = [_fastest(study, index) for index in range(len(study.profiles))]
    rows = []
    for i, trial in enumerate(best):
        for j, own in enumerate(best):
            if i != j and trial is not None and own is not None:
                where, device = study.profiles[i].name, study.profiles[j].name
                speedups = (_speedup(study, t, j) for t in (trial, own))
                rows.append(Elsewhere(trial.number, where, device, *speedups))
    return tuple(rows)


def front_notes(study: StudyRecord) -> list[str]:
    """Return what must be said beside the table: why there is no latency, devices compared."""
    notes = [study.why_no_latency] if study.why_no_latency else []
    notes += _hindrances(study)
    for row in best_elsewhere(study):
        if row.speedup is not None and row.own_speedup is not None:
            notes.append(
                f"Trial {row.trial}, the fastest on '{row.best_on}', is {row.speedup:.2f}x faster "
                f"than uncompressed on '{row.runs_on}', whose own fastest is "
                f"{row.own_speedup:.2f}x."
            )
    return notes


def _hindrances(study: StudyRecord) -> list[str]:
    """Return what may have spoiled measurements, each kind once, with the number of trials."""
    found: dict[str, list[str]] = {}
    for trial in study.complete:
        latencies = [trial.latency, *(other.latency for other in trial.others)]
        for note in (note for latency in latencies if latency for note in latency.notes):
            found.setdefault(re.sub(r"[\d.]+", "", note), []).append(note)
    return [f"In {len(notes)} measurement(s): {notes[0]}." for notes in found.values()]


def _fastest(study: StudyRecord, device: int) -> TrialRecord | None:
    sign = 1.0 if study.higher_is_better else -1.0
    front = study.front_on(device)
    if study.baseline is not None:
        least = sign * study.baseline.values[0] - ELSEWHERE_LOSS
        front = tuple(trial for trial in front if sign * trial.values[0] >= least - 1e-9)
    return front[0] if front else None


def _speedup(study: StudyRecord, trial: TrialRecord, device: int) -> float | None:
    if device == 0:
        return study.speedup(trial)
    return study.speedup_on(study.profiles[device].name, trial)


def _other_json(other: DeviceLatency, trial: TrialRecord, study: StudyRecord) -> dict[str, Any]:
    return {**other.to_json(), "speedup": study.speedup_on(other.profile, trial)}


def _latency_headers(study: StudyRecord) -> list[str]:
    if study.other_profiles:
        return [f"{name} {part}" for name in (p.name for p in study.profiles)
                for part in ("latency", "faster")]  # fmt: skip
    return ["latency", "spread", "faster"] if study.profile.has_latency else ["latency"]


def format_bytes(size: float) -> str:
    """Return a size with three figures or so, in units of 1000 bytes."""
    if size < 1000:
        return f"{size:.0f} B"
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.2f} MB"


def further_text(name: str, value: float) -> str:
    """Return the value of a further objective with its unit."""
    return f"{value:.3g} mJ" if name == "energy_mj" else format_bytes(value)


def _first_line(error: str | None) -> str:
    return (error or "unknown").partition("\n")[0]


def _factors(trial: TrialRecord, study: StudyRecord) -> str:
    speedup, shrink = study.speedup(trial), study.shrink(trial)
    if trial.is_baseline or shrink is None:
        return ""
    faster = "" if speedup is None else f"{speedup:.2f}x faster, "
    return f" ({faster}{shrink:.2f}x smaller)"


def _csv_row(trial: TrialRecord, study: StudyRecord) -> dict[str, Any]:
    values = trial_json(trial, study)
    row = {name: values.get(name) for name in _CSV_COLUMNS}
    for other in trial.others:
        row[f"latency_us@{other.profile}"] = other.latency_us
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
    n_others = len(_latency_headers(study)) + len(study.settings.objectives)
    if trial.state != "complete":
        note = trial.state if not trial.error else f"{trial.state}: {_first_line(trial.error)}"
        return (number, *[""] * (3 + n_others), note)
    accuracy, size_bytes, *_ = trial.values
    shrink = study.shrink(trial)
    note = "" if trial.candidate is None else summarize(trial.candidate)
    if trial.is_baseline:
        note = "uncompressed"
    if not trial.is_feasible:
        note += " (not feasible)"
    return (
        number,
        f"{accuracy:.4f}",
        format_bytes(size_bytes),
        *_latency_cells(trial, study),
        "" if shrink is None else f"{shrink:.2f}x",
        *(further_text(name, value) for name, value in trial.further),
        note,
    )


def _latency_cells(trial: TrialRecord, study: StudyRecord) -> list[str]:
    if not study.profile.has_latency:
        return ["emulated" if study.profile.emulated else "not measured"]
    spread, factors = trial.latency_spread_us, [study.speedup(trial)]
    factors += [study.speedup_on(other.profile, trial) for other in trial.others]
    faster = ["" if factor is None else f"{factor:.2f}x" for factor in factors]
    times = [f"{latency_us:.1f} us" for latency_us in trial.latencies_us]
    if not study.other_profiles:
        return [*times, "" if spread is None else f"±{spread:.1f}", *faster]
    return [cell for pair in zip(times, faster, strict=True) for cell in pair]


def _style(trial: TrialRecord) -> str | None:
    if trial.is_baseline:
        return "dim"
    return "red" if trial.state == "failed" else None
