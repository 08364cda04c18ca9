"""Threads of this process and the cores they run on, while times are taken."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import clock_gettime_ns, perf_counter_ns, sleep
from types import TracebackType

_PROBE_NS = 5_000_000
_PAUSE_S = 0.001


class OwnCores:
    """Keeps each thread that computes on a core of its own, as a context manager.

    Else Linux may wake two on one core, and leave them there for longer than a block takes. That
    was seen where all cores had just been busy.

    Args:
        calls: Compute with `threads` threads each; the threads may be the same or others. All are
            called here, to find them.
        threads: Threads of one call; nothing is done for 1.
    """

    def __init__(self, calls: Sequence[Callable[[], object]], threads: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self._cores: dict[int, int] = {}
        for call in calls if min(threads, len(cpus)) > 1 else ():
            # In a fixed order, so that a thread that serves all calls has one core for all.
            self._cores |= dict(zip(sorted(_busiest(call, threads)), cpus, strict=False))
        self._before: dict[int, set[int]] = {}

    def __enter__(self) -> None:
        for thread, cpu in self._cores.items():
            with contextlib.suppress(OSError):  # the thread has ended
                self._before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {cpu})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for thread, cpus in self._before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus)
        self._before = {}


def let_helpers_rest(limit_s: float = 1.0) -> None:
    """Wait until the other threads of this process use or want no core, at most for `limit_s`.

    Pools of threads spin for a while after a run, in the way of the process that is timed next.
    """
    end_ns = perf_counter_ns() + limit_s * 1e9
    own = threading.get_native_id()
    while any(_is_runnable(t) for t in _threads() if t != own) and perf_counter_ns() < end_ns:
        sleep(_PAUSE_S)


def _busiest(call: Callable[[], object], count: int) -> list[int]:
    """Return the threads of this process that compute most while `call` is called."""
    before = {thread: _used_ns(thread) for thread in _threads()}
    start_ns = perf_counter_ns()
    call()
    while perf_counter_ns() - start_ns < _PROBE_NS:
        call()
    used = {thread: _used_ns(thread) - before.get(thread, 0) for thread in _threads()}
    return sorted(used, key=used.__getitem__, reverse=True)[:count]


def _threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").glob("*")]


def _is_runnable(thread: int) -> bool:
    try:
        status = Path(f"/proc/self/task/{thread}/stat").read_text()
    except OSError:  # it has ended
        return False
    return status.rpartition(")")[2].split()[0] == "R"


def _used_ns(thread: int) -> int:
    """Return how long a thread of this process has used a core; 0 when it has ended."""
    try:
        return clock_gettime_ns(~thread << 3 | 6)  # its CPU clock, as the kernel numbers them
    except OSError:
        return 0
