"""What a report shows, worked out once from a study: groups of trials, units, wording."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...search.candidate import FLOAT_WIDTHS, Candidate, width_name
from ..records import FURTHER_OBJECTIVES, StudyRecord, TrialRecord

LOSS_BUDGET = 0.005  # the headline's loss: 0.5 points where the metric is a share
LOG_FROM = 3.0  # axes whose largest value is this many times the least are logarithmic
DEFAULT_STORAGE_FILE = "paredown.db"
TIMES, MINUS, DASH = "\u00d7", "\u2212", "\u2013"  # the dash also stands for "no value"


@dataclass(frozen=True, slots=True)
class Axis:
    """One objective as the page writes it: the trial's field, its name, unit and scale."""

    field: str
    name: str
    unit: str
    scale: float
    digits: int
    is_better_high: bool = False
    can_be_log: bool = True
    low: float = 0.0  # least and largest stored value
    high: float = 0.0

    @property
    def is_log(self) -> bool:
        """Whether the values are told apart better on a logarithmic axis."""
        return self.can_be_log and 0 < self.low * LOG_FROM <= self.high

    @property
    def title(self) -> str:
        """Name with unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float) -> float:
        """Scale a stored value to this axis."""
        return value * self.scale

    def value(self, trial: TrialRecord) -> float:
        """Return the trial's value on this axis."""
        return self.number(self.stored(trial))

    def stored(self, trial: TrialRecord) -> float:
        """Return the trial's value on this axis as it is stored."""
        name, at, profile = self.field.partition("@")
        if name in FURTHER_OBJECTIVES.values():
            return dict(trial.further)[name]
        if not at:
            return float(getattr(trial, name))
        other = trial.latency_on(profile)
        assert other is not None  # a complete trial has one for each device
        return other.latency_us

    def position(self, trial: TrialRecord) -> float:
        """Return where the trial stands on the axis, 0 for the least value and 1 for the most."""
        value = self.stored(trial)
        if self.high <= self.low:
            return 0.5
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        """Write a stored value with its unit."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.number(value):,.{self.digits}f}{unit}"


@dataclass(frozen=True, slots=True)
class Headline:
    """The best points that lose no more than `LOSS_BUDGET`."""

    balanced: TrialRecord | None  # best product of speed-up and shrink
    fastest: TrialRecord | None
    smallest: TrialRecord | None


@dataclass(frozen=True)
class ReportView:
    """A study arranged for a page."""

    record: StudyRecord
    accuracy: Axis
    size: Axis
    latency: Axis | None  # None: the study has no latency
    others: tuple[Axis, ...]  # latency on further devices
    further: tuple[Axis, ...]  # objectives beside accuracy, size and latency
    front: tuple[TrialRecord, ...]
    dominated: tuple[TrialRecord, ...]
    infeasible: tuple[TrialRecord, ...]
    failed: tuple[TrialRecord, ...]
    uniform: tuple[tuple[str, TrialRecord], ...]  # label (W4A8), trial
    baseline: TrialRecord | None

    @classmethod
    def from_record(cls, record: StudyRecord) -> ReportView:
        """Sort the trials of a study into what the page draws."""
        baseline = record.baseline
        if baseline is not None and baseline.state != "complete":
            baseline = None
        known = [*record.complete, *([baseline] if baseline else [])]
        front = record.front()
        drawn = {trial.number for trial in front} | ({baseline.number} if baseline else set())
        rest = [trial for trial in record.complete if trial.number not in drawn]
        return cls(
            record=record,
            accuracy=_accuracy_axis(record, known),
            size=_size_axis(known),
            latency=_latency_axis(record, 0, known) if record.profile.has_latency else None,
            others=tuple(_latency_axis(record, i, known) for i in range(1, len(record.profiles))),
            further=tuple(_further_axis(name, known) for name in record.settings.objectives),
            front=front,
            dominated=tuple(trial for trial in rest if trial.is_feasible),
            infeasible=tuple(trial for trial in rest if not trial.is_feasible),
            # One that was interrupted says nothing about its candidate.
            failed=tuple(t for t in record.trials if t.state == "failed" and t.is_finished),
            uniform=tuple(_uniform_trials(record.complete)),
            baseline=baseline,
        )

    @property
    def plotted(self) -> tuple[TrialRecord, ...]:
        """Every trial that has values, the baseline among them, once each."""
        trials = {trial.number: trial for trial in self.record.complete}
        if self.baseline is not None:
            trials.setdefault(self.baseline.number, self.baseline)
        return tuple(trials.values())

    @property
    def latencies(self) -> tuple[Axis, ...]:
        """The latency axes, one for each device."""
        return (*((self.latency,) if self.latency else ()), *self.others)

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share, written in percent and compared in points."""
        return self.accuracy.unit == "%"

    def loss(self, trial: TrialRecord) -> float | None:
        """Return what the trial loses against the baseline, in the metric's unit."""
        if self.baseline is None:
            return None
        sign = 1.0 if self.record.higher_is_better else -1.0
        return sign * (self.baseline.values[0] - trial.values[0])

    def change(self, trial: TrialRecord) -> float | None:
        """Return the metric less the baseline's, in points for a share, as the page rounds it."""
        if self.baseline is None:
            return None
        scale, digits = (100.0, 2) if self.is_share else (1.0, 4)
        return round(scale * (trial.values[0] - self.baseline.values[0]), digits)

    def change_text(self, trial: TrialRecord) -> str:
        """Write `change` with its sign."""
        change = self.change(trial)
        if change is None:
            return DASH
        digits = 2 if self.is_share else 4
        return f"{change:+.{digits}f}".replace("-", MINUS) if change else f"{0:.{digits}f}"

    def headline(self) -> Headline:
        """Pick the points that the page names first."""
        near = [
            trial
            for trial in self.front
            if not trial.is_baseline
            and (loss := self.loss(trial)) is not None
            and loss <= LOSS_BUDGET + 1e-9
        ]
        if not near:
            return Headline(None, None, None)

        def speedup(trial: TrialRecord) -> float:
            return self.record.speedup(trial) or 0.0

        def shrink(trial: TrialRecord) -> float:
            return self.record.shrink(trial) or 0.0

        return Headline(
            balanced=max(near, key=lambda trial: speedup(trial) * shrink(trial)),
            fastest=max(near, key=speedup),
            smallest=max(near, key=shrink),
        )

    def export_command(self, trial: TrialRecord) -> str:
        """Return the command that exports the trial."""
        name = self.record.name
        words = ["paredown", "export", name, "--trial", str(trial.number)]
        words += ["-o", f"{name}-{trial.number}", *_storage_words(self.record.storage)]
        return shlex.join(words)


def uniform_label(candidate: Candidate | None) -> str | None:
    """Return "W4A8" and the like for an unpruned candidate with one choice for all layers."""
    if candidate is None or not candidate.layers or any(r > 0 for _, r in candidate.pruning):
        return None
    choices = {choice for _, choice in candidate.layers}
    if len(choices) != 1:
        return None
    choice = choices.pop()
    if choice.is_float:
        return width_name(choice.weight_bits)
    return f"W{choice.weight_bits}A{choice.activation_bits}"


def bits_text(candidate: Candidate | None) -> str:
    """Write the weight bits of a candidate in a few characters: "3-7, mean 4.6"."""
    if candidate is None or not candidate.layers:
        return DASH
    bits = [choice.weight_bits for _, choice in candidate.layers]
    floats = {width: bits.count(width) for width in FLOAT_WIDTHS if width in bits}
    if set(bits) == set(floats) and len(floats) == 1:
        return width_name(bits[0])
    counts = ", ".join(f"{count} {width_name(width)}" for width, count in floats.items())
    integer = [width for width in bits if width not in floats]
    if not integer:
        return counts
    low, high = min(integer), max(integer)
    text = (
        f"{low}" if low == high else f"{low}{DASH}{high}, mean {sum(integer) / len(integer):.1f}"
    )
    return f"{text}, {counts}" if counts else text


def mean_bits(candidate: Candidate | None) -> float:
    """Return the mean weight bits over layers, to sort by."""
    if candidate is None or not candidate.layers:
        return 0.0
    return sum(choice.weight_bits for _, choice in candidate.layers) / len(candidate.layers)


def mean_pruning_ratio(candidate: Candidate | None) -> float:
    """Return the mean pruning ratio over groups."""
    if candidate is None or not candidate.pruning:
        return 0.0
    return sum(ratio for _, ratio in candidate.pruning) / len(candidate.pruning)


def _uniform_trials(trials: Iterable[TrialRecord]) -> Iterable[tuple[str, TrialRecord]]:
    for trial in trials:
        label = uniform_label(trial.candidate)
        if label is not None and label != "float":
            yield label, trial


def _accuracy_axis(record: StudyRecord, trials: Sequence[TrialRecord]) -> Axis:
    is_share = record.higher_is_better and all(0 <= trial.values[0] <= 1 for trial in trials)
    name = record.metric_name[:1].upper() + record.metric_name[1:]
    low, high = _extent([trial.values[0] for trial in trials])
    return Axis(
        field="accuracy",
        name=name,
        unit="%" if is_share else "",
        scale=100.0 if is_share else 1.0,
        digits=2 if is_share else 4,
        is_better_high=record.higher_is_better,
        can_be_log=False,
        low=low,
        high=high,
    )


def _size_axis(trials: Sequence[TrialRecord]) -> Axis:
    low, high = _extent([trial.values[1] for trial in trials])
    unit, scale, digits = ("MB", 1e-6, 2) if high >= 1e7 else ("kB", 1e-3, 1)
    return Axis("size_bytes", "Size", unit, scale, digits, low=low, high=high)


def _latency_axis(record: StudyRecord, device: int, trials: Sequence[TrialRecord]) -> Axis:
    low, high = _extent([trial.values[2 + device] for trial in trials])
    unit, scale, digits = ("ms", 1e-3, 2) if high >= 1e4 else ("\u00b5s", 1.0, 1)
    name = f"Latency on {record.profiles[device].name}" if record.other_profiles else "Latency"
    field = record.objectives[2 + device]
    return Axis(field, name, unit, scale, digits, low=low, high=high)


def _further_axis(objective: str, trials: Sequence[TrialRecord]) -> Axis:
    field = FURTHER_OBJECTIVES[objective]
    low, high = _extent([dict(trial.further)[field] for trial in trials])
    if objective == "energy":
        return Axis(field, "Energy", "mJ", 1.0, 3, low=low, high=high)
    return Axis(field, "Peak memory", "MB", 1e-6, 2, low=low, high=high)


def _extent(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 0.0)


def _storage_words(url: str) -> list[str]:
    """Return the option that names the storage, unless it is the default; no password in it."""
    parts = urlsplit(url)
    if not url or parts.path.rsplit("/", 1)[-1] == DEFAULT_STORAGE_FILE:
        return []
    if parts.password is not None:
        host = parts.netloc.rsplit("@", 1)[-1]
        url = parts._replace(netloc=f"{parts.username}:***@{host}").geturl()
    return ["--storage", url]
