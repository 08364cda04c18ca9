"""What a worker's child does with a device: connect, measure, run, give it back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from .._jobs import run_samples
from .._sessions import Sessions, step
from ..device_server.facts import DeviceState
from ..measurement import EvaluationError
from ..runtimes.base import Array
from ..timing import ENERGY_S, LatencyProtocol, Rounds, alternate, energy_per_run
from .locating import Location
from .session import DeviceSession, RemoteBlock, RemoteModel, remote_errors
from .state import hindrances

if TYPE_CHECKING:
    from ...hw_profiles import HardwareProfile

RUNTIME = "tvm"


@dataclass(frozen=True)
class Prepare:
    """Import TVM, which takes seconds that must not count as a device's."""

    runtime: str = RUNTIME
    title: str = "Importing TVM"

    def run(self, sessions: Sessions) -> None:
        """Do nothing: the child has imported it before each job."""


@dataclass(frozen=True)
class Connect:
    """Open a session with a device; yields its state if its server tells it."""

    location: Location
    profile: HardwareProfile
    limit_s: float
    runtime: str = RUNTIME

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Connecting to device {self.location.address}"

    def run(self, sessions: Sessions) -> DeviceState | None:
        """Connect."""
        sessions.device = DeviceSession(self.location, self.profile, self.limit_s)
        return sessions.device.state()


@dataclass(frozen=True)
class Disconnect:
    """Give the device back."""

    runtime: str = RUNTIME
    title: str = "Giving a device back"

    def run(self, sessions: Sessions) -> None:
        """Disconnect, if there is a connection."""
        if sessions.device is not None:
            sessions.device.close()
            sessions.device = None


@dataclass(frozen=True)
class TimeOnDevice:
    """Time a library on the connected device, in turns with a baseline."""

    artifact: Path
    baseline: Path | None
    protocol: LatencyProtocol
    runtime: str = RUNTIME

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Timing '{self.artifact.name}'"

    def run(self, sessions: Sessions) -> Rounds:
        """Upload both sides once, then time them in turns."""
        device = connected(sessions)
        title = f"{self.title} on device {device.address}"
        with step(title, "run"), remote_errors(title):
            fresh = device.state()
            candidate = self._block(device, self.artifact, fresh)
            growth = _growth(fresh, device.state())  # before the baseline adds to it
            baseline = None
            if self.baseline is not None:
                baseline = self._block(device, self.baseline, fresh)
            before, start = device.state(), perf_counter()
            rounds = alternate(candidate, baseline, self.protocol)
            after, elapsed_s = device.state(), perf_counter() - start
            return replace(
                rounds,
                notes=() if before is None else hindrances(before, after, elapsed_s),
                peak_memory_bytes=growth,
                energy_mj=self._energy_mj(device),
            )

    def _energy_mj(self, device: DeviceSession) -> float | None:
        meter = device.energy_meter()
        if meter is None or not meter.is_there:
            return None
        # One long block: the device idles while it talks.
        long = replace(self.protocol, block_s=ENERGY_S, warm_up_s=0.0)
        model = device.load(self.artifact)
        return energy_per_run(model.block(_inputs(model), long), meter)

    def _block(
        self, device: DeviceSession, artifact: Path, state: DeviceState | None
    ) -> RemoteBlock:
        model = device.load(artifact)
        check_features(model, state)
        return model.block(_inputs(model), self.protocol)


@dataclass(frozen=True)
class PredictOnDevice:
    """Run a library on the connected device for each sample; yields the stacked outputs."""

    artifact: Path
    inputs: Array
    runtime: str = RUNTIME

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Running '{self.artifact.name}'"

    def run(self, sessions: Sessions) -> Array:
        """Run the samples one by one."""
        device = connected(sessions)
        title = f"{self.title} on device {device.address}"
        with step(title, "run"), remote_errors(title):
            model = device.load(self.artifact)
            check_features(model, device.state())
            return run_samples(model, self.inputs)


def connected(sessions: Sessions) -> DeviceSession:
    """Return the session that `Connect` opened in this child."""
    if sessions.device is None:
        raise EvaluationError("A device must be connected first, but none is.", "device")
    return sessions.device


def check_features(model: RemoteModel, state: DeviceState | None) -> None:
    """Check that the device has the CPU features that a library was built for.

    Raises:
        EvaluationError: If it lacks one: its session would end at the first such instruction.
    """
    if state is None or state["emulated"] or not state["flags"]:
        return  # an emulator shows the flags of its host
    flags = {"sse3" if flag == "pni" else flag for flag in state["flags"]}
    missing = sorted(set(model.features) - flags)
    if missing:
        raise EvaluationError(
            f"The device must have all that '{model.name}' was built for, but it lacks "
            f"{', '.join(missing)}. Choose the profile that fits the device.",
            "load",
        )


def _growth(before: DeviceState | None, after: DeviceState | None) -> int | None:
    """Return by how much the peak of a session's memory grew."""
    peaks = [None if state is None else state["peak_bytes"] for state in (before, after)]
    first, last = peaks
    return None if first is None or last is None else last - first


def _inputs(model: RemoteModel) -> list[Array]:
    rng = np.random.default_rng(0)
    return [spec.random(rng) for spec in model.inputs]
