"""The report's heat maps: what each point of the front does to each layer and group."""

from __future__ import annotations

import html
import math
from typing import Any

from ...search.candidate import FLOAT_BITS, HALF_BITS, width_name
from ..records import TrialRecord
from .style import MUTED_COLOR, Figure, base_layout
from .view import DASH, ReportView

# Darker is more compressed in both maps: blues for bits, oranges for pruning.
BIT_COLORS = {
    1: "#041B3D", 2: "#08306B", 3: "#0B559F", 4: "#2B7BBA", 5: "#539ECD",
    6: "#89BEDC", 7: "#BAD6EB", 8: "#DCE9F6", HALF_BITS: "#EAF1F8", FLOAT_BITS: "#F4F5F7",
}  # fmt: skip
_RARE_BITS = (1, HALF_BITS)  # on offer only where they are asked for
PRUNING_COLORS = [[0.0, "#FBF7F2"], [0.25, "#FDD9AE"], [0.5, "#FDAE6B"], [0.75, "#E6701B"],
                  [1.0, "#A63603"]]  # fmt: skip


def bits_map(view: ReportView) -> Figure:
    """Return the weight bits of every layer (rows) at every point of the front (columns)."""
    rows = _row_names(view, "layers")
    bits = [[dict(_layers(trial)).get(row) for trial in view.front] for row in rows]
    found = {width for row in bits for width in row}
    widths = [width for width in BIT_COLORS if width not in _RARE_BITS or width in found]
    steps = len(widths)
    scale: list[list[Any]] = []
    for i, width in enumerate(widths):
        scale += [[i / steps, BIT_COLORS[width]], [(i + 1) / steps, BIT_COLORS[width]]]
    trace = _heat_map(view, rows)
    trace |= {
        "z": [[None if b is None else widths.index(b) for b in row] for row in bits],
        "text": [
            ["" if b is None else "f" if b == FLOAT_BITS else str(b) for b in r] for r in bits
        ],
        "customdata": [[DASH if b is None else width_name(b) for b in row] for row in bits],
        "hovertemplate": "%{y}<br>trial %{x}: %{customdata} bits<extra></extra>",
        "zmin": -0.5,
        "zmax": steps - 0.5,
        "colorscale": scale,
        "colorbar": _color_bar(list(range(steps)), [width_name(width) for width in widths]),
    }
    return {"data": [trace], "layout": _map_layout(view, rows)}


def pruning_map(view: ReportView) -> Figure:
    """Return the pruning ratio of every group (rows) at every point of the front (columns)."""
    rows = _row_names(view, "pruning")
    ratios = [[dict(_pruning(trial)).get(row) for trial in view.front] for row in rows]
    top = max((ratio for row in ratios for ratio in row if ratio is not None), default=0.0)
    top = max(0.25, math.ceil(top * 4) / 4)
    ticks = [0.25 * step for step in range(round(top * 4) + 1)]
    trace = _heat_map(view, rows)
    trace |= {
        "z": ratios,
        "text": [[f"{100 * r:.0f}" if r else "" for r in row] for row in ratios],
        "hovertemplate": "%{y}<br>trial %{x}: %{z:.0%} of channels removed<extra></extra>",
        "zmin": 0.0,
        "zmax": top,
        "colorscale": PRUNING_COLORS,
        "colorbar": _color_bar(ticks, [f"{100 * tick:.0f} %" for tick in ticks]),
    }
    return {"data": [trace], "layout": _map_layout(view, rows)}


def _layers(trial: TrialRecord) -> list[tuple[str, int]]:
    return [(n, c.weight_bits) for n, c in trial.candidate.layers] if trial.candidate else []


def _pruning(trial: TrialRecord) -> tuple[tuple[str, float], ...]:
    return trial.candidate.pruning if trial.candidate else ()


def _row_names(view: ReportView, what: str) -> list[str]:
    """Return the names of layers or groups in the network's order."""
    names: dict[str, None] = {}
    for trial in view.front:
        pairs = _layers(trial) if what == "layers" else _pruning(trial)
        names.update(dict.fromkeys(name for name, _ in pairs))
    return list(names)


def _heat_map(view: ReportView, rows: list[str]) -> Figure:
    return {
        "type": "heatmap",
        "x": [f"#{trial.number}" for trial in view.front],
        "y": [html.escape(row) for row in rows],
        "texttemplate": "%{text}",
        "xgap": 1.5,
        "ygap": 1.5,
    }


def _color_bar(values: list[Any], texts: list[str]) -> Figure:
    return {
        "tickvals": values, "ticktext": texts, "thickness": 12, "outlinewidth": 0,
        "tickfont": {"size": 12, "color": MUTED_COLOR}, "len": 1.0, "lenmode": "fraction",
    }  # fmt: skip


def _map_layout(view: ReportView, rows: list[str]) -> Figure:
    layout = base_layout(height=90 + max(150, min(24 * len(rows), 1400)))
    # Both maps get the same margins, so that their columns stand one above the other.
    names = [_short(name) for what in ("layers", "pruning") for name in _row_names(view, what)]
    layout["margin"] |= {"l": 24 + round(6.4 * max(map(len, names), default=0)), "r": 70, "t": 6}
    layout["xaxis"] = {
        "type": "category", "showgrid": False, "ticks": "", "fixedrange": True,
        "tickfont": {"size": 11},
        "title": {
            "text": "Point of the front (trial), fastest first", "standoff": 10,
            "font": {"size": 13},
        },
    }  # fmt: skip
    layout["yaxis"] = {
        "type": "category", "autorange": "reversed", "showgrid": False, "ticks": "",
        "fixedrange": True,
        "tickmode": "array", "tickvals": [html.escape(row) for row in rows],
        "ticktext": [html.escape(_short(row)) for row in rows],
        "tickfont": {"size": 11}, "ticksuffix": " ",
    }  # fmt: skip
    return layout


def _short(name: str) -> str:
    """Cut a long name in its middle: its ends tell layers apart."""
    return name if len(name) <= 36 else f"{name[:12]}\u2026{name[-23:]}"
