"""Verifies a bundle: its files, its accuracy on the whole validation set, its latency now."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluators.latency import measure_latency
from ..evaluators.measurement import Latency
from ..evaluators.runtimes.base import Array
from ..evaluators.task import Task
from ..evaluators.timing import LatencyProtocol
from ..hw_profiles import HardwareProfile, ParedownError, check_runs_here
from ..search.device_timing import Bench
from .benches import make_bench
from .bundle import (
    MODEL_FILE,
    Bundle,
    find_changed_files,
    read_bundle,
    read_candidate,
    read_profile,
)
from .engine import digest_validation
from .errors import StorageError
from .records import StudyRecord
from .storage import load_model, read_study
from .tasks import load_task

DEFAULT_TOLERANCE = 0.03  # points of accuracy
OUTPUT_TOLERANCE = 1e-5
_STEP = 500  # samples between two reports
_PROTOCOL = LatencyProtocol(budget_s=3.0)

Report = Callable[[str], None]


class VerificationError(ParedownError):
    """A bundle's files are not what was exported, or it cannot be run at all."""


@dataclass(frozen=True, slots=True)
class AccuracyCheck:
    """The accuracy of one file of the bundle, beside the trial's."""

    file: str
    runtime: str
    accuracy: float
    difference_points: float  # against the trial


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

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        found = [f"File '{name}' is {how}." for name, how in self.changed_files.items()]
        for check in self.accuracies:
            if abs(check.difference_points) > self.tolerance_points + 1e-9:
                found.append(
                    f"The accuracy of '{check.file}' must be within {self.tolerance_points:g} "
                    f"points of the trial's, but differs by {check.difference_points:+.3f}."
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
            "accuracy": {
                "trial": bundle.metrics.accuracy,
                **{check.file: asdict(check) for check in self.accuracies},
            },
            "outputs": None if self.outputs is None else asdict(self.outputs),
            "latency": None
            if latency is None
            else {**asdict(latency), "now": latency.now.to_json()},
        }


def verify_bundle(
    folder: str | os.PathLike[str],
    *,
    storage: str | None = None,
    task: str | None = None,
    data_dir: str | None = None,
    tolerance_points: float = DEFAULT_TOLERANCE,
    report: Report | None = None,
) -> VerificationResult:
    """Check that a bundle is what its trial measured.

    Files are checked first; where one was changed, nothing of the bundle is run. The ONNX file
    runs in ONNX Runtime without graph optimizations: on CPUs without VNNI its fused integer
    kernels saturate with 8-bit weights, and would not say what the file means.

    Args:
        folder: The bundle.
        storage: Where the study lies; with it, latency is compared in proportion to the
            uncompressed model, so that the machine's drift cancels.
        task: Spec of the task, where the recorded one does not lead to it any more.
        data_dir: Folder of the task's data, instead of the recorded one.
        tolerance_points: Largest difference in accuracy.
        report: Told what happens, in one line each time.

    Raises:
        BundleError: If the folder is no bundle.
        VerificationError: If the task does not fit the bundle.
        ParedownError: If the task cannot be loaded, or the library cannot be run here.
    """
    if not (np.isfinite(tolerance_points) and tolerance_points >= 0):
        raise ValueError(f"`tolerance_points` must be >= 0, but got {tolerance_points}.")
    tell = report or (lambda text: None)
    folder = Path(folder)
    bundle = read_bundle(folder)
    tell("checking the files")
    result = VerificationResult(
        str(folder), bundle, tolerance_points, find_changed_files(folder, bundle)
    )
    if result.changed_files:
        return result
    profile = read_profile(folder)
    if not profile.is_remote:
        check_runs_here(profile)
    tell("loading the task")
    loaded = load_task(
        task or bundle.task.spec,
        data_dir=data_dir or bundle.task.data_dir,
        needs_model=False,
        report=tell,
    )
    _check_fits(bundle, loaded)
    with make_bench(profile, bundle.runtime, tell) as worker:
        library, model = _run_both(folder, bundle, worker, loaded, tell)
        latency = None
        if profile.has_latency:
            tell("measuring latency")
            latency = _measure(folder, bundle, profile, worker, storage, tell)
    return replace(
        result,
        accuracies=(
            _accuracy(bundle, loaded, bundle.library, bundle.runtime, library),
            _accuracy(bundle, loaded, MODEL_FILE, "onnxruntime", model),
        ),
        outputs=compare_outputs(library, model),
        latency=latency,
        is_same_data=digest_validation(loaded) == bundle.task.validation_digest,
    )


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


def _check_fits(bundle: Bundle, task: Task) -> None:
    wanted = bundle.inputs[0].shape[1:]
    found = tuple(task.validation.inputs.shape[1:])
    if found != wanted:
        raise VerificationError(
            f"The task's samples must have the shape {wanted} that the bundle takes, but task "
            f"'{task.name}' has {found}. Name the bundle's own task with --task."
        )


def _accuracy(
    bundle: Bundle, task: Task, file: str, runtime: str, outputs: Array
) -> AccuracyCheck:
    accuracy = float(task.metric(torch.from_numpy(outputs), task.validation.targets))
    difference = 100.0 * (accuracy - bundle.metrics.accuracy)
    return AccuracyCheck(file, runtime, accuracy, difference)


def _run_both(
    folder: Path, bundle: Bundle, worker: Bench, task: Task, tell: Report
) -> tuple[Array, Array]:
    """Return the outputs of the library and of the ONNX file on all validation samples."""
    inputs = task.validation.inputs.numpy()

    def library(samples: Array) -> Array:
        return worker.predict(bundle.runtime, folder / bundle.library, samples)

    reference = _reference(folder / MODEL_FILE)
    return (
        _run_in_steps(library, inputs, bundle.library, tell),
        _run_in_steps(reference, inputs, MODEL_FILE, tell),
    )


def _run_in_steps(run: Callable[[Array], Array], inputs: Array, name: str, tell: Report) -> Array:
    outputs = []
    for start in range(0, len(inputs), _STEP):
        tell(f"running {name}: {start} of {len(inputs)} samples")
        outputs.append(run(inputs[start : start + _STEP]))
    return np.concatenate(outputs)


def _reference(model: Path) -> Callable[[Array], Array]:
    """Return a function that runs an ONNX file to the letter, one sample at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]

    def run(samples: Array) -> Array:
        return np.concatenate(
            [session.run(None, {spec.name: samples[i : i + 1]})[0] for i in range(len(samples))]
        )

    return run


def _measure(
    folder: Path,
    bundle: Bundle,
    profile: HardwareProfile,
    worker: Bench,
    storage: str | None,
    tell: Report,
) -> LatencyCheck:
    record = _find_study(folder, bundle, storage, tell)
    with tempfile.TemporaryDirectory(prefix="paredown-") as scratch:
        baseline = None
        if record is not None:
            tell("building the uncompressed model")
            baseline = _build_baseline(record, Path(scratch), bundle, profile, worker)
            tell("measuring latency")
        now = measure_latency(
            worker,
            bundle.runtime,
            folder / bundle.library,
            baseline=baseline,
            threads=bundle.threads,
            protocol=_PROTOCOL,
        )
    study_us = bundle.metrics.baseline_latency_us
    latency_us = None if now.ratio is None or study_us is None else now.ratio * study_us
    recorded = bundle.latency
    return LatencyCheck(
        recorded_us=bundle.metrics.latency_us,
        recorded_spread_us=bundle.metrics.latency_spread_us,
        recorded_ratio=None if recorded is None else recorded.ratio,
        now=now,
        latency_us=latency_us,
    )


def _find_study(
    folder: Path, bundle: Bundle, storage: str | None, tell: Report
) -> StudyRecord | None:
    """Return the study that the bundle comes from, if it is at hand with its baseline."""
    if storage is None:
        return None
    try:
        record = read_study(storage, bundle.study)
        trial = record.trial(bundle.trial)
    except (StorageError, ValueError) as error:
        tell(f"latency without the uncompressed model: {error}")
        return None
    if trial.candidate != read_candidate(folder) or record.baseline is None:
        tell("latency without the uncompressed model: the study of that name is another one")
        return None
    return record


def _build_baseline(
    record: StudyRecord, scratch: Path, bundle: Bundle, profile: HardwareProfile, worker: Bench
) -> Path:
    import onnx

    assert record.baseline is not None  # `_find_study` sees to it
    model = scratch / "baseline.onnx"
    onnx.save(load_model(record, record.baseline), model)
    artifact = scratch / f"built{Path(bundle.library).suffix}"
    worker.build(bundle.runtime, model, artifact, profile)
    return artifact
