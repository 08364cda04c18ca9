"""Verifies a bundle: its files, its accuracy on the validation set, its latency now."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..evaluators.latency import measure_latency
from ..evaluators.runtimes.base import Array
from ..evaluators.task import Task
from ..evaluators.timing import LatencyProtocol
from ..hw_profiles import HardwareProfile, check_runs_here, load_profile
from ..search.device_timing import Bench
from .benches import make_bench, meet_device
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
from .export import required_features
from .records import StudyRecord
from .storage import load_model, read_study
from .tasks import load_task
from .verification import (
    AccuracyCheck,
    LatencyCheck,
    VerificationError,
    VerificationResult,
    compare_outputs,
)

DEFAULT_TOLERANCE = 0.03  # points of accuracy
_STEP = 500  # samples between two reports
_PROTOCOL = LatencyProtocol(budget_s=3.0)

Report = Callable[[str], None]


def verify_bundle(
    folder: str | os.PathLike[str],
    *,
    storage: str | None = None,
    task: str | None = None,
    data_dir: str | None = None,
    profile: str | None = None,
    n_samples: int | None = None,
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
        profile: The device to run the library on, as `load_profile` takes it; default the one
            that the study reached.
        n_samples: Samples that the library runs on, for slow devices; default all.
        tolerance_points: Largest difference in accuracy; see `VerificationResult.limit_points`.
        report: Told what happens, in one line each time.

    Raises:
        BundleError: If the folder is no bundle.
        VerificationError: If the task or the profile does not fit the bundle.
        ParedownError: If the task cannot be loaded, or the library cannot be run on the device.
    """
    if not (np.isfinite(tolerance_points) and tolerance_points >= 0):
        raise ValueError(f"`tolerance_points` must be >= 0, but got {tolerance_points}.")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"`n_samples` must be 1 or more, but got {n_samples}.")
    tell = report or (lambda text: None)
    folder = Path(folder)
    bundle = read_bundle(folder)
    tell("checking the files")
    result = VerificationResult(
        str(folder), bundle, tolerance_points, find_changed_files(folder, bundle)
    )
    if result.changed_files:
        return result
    device = _device(folder, bundle, profile)
    tell("loading the task")
    loaded = load_task(
        task or bundle.task.spec,
        data_dir=data_dir or bundle.task.data_dir,
        needs_model=False,
        report=tell,
    )
    _check_fits(bundle, loaded)
    with make_bench(device, bundle.runtime, tell) as worker:
        device = meet_device(device, worker, tell)
        library, model = _run_both(folder, bundle, worker, loaded, n_samples, tell)
        latency = None
        if device.has_latency:
            tell("measuring latency")
            latency = _measure(folder, bundle, device, worker, storage, tell)
    return replace(
        result,
        accuracies=_accuracies(bundle, loaded, library, model),
        outputs=compare_outputs(library, model[: len(library)]),
        latency=latency,
        is_same_data=digest_validation(loaded) == bundle.task.validation_digest,
        device=device.connection,
    )


def _device(folder: Path, bundle: Bundle, name: str | None) -> HardwareProfile:
    """Return the profile that the bundle was built for, with the device to run it on.

    Raises:
        VerificationError: If there is none, or it lacks what the library needs.
        ProfileError: If it is this machine, and the library does not run here.
    """
    profile = read_profile(folder)
    if name is not None:
        given = load_profile(name)
        missing = sorted(set(bundle.features) - set(required_features(given)))
        if given.arch != bundle.arch or missing:
            lacks = f", without {', '.join(missing)}" if missing else ""
            raise VerificationError(
                f"`profile` must be able to run the bundle, which is for {bundle.arch}, but "
                f"'{name}' is {given.arch}{lacks}. Name the device that it was built for."
            )
        profile = replace(
            profile,
            connection=given.connection,
            job_timeout_s=given.job_timeout_s,
            emulated=given.emulated,
        )
    if profile.connection == "compile-only":
        raise VerificationError(
            f"The bundle must have a device to run on, but it was compiled for '{profile.name}' "
            f"without one. Name one with `--profile {profile.name}@rpc://HOST:PORT`, or `@local`."
        )
    if not profile.is_remote:
        check_runs_here(profile)
    return profile


def _check_fits(bundle: Bundle, task: Task) -> None:
    wanted = bundle.inputs[0].shape[1:]
    found = tuple(task.validation.inputs.shape[1:])
    if found != wanted:
        raise VerificationError(
            f"The task's samples must have the shape {wanted} that the bundle takes, but task "
            f"'{task.name}' has {found}. Name the bundle's own task with --task."
        )


def _accuracies(
    bundle: Bundle, task: Task, library: Array, model: Array
) -> tuple[AccuracyCheck, ...]:
    """Compare the accuracies of library and ONNX file with the trial's."""
    n_samples, trial = len(library), bundle.metrics.accuracy
    whole = _metric(task, model)
    expected = trial if n_samples == len(model) else _metric(task, model[:n_samples])
    part = _metric(task, library)
    return (
        AccuracyCheck(bundle.library, bundle.runtime, part, 100 * (part - expected), n_samples),
        AccuracyCheck(MODEL_FILE, "onnxruntime", whole, 100 * (whole - trial), len(model)),
    )


def _metric(task: Task, outputs: Array) -> float:
    targets = task.validation.targets
    return float(task.metric(torch.from_numpy(outputs), targets[: len(outputs)]))


def _run_both(
    folder: Path,
    bundle: Bundle,
    worker: Bench,
    task: Task,
    n_samples: int | None,
    tell: Report,
) -> tuple[Array, Array]:
    """Return the outputs of the library, on some samples, and of the ONNX file on all."""
    inputs = task.validation.inputs.numpy()

    def library(samples: Array) -> Array:
        return worker.predict(bundle.runtime, folder / bundle.library, samples)

    reference = _reference(folder / MODEL_FILE)
    return (
        _run_in_steps(library, inputs[:n_samples], bundle.library, tell),
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
