"""What a study holds, as immutable values: every reader (front, report, export) starts here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import Latency
from ..hw_profiles.profile import HardwareProfile
from ..search.candidate import Candidate
from ..search.device_timing import DeviceLatency
from ..search.pareto import is_pareto_optimal
from ..search.rules import LayerRule

STATES = ("complete", "stopped early", "failed", "running", "duplicate")
ACCURACY_MODES = ("shared", "finetune", "ptq")
"""Weights of candidates: slices of one network, trained for each, or rounded without training."""
FURTHER_OBJECTIVES = {"memory": "peak_memory_bytes", "energy": "energy_mj"}
"""What may be searched beside accuracy, size and latency, and the measure of a `Latency` it is."""
INTERRUPTED = "interrupted"
"""How the error of a trial begins that was cut off, by a kill or an interrupt."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """Bounds that a trial must meet to be feasible; None leaves a quantity free.

    Attributes:
        min_accuracy, max_latency_us, max_size_bytes: Absolute bounds.
        min_speedup, min_shrink: How many times faster and smaller than the uncompressed model.
        max_accuracy_drop: Points of accuracy that may be lost; one is a hundredth.
    """

    min_accuracy: float | None = None
    max_latency_us: float | None = None
    max_size_bytes: int | None = None
    min_speedup: float | None = None
    min_shrink: float | None = None
    max_accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"`{field_.name}` must be finite, but got {value}.")
        for name in ("max_latency_us", "max_size_bytes", "min_speedup", "min_shrink"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive, but got {value}.")

    def resolve(
        self, baseline: tuple[float, float, float | None], *, higher_is_better: bool = True
    ) -> Constraints:
        """Return absolute bounds: those relative to the uncompressed model become numbers.

        Where a quantity has both, the tighter one holds.

        Args:
            baseline: Accuracy, bytes and microseconds of the uncompressed model; no time where
                the profile has none.
            higher_is_better: The direction of accuracy.
        """
        accuracy, size, latency = baseline
        sign = 1.0 if higher_is_better else -1.0
        floors = [] if self.min_accuracy is None else [self.min_accuracy]
        if self.max_accuracy_drop is not None:
            # Rounded: 0.97 - 0.005 is not 0.965 in binary.
            floors.append(round(accuracy - sign * self.max_accuracy_drop / 100.0, 12))
        sizes = [] if self.max_size_bytes is None else [self.max_size_bytes]
        if self.min_shrink is not None:
            sizes.append(int(size / self.min_shrink))
        latencies = [] if self.max_latency_us is None else [self.max_latency_us]
        if self.min_speedup is not None and latency is not None:
            latencies.append(latency / self.min_speedup)
        return Constraints(
            max(floors, key=lambda value: sign * value, default=None),
            min(latencies, default=None),
            min(sizes, default=None),
        )

    def violations(
        self,
        accuracy: float,
        size_bytes: float,
        latency_us: float | None,
        *,
        higher_is_better: bool = True,
    ) -> dict[str, float]:
        """Return how far each set bound is missed: a value above 0 breaks it (Optuna's sense).

        `min_accuracy` bounds from below where higher is better, and from above where lower is.
        """
        sign = 1.0 if higher_is_better else -1.0
        missed: dict[str, float] = {}
        if self.min_accuracy is not None:
            missed["min_accuracy"] = sign * (self.min_accuracy - accuracy)
        if self.max_latency_us is not None and latency_us is not None:
            missed["max_latency_us"] = latency_us - self.max_latency_us
        if self.max_size_bytes is not None:
            missed["max_size_bytes"] = size_bytes - self.max_size_bytes
        return missed


@dataclass(frozen=True, slots=True)
class Reference:
    """What is of no use any more, though feasible: the search looks for points better than it.

    None leaves the default: a tenth less accuracy than the uncompressed model, its size and its
    latency.
    """

    accuracy: float | None = None
    size_bytes: int | None = None
    latency_us: float | None = None


@dataclass(frozen=True, slots=True)
class StudySettings:
    """The options that fix what a study's numbers mean, kept with it in the storage."""

    seed: int = 0
    runtime: str = "tvm"
    sampler: str = "guided"
    data_dir: str | None = None  # where the task reads its data; None: the task's default
    calibration: str = "default"
    accuracy: str = "default"  # where weights come from: one of `ACCURACY_MODES`
    shared_epochs: int | None = None  # None: as many as `SharedSettings` chooses
    finetune_epochs: int | None = None  # None: the task's own default
    accumulation_run: int | None = None  # steps that weights allow to be summed in 16 bits
    sparsity: str | None = None  # share of weights that are zero, or a pattern as in "2:4"
    criterion: str = "l2"  # what decides which channels go first
    max_pruning_ratio: float = 0.75
    weight_bits: tuple[int, ...] | None = None  # None: all widths of the profile
    activation_bits: tuple[int, ...] | None = None
    include_float: bool = True
    early_stopping: bool = True
    objectives: tuple[str, ...] = ()  # further ones, keys of `FURTHER_OBJECTIVES`
    exclude: tuple[str, ...] = ()
    tie: str | tuple[tuple[str, ...], ...] = "layer"
    rules: tuple[LayerRule, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)
    reference: Reference = field(default_factory=lambda: Reference())


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial, finished or not.

    `latency_us` is the ratio to the baseline in the same time window times the study's baseline
    latency, so that the drift of the machine between trials cancels; `latency` has the raw values.
    Where it was measured again, it is the mean, and the spread covers all measurements.
    In a study whose profile has no latency they are None.
    """

    number: int
    state: str
    candidate: Candidate | None = None
    accuracy: float | None = None
    size_bytes: int | None = None
    latency_us: float | None = None
    latency_spread_us: float | None = None
    latency: Latency | None = None
    error: str | None = None
    is_baseline: bool = False
    seconds: float | None = None
    model_file: str | None = None
    is_feasible: bool = False
    again: tuple[tuple[Latency, ...], ...] = ()  # measured later, each time on all devices
    layer_times: LayerTimes | None = None
    predicted_latency_us: float | None = None  # by the latency model, before it was measured
    finetuned_from: int | None = None  # number of the trial whose candidate was trained on
    others: tuple[DeviceLatency, ...] = ()  # on the study's further devices
    further: tuple[tuple[str, float], ...] = ()  # measures that are further objectives
    coded_size_bytes: int | None = None  # with entropy-coded weights

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"`state` must be one of {STATES}, but got '{self.state}'.")
        values = (self.accuracy, self.size_bytes)
        if self.state == "complete" and any(value is None for value in values):
            raise ValueError(
                f"A complete trial must have accuracy and size, but trial {self.number} has "
                f"{values}."
            )

    def with_latencies(
        self, again: Sequence[tuple[Latency, ...]], baseline: TrialRecord
    ) -> TrialRecord:
        """Return the trial with later measurements taken into account.

        Args:
            again: The measurements, in turns with the baseline: one for each device, each time.
            baseline: The uncompressed model.
        """
        if self.latency is None or self.latency_spread_us is None:
            return self
        first, *rest = zip(*again, strict=True)
        us, *others_us = baseline.latencies_us
        latency_us, spread_us = _joint((self.latency, *first), us, self.latency_spread_us)
        others = []
        for other, later, other_us in zip(self.others, rest, others_us, strict=True):
            mean_us, reach_us = _joint((other.latency, *later), other_us, other.spread_us)
            others.append(replace(other, latency_us=mean_us, spread_us=reach_us))
        return replace(
            self,
            again=tuple(again),
            latency_us=latency_us,
            latency_spread_us=spread_us,
            others=tuple(others),
        )

    @property
    def is_finished(self) -> bool:
        """Whether the trial has a result of its own.

        That is a measure, what was enough to give it up, or a failure of its candidate.

        One that was interrupted, or repeats another trial, has none.
        """
        if self.state == "failed":
            return self.error is not None and not self.error.startswith(INTERRUPTED)
        return self.state in ("complete", "stopped early")

    @property
    def values(self) -> tuple[float, ...]:
        """The objectives of a complete trial: accuracy, size in bytes, latencies in microseconds.

        There is one latency for each device, and none where the study's profile has none. Further
        objectives come last.

        Raises:
            ValueError: If the trial has no values.
        """
        if self.accuracy is None or self.size_bytes is None:
            raise ValueError(f"Trial {self.number} is {self.state} and has no values.")
        further = (value for _, value in self.further)
        return (self.accuracy, float(self.size_bytes), *self.latencies_us, *further)

    @property
    def latencies_us(self) -> tuple[float, ...]:
        """The latency on each device, none where the study's profile has none."""
        first = () if self.latency_us is None else (self.latency_us,)
        return (*first, *(other.latency_us for other in self.others))

    def latency_on(self, profile: str) -> DeviceLatency | None:
        """Return the latency on one of the study's further devices, None if there is none."""
        return next((other for other in self.others if other.profile == profile), None)


def _joint(
    latencies: Sequence[Latency], baseline_us: float, spread_us: float
) -> tuple[float, float]:
    """Return mean and spread, in microseconds, of several measurements of one model."""
    ratios = [latency.ratio for latency in latencies if latency.ratio is not None]
    mean = sum(ratios) / len(ratios)
    reach = max(abs(ratio - mean) for ratio in ratios)
    return mean * baseline_us, max(reach * baseline_us, spread_us)


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands in the storage, independent of Optuna."""

    name: str
    task: str  # the task's spec as `load_task` takes it
    metric_name: str
    higher_is_better: bool
    profile: HardwareProfile
    threads: int
    settings: StudySettings
    baseline: TrialRecord | None
    trials: tuple[TrialRecord, ...]
    storage: str = ""  # URL of the storage it was read from
    models_dir: str = ""  # folder of the artifact store with the trials' ONNX files
    task_digest: str = ""
    validation_digest: str = ""
    space_digest: str = ""
    other_profiles: tuple[HardwareProfile, ...] = ()  # further devices, each an objective

    @property
    def profiles(self) -> tuple[HardwareProfile, ...]:
        """All devices of the study."""
        return (self.profile, *self.other_profiles)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of a trial's `values`."""
        first = ("latency_us",) if self.profile.has_latency else ()
        others = (f"latency_us@{profile.name}" for profile in self.other_profiles)
        further = (FURTHER_OBJECTIVES[name] for name in self.settings.objectives)
        return ("accuracy", "size_bytes", *first, *others, *further)

    @property
    def n_latencies(self) -> int:
        """How many of the objectives are latencies."""
        return len(self.profiles) if self.profile.has_latency else 0

    @property
    def why_no_latency(self) -> str | None:
        """Why the study has no latency, in one sentence; None if it has."""
        if self.profile.has_latency:
            return None
        if self.profile.connection == "compile-only":
            return (
                f"Profile '{self.profile.name}' is compile-only: latency needs the device, as in "
                f"--profile {self.profile.name}@rpc://HOST:PORT."
            )
        return f"Profile '{self.profile.name}' is emulated, so its times are no latency."

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        """The trials that have all their values, in the order in which they ran."""
        return tuple(trial for trial in self.trials if trial.state == "complete")

    @property
    def n_finished(self) -> int:
        """How many trials have a result of their own; this is what `--trials` counts."""
        return sum(trial.is_finished for trial in self.trials)

    @property
    def bounds(self) -> Constraints:
        """The constraints as absolute bounds, as far as the baseline is known."""
        constraints = self.settings.constraints
        if self.baseline is None or self.baseline.state != "complete":
            return constraints
        accuracy, size_bytes, *_ = self.baseline.values
        values = (accuracy, size_bytes, self.baseline.latency_us)
        return constraints.resolve(values, higher_is_better=self.higher_is_better)

    def costs(self, trials: Iterable[TrialRecord]) -> np.ndarray:
        """Return the objectives of complete trials, all to be minimised: a row per trial.

        The columns are accuracy (negated where higher is better), bytes, microseconds on each
        device, and further objectives.
        """
        sign = -1.0 if self.higher_is_better else 1.0
        rows = [(sign * a, *rest) for a, *rest in (trial.values for trial in trials)]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.objectives))

    def front(self) -> tuple[TrialRecord, ...]:
        """Return the feasible trials that no other one dominates, fastest first.

        Without a latency the smallest come first.
        """
        trials = [trial for trial in self.complete if trial.is_feasible]
        if not trials:
            return ()
        mask = is_pareto_optimal(self.costs(trials))
        best = [trial for trial, is_best in zip(trials, mask, strict=True) if is_best]
        return tuple(
            sorted(best, key=lambda t: (t.latency_us or 0.0, t.size_bytes or 0, t.number))
        )

    def front_on(self, device: int) -> tuple[TrialRecord, ...]:
        """Return the front of accuracy, size and the latency on one device, fastest first.

        Args:
            device: Index into `profiles`.
        """
        trials = [trial for trial in self.complete if trial.is_feasible]
        if not trials:
            return ()
        column = 2 + device
        mask = is_pareto_optimal(self.costs(trials)[:, [0, 1, column]])
        best = [trial for trial, is_best in zip(trials, mask, strict=True) if is_best]
        return tuple(sorted(best, key=lambda trial: (trial.values[column], trial.number)))

    def trial(self, number: int) -> TrialRecord:
        """Return the trial of that number.

        Raises:
            ValueError: If the study has no such trial.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise ValueError(f"Study '{self.name}' has no trial {number}.")

    def speedup_on(self, profile: str, trial: TrialRecord) -> float | None:
        """Return the speed-up on one of the further devices, None where unknown."""
        before = None if self.baseline is None else self.baseline.latency_on(profile)
        now = trial.latency_on(profile)
        return None if before is None or now is None else before.latency_us / now.latency_us

    def speedup(self, trial: TrialRecord) -> float | None:
        """Return how many times faster the trial is than the baseline, None where unknown."""
        if self.baseline is None or not self.baseline.latency_us or not trial.latency_us:
            return None
        return self.baseline.latency_us / trial.latency_us

    def shrink(self, trial: TrialRecord) -> float | None:
        """Return how many times smaller the trial is than the baseline, None where unknown."""
        if self.baseline is None or not self.baseline.size_bytes or not trial.size_bytes:
            return None
        return self.baseline.size_bytes / trial.size_bytes
