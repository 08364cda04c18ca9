"""What a study holds, as immutable values: every reader (front, report, export) starts here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import Latency
from ..hw_profiles.profile import HardwareProfile
from ..search.candidate import Candidate
from ..search.pareto import is_pareto_optimal
from ..search.rules import LayerRule

STATES = ("complete", "stopped early", "failed", "running", "duplicate")
ACCURACY_MODES = ("shared", "finetune", "ptq")
"""Weights of candidates: slices of one network, trained for each, or rounded without training."""
INTERRUPTED = "interrupted"
"""How the error of a trial begins that was cut off, by a kill or an interrupt."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """Bounds that a trial must meet to be feasible; None leaves a quantity free."""

    min_accuracy: float | None = None
    max_latency_us: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_accuracy", "max_latency_us", "max_size_bytes"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite, but got {value}.")
        for name in ("max_latency_us", "max_size_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive, but got {value}.")

    def violations(
        self,
        accuracy: float,
        size_bytes: float,
        latency_us: float,
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
        if self.max_latency_us is not None:
            missed["max_latency_us"] = latency_us - self.max_latency_us
        if self.max_size_bytes is not None:
            missed["max_size_bytes"] = size_bytes - self.max_size_bytes
        return missed


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
    criterion: str = "l2"  # what decides which channels go first
    max_pruning_ratio: float = 0.75
    weight_bits: tuple[int, ...] | None = None  # None: all widths of the profile
    activation_bits: tuple[int, ...] | None = None
    include_float: bool = True
    early_stopping: bool = True
    exclude: tuple[str, ...] = ()
    tie: str | tuple[tuple[str, ...], ...] = "layer"
    rules: tuple[LayerRule, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial, finished or not.

    `latency_us` is the ratio to the baseline in the same time window times the study's baseline
    latency, so that the drift of the machine between trials cancels; `latency` has the raw values.
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
    layer_times: LayerTimes | None = None
    predicted_latency_us: float | None = None  # by the latency model, before it was measured
    finetuned_from: int | None = None  # number of the trial whose candidate was trained on

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"`state` must be one of {STATES}, but got '{self.state}'.")
        values = (self.accuracy, self.size_bytes, self.latency_us)
        if self.state == "complete" and any(value is None for value in values):
            raise ValueError(
                "A complete trial must have accuracy, size and latency, but trial "
                f"{self.number} has {values}."
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
    def values(self) -> tuple[float, float, float]:
        """Accuracy, size in bytes and latency in microseconds of a complete trial.

        Raises:
            ValueError: If the trial has no values.
        """
        if self.accuracy is None or self.size_bytes is None or self.latency_us is None:
            raise ValueError(f"Trial {self.number} is {self.state} and has no values.")
        return self.accuracy, float(self.size_bytes), self.latency_us


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

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        """The trials that have all their values, in the order in which they ran."""
        return tuple(trial for trial in self.trials if trial.state == "complete")

    @property
    def n_finished(self) -> int:
        """How many trials have a result of their own; this is what `--trials` counts."""
        return sum(trial.is_finished for trial in self.trials)

    def costs(self, trials: Iterable[TrialRecord]) -> np.ndarray:
        """Return the objectives of complete trials, all to be minimised: a row per trial.

        The columns are accuracy (negated where higher is better), bytes and microseconds.
        """
        sign = -1.0 if self.higher_is_better else 1.0
        rows = [(sign * a, s, t) for a, s, t in (trial.values for trial in trials)]
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    def front(self) -> tuple[TrialRecord, ...]:
        """Return the feasible trials that no other one dominates, fastest first."""
        trials = [trial for trial in self.complete if trial.is_feasible]
        if not trials:
            return ()
        mask = is_pareto_optimal(self.costs(trials))
        best = [trial for trial, is_best in zip(trials, mask, strict=True) if is_best]
        return tuple(sorted(best, key=lambda trial: (trial.values[2], trial.number)))

    def trial(self, number: int) -> TrialRecord:
        """Return the trial of that number.

        Raises:
            ValueError: If the study has no such trial.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise ValueError(f"Study '{self.name}' has no trial {number}.")

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
