"""Exports a trial as a folder that runs as measured: the file, the library, and what they are."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluators.runtimes import TensorSpec, get_runtime, require_installed
from ..evaluators.worker import Worker
from ..hw_profiles import ISAS, HardwareProfile, target_features
from .bundle import (
    BUNDLE_FILE,
    CANDIDATE_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    README_FILE,
    RUN_FILE,
    Bundle,
    BundleError,
    BundleMetrics,
    BundleTask,
    sha256_of,
)
from .records import StudyRecord, TrialRecord
from .storage import load_model

if TYPE_CHECKING:
    import onnx

_PACKAGES = {
    "paredown": "paredown",
    "tvm": "apache-tvm",
    "tvm-ffi": "apache-tvm-ffi",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "numpy": "numpy",
}


def export_trial(
    record: StudyRecord,
    trial: TrialRecord | int,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Bundle:
    """Write the bundle of a trial; the folder appears complete or not at all.

    `model.onnx` is the very file that was measured; the library is built from it in the way in
    which the trial's was.

    Args:
        record: The study, as `read_study` returns it.
        trial: A complete trial of it, or its number.
        folder: Where the bundle goes; it must not exist, or be empty.
        force: Replace a bundle that is there already.
        report: Told what happens, in one line each time.

    Returns:
        What `bundle.json` in the folder says.

    Raises:
        BundleError: If the trial has no model, or the folder cannot be written.
        StorageError: If the trial's model is missing from the study's storage.
        EvaluationError: If the library cannot be built.
    """
    if isinstance(trial, int):
        trial = _find_trial(record, trial)
    folder = Path(folder)
    check_export_folder(folder, force=force)
    runtime = get_runtime(record.settings.runtime)
    require_installed(runtime)
    if trial.state != "complete" or trial.candidate is None:
        raise BundleError(
            f"Trial {trial.number} of study '{record.name}' must be complete to be exported, but "
            f"it is {trial.state}. See the front with `paredown front {record.name}`."
        )
    model = load_model(record, trial)
    assert trial.model_file is not None  # `load_model` has read it
    tell = report or (lambda text: None)
    with _new_folder(folder) as partial:
        shutil.copyfile(Path(record.models_dir) / trial.model_file, partial / MODEL_FILE)
        tell(f"building for '{record.profile.name}' with {runtime.name}")
        library = f"model{runtime.suffix}"
        if library == MODEL_FILE:
            library = f"model-{runtime.name}{runtime.suffix}"
        with Worker(record.threads, preload=(runtime.name,)) as worker:
            worker.build(runtime.name, partial / MODEL_FILE, partial / library, record.profile)
        _write_texts(partial, record, trial, library)
        bundle = _describe(partial, record, trial, model, library)
        _write_json(partial / BUNDLE_FILE, bundle.to_json())
    return bundle


def check_export_folder(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that a bundle cannot be written to, before any work is done.

    Raises:
        BundleError: If it is a file, holds something, or its place is not writable.
    """
    if folder.is_dir():
        if any(folder.iterdir()):
            if not force:
                raise BundleError(
                    f"The folder '{folder}' must be empty or new, but it is not empty. Name "
                    "another one, or replace the bundle in it with --force."
                )
            if not (folder / BUNDLE_FILE).is_file():
                raise BundleError(
                    f"--force replaces a bundle, but '{folder}' holds no `{BUNDLE_FILE}`: it is "
                    "something else. Name another folder."
                )
    elif folder.exists() or folder.is_symlink():
        raise BundleError(f"'{folder}' must be a folder, but it is something else.")
    parent = _absolute(folder).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(
            f"The bundle '{folder}' cannot be written: '{parent}' must be a writable folder, but "
            "is not. Name another one."
        )


def required_features(profile: HardwareProfile) -> tuple[str, ...]:
    """Return the CPU flags that code built for a profile may execute, sorted."""
    needed = {*profile.features, *ISAS[profile.isa].features, *target_features(profile.target)}
    return tuple(sorted(needed))


def _find_trial(record: StudyRecord, number: int) -> TrialRecord:
    try:
        return record.trial(number)
    except ValueError as error:
        raise BundleError(
            f"{error} See them with `paredown front {record.name} --all`."
        ) from error


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes the place of `folder` only if no error comes up."""
    target = _absolute(folder)
    partial = old = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            yield partial
            partial.chmod(0o777 & ~_umask())  # `mkdtemp` shuts others out
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                target.replace(old)
            partial.replace(target)
        except OSError as error:
            if old is not None and not target.exists():
                old.replace(target)
            raise BundleError(
                f"The bundle '{folder}' cannot be written: {error.strerror or error}."
            ) from error
    finally:
        for path in (partial, old):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _describe(
    folder: Path, record: StudyRecord, trial: TrialRecord, model: onnx.ModelProto, library: str
) -> Bundle:
    accuracy, size_bytes, *_ = trial.values
    baseline = record.baseline
    return Bundle(
        study=record.name,
        trial=trial.number,
        task=BundleTask(
            spec=record.task,
            data_dir=record.settings.data_dir,
            validation_digest=record.validation_digest,
            metric_name=record.metric_name,
            higher_is_better=record.higher_is_better,
        ),
        metrics=BundleMetrics(
            accuracy=accuracy,
            size_bytes=int(size_bytes),
            latency_us=trial.latency_us,
            latency_spread_us=trial.latency_spread_us,
            baseline_accuracy=None if baseline is None else baseline.accuracy,
            baseline_size_bytes=None if baseline is None else baseline.size_bytes,
            baseline_latency_us=None if baseline is None else baseline.latency_us,
            coded_size_bytes=trial.coded_size_bytes,
        ),
        latency=trial.latency,
        runtime=record.settings.runtime,
        library=library,
        threads=record.threads,
        arch=record.profile.arch,
        features=required_features(record.profile),
        inputs=_tensor_specs(model.graph.input),
        outputs=_tensor_specs(model.graph.output),
        versions=_versions(record.settings.runtime),
        sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    )


def _tensor_specs(values: Iterator[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    from onnx.helper import tensor_dtype_to_np_dtype

    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value or None for dim in tensor.shape.dim)
        specs.append(
            TensorSpec(value.name, shape, str(tensor_dtype_to_np_dtype(tensor.elem_type)))
        )
    return tuple(specs)


def _versions(runtime: str) -> dict[str, str]:
    found = {}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    own = get_runtime(runtime).version()
    if own is not None:
        found.setdefault(runtime, own)
    return found


def _write_texts(folder: Path, record: StudyRecord, trial: TrialRecord, library: str) -> None:
    assert trial.candidate is not None  # checked before
    _write_json(folder / CANDIDATE_FILE, trial.candidate.to_json())
    profile = record.profile.with_threads(record.threads).to_toml()
    (folder / PROFILE_FILE).write_text(profile, encoding="utf-8")
    if record.settings.runtime == "tvm":
        shutil.copyfile(Path(__file__).with_name("bundle_run.py"), folder / RUN_FILE)
    (folder / README_FILE).write_text(_readme(record, trial, library), encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _readme(record: StudyRecord, trial: TrialRecord, library: str) -> str:
    accuracy, size_bytes, *_ = trial.values
    compared, measured = "", f", not timed. {record.why_no_latency}"
    speedup, shrink = record.speedup(trial), record.shrink(trial)
    if trial.latency_us is not None:
        measured = (
            f", {trial.latency_us:.1f} us on {record.threads} thread(s) of "
            f"'{record.profile.name}'."
        )
    if shrink is not None:
        faster = "" if speedup is None else f" and {speedup:.2f} times faster"
        compared = f" That is {shrink:.2f} times smaller{faster} than the uncompressed model."
    built = f"what {record.settings.runtime} runs, built for the profile '{record.profile.name}'"
    files = [
        (MODEL_FILE, "the quantized model as it was measured, in QDQ form"),
        (library, built),
        (CANDIDATE_FILE, "the pruning ratio of each group and the bits of each layer"),
        (PROFILE_FILE, "the device that it is compiled for"),
        (BUNDLE_FILE, "metrics, versions, CPU features that are needed, checksums"),
    ]
    run = ""
    if record.settings.runtime == "tvm":
        files.append((RUN_FILE, "runs the library; needs only tvm and numpy"))
        run = "python run.py --input samples.npy --output outputs.npy\npython run.py --time 200\n"
    lines = "\n".join(f"- `{name}`: {text}" for name, text in files)
    return (
        f"# Trial {trial.number} of study '{record.name}'\n\n"
        f"{record.metric_name.capitalize()} {accuracy:.4f}, {size_bytes:.0f} bytes{measured}"
        f"{compared}\n\n"
        f"{lines}\n\n```sh\n{run}paredown verify .\n```\n\n"
        "`paredown verify` checks the files, then accuracy and latency against the trial's.\n"
    )
