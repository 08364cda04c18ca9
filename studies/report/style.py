"""The look of the report's figures: palette, fonts, axes."""

from __future__ import annotations

from typing import Any

Figure = dict[str, Any]  # the JSON edge: `data` and `layout` as plotly.js takes them

# Okabe and Ito's palette, told apart with any colour vision; each kind has its own shape too.
FRONT_COLOR = "#0072B2"
DOMINATED_COLOR = "#B9C1CB"
INFEASIBLE_COLOR = "#8E98A5"
UNIFORM_COLOR = "#008F68"
UNIFORM_TEXT_COLOR = "#00664A"
BASELINE_COLOR = "#D55E00"
SELECTED_COLOR = "#16202C"
TEXT_COLOR = "#2B3644"
MUTED_COLOR = "#5B6878"
GRID_COLOR = "#E9ECF0"
AXIS_COLOR = "#C9CFD7"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def base_layout(height: int) -> Figure:
    """Return the layout that all figures share."""
    return {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": TEXT_COLOR},
        "margin": {"l": 64, "r": 18, "t": 14, "b": 54},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "#FFFFFF", "bordercolor": AXIS_COLOR, "align": "left",
            "font": {"family": FONT, "size": 13, "color": TEXT_COLOR},
        },
        "dragmode": "zoom",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": AXIS_COLOR,
            "activecolor": MUTED_COLOR,
        },
    }  # fmt: skip


def base_axis() -> Figure:
    """Return what all flat axes share."""
    return {
        "gridcolor": GRID_COLOR, "linecolor": AXIS_COLOR, "showline": True, "zeroline": False,
        "ticks": "outside", "tickcolor": AXIS_COLOR, "ticklen": 4, "automargin": True,
        "tickfont": {"size": 12, "color": MUTED_COLOR},
    }  # fmt: skip


def axis_title(text: str) -> Figure:
    """Return the title of a flat axis."""
    return {"text": text, "standoff": 12, "font": {"size": 13}}
