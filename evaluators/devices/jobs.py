"""What a worker's child does with a device: connect, measure, run, give it back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._jobs import Sessions, run_samples, step
from ..device_server.facts import DeviceState
from ..measurement import EvaluationError
from ..runtimes.base import Array
from ..timing import LatencyProtocol, Rounds, alternate
from .locating import Location
from .session import DeviceSession, RemoteModel, remote_errors

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
class RemoteTiming:
    """What timing on a device yields.

    Attributes:
        rounds: What the device's clock said.
        before, after: State of the device around the rounds; None where its server does not tell.
    """

    rounds: Rounds
    before: DeviceState | None
    after: DeviceState | None


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

    def run(self, sessions: Sessions) -> RemoteTiming:
        """Upload both sides once, then time them in turns."""
        device = connected(sessions)
        title = f"{self.title} on device {device.address}"
        with step(title, "run"), remote_errors(title):
            candidate = device.load(self.artifact)
            baseline = None if self.baseline is None else device.load(self.baseline)
            for model in (candidate, baseline):
                if model is not None:
                    check_features(model, device.state())
            before = device.state()
            rounds = alternate(
                candidate.block(_inputs(candidate), self.protocol),
                None if baseline is None else baseline.block(_inputs(baseline), self.protocol),
                self.protocol,
            )
            return RemoteTiming(rounds, before, device.state())


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


def _inputs(model: RemoteModel) -> list[Array]:
    rng = np.random.default_rng(0)
    return [spec.random(rng) for spec in model.inputs]
