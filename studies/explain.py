"""Why the points of a study look as they do: which layers hurt, and which pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from ..search.candidate import FLOAT_WIDTHS, width_name
from .errors import StudyError
from .front import format_bytes
from .guide import Knowledge, read_knowledge
from .records import StudyRecord, TrialRecord
from .selection import select_trial
from .storage import open_storage

_FEW_BITS = 4


@dataclass(frozen=True, slots=True)
class LayerStory:
    """One layer: what it costs, what its options do, and what a trial made of it.

    Attributes:
        name: The layer.
        latency_share: Of the uncompressed model's time; None where layers were not timed.
        loss_few_bits: Divergence of the outputs with 4 bits here alone, or the nearest width.
        loss_fewest_bits: The same with the fewest bits on offer.
        loss_half: The same with about half of its output channels; None where they stay.
        weight_bits: Width in the trial.
        kept: Share of its output channels in the trial.
        loss: Divergence expected of what the trial does to it: its width, and its channels where
            it is the first layer that produces them.
        saved_us: Microseconds that it takes less than in the uncompressed model.
    """

    name: str
    latency_share: float | None
    loss_few_bits: float | None
    loss_fewest_bits: float | None
    loss_half: float | None
    weight_bits: int
    kept: float
    loss: float
    saved_us: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `paredown explain` shows.

    Attributes:
        study: Its name.
        trial: Number of the trial that is explained.
        layers: In the order of execution.
        latency_errors: Relative error of the latency model for each trial, before it was measured.
        n_probes: Networks that were timed before the search.
    """

    study: str
    trial: int
    layers: tuple[LayerStory, ...]
    latency_errors: tuple[float, ...]
    n_probes: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def explain_study(record: StudyRecord, pick: str) -> Explanation:
    """Explain a trial of a study.

    Args:
        record: The study.
        pick: Which point of the front, in the grammar of `--pick`, or the number of a trial.

    Raises:
        ParedownError: If there is no such trial, or the study has learnt nothing of its space.
    """
    knowledge = read_knowledge(open_storage(record.storage, must_exist=True), record.name)
    if knowledge is None:
        raise StudyError(
            f"Study '{record.name}' must have learnt about its space, but has not: its sampler is "
            f"'{record.settings.sampler}', or its first trial has not ended. Search with "
            "--sampler guided."
        )
    trial = record.trial(int(pick)) if pick.isdigit() else select_trial(record, pick)
    if trial.candidate is None or trial.state != "complete":
        raise StudyError(f"Trial {trial.number} is {trial.state}; explain a complete one.")
    errors = [
        abs(t.predicted_latency_us / t.latency_us - 1.0)
        for t in record.complete
        if t.predicted_latency_us is not None and t.latency_us is not None
    ]
    stories = tuple(_story(name, record, trial, knowledge) for name in knowledge.weight_bits)
    return Explanation(record.name, trial.number, stories, tuple(errors), len(knowledge.probes))


def _story(name: str, record: StudyRecord, trial: TrialRecord, knowledge: Knowledge) -> LayerStory:
    assert trial.candidate is not None
    losses = knowledge.sensitivities.losses
    widths = knowledge.weight_bits[name]
    by_width = losses.get(f"weight_bits/{name}")
    group = next((g for g, (_, names) in knowledge.channels.items() if name in names), None)
    by_kept = losses.get(f"keep/{group}")
    choice = trial.candidate.layer_choices[name]
    ratio = 0.0 if group is None else trial.candidate.pruning_ratios[group]
    loss = 0.0 if by_width is None else by_width[widths.index(choice.weight_bits)]
    half = None
    if group is not None and by_kept is not None:
        channels, names = knowledge.channels[group]
        half = _nearest(by_kept, channels / 2)
        if names[0] == name:
            loss += _nearest(by_kept, channels * (1.0 - ratio))
    before = record.baseline.layer_times if record.baseline is not None else None
    after = trial.layer_times
    return LayerStory(
        name,
        None if before is None else before.layers_us.get(name, 0.0) / before.total_us,
        None if by_width is None else by_width[_place(widths, _FEW_BITS)],
        None if by_width is None else by_width[0],
        half,
        choice.weight_bits,
        1.0 - ratio,
        loss,
        None
        if before is None or after is None
        else before.layers_us.get(name, 0.0) - after.layers_us.get(name, 0.0),
    )


def _nearest(table: Mapping[int, float], value: float) -> float:
    return table[min(table, key=lambda key: abs(key - value))]


def _place(widths: tuple[int, ...], wanted: int) -> int:
    return min(range(len(widths)), key=lambda place: abs(widths[place] - wanted))


def explanation_table(explanation: Explanation) -> Table:
    """Return the layers as a Rich table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    for header in (
        "latency",
        "loss at 4 bits",
        "fewest bits",
        "half channels",
        "trial: bits",
        "channels",
        "loss",
        "saves",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in explanation.layers:
        table.add_row(
            layer.name,
            "" if layer.latency_share is None else f"{layer.latency_share:.1%}",
            _loss(layer.loss_few_bits),
            _loss(layer.loss_fewest_bits),
            _loss(layer.loss_half),
            width_name(layer.weight_bits),
            f"{layer.kept:.0%}",
            _loss(layer.loss),
            "" if layer.saved_us is None else f"{layer.saved_us:.1f} us",
        )
    return table


def explanation_notes(explanation: Explanation, record: StudyRecord) -> list[str]:
    """Return what stands below the table, in words."""
    trial = record.trial(explanation.trial)
    accuracy, size, *_ = trial.values
    speedup, shrink = record.speedup(trial), record.shrink(trial)
    factors = (
        "" if not speedup or not shrink else f", {speedup:.2f}x faster, {shrink:.2f}x smaller"
    )
    notes = [
        f"Trial {trial.number}: {record.metric_name} {accuracy:.4f}, {format_bytes(size)}"
        + "".join(f", {latency_us:.1f} us" for latency_us in trial.latencies_us)
        + f"{factors}. Losses are divergences of the outputs, times 1000."
    ]
    hurt = sorted(explanation.layers, key=lambda x: -(x.loss_few_bits or 0.0))[:3]
    notes.append(
        "Few bits hurt most in " + ", ".join(x.name for x in hurt) + "; they keep "
        + ", ".join(_bits(x.weight_bits) for x in hurt) + "."
    )  # fmt: skip
    paid = [x for x in explanation.layers if x.saved_us is not None]
    if paid:
        paid = sorted(paid, key=lambda x: -(x.saved_us or 0.0))[:3]
        notes.append(
            "Most time is saved in "
            + ", ".join(f"{x.name} ({x.saved_us:.1f} us)" for x in paid) + "."
        )  # fmt: skip
    if explanation.latency_errors:
        errors = np.array(explanation.latency_errors)
        notes.append(
            f"The latency model, from {explanation.n_probes} networks timed before the search, "
            f"was off by {np.median(errors):.1%} in the median of {len(errors)} trials before "
            f"they were measured ({np.median(errors[-20:]):.1%} in the last {len(errors[-20:])})."
        )
    return notes


def _loss(value: float | None) -> str:
    return "" if value is None else f"{1000 * value:.2f}"


def _bits(width: int) -> str:
    return width_name(width) if width in FLOAT_WIDTHS else f"{width} bits"
