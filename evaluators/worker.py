"""A child process that builds, runs and times candidates, so that none can take a study down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TypeVar

import numpy as np

from . import _jobs
from ._sessions import speaks_of_memory
from .layer_times import LayerTimes
from .measurement import EvaluationError
from .runtimes.base import Array
from .timing import LatencyProtocol, Rounds

if TYPE_CHECKING:
    from ..hw_profiles.profile import HardwareProfile

T = TypeVar("T")

_CHUNK_BYTES = 64 << 20
_LOG_TAIL_BYTES = 2000
_LOAD_S = 60.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TVM_NUM_THREADS",
)
TVM_POOL = {
    # TVM would bind its threads to cores of its choice, and free the main thread from ours.
    "TVM_BIND_THREADS": "0",
    # After a run they would spin for 300000 turns, 0.1 s and more, in the way of whoever comes
    # next. This is about 1 ms, longer than what lies between two parallel loops of a network.
    "TVM_THREAD_POOL_SPIN_COUNT": "3000",
}
"""What TVM reads from the environment when it starts its threads, where times are measured."""


class Worker:
    """One child process, started when first needed and again after it died.

    The child has its own session, so that Ctrl-C in the terminal does not reach it and the job
    in hand can be finished. It ends with this process, even when this one is killed. It is
    pinned to `threads` cores. A job that runs out of time or memory, or
    crashes, raises an `EvaluationError` with the reason; the next job gets a new child.

    Jobs of one worker run one after the other, from whichever thread they are asked.

    Args:
        threads: Threads of an inference.
        preload: Runtimes whose libraries the child imports as soon as it starts, so that
            `start()` lets the slow imports overlap with other work.
        memory_limit_bytes: Most memory the child may allocate; default half of the machine's.
        cpus: Cores to run on; default the last `threads` of those this process may use, as
            the first ones serve most interrupts.
    """

    def __init__(
        self,
        threads: int = 1,
        *,
        preload: Sequence[str] = (),
        memory_limit_bytes: int | None = None,
        cpus: Sequence[int] | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"`threads` must be 1 or more, but got {threads}.")
        if memory_limit_bytes is not None and memory_limit_bytes < 1:
            raise ValueError(
                f"`memory_limit_bytes` must be above 0, but got {memory_limit_bytes}."
            )
        self.threads = threads
        self.memory_limit_bytes = memory_limit_bytes or _default_memory_limit()
        self._settings = _jobs.ChildSettings(
            cpus=tuple(cpus) if cpus is not None else _default_cpus(threads),
            memory_limit_bytes=self.memory_limit_bytes,
            preload=tuple(preload),
        )
        self._child: _Child | None = None
        self._lock = threading.RLock()
        self._owner = os.getpid()

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
    def cpus(self) -> tuple[int, ...]:
        """The cores that the child is pinned to."""
        return self._settings.cpus

    @property
    def pid(self) -> int | None:
        """The child's process id, or `None` while there is no child."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Start the child now and return at once; it imports what `preload` names."""
        with self._lock:
            if self._child is None or not self._child.is_alive():
                self.stop()
                self._child = _Child(self._settings, self.threads)

    def stop(self) -> None:
        """End the child. The worker can still be used: the next job starts a new child."""
        child = self._child
        if child is None or os.getpid() != self._owner:  # a fork must not end its parent's child
            return
        child.kill()  # before the lock: another thread may hold it, waiting for a job
        with self._lock:
            child, self._child = self._child, None
            if child is not None:
                child.close()

    def build(
        self,
        runtime: str,
        model: Path,
        artifact: Path,
        profile: HardwareProfile,
        *,
        timeout_s: float = 120.0,
    ) -> float:
        """Build the ONNX file `model` into `artifact`; return the seconds it took.

        Raises:
            EvaluationError: If it cannot be built, or a limit was hit. No artifact is left then.
        """
        job = _jobs.Build(runtime, model, artifact, profile)
        try:
            return self.run(job, timeout_s)
        finally:
            job.partial.unlink(missing_ok=True)

    def predict(
        self,
        runtime: str,
        artifact: Path,
        inputs: Array,
        *,
        threads: int | None = None,
        timeout_s: float = 600.0,
    ) -> Array:
        """Run the artifact on each sample of `inputs`, `(n, ...)`, and stack the outputs.

        Artifacts take one sample at a time. Of several outputs the first one is returned.

        Raises:
            EvaluationError: If it cannot be loaded or run, or a limit was hit.
        """
        if not len(inputs):
            raise ValueError("`inputs` must hold at least one sample, but got none.")
        threads = self._check_threads(threads)
        sample_bytes = max(1, inputs[0].nbytes)
        step = max(1, _CHUNK_BYTES // sample_bytes)
        chunks = [
            self.run(
                _jobs.Predict(runtime, artifact, threads, inputs[start : start + step]), timeout_s
            )
            for start in range(0, len(inputs), step)
        ]
        return np.concatenate(chunks)

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
        """Time the artifact on random inputs, in turns with `baseline`, inside the child.

        The time limit follows from the protocol if none is given.

        Raises:
            EvaluationError: If it cannot be loaded or run, or a limit was hit.
        """
        threads = self._check_threads(threads)
        timeout_s = timeout_s or _LOAD_S + 3 * protocol.limit_s
        return self.run(_jobs.Time(runtime, artifact, threads, baseline, protocol), timeout_s)

    def time_block(
        self,
        runtime: str,
        artifact: Path,
        *,
        protocol: LatencyProtocol,
        threads: int | None = None,
        timeout_s: float = 120.0,
    ) -> Rounds:
        """Time one block of calls; return it as one round.

        The artifact stays loaded and warm for the next block.

        Raises:
            EvaluationError: If it cannot be loaded or run, or a limit was hit.
        """
        threads = self._check_threads(threads)
        return self.run(_jobs.TimeBlock(runtime, artifact, threads, protocol), timeout_s)

    def time_layers(
        self,
        runtime: str,
        artifact: Path,
        *,
        baseline: Path | None = None,
        n_runs: int = 30,
        threads: int | None = None,
        timeout_s: float = 120.0,
    ) -> tuple[LayerTimes, LayerTimes | None]:
        """Time the layers of the artifact in place, in turns with `baseline` if there is one.

        Both run in one window, so that the ratio of their totals is free of the machine's drift.

        Returns:
            The times of the artifact, and those of the baseline.

        Raises:
            EvaluationError: If it cannot be loaded or run, or the runtime cannot tell its layers
                apart (reason "unavailable").
        """
        threads = self._check_threads(threads)
        artifacts = (artifact,) if baseline is None else (artifact, baseline)
        times = self.run(_jobs.TimeLayers(runtime, artifacts, threads, n_runs), timeout_s)
        return times[0], None if baseline is None else times[1]

    def _check_threads(self, threads: int | None) -> int:
        if threads is None:
            return self.threads
        if not 1 <= threads <= self.threads:
            raise ValueError(
                f"`threads` must be in 1..{self.threads}, the threads of this worker, "
                f"but got {threads}."
            )
        return threads

    def run(self, job: _jobs.Job[T], timeout_s: float) -> T:
        """Let the child carry out any job.

        Raises:
            EvaluationError: If the job fails, or a limit was hit.
        """
        with self._lock:
            self.start()
            child = self._child
            assert child is not None
            try:
                reply = child.ask(job, timeout_s)
            except BaseException:  # also a KeyboardInterrupt: what the child does now is unknown
                self.stop()
                raise
            if reply.resident_bytes > self.memory_limit_bytes // 2:
                self.stop()  # a library leaks: start afresh before the limit fails a candidate
        if reply.error is not None:
            raise reply.error
        return reply.value


class _Child:
    """The process and the three pipes to it: requests, replies, and the lifeline."""

    def __init__(self, settings: _jobs.ChildSettings, threads: int) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        # Nothing is ever written to the lifeline: its end closes when this process dies.
        lifeline_read, self._lifeline = os.pipe()
        self._requests = Connection(request_write, readable=False)
        self._replies = Connection(reply_read, writable=False)
        # What libraries print goes to a file: it must not mix with our output, and after a
        # crash its end often says why.
        self._log: IO[bytes] = tempfile.TemporaryFile(buffering=0)
        child_fds = (request_read, reply_write, lifeline_read)
        # -P: a file in the working folder must not take the place of an installed module.
        command = [sys.executable, "-P", "-m", f"{__package__}._child"]
        arguments = [settings.to_text(), *map(str, child_fds)]
        try:
            self.process = subprocess.Popen(
                command + arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=_environment(threads),
                pass_fds=child_fds,
                start_new_session=True,
            )
        except OSError as error:
            self._close_files()
            raise EvaluationError(
                f"The worker process could not be started: {error}.", "worker"
            ) from error
        finally:
            for fd in child_fds:
                os.close(fd)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, job: _jobs.Job[T], timeout_s: float) -> _jobs.Reply[T]:
        """Send a job and wait for its reply."""
        os.ftruncate(self._log.fileno(), 0)
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self.kill()

        # Killing the child ends whatever this thread waits for: a reply, or room in the pipe.
        watchdog = threading.Timer(timeout_s, end)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._requests.send(job)
            reply: _jobs.Reply[T] = self._replies.recv()
        except (EOFError, OSError) as error:
            if is_late.is_set():
                raise EvaluationError(
                    f"{job.title} must end within {timeout_s:g} s, but did not, and was stopped. "
                    "Raise the time limit if the model is that slow.",
                    "timeout",
                ) from None
            raise self._crash_error(job.title) from error
        finally:
            watchdog.cancel()
            watchdog.join()
        if is_late.is_set():  # the reply came in the last moment: the child is gone, all the same
            self.process.wait()
        return reply

    def _crash_error(self, title: str) -> EvaluationError:
        status = self.process.wait()
        how = f"exit status {status}" if status >= 0 else _signal_name(-status)
        if status == -signal.SIGKILL:
            how += ", most likely as the machine ran out of memory"
        text = f"{title} ended the worker process ({how})."
        said = self._log_tail()
        if said:
            text += f" Its last words: {said}"
        is_memory = status == -signal.SIGKILL or speaks_of_memory(said)
        return EvaluationError(text, "memory" if is_memory else "crash")

    def _log_tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        data = os.pread(self._log.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES))
        return data.decode(errors="replace").replace("\0", "").strip()

    def kill(self) -> None:
        """Kill the child and what it started, such as a linker."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the child, which keeps nothing that could be lost, and wait for its end."""
        self.kill()
        self.process.wait()
        self._close_files()

    def _close_files(self) -> None:
        self._requests.close()
        self._replies.close()
        os.close(self._lifeline)
        self._log.close()


def _environment(threads: int) -> dict[str, str]:
    """Return the child's environment: libraries read their thread counts at start-up."""
    environment = dict(os.environ)
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    return environment | TVM_POOL


def _default_cpus(threads: int) -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))[-threads:]


def _default_memory_limit() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
