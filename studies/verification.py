"""What is found out about a bundle: accuracies, outputs and latency beside the trial's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluators.measurement import Latency
from ..evaluators.runtimes.base import Array
from ..hw_profiles import ParedownError
from .bundle import Bundle

OUTPUT_TOLERANCE = 1e-5  # of the largest output


class VerificationError(ParedownError):
    """A bundle's files are not what was exported, or it cannot be run at all."""


@dataclass(frozen=True, slots=True)
class AccuracyCheck:
    """The accuracy of one file of the bundle, beside the trial's.

    Where the library ran on a part of the samples, it is compared with the ONNX file's accuracy
    on that part.
    """

    file: str
    runtime: str
    accuracy: float
    difference_points: float
    n_samples: int


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """How the outputs of the library and of the ONNX file differ, sample by sample."""

    n_samples: int
    n_predictions_differ: int | None  # None: the outputs are no scores of classes
    n_outputs_differ: int  # beyond `OUTPUT_TOLERANCE`, relative to the largest output
    max_difference: float


@dataclass(frozen=True, slots=True)
class LatencyCheck:
    """The latency as recorded and as measured again.

    `latency_us` is in proportion to the study's baseline, as the trial's; it is None where the
    study's storage was not at hand, and only the raw `now` can be compared then.
    """

    recorded_us: float | None
    recorded_spread_us: float | None
    recorded_ratio: float | None
    now: Latency
    latency_us: float | None


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What was found out about a bundle."""

    folder: str
    bundle: Bundle
    tolerance_points: float
    changed_files: dict[str, str]
    accuracies: tuple[AccuracyCheck, ...] = ()
    outputs: OutputComparison | None = None
    latency: LatencyCheck | None = None
    is_same_data: bool | None = None  # None: not loaded, as files were changed
    device: str | None = None  # connection of the device that the library ran on

    def limit_points(self, check: AccuracyCheck) -> float:
        """Return the largest difference in accuracy that is no failure.

        Runtimes round ties differently, which may turn a prediction; on a small set that alone
        is more than the tolerance. So one sample more or less is allowed, except where exactness
        was asked for with a tolerance of 0.
        """
        one_sample = 100.0 / check.n_samples if self.tolerance_points else 0.0
        return max(self.tolerance_points, one_sample)

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        found = [f"File '{name}' is {how}." for name, how in self.changed_files.items()]
        for check in self.accuracies:
            limit = self.limit_points(check)
            if abs(check.difference_points) > limit + 1e-5:  # accuracies come in float32
                found.append(
                    f"The accuracy of '{check.file}' must be within {limit:.2g} points of the "
                    f"trial's, but differs by {check.difference_points:+.3f}."
                )
        return tuple(found)

    @property
    def is_ok(self) -> bool:
        """Whether files and accuracy are those of the trial; latency is shown, not judged."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        bundle, latency = self.bundle, self.latency
        return {
            "version": 1,
            "bundle": self.folder,
            "study": bundle.study,
            "trial": bundle.trial,
            "ok": self.is_ok,
            "failures": list(self.failures),
            "changed_files": dict(self.changed_files),
            "is_same_data": self.is_same_data,
            "tolerance_points": self.tolerance_points,
            "device": self.device,
            "accuracy": {
                "trial": bundle.metrics.accuracy,
                **{check.file: asdict(check) for check in self.accuracies},
            },
            "outputs": None if self.outputs is None else asdict(self.outputs),
            "latency": None
            if latency is None
            else {**asdict(latency), "now": latency.now.to_json()},
        }


def compare_outputs(first: Array, second: Array) -> OutputComparison:
    """Compare two sets of outputs, shape `(n, ...)` each.

    Outputs of a sample differ when one value does by more than `OUTPUT_TOLERANCE` times the
    largest absolute value of the second set: float kernels sum in another order.
    """
    n_samples = len(first)
    if first.shape != second.shape:
        raise VerificationError(
            "Both files must give outputs of one shape, but they give "
            f"{first.shape[1:]} and {second.shape[1:]}."
        )
    gaps = np.abs(first.astype(np.float64) - second).reshape(n_samples, -1).max(axis=1)
    bound = OUTPUT_TOLERANCE * float(np.abs(second).max())
    n_predictions = None
    if first.ndim >= 2 and first.shape[1] > 1:
        differs = first.argmax(axis=1) != second.argmax(axis=1)
        n_predictions = int(differs.reshape(n_samples, -1).any(axis=1).sum())
    return OutputComparison(
        n_samples=n_samples,
        n_predictions_differ=n_predictions,
        n_outputs_differ=int((~(gaps <= bound)).sum()),
        max_difference=float(gaps.max()),
    )
