"""The report's figures, as plotly.js JSON (built directly: nothing here needs plotly itself)."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from ...search.pareto import hypervolume_history, is_pareto_optimal
from ..records import TrialRecord
from .style import (
    BASELINE_COLOR,
    DOMINATED_COLOR,
    FRONT_COLOR,
    INFEASIBLE_COLOR,
    MUTED_COLOR,
    SELECTED_COLOR,
    UNIFORM_COLOR,
    UNIFORM_TEXT_COLOR,
    Figure,
    axis_title,
    base_axis,
    base_layout,
)
from .view import TIMES, Axis, ReportView, bits_text, mean_pruning_ratio

FOCUS = 0.12  # accuracy plots open on this much below the best point; the rest is a zoom away


def projection(view: ReportView, x: Axis, y: Axis) -> Figure:
    """Return a two-dimensional view of all trials, with the front of these two objectives."""
    traces = [
        _points(view, view.infeasible, x, y, "Infeasible", _marker(INFEASIBLE_COLOR, "x-thin", 7)),
        _points(view, view.dominated, x, y, "Dominated", _marker(DOMINATED_COLOR, "circle", 7)),
        _front_line(view, x, y),
        _front_points(view, x, y),
        _uniform_points(view, x, y),
        _points(view, _one(view.baseline), x, y, "Float baseline",
                _marker(BASELINE_COLOR, "diamond", 13)),
        _selection(),
    ]  # fmt: skip
    layout = base_layout(height=400)
    layout["xaxis"] = _axis_layout(x)
    layout["yaxis"] = _axis_layout(y)
    floor = accuracy_floor(view)
    if y is view.accuracy and floor is not None:
        values = [y.value(trial) for trial in view.plotted]
        n_below = sum(value < y.number(floor) for value in values)
        low, high = sorted(values)[n_below], max(values)
        pad = 0.06 * (high - low or 1.0)
        layout["yaxis"]["range"] = [low - pad, high + pad]
        layout["annotations"] = [_corner_note(f"{n_below} lower: double-click for all")]
    return {"data": [trace for trace in traces if trace], "layout": layout}


def front_3d(view: ReportView) -> Figure:
    """Return the front in all three objectives, each point on a stem."""
    assert view.latency is not None  # without it the caller makes no such figure
    axes = (view.latency, view.size, view.accuracy)
    floor = accuracy_floor(view)
    shown = [t for t in view.plotted if floor is None or t.values[0] >= floor]
    numbers = {trial.number for trial in shown}

    def points(trials: Sequence[TrialRecord], name: str, marker: Figure) -> Figure:
        kept = [trial for trial in trials if trial.number in numbers]
        return _points_3d(view, kept, axes, name, marker)

    traces = [
        points(view.dominated, "Dominated", _marker(DOMINATED_COLOR, "circle", 3)),
        _stems([trial for trial in view.front if trial.number in numbers], axes, shown),
        points(view.front, "Front", _marker(FRONT_COLOR, "circle", 5)),
        points([t for _, t in view.uniform], "Uniform bits",
               _marker(UNIFORM_COLOR, "square-open", 7)),
        points(_one(view.baseline), "Float baseline", _marker(BASELINE_COLOR, "diamond", 6)),
        {**_selection(size=14), "type": "scatter3d", "z": []},
    ]  # fmt: skip
    layout = base_layout(height=520)
    layout["margin"] = {"l": 0, "r": 0, "t": 0, "b": 0}
    layout["scene"] = {
        **{
            key: _scene_axis(axis)
            for key, axis in zip(("xaxis", "yaxis", "zaxis"), axes, strict=True)
        },
        "camera": {
            "eye": {"x": 1.4, "y": -1.45, "z": 0.66},
            "center": {"x": 0, "y": 0, "z": -0.2},
        },
        "aspectmode": "manual",
        "aspectratio": {"x": 1.15, "y": 1.15, "z": 0.85},
    }
    return {"data": [trace for trace in traces if trace.get("x") is not None], "layout": layout}


def hypervolume_figure(view: ReportView) -> Figure:
    """Return the hypervolume of the front after each trial.

    Every objective is scaled to [0, 1] between the best and the worst value of the study, and the
    reference is the worst corner, so the value is the share of that box which the front dominates.
    """
    trials = [trial for trial in view.record.complete if trial.is_feasible]
    layout = base_layout(height=480)
    layout["xaxis"] = {**base_axis(), "title": axis_title("Trial"), "rangemode": "tozero"}
    layout["yaxis"] = {
        **base_axis(), "title": axis_title("Hypervolume"), "tickformat": ".2f", "range": [0, 1.03],
    }  # fmt: skip
    if not trials:
        return {"data": [], "layout": layout}
    costs = view.record.costs(trials)
    best, worst = costs.min(axis=0), view.record.costs(view.plotted).max(axis=0)
    span = np.where(worst > best, worst - best, 1.0)
    history = hypervolume_history((costs - best) / span, np.ones(costs.shape[1]))
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if len(trials) < 3 else "lines",
        "x": [trial.number for trial in trials],
        "y": [round(float(value), 5) for value in history],
        "line": {"color": FRONT_COLOR, "width": 2.2, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": "rgba(0,114,178,0.08)",
        "hovertemplate": "after trial %{x}: %{y:.3f}<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def accuracy_floor(view: ReportView) -> float | None:
    """Return where accuracy plots open when a few bad trials would squash the rest."""
    values = [trial.values[0] for trial in view.plotted]
    if not view.is_share or not values or min(values) >= max(values) - FOCUS:
        return None
    return max(values) - FOCUS


def hover_text(view: ReportView, trial: TrialRecord, label: str = "") -> str:
    """Return the card that opens over a point, in plotly's few tags."""
    record = view.record
    accuracy, size, *_ = trial.values
    points = " points" if view.is_share else ""
    lines = [f"<b>Trial {trial.number}</b>" + (f"  {html.escape(label)}" if label else "")]
    change = "" if view.baseline is None else f"  ({view.change_text(trial)}{points})"
    lines.append(f"{html.escape(view.accuracy.name)}: {view.accuracy.text(accuracy)}{change}")
    if view.latency is not None:
        spread = ""
        if trial.latency_spread_us is not None:
            spread = f" ± {view.latency.text(trial.latency_spread_us)}"
        faster = _times(record.speedup(trial), "faster")
        text = view.latency.text(view.latency.stored(trial))
        lines.append(f"{html.escape(view.latency.name)}: {text}{spread}{faster}")
    for axis in view.others:
        faster = _times(record.speedup_on(axis.field.partition("@")[2], trial), "faster")
        lines.append(f"{html.escape(axis.name)}: {axis.text(axis.stored(trial))}{faster}")
    lines.append(f"Size: {view.size.text(size)}{_times(record.shrink(trial), 'smaller')}")
    lines += [f"{axis.name}: {axis.text(axis.stored(trial))}" for axis in view.further]
    ratio = mean_pruning_ratio(trial.candidate)
    lines.append(f"Weight bits: {bits_text(trial.candidate)}; {100 * ratio:.0f} % pruned")
    return "<br>".join(lines)


def _times(factor: float | None, word: str) -> str:
    return "" if factor is None else f"  ({factor:.2f}{TIMES} {word})"


def _one(trial: TrialRecord | None) -> tuple[TrialRecord, ...]:
    return () if trial is None else (trial,)


def _marker(color: str, symbol: str, size: int) -> Figure:
    marker: Figure = {"color": color, "symbol": symbol, "size": size}
    if symbol == "x-thin":
        marker["line"] = {"color": color, "width": 1.4}
    elif not symbol.endswith("open"):
        marker["line"] = {"color": "#FFFFFF", "width": 1}
    return marker


def _points(
    view: ReportView, trials: Sequence[TrialRecord], x: Axis, y: Axis, name: str, marker: Figure
) -> Figure:
    if not trials:
        return {}
    label = "float" if name == "Float baseline" else ""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x.value(trial) for trial in trials],
        "y": [y.value(trial) for trial in trials],
        "customdata": [trial.number for trial in trials],
        "text": [hover_text(view, trial, label) for trial in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
        "cliponaxis": False,
    }


def _front_points(view: ReportView, x: Axis, y: Axis) -> Figure:
    marker = _marker(FRONT_COLOR, "circle", 10)
    trace = _points(view, view.front, x, y, "Front", marker)
    if not trace:
        return {}
    for key, axis in (("error_x", x), ("error_y", y)):
        if axis is view.latency:
            spreads = [axis.number(trial.latency_spread_us or 0.0) for trial in view.front]
            trace[key] = {
                "array": spreads, "thickness": 1.2, "width": 3, "color": "rgba(0,114,178,0.55)",
            }  # fmt: skip
    return trace


def _uniform_points(view: ReportView, x: Axis, y: Axis) -> Figure:
    marker = _marker(UNIFORM_COLOR, "square-open", 13)
    marker["line"] = {"width": 2}
    trace = _points(view, [t for _, t in view.uniform], x, y, "Uniform bits", marker)
    if trace:
        trace["mode"] = "markers+text"
        trace["text"] = _uniform_labels(view, x, y)
        trace["hovertext"] = [hover_text(view, trial, label) for label, trial in view.uniform]
        trace["hovertemplate"] = "%{hovertext}<extra></extra>"
        trace["textposition"] = "bottom right"
        trace["textfont"] = {"size": 11, "color": UNIFORM_TEXT_COLOR}
    return trace


def _uniform_labels(view: ReportView, x: Axis, y: Axis) -> list[str]:
    """Return a label for each uniform trial; neighbours share one, so that none covers another."""
    labels: list[str] = []
    places: list[tuple[float, float]] = []
    for label, trial in view.uniform:
        place = (x.position(trial), y.position(trial))
        near = next(
            (i for i, (u, v) in enumerate(places) if labels[i] and abs(u - place[0]) < 0.1
             and abs(v - place[1]) < 0.05),
            None,
        )  # fmt: skip
        short = label.removesuffix("A8")
        labels.append(short if near is None else "")
        places.append(place)
        if near is not None:
            labels[near] += f" {short}"
    return labels


def _front_line(view: ReportView, x: Axis, y: Axis) -> Figure:
    """Return the staircase between what these two objectives alone leave undominated."""
    trials = [trial for trial in view.record.complete if trial.is_feasible]
    if len(trials) < 2:
        return {}
    signs = [-1.0 if axis.is_better_high else 1.0 for axis in (x, y)]
    costs = np.array([[signs[0] * x.value(t), signs[1] * y.value(t)] for t in trials])
    best = sorted(zip(*costs[is_pareto_optimal(costs)].T, strict=True))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Front of the two",
        "x": [signs[0] * float(cost) for cost, _ in best],
        "y": [signs[1] * float(cost) for _, cost in best],
        "line": {"color": FRONT_COLOR, "width": 1.6, "shape": "hv"},
        "opacity": 0.55,
        "hoverinfo": "skip",
    }


def _selection(size: int = 18) -> Figure:
    """Return the empty trace that the page's script moves to the chosen point."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "selected",
        "x": [],
        "y": [],
        "hoverinfo": "skip",
        "marker": {
            "symbol": "circle-open", "size": size, "color": SELECTED_COLOR, "line": {"width": 2.5},
        },
    }  # fmt: skip


def _points_3d(
    view: ReportView,
    trials: Sequence[TrialRecord],
    axes: tuple[Axis, Axis, Axis],
    name: str,
    marker: Figure,
) -> Figure:
    trace = _points(view, trials, axes[0], axes[1], name, marker)
    if not trace:
        return {}
    del trace["cliponaxis"]
    return {**trace, "type": "scatter3d", "z": [axes[2].value(trial) for trial in trials]}


def _stems(
    trials: Sequence[TrialRecord], axes: tuple[Axis, Axis, Axis], shown: Sequence[TrialRecord]
) -> Figure:
    if not trials:
        return {}
    floor = min(axes[2].value(trial) for trial in shown)
    points: list[list[float | None]] = [[], [], []]
    for trial in trials:
        x, y, z = (axis.value(trial) for axis in axes)
        for values, pair in zip(points, ((x, x), (y, y), (z, floor)), strict=True):
            values += [*pair, None]
    return {
        "type": "scatter3d", "mode": "lines", "name": "stems", "hoverinfo": "skip",
        "x": points[0], "y": points[1], "z": points[2],
        "line": {"color": FRONT_COLOR, "width": 2}, "opacity": 0.3,
    }  # fmt: skip


def _axis_layout(axis: Axis) -> Figure:
    layout = {**base_axis(), "title": axis_title(_axis_title(axis))}
    return layout | _log_scale(axis)


def _axis_title(axis: Axis) -> str:
    return html.escape(axis.title) + (", log scale" if axis.is_log else "")


def _log_scale(axis: Axis) -> Figure:
    """Return round ticks for a logarithmic axis: plotly's own crowd within one decade."""
    if not axis.is_log:
        return {}
    low, high = axis.number(axis.low), axis.number(axis.high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        if sum(low <= tick <= high for tick in ticks) >= 4:
            break
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.6g}" for tick in ticks]}


def _scene_axis(axis: Axis) -> Figure:
    return {
        **_log_scale(axis),
        "title": {"text": _axis_title(axis), "font": {"size": 13}},
        "gridcolor": "#DDE2E8", "backgroundcolor": "#FAFBFC", "showbackground": True,
        "zeroline": False, "showspikes": False, "tickfont": {"size": 11, "color": MUTED_COLOR},
    }  # fmt: skip


def _corner_note(text: str) -> Figure:
    return {
        "text": text, "xref": "paper", "yref": "paper", "x": 1, "y": 0, "xanchor": "right",
        "yanchor": "bottom", "showarrow": False, "font": {"size": 11.5, "color": MUTED_COLOR},
        "bgcolor": "rgba(255,255,255,0.8)",
    }  # fmt: skip
