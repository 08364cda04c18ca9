"""What a worker can be asked: requests and replies, and how the child carries them out."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from ._sessions import Sessions, step
from .device_server.energy import EnergyMeter
from .device_server.facts import device_state
from .devices.state import hindrances
from .layer_times import LayerSession, LayerTimes, time_layers
from .measurement import EvaluationError
from .own_cores import OwnCores, let_helpers_rest
from .runtimes import Session, TensorSpec
from .runtimes.base import Array
from .timing import (
    Call,
    ContentionMeter,
    LatencyProtocol,
    Rounds,
    energy_per_run,
    time_rounds,
    without_garbage_collection,
)

if TYPE_CHECKING:
    from ..hw_profiles.profile import HardwareProfile

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What the child must know before its first job."""

    cpus: tuple[int, ...]
    memory_limit_bytes: int
    preload: tuple[str, ...]

    def to_text(self) -> str:
        """Return the settings as one command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> ChildSettings:
        """Read what `to_text` wrote."""
        data = json.loads(text)
        return cls(tuple(data["cpus"]), data["memory_limit_bytes"], tuple(data["preload"]))


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The outcome of a job: its value, or the error."""

    value: T
    error: EvaluationError | None
    resident_bytes: int  # the child's memory after the job


class Job(Protocol[T_co]):
    """A request that the child can carry out."""

    @property
    def runtime(self) -> str:
        """The runtime it needs."""
        ...

    @property
    def title(self) -> str:
        """What the job is, as the beginning of an error message."""
        ...

    def run(self, sessions: Sessions) -> T_co:
        """Do it, in the child."""
        ...


@dataclass(frozen=True)
class Build:
    """Build a model into an artifact; yields the seconds it took."""

    runtime: str
    model: Path
    artifact: Path
    profile: HardwareProfile

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Building '{self.model.name}' with {self.runtime}"

    @property
    def partial(self) -> Path:
        """Where the artifact grows: it gets its name only when it is whole."""
        return self.artifact.with_name(f"partial-{self.artifact.name}")

    def run(self, sessions: Sessions) -> float:
        """Build."""
        start = perf_counter()
        with step(self.title, "build"):
            sessions.prepare(self.runtime).build(self.model, self.partial, self.profile)
            os.replace(self.partial, self.artifact)
        return perf_counter() - start


@dataclass(frozen=True)
class Predict:
    """Run an artifact on many samples; yields the stacked outputs."""

    runtime: str
    artifact: Path
    threads: int
    inputs: Array

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Running '{self.artifact.name}' in {self.runtime}"

    def run(self, sessions: Sessions) -> Array:
        """Run the samples one by one."""
        loaded = sessions.get("candidate", self.runtime, self.artifact, self.threads)
        with step(self.title, "run"):
            return run_samples(loaded.session, self.inputs)


@dataclass(frozen=True)
class Time:
    """Time an artifact, in turns with a baseline; yields the rounds."""

    runtime: str
    artifact: Path
    threads: int
    baseline: Path | None
    protocol: LatencyProtocol

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Timing '{self.artifact.name}' in {self.runtime}"

    def run(self, sessions: Sessions) -> Rounds:
        """Load both sides, then time them."""
        baseline: Call | None = None
        if self.baseline is not None:
            loaded = sessions.get("baseline", self.runtime, self.baseline, self.threads)
            with step(f"Timing '{self.baseline.name}' in {self.runtime}", "run"):
                baseline = loaded.bind()
        loaded = sessions.get("candidate", self.runtime, self.artifact, self.threads)
        with step(self.title, "run"):
            call = loaded.bind()
            calls = [call] if baseline is None else [call, baseline]
            before, start = device_state(), perf_counter()
            with OwnCores(calls, self.threads):
                rounds = time_rounds(call, baseline, self.protocol)
            notes = hindrances(before, device_state(), perf_counter() - start)
            return replace(rounds, notes=notes, peak_memory_bytes=loaded.peak_memory_bytes)


@dataclass(frozen=True)
class TimeBlock:
    """Time one block of calls; yields it as one round without a baseline."""

    runtime: str
    artifact: Path
    threads: int
    protocol: LatencyProtocol

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Timing '{self.artifact.name}' in {self.runtime}"

    def run(self, sessions: Sessions) -> Rounds:
        """Load and warm up at the first time, then time one block."""
        loaded = sessions.get("candidate", self.runtime, self.artifact, self.threads)
        with step(self.title, "run"), without_garbage_collection():
            block = loaded.warm_block(self.protocol)
            with OwnCores([block.time_us], self.threads):
                contention = ContentionMeter()
                time_us = block.time_us()
                share = contention.share()
            let_helpers_rest()
            peak_memory_bytes = loaded.peak_memory_bytes
            return Rounds(
                (time_us,), None, block.n_runs, share, peak_memory_bytes=peak_memory_bytes
            )


@dataclass(frozen=True)
class MeasureEnergy:
    """Measure the energy of an inference; yields millijoules, None where nothing shows them."""

    runtime: str
    artifact: Path
    threads: int
    protocol: LatencyProtocol

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Measuring the energy of '{self.artifact.name}' in {self.runtime}"

    def run(self, sessions: Sessions) -> float | None:
        """Run blocks of calls for a while."""
        loaded = sessions.get("candidate", self.runtime, self.artifact, self.threads)
        with step(self.title, "run"), without_garbage_collection():
            return energy_per_run(loaded.warm_block(self.protocol), EnergyMeter())


@dataclass(frozen=True)
class TimeLayers:
    """Time the layers of artifacts in place, in turns; yields the times of each."""

    runtime: str
    artifacts: tuple[Path, ...]
    threads: int
    n_runs: int

    @property
    def title(self) -> str:
        """Return the beginning of an error message."""
        return f"Timing the layers of '{self.artifacts[0].name}' in {self.runtime}"

    def run(self, sessions: Sessions) -> list[LayerTimes]:
        """Load all, then time them."""
        timers = []
        for place, artifact in enumerate(self.artifacts):
            # The last one is the baseline, which stays loaded.
            role = "baseline" if 0 < place == len(self.artifacts) - 1 else "candidate"
            session = sessions.get(role, self.runtime, artifact, self.threads).session
            if not isinstance(session, LayerSession):
                raise EvaluationError(
                    f"{self.title} needs a runtime that tells layers apart, but {self.runtime} "
                    "does not.",
                    "unavailable",
                )
            rng = np.random.default_rng(0)
            timers.append(session.call_timer(*(spec.random(rng) for spec in session.inputs)))
        with step(self.title, "run"), without_garbage_collection():
            with OwnCores(timers, self.threads):
                return time_layers(timers, self.n_runs)


def run_samples(session: Session, inputs: Array) -> Array:
    """Run a model on the samples of `inputs`, one by one, and stack its first outputs."""
    batch = _as_input(session.inputs, inputs)
    stacked: Array | None = None
    for index in range(len(batch)):
        output = session.run(batch[index : index + 1])[0]
        if output.shape[:1] != (1,):
            raise EvaluationError(
                "An artifact must return one sample for one sample, but its first output has "
                f"the shape {output.shape}."
            )
        if stacked is None:
            stacked = np.empty((len(batch), *output.shape[1:]), output.dtype)
        stacked[index] = output[0]
    assert stacked is not None  # `Worker.predict` refuses empty inputs
    return stacked


def _as_input(specs: tuple[TensorSpec, ...], inputs: Array) -> Array:
    """Return the samples in the type that the model takes, after a check of their shape."""
    if len(specs) != 1:
        raise EvaluationError(f"A model must have one input to predict, but has {len(specs)}.")
    spec = specs[0]
    sample = inputs.shape[1:]
    wanted = spec.shape[1:]
    fits = len(sample) == len(wanted) and all(
        size in (None, given) for size, given in zip(wanted, sample, strict=True)
    )
    if not fits or spec.shape[0] not in (None, 1):
        raise EvaluationError(
            f"Input '{spec.name}' takes the shape {spec.shape}, one sample at a time, "
            f"but got {inputs.shape}."
        )
    return np.ascontiguousarray(inputs, dtype=spec.dtype)
