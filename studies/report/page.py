"""The report's HTML: header, cards, panels, tables. Every string of the user is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from ..records import TrialRecord
from .assets import SCRIPT, STYLE
from .style import (
    BASELINE_COLOR,
    DOMINATED_COLOR,
    FRONT_COLOR,
    INFEASIBLE_COLOR,
    UNIFORM_COLOR,
)
from .tables import render_devices, render_facts, render_failures, render_settings, render_table
from .view import DASH, TIMES, ReportView

# Nothing is fetched: the page carries plotly.js, and the policy forbids any request.
# plotly.js builds some of its functions from strings, hence 'unsafe-eval'.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:; connect-src 'none'; form-action 'none'"
)


def render_page(
    view: ReportView,
    figures: Mapping[str, Mapping[str, Any]],
    *,
    plotly_js: str,
    written: date,
    version: str,
) -> str:
    """Return the whole page.

    Args:
        view: What to show.
        figures: For each element id the figure with what links its points to trials
            (`axes`: fields of the trial; or `columns`: trial numbers).
        plotly_js: The source of plotly.js.
        written: Date in the header.
        version: Version of Paredown.
    """
    title = html.escape(view.record.name)
    data = {"figures": figures, "trials": _trial_data(view)}
    body = "\n".join(
        [
            _header(view, written),
            "<main>",
            _cards(view),
            *_plots(view, figures),
            render_table(view),
            render_failures(view),
            render_settings(view),
            "</main>",
            f"<footer>Written by Paredown {html.escape(version)}. This page is complete in itself "
            "and asks nothing of the network.</footer>",
            _CHOSEN,
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title} {DASH} Paredown</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n"
        f'<script type="application/json" id="paredown-data">{_script_json(data)}</script>\n'
        f"<script>{plotly_js}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


_CHOSEN = (
    '<div id="chosen" role="status" hidden><span class="summary"></span>'
    '<span><code></code><button class="copy">Copy</button></span>'
    '<button id="clear">Clear</button></div>'
)


def _script_json(data: object) -> str:
    """Write JSON that cannot end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _trial_data(view: ReportView) -> dict[int, dict[str, Any]]:
    axes = (view.accuracy, view.size, *view.latencies, *view.further)
    return {
        trial.number: {
            "values": {axis.field: axis.value(trial) for axis in axes},
            "summary": f"Trial {trial.number}: "
            + ", ".join(axis.text(axis.stored(trial)) for axis in axes),
            "command": view.export_command(trial),
        }
        for trial in view.plotted
    }


def _header(view: ReportView, written: date) -> str:
    record = view.record
    n_cores = f"{record.threads} thread" + ("s" if record.threads != 1 else "")
    device = "; ".join(profile.description or profile.name for profile in record.profiles)
    facts = [
        ("Task", record.task),
        ("Device", f"{device}, {n_cores}"),
        ("Trials", str(record.n_finished)),
        ("Date", f"{written.day} {written:%B %Y}"),
    ]
    return (
        f'<header><div><div class="mark">Paredown</div><h1>{html.escape(record.name)}</h1>'
        f'{render_facts(facts, "facts")}<p class="headline">{_headline(view)}</p></div></header>'
    )


def _headline(view: ReportView) -> str:
    if not view.front:
        return "No feasible trial has finished yet, so there is no front to show."
    n_points = f"{len(view.front)} point{'s' if len(view.front) != 1 else ''} on the front"
    best = view.headline().balanced
    if view.baseline is None:
        return f"{n_points}; no float baseline to compare with."
    if all(trial.is_baseline for trial in view.front):
        return "So far no trial is better than the float model in any objective."
    if best is None:
        name = html.escape(view.record.metric_name)
        return f"{n_points}, none within {_budget(view)} of the float model's {name}."
    speedup, shrink = view.record.speedup(best) or 0.0, view.record.shrink(best) or 0.0
    faster = f" and <b>{speedup:.1f}{TIMES} faster</b>" if view.latency else ""
    return (
        f"Trial {best.number} is <b>{shrink:.1f}{TIMES} smaller</b>{faster} than the float model, "
        f"{_change_words(view, best)}."
    )


def _change_words(view: ReportView, trial: TrialRecord) -> str:
    name, change = html.escape(view.record.metric_name), view.change(trial)
    if not change:
        return f"at the same {name}"
    amount = view.change_text(trial)[1:] + (" points" if view.is_share else "")
    return f"with {name} {amount} {'higher' if change > 0 else 'lower'}"


def _budget(view: ReportView) -> str:
    return "0.5 points" if view.is_share else "0.005"


def _card(label: str, value: str, detail: str) -> str:
    return (
        f'<div class="card"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="detail">{detail}</div></div>'
    )


def _cards(view: ReportView) -> str:
    record, best = view.record, view.headline()
    within = f"within {_budget(view)}"
    cards = []
    for label, trial, own, other, word in (
        ("Fastest", best.fastest, record.speedup, record.shrink, "smaller"),
        ("Smallest", best.smallest, record.shrink, record.speedup, "faster"),
    ):
        if label == "Fastest" and view.latency is None:
            cards.append(_card("Fastest", DASH, "no latency"))
            continue
        if trial is None:
            why = "no baseline" if view.baseline is None else "no such trial yet"
            cards.append(_card(f"{label} {within}", DASH, why))
            continue
        factor = other(trial)
        compared = "" if factor is None else f"{factor:.1f}{TIMES} {word}, "
        detail = f"Trial {trial.number}: {compared}"
        detail += f"{view.change_text(trial)}{' points' if view.is_share else ''}"
        cards.append(_card(f"{label} {within}", f"{own(trial) or 0.0:.2f}{TIMES}", detail))
    cards.append(_baseline_card(view))
    counts = [f"{len(view.front)} on the front"]
    if view.failed:
        counts.append(f"{len(view.failed)} failed")
    if view.infeasible:
        counts.append(f"{len(view.infeasible)} outside the constraints")
    cards.append(_card("Finished trials", str(record.n_finished), ", ".join(counts)))
    return f'<section class="cards">{"".join(cards)}</section>'


def _baseline_card(view: ReportView) -> str:
    if view.baseline is None:
        return _card("Float baseline", DASH, "not measured")
    accuracy, size, *_ = view.baseline.values
    times = [axis.text(axis.stored(view.baseline)) for axis in view.latencies]
    detail = ", ".join([*times, view.size.text(size)])
    return _card("Float baseline", html.escape(view.accuracy.text(accuracy)), detail)


def _panel(view: ReportView, element: str, title: str, note: str = "", empty: str = "") -> str:
    text = f'<p class="note">{note}</p>' if note else ""
    if empty:
        inner = f'<div class="empty">{empty}</div>'
    else:
        inner = f'<div class="plot" id="{element}" role="img" aria-label="{title}"></div>'
    return f'<div class="panel"><h3>{title}</h3>{text}{inner}</div>'


def _plots(view: ReportView, figures: Mapping[str, object]) -> list[str]:
    if not view.plotted:
        return ['<section><div class="panel"><div class="empty">No trial has values to plot.'
                "</div></div></section>"]  # fmt: skip
    name = html.escape(view.accuracy.name)
    titles = {
        "accuracy-latency": f"{name} and latency",
        "accuracy-size": f"{name} and size",
        "size-latency": "Size and latency",
    }
    for other in view.others:
        title = html.escape(other.name)
        titles[f"accuracy-{other.field}"] = f"{name} and {title.lower()}"
        titles[f"devices-{other.field}"] = f"{title}, and on the first device"
    for axis in view.further:
        titles[f"accuracy-{axis.field}"] = f"{name} and {axis.name.lower()}"
    titles = {key: title for key, title in titles.items() if key in figures}
    flat = "".join(_panel(view, key, title) for key, title in titles.items())
    space = ""
    if "front-3d" in figures:
        title = "Accuracy, size and latency" if view.others else "All three objectives"
        space = _panel(view, "front-3d", title, "Drag to turn, scroll to zoom.")
    history = _panel(
        view, "hypervolume", "Hypervolume over trials",
        "Share of the box between the worst and the best values that the front dominates.",
        empty="" if "hypervolume" in figures else "No feasible trial yet.",
    )  # fmt: skip
    sections = [
        "<section><h2>Trade-offs</h2>"
        f'<p class="note">{_how_timed(view)} The line is the front of the two objectives of the '
        "plot. Click a point to find it in every plot and in the table.</p>"
        f'{_legend(view)}<div class="grid three">{flat}</div></section>',
        f'<section><div class="grid two">{space}{history}</div></section>',
        render_devices(view),
    ]
    maps = []
    if "bits-map" in figures:
        maps.append(_panel(view, "bits-map", "Weight bits per layer"))
    if "pruning-map" in figures:
        maps.append(_panel(view, "pruning-map", "Channels removed per group (%)"))
    if maps:
        sections.append(
            "<section><h2>What the front does to each layer</h2>"
            '<p class="note">One column per point of the front, fastest first; darker is more '
            f'compressed.</p><div class="grid">{"".join(maps)}</div></section>'
        )
    return sections


def _how_timed(view: ReportView) -> str:
    why = view.record.why_no_latency
    if why is not None:
        return f"Each dot is one trial. {html.escape(why)}"
    return (
        "Each dot is one trial, compiled and timed on the device; bars show the spread of the "
        "latency."
    )


def _legend(view: ReportView) -> str:
    shapes = [
        (view.front, "Pareto front", f'<circle cx="9" cy="8" r="5.5" fill="{FRONT_COLOR}"/>'),
        (view.dominated, "Dominated", f'<circle cx="9" cy="8" r="4" fill="{DOMINATED_COLOR}"/>'),
        (
            view.infeasible,
            "Outside the constraints",
            f'<path d="M5 4l8 8M13 4l-8 8" stroke="{INFEASIBLE_COLOR}" stroke-width="1.6"/>',
        ),
        (
            view.uniform,
            "Same bits in every layer, unpruned",
            f'<rect x="3.5" y="2.5" width="11" height="11" fill="none" stroke="{UNIFORM_COLOR}" '
            'stroke-width="2"/>',
        ),
        (
            view.baseline,
            "Float baseline",
            f'<path d="M9 1l7 7-7 7-7-7z" fill="{BASELINE_COLOR}"/>',
        ),
    ]
    items = (
        f'<li><svg viewBox="0 0 18 16" aria-hidden="true">{shape}</svg>{label}</li>'
        for present, label, shape in shapes
        if present
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
