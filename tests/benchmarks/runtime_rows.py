"""The figures of the networks: goals, means, tables, plot."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOALS = {  # by format and threads: the mean ratio to the best peer is this or less
    ("fp32", 1): 1.00,
    ("fp32", 2): 1.05,
    ("w8a8", 1): 1.15,
    ("w8a8", 2): 1.20,
    ("w7a8", 1): 0.95,
    ("w7a8", 2): 1.00,
    ("w4a8", 1): 0.70,
    ("w4a8", 2): 0.75,
}
WORST = {"fp32": 1.25, "w7a8": 1.25}  # no network above it
NOISE = 0.02  # times that differ by less are the same


@dataclass(frozen=True)
class Row:
    """One format of one network, or why it has no times.

    Attributes:
        peer: The best peer, and the file that it ran.
        ratio: The time over that of the best peer.
        share: What was reached of the machine's limit.
        step: The time over that of the next wider format.
        step_low: The lower end of the 95 % confidence interval of that.
        step_starts: How many starts of the processes both are of.
        make_s: How long it took to compress the model.
        build_s: How long the first build took.
        warm_s: How long the second one took.
    """

    network: str
    threads: int
    format: str
    error: str | None = None
    latency_us: float | None = None
    spread_us: float | None = None
    is_noisy: bool | None = None
    peer: str | None = None
    ratio: float | None = None
    share: float | None = None
    step: float | None = None
    step_low: float | None = None
    step_starts: int = 1
    make_s: float | None = None
    build_s: float | None = None
    warm_s: float | None = None


@dataclass(frozen=True)
class Mean:
    """The geometric mean of one format's ratios over the networks.

    Attributes:
        goal: What it should be at most; None where there is no goal.
        networks: How many have a ratio.
        worst: The network with the largest ratio.
    """

    threads: int
    format: str
    ratio: float
    goal: float | None
    networks: int
    worst: str
    worst_ratio: float


def means(rows: list[Row]) -> list[Mean]:
    """Return the mean of each format at each number of threads."""
    found = []
    for threads, label in dict.fromkeys((row.threads, row.format) for row in rows):
        ratios = {
            row.network: row.ratio
            for row in rows
            if (row.threads, row.format) == (threads, label) and row.ratio is not None
        }
        if ratios:
            worst = max(ratios, key=lambda network: ratios[network])
            mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
            goal = GOALS.get((label, threads))
            found.append(Mean(threads, label, mean, goal, len(ratios), worst, ratios[worst]))
    return found


def grows(step: float, step_low: float) -> bool:
    """Say whether the time grows from the next wider format to this one, as far as is certain."""
    return step > 1 + NOISE and step_low > 1


def complaints(rows: list[Row]) -> list[str]:
    """Return what must not be, network by network."""
    found = [
        f"{network}: {error}"
        for network, error in dict.fromkeys((r.network, r.error) for r in rows if r.error)
    ]
    by_key = {(row.network, row.threads, row.format): row for row in rows}
    for (network, threads, label), row in by_key.items():
        where = f"{network}, threads {threads}, {label}"
        if label in WORST and row.ratio is not None and row.ratio > WORST[label]:
            found.append(f"{where}: {row.ratio:.3f} of the best peer, above {WORST[label]}")
        if row.step and row.step_low and grows(row.step, row.step_low):
            found.append(
                f"{where}: {row.step:.3f} of the time of the next wider format, at least "
                f"{row.step_low:.3f} with 95 % confidence, over {row.step_starts} starts"
            )
        wide = by_key.get((network, threads, "w7a8"))
        if label == "w4a8" and wide and row.ratio and wide.ratio and row.ratio >= wide.ratio:
            found.append(f"{where}: no faster than w7a8")
    return found


def show(rows: list[Row], network: str, limits: Mapping[str, float], macs: int) -> None:
    """Print one network."""
    print(
        f"\n{network}, threads {rows[0].threads}: {macs / 1e6:.1f} million products; the limit is "
        f"{limits['float']:.0f} GFLOP/s, {limits['integer']:.0f} GOP/s"
    )
    print("                us     +-   ratio  limit   step   make s   build    warm  best peer")
    for row in rows:
        if row.error is not None:
            print(f"  {row.format:6}  {row.error}")
            continue
        noise = "~" if row.is_noisy else " "
        print(
            f"  {row.format:6}{row.latency_us:10.1f} {row.spread_us:6.1f}{noise}"
            f" {_text(row.ratio)}  {row.share:5.0%}  {_text(row.step)}"
            f"  {row.make_s:6.2f}  {row.build_s:6.2f}  {row.warm_s:6.2f}  {row.peer}"
        )


def _text(value: float | None) -> str:
    return "  -  " if value is None else f"{value:5.3f}"


def show_summary(rows: list[Row]) -> None:
    """Print the means over all networks, and what misses its goal."""
    print("\nRatio to the best peer, geometric mean over the networks:")
    for mean in means(rows):
        goal = "" if mean.goal is None else f" (goal {mean.goal:.2f})"
        missed = " MISSED" if mean.goal is not None and mean.ratio > mean.goal else ""
        print(
            f"  threads {mean.threads}  {mean.format}  {mean.ratio:.3f}{goal}{missed}; "
            f"worst of {mean.networks}: {mean.worst} {mean.worst_ratio:.3f}"
        )
    for line in complaints(rows):
        print(f"  ! {line}")


def plot(rows: list[Row], file: Path) -> None:
    """Write bars of the ratios, one field per thread count."""
    from plotly.colors import sample_colorscale  # type: ignore[import-untyped]  # no types
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]  # no types

    threads = sorted({row.threads for row in rows})
    titles = [f"threads {n}" for n in threads]
    figure = make_subplots(rows=len(threads), cols=1, subplot_titles=titles, vertical_spacing=0.1)
    labels = list(dict.fromkeys(row.format for row in rows))
    colors = sample_colorscale("Viridis", len(labels)) if len(labels) > 1 else ["#440154"]
    for label, color in zip(labels, colors, strict=True):
        for place, n in enumerate(threads):
            chosen = [r for r in rows if (r.threads, r.format) == (n, label)]
            figure.add_bar(
                x=[r.network for r in chosen],
                y=[r.ratio for r in chosen],
                name=label,
                legendgroup=label,
                marker_color=color,
                showlegend=place == 0,
                row=place + 1,
                col=1,
            )
    figure.add_hline(1.0)
    figure.update_yaxes(title_text="time / best peer's time")
    figure.update_layout(template="plotly_white", bargap=0.25)
    figure.write_html(file)
