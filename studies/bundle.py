"""The folder that a trial is exported to: its description in `bundle.json`, and its checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..evaluators.measurement import Latency
from ..evaluators.runtimes import TensorSpec
from ..hw_profiles.errors import ParedownError
from ..hw_profiles.profile import HardwareProfile
from ..search.candidate import Candidate

BUNDLE_VERSION = 1
BUNDLE_FILE = "bundle.json"
MODEL_FILE = "model.onnx"
CANDIDATE_FILE = "candidate.json"
PROFILE_FILE = "profile.toml"
RUN_FILE = "run.py"
README_FILE = "README.md"


class BundleError(ParedownError):
    """A bundle cannot be written, or cannot be read."""


@dataclass(frozen=True, slots=True)
class BundleTask:
    """The task that a bundle's accuracy belongs to."""

    spec: str  # as `load_task` takes it
    data_dir: str | None
    validation_digest: str  # see `digest_validation`
    metric_name: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class BundleMetrics:
    """What the trial measured, and the uncompressed model beside it where there is one."""

    accuracy: float
    size_bytes: int
    latency_us: float | None  # ratio to the baseline x the study's baseline latency
    latency_spread_us: float | None
    baseline_accuracy: float | None = None
    baseline_size_bytes: int | None = None
    baseline_latency_us: float | None = None
    coded_size_bytes: int | None = None  # with entropy-coded weights


@dataclass(frozen=True)
class Bundle:
    """What `bundle.json` says.

    Attributes:
        study: Name of the study.
        trial: Number of the trial.
        task: The task, so that the accuracy can be checked again.
        metrics: What the trial measured.
        latency: The raw values behind the trial's latency.
        runtime: Name of the runtime that built `library` and was timed.
        library: File that the runtime loads.
        threads: Threads that the latency was measured with.
        arch: Architecture that the library is for.
        features: CPU flags that its code may execute.
        inputs: Name, shape and type of each input.
        outputs: The same of each output.
        versions: Versions of Paredown and of the packages that the bundle depends on.
        sha256: Checksum of each other file.
    """

    study: str
    trial: int
    task: BundleTask
    metrics: BundleMetrics
    latency: Latency | None
    runtime: str
    library: str
    threads: int
    arch: str
    features: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: Mapping[str, str]
    sha256: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `bundle.json`, with a checksum of itself."""
        data = {
            "version": BUNDLE_VERSION,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "task": asdict(self.task),
            "metrics": asdict(self.metrics),
            "latency": None if self.latency is None else self.latency.to_json(),
            "features": list(self.features),
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
            "versions": dict(self.versions),
            "sha256": dict(self.sha256),
        }
        return {**data, "digest": _digest(data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Bundle:
        """Read what `to_json` wrote.

        Raises:
            BundleError: If the version is unknown, a field is missing or wrong, or the content
                is not what its own checksum says.
        """
        version = data.get("version")
        if version != BUNDLE_VERSION:
            raise BundleError(
                f"`version` of a bundle must be {BUNDLE_VERSION}, but got {version!r}. "
                "It was written by another version of Paredown: export the trial again."
            )
        values = {key: value for key, value in data.items() if key not in ("version", "digest")}
        if data.get("digest") != _digest({"version": version, **values}):
            raise BundleError(
                f"`{BUNDLE_FILE}` must be as it was written, but its checksum does not fit its "
                "content: it was changed. Export the trial again."
            )
        try:
            latency = values["latency"]
            values |= {
                "task": BundleTask(**values["task"]),
                "metrics": BundleMetrics(**values["metrics"]),
                "latency": None if latency is None else Latency.from_json(latency),
                "features": tuple(values["features"]),
                "inputs": tuple(_spec_from_json(spec) for spec in values["inputs"]),
                "outputs": tuple(_spec_from_json(spec) for spec in values["outputs"]),
            }
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"`{BUNDLE_FILE}` has a missing or wrong field: {error}.") from error


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read the description of a bundle; its other files are not looked at.

    Raises:
        BundleError: If the folder is no bundle, or its description is broken.
    """
    folder = Path(folder)
    path = folder / BUNDLE_FILE
    if not path.is_file():
        what = f"has no `{BUNDLE_FILE}`" if folder.is_dir() else "is no folder"
        raise BundleError(
            f"'{folder}' must be a bundle, but {what}. Make one with `paredown export`."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"'{path}' must be readable JSON, but: {error}.") from error
    if not isinstance(data, dict):
        raise BundleError(f"'{path}' must hold a JSON object, but holds another value.")
    return Bundle.from_json(data)


def find_changed_files(folder: str | os.PathLike[str], bundle: Bundle) -> dict[str, str]:
    """Compare the files of a bundle with their checksums.

    Returns:
        For each file that is not as it was exported, what is wrong: "missing" or "changed".
    """
    changed = {}
    for name, expected in bundle.sha256.items():
        path = Path(folder) / name
        if not path.is_file():
            changed[name] = "missing"
        elif sha256_of(path) != expected:
            changed[name] = "changed"
    return changed


def read_profile(folder: str | os.PathLike[str]) -> HardwareProfile:
    """Read the profile that the bundle's library is built for."""
    path = Path(folder) / PROFILE_FILE
    return HardwareProfile.from_toml(path.read_text(encoding="utf-8"), source=str(path))


def read_candidate(folder: str | os.PathLike[str]) -> Candidate:
    """Read the candidate that was exported."""
    path = Path(folder) / CANDIDATE_FILE
    return Candidate.from_json(json.loads(path.read_text(encoding="utf-8")))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _spec_from_json(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(data["name"], tuple(data["shape"]), data["dtype"])
