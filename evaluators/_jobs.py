"""What a worker can be asked: requests and replies, and how the child carries them out."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from .device_server.energy import EnergyMeter
from .device_server.facts import device_state
from .devices.state import hindrances
from .layer_times import LayerSession, LayerTimes, time_layers
from .measurement import EvaluationError, Reason
from .memory import MemoryGrowth
from .runtimes import Runtime, Session, TensorSpec, get_runtime
from .runtimes.base import Array
from .timing import (
    Block,
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
    from .devices.session import DeviceSession

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_DETAIL = 800
_MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "memoryerror",
    "out of memory",
    "allocate memory",
    "failed to allocate",
)


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


@dataclass(slots=True)
class _Loaded:
    key: tuple[object, ...]
    session: Session
    growth: MemoryGrowth
    block: Block | None = None  # calibrated for `TimeBlock`
    has_run: bool = False
    peak_memory_bytes: int | None = None

    def warm_block(self, protocol: LatencyProtocol) -> Block:
        """Return a block of calls on random data, warmed up when it is first asked for."""
        if self.block is None:
            self.block = Block(self.bind(), protocol)
        return self.block

    def bind(self) -> Call:
        """Return a call on random data; the memory that it takes is noted at the first time."""
        rng = np.random.default_rng(0)
        call = self.session.bind(*(spec.random(rng) for spec in self.session.inputs))
        if not self.has_run:
            call()
            self.has_run = True
            self.peak_memory_bytes = self.growth.peak_bytes()
        return call


class Sessions:
    """The artifacts that the child holds: the newest candidate and the newest baseline.

    A study times hundreds of candidates against one baseline, so the baseline stays loaded and
    a candidate is dropped as soon as the next one comes.
    """

    def __init__(self) -> None:
        self.device: DeviceSession | None = None  # the remote device that this child holds
        self._loaded: dict[str, _Loaded] = {}
        self._prepared: dict[str, Runtime] = {}
        self._warm: set[str] = set()

    def prepare(self, runtime: str) -> Runtime:
        """Import what the runtime needs, once."""
        if runtime not in self._prepared:
            with step(f"Preparing {runtime}", "unavailable"):
                prepared = get_runtime(runtime)
                prepared.prepare()
            self._prepared[runtime] = prepared
            # A compiler brings millions of objects that stay: without this, each collection
            # before a measurement would look at all of them, for a good part of a second.
            gc.collect()
            gc.freeze()
        return self._prepared[runtime]

    def get(self, role: str, runtime: str, artifact: Path, threads: int) -> _Loaded:
        """Return the artifact, loaded now or before; it is loaded again if the file changed."""
        with step(f"Loading '{artifact.name}' in {runtime}", "load"):
            builder = self.prepare(runtime)
            status = artifact.stat()
            key = (runtime, artifact, threads, status.st_mtime_ns, status.st_size, status.st_ino)
            for loaded in self._loaded.values():
                if loaded.key == key:
                    return loaded
            if self._loaded.pop(role, None) is not None:
                gc.collect()
            self._warm_up(runtime, artifact, threads)
            growth = MemoryGrowth()
            loaded = _Loaded(key, builder.load(artifact, threads), growth)
            self._loaded[role] = loaded
            return loaded

    def _warm_up(self, runtime: str, artifact: Path, threads: int) -> None:
        """Run a model once: what a library allocates for all models is no model's memory."""
        if runtime not in self._warm:
            self._warm.add(runtime)
            with contextlib.suppress(Exception):  # the model that is asked for reports it
                session = self._prepared[runtime].load(artifact, threads)
                _Loaded((), session, MemoryGrowth()).bind()
            gc.collect()


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
            before, start = device_state(), perf_counter()
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
            contention = ContentionMeter()
            time_us = block.time_us()
            return Rounds(
                (time_us,),
                None,
                block.n_runs,
                contention.share(),
                peak_memory_bytes=loaded.peak_memory_bytes,
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
            return time_layers(timers, self.n_runs)


@contextlib.contextmanager
def step(title: str, reason: Reason) -> Iterator[None]:
    """Turn any error of a library into an `EvaluationError` with a title and a reason."""
    try:
        yield
    except EvaluationError as error:
        if speaks_of_memory(str(error)):  # of the compiler's, for instance
            error.reason = "memory"
        raise
    except (Exception, SystemExit) as error:
        detail = shorten(f"{type(error).__name__}: {error}")
        is_memory = speaks_of_memory(detail)
        failure = EvaluationError(f"{title} failed: {detail}", "memory" if is_memory else reason)
        failure.add_note("In the worker:\n" + traceback.format_exc())
        raise failure from None


def speaks_of_memory(text: str) -> bool:
    """Say whether an error message is about memory that could not be had."""
    return any(word in text.lower() for word in _MEMORY_WORDS)


def shorten(text: str) -> str:
    """Cut the middle out of a long message: its beginning and its end say the most."""
    text = text.strip()
    if len(text) <= _MAX_DETAIL:
        return text
    return f"{text[: _MAX_DETAIL // 2]} [...] {text[-_MAX_DETAIL // 2 :]}"


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
