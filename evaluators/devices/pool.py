"""Devices at the other end of a connection, used like a `Worker`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from ...hw_profiles import parse_connection
from .._jobs import Job
from ..device_server.facts import DeviceState
from ..layer_times import LayerTimes
from ..measurement import EvaluationError
from ..runtimes.base import Array
from ..timing import LatencyProtocol, Rounds
from ..worker import Worker
from .health import DeviceHealth, HealthTable
from .jobs import Connect, Disconnect, PredictOnDevice, Prepare, TimeOnDevice
from .locating import Location, NotFreeError, locate, registered

if TYPE_CHECKING:
    from ...hw_profiles import HardwareProfile

T = TypeVar("T")

MAX_ATTEMPTS = 3
_IMPORT_S = 120.0
_CONNECT_S = 15.0
_FIRST_CONTACT_S = 10.0
_LOOK_AGAIN_S = 0.5
_CHUNK = 64  # samples of one job: the time limit is that of a job
_OF_DEVICE = ("device", "timeout", "crash", "worker")
"""Reasons of a failed job that may be the device's fault, so that another try makes sense."""


class DevicePool:
    """Runs jobs on the devices of a profile's connection, one job on a device at a time.

    Each job goes through a child process under the profile's time limit, as a device that
    freezes would hang its client for ever. A device that is lost in a job rests and is taken back
    later; the job is tried on the next one. Only when all tries of a job fail, though there were
    devices to try on, the failure counts as the candidate's.

    It can be used from several threads: then several devices of a tracker's key work in parallel.

    Args:
        profile: The device; its connection is a server or a tracker.
        max_parallel: Most jobs at a time.
        report: Told when a device is lost or taken back.
    """

    def __init__(
        self,
        profile: HardwareProfile,
        *,
        max_parallel: int = 1,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.profile = profile
        self.threads = profile.threads
        self.connection = parse_connection(profile.connection)
        if not self.connection.is_remote:
            raise ValueError(f"`profile` must be remote, but its connection is {self.connection}.")
        self._report = report
        self._limit_s = float(profile.job_timeout_s)
        self._health = HealthTable()
        self._workers = [Worker(1, preload=("tvm",)) for _ in range(max(1, max_parallel))]
        self._idle = list(self._workers)
        self._is_idle = threading.Condition()
        self.emulated: bool | None = None  # None: no server has told yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def health(self) -> tuple[DeviceHealth, ...]:
        """The record of each device that was used."""
        return self._health.all()

    @property
    def cpus(self) -> tuple[int, ...]:
        """Cores of this machine that timing keeps busy: none, it happens elsewhere."""
        return ()

    def time_layers(
        self, runtime: str, artifact: Path, *, baseline: Path | None, threads: int | None = None
    ) -> tuple[LayerTimes, LayerTimes | None]:
        """Refuse: a device does not tell its layers apart.

        Raises:
            EvaluationError: Always, with the reason `unavailable`.
        """
        raise EvaluationError(
            f"The layers of '{artifact.name}' can be timed on this machine alone.", "unavailable"
        )

    def start(self) -> None:
        """Start the first child now; it imports TVM while other work goes on."""
        self._workers[0].start()

    def stop(self) -> None:
        """End the children. Devices notice that and are free again."""
        for worker in self._workers:
            worker.stop()

    def first_contact(self) -> DeviceState | None:
        """Connect to a device once, to tell early that there is none.

        Returns:
            The state of the device, None if its server does not tell.

        Raises:
            EvaluationError: If none answers within some seconds; it says why.
        """
        with self._worker() as worker:
            worker.run(Prepare(), _IMPORT_S)
            _, state = self._connect(worker, time.monotonic() + _FIRST_CONTACT_S)
            worker.run(Disconnect(), _CONNECT_S)
        return state

    def addresses(self) -> tuple[str, ...]:
        """Return the devices behind the connection, as far as they are known now.

        Raises:
            EvaluationError: If the tracker cannot be asked, or lists none.
        """
        if self.connection.kind == "server":
            return (f"{self.connection.host}:{self.connection.port}",)
        try:
            return registered(self.connection)
        except NotFreeError as error:
            raise EvaluationError(_sentence(str(error)), "device") from error

    def build(
        self,
        runtime: str,
        model: Path,
        artifact: Path,
        profile: HardwareProfile,
        *,
        timeout_s: float = 120.0,
    ) -> float:
        """Build a model here, for the device; see `Worker.build`."""
        with self._worker() as worker:
            return worker.build(runtime, model, artifact, profile, timeout_s=timeout_s)

    def predict(
        self,
        runtime: str,
        artifact: Path,
        inputs: Array,
        *,
        threads: int | None = None,
        timeout_s: float | None = None,
    ) -> Array:
        """Run a library on each sample of `inputs`, `(n, ...)`, on a device.

        Raises:
            EvaluationError: If the candidate fails, or (reason "device") no device can be had.
        """
        self._check(runtime, threads)
        if not len(inputs):
            raise ValueError("`inputs` must hold at least one sample, but got none.")
        chunks = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
        return np.concatenate(
            [self._on_device(PredictOnDevice(artifact, chunk), timeout_s) for chunk in chunks]
        )

    def time(
        self,
        runtime: str,
        artifact: Path,
        *,
        baseline: Path | None,
        protocol: LatencyProtocol,
        threads: int | None = None,
        timeout_s: float | None = None,
    ) -> Rounds:
        """Time a library on a device, in turns with `baseline`; see `Worker.time`.

        Raises:
            EvaluationError: If the candidate fails, or (reason "device") no device can be had.
        """
        self._check(runtime, threads)
        return self._on_device(TimeOnDevice(artifact, baseline, protocol), timeout_s)

    def _check(self, runtime: str, threads: int | None) -> None:
        if runtime != "tvm":
            raise EvaluationError(
                f"`runtime` must be 'tvm' on a device behind RPC, but got '{runtime}'.",
                "unavailable",
            )
        if threads not in (None, self.threads):
            raise ValueError(f"`threads` must be {self.threads}, but got {threads}.")

    def _on_device(self, job: Job[T], timeout_s: float | None) -> T:
        """Run a job on one device after the other, until one has done it."""
        failures: list[EvaluationError] = []
        with self._worker() as worker:
            while True:
                worker.run(Prepare(), _IMPORT_S)
                location, _ = self._connect(worker, time.monotonic() + self._limit_s + _CONNECT_S)
                try:
                    value = worker.run(job, timeout_s or self._limit_s)
                except EvaluationError as error:
                    if error.reason not in _OF_DEVICE or _is_told_crash(error):
                        self._give_back(worker)
                        self._has_worked(location)
                        raise
                    worker.stop()  # its objects would go on to talk to the device
                    failures.append(error)
                    self._lost(location, error)
                    if len(failures) == MAX_ATTEMPTS:
                        raise _blame(failures) from error
                except BaseException:  # an interrupt too: nobody waits for the job
                    worker.stop()
                    raise
                else:
                    self._give_back(worker)
                    self._has_worked(location)
                    return value

    def _connect(self, worker: Worker, deadline: float) -> tuple[Location, DeviceState | None]:
        """Open a session with any device that is free; wait for one until the deadline."""
        while True:
            why: Exception
            location: Location | None = None
            try:
                location = locate(self.connection, self._health.resting())
                job = Connect(location, self.profile, self._limit_s + _CONNECT_S)
                state = worker.run(job, _CONNECT_S)
            except NotFreeError as error:
                why = error
            except EvaluationError as error:
                worker.stop()
                why = error
                if location is not None:
                    self._lost(location, error)
            else:
                if state is not None:
                    self.emulated = state["emulated"]
                return location, state
            if time.monotonic() + _LOOK_AGAIN_S >= deadline:
                raise self._no_device(why) from why
            time.sleep(_LOOK_AGAIN_S)  # a tracker tells nobody when a device comes back
            worker.run(Prepare(), _IMPORT_S)

    def _no_device(self, why: Exception) -> EvaluationError:
        lost = [f"{d.address} ({d.lost_because})" for d in self.health if d.lost_because]
        text = f"No device behind {self.connection} can be had: {_sentence(str(why))}"
        if lost and isinstance(why, NotFreeError):
            text += f" Lost: {'; '.join(lost)}."
        return EvaluationError(
            f"{text} Start its server, for instance with `paredown device serve`.", "device"
        )

    def _give_back(self, worker: Worker) -> None:
        try:
            worker.run(Disconnect(), _CONNECT_S)
        except EvaluationError:
            worker.stop()

    def _has_worked(self, location: Location) -> None:
        if self._health.is_lost(location.address):
            self._report(f"device {location.address} is back")
        self._health.has_worked(location.address)

    def _lost(self, location: Location, error: EvaluationError) -> None:
        if not self._health.is_lost(location.address):
            self._report(f"device {location.address} is lost: {error}")
        self._health.was_lost(location.address, str(error))

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """Lend a worker to one thread."""
        with self._is_idle:
            while not self._idle:
                self._is_idle.wait()
            worker = self._idle.pop()
        try:
            yield worker
        finally:
            with self._is_idle:
                self._idle.append(worker)
                self._is_idle.notify()


def _is_told_crash(error: EvaluationError) -> bool:
    """Whether the device itself told that the session crashed: then it is the candidate's."""
    return error.reason == "crash" and "ended the session on it" in str(error)


def _blame(failures: list[EvaluationError]) -> EvaluationError:
    """Return the error of a candidate that no device got through."""
    last = failures[-1]
    texts = "; ".join(dict.fromkeys(str(failure) for failure in failures))
    return EvaluationError(
        f"{len(failures)} tries on devices failed, though they answered before each: {texts}",
        "crash" if last.reason == "device" else last.reason,
    )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
