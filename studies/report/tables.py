"""The report's tables: the front, the failures, the settings."""

from __future__ import annotations

import html
from collections.abc import Iterable

from ..front import ELSEWHERE_LOSS, best_elsewhere
from ..records import TrialRecord
from .view import DASH, TIMES, Axis, ReportView, bits_text, mean_bits, mean_pruning_ratio


def render_facts(pairs: Iterable[tuple[str, str]], css_class: str) -> str:
    """Return a list of names and values."""
    rows = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="{css_class}">{"".join(rows)}</dl>'


def render_table(view: ReportView) -> str:
    """Return the sortable table of the front."""
    if not view.front:
        return ""
    change = "Δ points" if view.is_share else "Change"
    times = [part for axis in view.latencies for part in (html.escape(axis.title), "Speed-up")]
    further = [axis.title for axis in view.further]
    sizes = [view.size.title, "Coded", "Shrink", *further]
    columns = ["Trial", html.escape(view.accuracy.title), change, *times, *sizes,
               "Weight bits", "Pruned (%)"]  # fmt: skip
    heads = "".join(
        f'<th aria-sort="{"ascending" if i == 3 else "none"}"><button>{name}</button></th>'
        for i, name in enumerate(columns)
    )
    rows = "".join(_row(view, trial) for trial in view.front)
    if view.baseline is not None and view.baseline not in view.front:
        rows += _row(view, view.baseline)
    return (
        "<section><h2>The front</h2>"
        '<p class="note">Sort by any column; the last one exports the point as a model that runs '
        "as measured. Coded is the size with entropy-coded weights.</p>"
        f'<div class="scroll"><table id="front-table"><thead><tr>{heads}'
        f'<th class="left plain">Export</th></tr></thead><tbody>{rows}</tbody></table></div>'
        "</section>"
    )


def _row(view: ReportView, trial: TrialRecord) -> str:
    record = view.record
    accuracy, size, *_ = trial.values
    shrink, coded = record.shrink(trial), trial.coded_size_bytes
    ratio = mean_pruning_ratio(trial.candidate)
    cells = [
        (trial.number, str(trial.number) + (" (float)" if trial.is_baseline else "")),
        (accuracy, _bare(view.accuracy, accuracy)),
        (view.change(trial) or 0.0, view.change_text(trial)),
        *_latency_cells(view, trial),
        (size, _bare(view.size, size)),
        (coded or 0, DASH if coded is None else _bare(view.size, coded)),
        (shrink or 0.0, DASH if shrink is None else f"{shrink:.2f}{TIMES}"),
        *((value := axis.stored(trial), _bare(axis, value)) for axis in view.further),
        (mean_bits(trial.candidate), bits_text(trial.candidate)),
        (ratio, f"{100 * ratio:.0f}"),
    ]
    tds = "".join(f'<td data-value="{value!r}">{text}</td>' for value, text in cells)
    head, _, tail = html.escape(view.export_command(trial)).partition(" --trial ")
    command = f"<span>{head}</span> <span>--trial {tail}</span>"  # two lines where it is narrow
    return (
        f'<tr data-trial="{trial.number}">{tds}<td class="left">'
        f'<div class="command"><code>{command}</code><button class="copy">Copy</button></div>'
        "</td></tr>"
    )


def _bare(axis: Axis, value: float) -> str:
    text = axis.text(value)
    return text.removesuffix(f" {axis.unit}") if axis.unit else text


def _latency_cells(view: ReportView, trial: TrialRecord) -> list[tuple[float, str]]:
    """Return latency and speed-up on each device, each with the number to sort by."""
    record, cells = view.record, []
    spreads = [trial.latency_spread_us] * (view.latency is not None)
    speedups = [record.speedup(trial)] * (view.latency is not None)
    for other in trial.others:
        spreads.append(other.spread_us)
        speedups.append(record.speedup_on(other.profile, trial))
    for axis, spread_us, speedup in zip(view.latencies, spreads, speedups, strict=True):
        value, spread = axis.stored(trial), ""
        if spread_us is not None:
            spread = f' <span class="soft">± {axis.number(spread_us):,.{axis.digits}f}</span>'
        cells.append((value, _bare(axis, value) + spread))
        cells.append((speedup or 0.0, DASH if speedup is None else f"{speedup:.2f}{TIMES}"))
    return cells


def render_devices(view: ReportView) -> str:
    """Return the table of how the fastest trial of each device does on the others."""
    rows = best_elsewhere(view.record)
    if not rows:
        return ""

    def factor(value: float | None) -> str:
        return DASH if value is None else f"{value:.2f}{TIMES}"

    body = "".join(
        f"<tr><td>{row.trial}</td><td>{html.escape(row.best_on)}</td>"
        f"<td>{html.escape(row.runs_on)}</td><td>{factor(row.speedup)}</td>"
        f"<td>{factor(row.own_speedup)}</td></tr>"
        for row in rows
    )
    heads = "".join(
        f'<th class="plain">{name}</th>'
        for name in ("Trial", "Fastest on", "Runs on", "Speed-up there", "Of its own fastest")
    )
    return (
        "<section><h2>Between the devices</h2>"
        f'<p class="note">How the fastest trial of each device, losing at most '
        f"{ELSEWHERE_LOSS:g} of the metric, does on the others.</p>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def render_failures(view: ReportView) -> str:
    """Return the failed trials by their reason."""
    if not view.failed:
        return ""
    reasons: dict[str, list[TrialRecord]] = {}
    for trial in view.failed:
        reasons.setdefault(trial.error or "no reason was recorded", []).append(trial)
    items = []
    for reason, trials in reasons.items():
        first, _, rest = reason.strip().partition("\n")
        numbers = ", ".join(str(trial.number) for trial in trials)
        more = f"<pre>{html.escape(rest.strip())}</pre>" if rest.strip() else ""
        which = "Trial" if len(trials) == 1 else "Trials"
        items.append(
            f"<details{' open' if not more else ''}><summary>{which} {numbers}"
            f'<span class="soft">{html.escape(first)}</span></summary>{more}</details>'
        )
    return (
        f'<section><h2>Failed trials</h2><p class="note">{len(view.failed)} of '
        f"{view.record.n_finished} trials failed; the study went on.</p>"
        f"{''.join(items)}</section>"
    )


def render_settings(view: ReportView) -> str:
    """Return how the numbers came about."""
    record, settings = view.record, view.record.settings
    bounds = settings.constraints
    pairs = [
        ("Profile", record.profile.name),
        ("CPU target", str(record.profile.target.get("mcpu", record.profile.arch))),
        ("Runtime", settings.runtime),
        ("Threads", str(record.threads)),
        ("Sampler", settings.sampler),
        ("Seed", str(settings.seed)),
        ("Calibration", settings.calibration),
        ("Weights of candidates", settings.accuracy),
        ("Fine-tuning", _epochs(settings.finetune_epochs)),
        ("Largest pruning ratio", f"{settings.max_pruning_ratio:g}"),
        ("Weight bits", _widths(settings.weight_bits, settings.include_float)),
    ]
    if bounds.min_accuracy is not None:
        pairs.append(("Accuracy bound", f"{bounds.min_accuracy:g}"))
    if bounds.max_latency_us is not None:
        pairs.append(("Largest latency", f"{bounds.max_latency_us:g} µs"))
    if bounds.max_size_bytes is not None:
        pairs.append(("Largest size", f"{bounds.max_size_bytes:,} bytes"))
    return (
        '<section><h2>How it was measured</h2><p class="note">Latency is a median over rounds '
        "that alternate with the float model in the same window, in a process of its own; the "
        "drift of the machine cancels in the ratio. Size counts parameters at their bit width "
        "with scales and biases. Accuracy is that of the exported file on the whole validation "
        f'set.</p><div class="panel">{render_facts(pairs, "settings")}</div></section>'
    )


def _epochs(epochs: int | None) -> str:
    if epochs is None:
        return "the task's own"
    return f"{epochs} epoch{'s' if epochs != 1 else ''}" if epochs else "none"


def _widths(bits: tuple[int, ...] | None, include_float: bool) -> str:
    text = "all of the profile" if bits is None else ", ".join(map(str, bits))
    return f"{text}, or float" if include_float else text
