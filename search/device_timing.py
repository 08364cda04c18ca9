"""The latency of models on one device, each in proportion to the uncompressed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..evaluators.latency import LatencyProtocol, Timer, measure_latency
from ..evaluators.layer_times import LayerTimes
from ..evaluators.measurement import EvaluationError, Latency
from ..evaluators.runtimes import get_runtime
from ..evaluators.runtimes.base import Array
from ..hw_profiles.profile import HardwareProfile

# The baseline stands in every other latency, so it is timed for longer.
_BASELINE_BUDGET = 3.0
# Outputs of right code differ by a rounding step here and there; those of wrong code by far more.
_OUTPUT_TOLERANCE = 0.1


class Bench(Timer, Protocol):
    """Builds, times and runs models: a `Worker` for this machine, a `DevicePool` for others."""

    def build(
        self,
        runtime: str,
        model: Path,
        artifact: Path,
        profile: HardwareProfile,
        *,
        timeout_s: float = ...,
    ) -> float:
        """Build an ONNX file into an artifact; return the seconds it took."""
        ...

    @property
    def cpus(self) -> tuple[int, ...]:
        """Cores of this machine that it keeps busy while it times."""
        ...

    def time_layers(
        self, runtime: str, artifact: Path, *, baseline: Path | None, threads: int | None = None
    ) -> tuple[LayerTimes, LayerTimes | None]:
        """Time each layer of the artifact, and of `baseline` in the same window."""
        ...

    def predict(self, runtime: str, artifact: Path, inputs: Array) -> Array:
        """Run the artifact on each sample of `inputs`, `(n, ...)`, and stack the outputs."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceLatency:
    """The latency of a model on one device.

    `latency_us` is the ratio to the baseline in the same time window times the baseline's
    latency: the drift of the machine between trials cancels. `latency` has the raw values.
    """

    profile: str  # name of the device's profile
    latency_us: float
    spread_us: float
    latency: Latency

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": 1,
            "profile": self.profile,
            "latency_us": self.latency_us,
            "spread_us": self.spread_us,
            "latency": self.latency.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DeviceLatency:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the version is unknown.
        """
        if data.get("version") != 1:
            raise ValueError(
                f"Version of a device latency must be 1, but got {data.get('version')!r}."
            )
        latency = Latency.from_json(data["latency"])
        return cls(data["profile"], data["latency_us"], data["spread_us"], latency)


class DeviceTiming:
    """Builds and times models for one device.

    Args:
        bench: What builds and times.
        runtime: Name of the runtime that counts.
        profile: The device, with the number of threads.
        protocol: How latency is measured.
    """

    def __init__(
        self,
        bench: Bench,
        runtime: str,
        profile: HardwareProfile,
        protocol: LatencyProtocol | None = None,
    ) -> None:
        self.profile = profile
        self._bench = bench
        self._runtime = runtime
        self._suffix = get_runtime(runtime).suffix
        self._protocol = protocol or LatencyProtocol()
        self._baseline: tuple[Path, float] | None = None
        self._has_layers = True

    def use_baseline(self, model: Path, latency_us: float | None) -> None:
        """Compare with a baseline that was measured before.

        Args:
            model: The uncompressed model.
            latency_us: Its latency then; all latencies are in proportion to it. None where the
                profile has none.

        Raises:
            EvaluationError: If it cannot be built.
        """
        if latency_us is not None:
            self._baseline = self.build(model), latency_us

    def build(self, model: Path) -> Path:
        """Build an ONNX file; return the artifact, which lies beside it."""
        artifact = self.artifact(model)
        self._bench.build(self._runtime, model, artifact, self.profile)
        return artifact

    def artifact(self, model: Path) -> Path:
        """Return the path of the artifact of an ONNX file."""
        return model.with_suffix(f".{self.profile.name}{self._suffix}")

    def measure(self, artifact: Path) -> DeviceLatency | None:
        """Time an artifact, in turns with the baseline; the first one becomes the baseline.

        Returns:
            The latency, None where the profile has none: there is no device, or an emulated one.
        """
        if not self.profile.has_latency:
            return None
        baseline, protocol = self._baseline, self._protocol
        if baseline is None:
            protocol = replace(protocol, budget_s=protocol.budget_s * _BASELINE_BUDGET)
        latency = measure_latency(
            self._bench,
            self._runtime,
            artifact,
            baseline=None if baseline is None else baseline[0],
            threads=self.profile.threads,
            protocol=protocol,
        )
        if baseline is None:
            self._baseline = artifact, latency.latency_us
            latency_us = latency.latency_us
        else:
            assert latency.ratio is not None
            latency_us = latency.ratio * baseline[1]
        spread_us = latency.spread_us * latency_us / latency.latency_us
        return DeviceLatency(self.profile.name, latency_us, spread_us, latency)

    def time_layers(self, artifact: Path) -> LayerTimes | None:
        """Return the times of the layers, None where they cannot be told apart."""
        if self._baseline is None or not self._has_layers:
            return None
        path, latency_us = self._baseline
        try:
            times, baseline = self._bench.time_layers(
                self._runtime, artifact, baseline=path, threads=self.profile.threads
            )
        except EvaluationError as error:
            if error.reason != "unavailable":
                raise
            self._has_layers = False
            return None
        # Both ran in one window: the drift of the machine cancels.
        assert baseline is not None
        return times.scaled(latency_us / baseline.total_us)

    @property
    def is_checked_instead(self) -> bool:
        """Whether models run on the device for right results alone, as it is an emulated one."""
        return self.profile.emulated and self.profile.connection != "compile-only"

    def check_outputs(self, artifact: Path, inputs: Array, expected: Array) -> None:
        """Check that the device computes what the model means.

        Args:
            artifact: A built model.
            inputs: Samples, shape `(n, ...)`.
            expected: The model's outputs for them.

        Raises:
            EvaluationError: If an output differs by more than rounding explains.
        """
        found = self._bench.predict(self._runtime, artifact, inputs)
        gap = float(np.abs(found - expected).max()) if np.isfinite(found).all() else np.inf
        bound = _OUTPUT_TOLERANCE * float(np.abs(expected).max())
        if not gap <= bound:
            raise EvaluationError(
                f"Outputs on '{self.profile.name}' must be those of the model within {bound:.3g}, "
                f"but differ by {gap:.3g}: the code for this device is wrong.",
                "run",
            )

    def is_baseline(self, artifact: Path) -> bool:
        """Whether later artifacts are compared with this one, so that it must be kept."""
        return self._baseline is not None and artifact == self._baseline[0]
