"""The timed loop: blocks of calls of a candidate and a baseline, in turns.

It runs inside the worker process, so nothing here talks to another process while the clock runs.
"""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import Protocol

from .device_server.energy import EnergyMeter
from .estimates import is_settled

Call = Callable[[], object]

# Reading the clocks takes about 1 us: a sample of this length hides it.
_MIN_SAMPLE_US = 100.0
_MIN_ROUNDS_AT_LIMIT = 3
ENERGY_S = 0.5  # counters step once in a millisecond, those of GPUs in up to 100


@dataclass(frozen=True, slots=True)
class LatencyProtocol:
    """How long and how often to time. The defaults suit models of 50 us to 20 ms.

    A round times one block of the candidate and one of the baseline; their order is swapped
    from round to round. Rounds go on until the result is certain, or the budget is used up. A
    slow model gets `min_rounds` even beyond the budget, within `limit_s`. Certainty is half the
    95 % confidence interval of the ratio (of the time, without a baseline), relative.
    """

    goal: float = 0.005  # timing ends early once the interval is as narrow as this
    tolerance: float = 0.02  # a result with a wider interval at the end is marked noisy
    min_rounds: int = 10
    max_rounds: int = 1000
    block_s: float = 0.005  # a block holds at least one timed call, whatever it takes
    warm_up_s: float = 0.05
    budget_s: float = 1.0
    limit_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("goal", "tolerance", "block_s", "budget_s", "limit_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be finite and above 0, but got {value}.")
        if not (math.isfinite(self.warm_up_s) and self.warm_up_s >= 0):
            raise ValueError(f"`warm_up_s` must be finite and >= 0, but got {self.warm_up_s}.")
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise ValueError(
                "`min_rounds` must be at least 1 and at most `max_rounds`, "
                f"but got {self.min_rounds} and {self.max_rounds}."
            )


@dataclass(frozen=True, slots=True)
class Rounds:
    """What the clock said: for each round, the median time of one call in its block."""

    candidate_us: tuple[float, ...]
    baseline_us: tuple[float, ...] | None  # `None`: timed without a baseline
    n_runs: int  # timed calls of the candidate
    contention: float = 0.0  # time that helper threads waited for a core, over the time in all
    notes: tuple[str, ...] = ()  # see `Latency`, as for the next two
    peak_memory_bytes: int | None = None
    energy_mj: float | None = None


class TimedBlock(Protocol):
    """A block of calls of one model, wherever it runs."""

    n_runs: int  # timed calls in the block

    def time_us(self) -> float:
        """Run the block; return the median time of one call in microseconds."""
        ...


class Meter(Protocol):
    """Measures energy on the machine that runs the model; `EnergyMeter` does on this one."""

    @property
    def is_there(self) -> bool:
        """Whether the machine shows what it uses."""
        ...

    def start(self) -> None:
        """Begin to measure."""
        ...

    def stop(self) -> float | None:
        """Return the millijoules since `start`, None where nothing shows them."""
        ...


class Block:
    """A call, and how many of it make one block."""

    def __init__(self, call: Call, protocol: LatencyProtocol) -> None:
        self._call = call
        call_us = self._warm_up(protocol.warm_up_s)
        self._group = max(1, math.ceil(_MIN_SAMPLE_US / call_us))
        self._samples = max(1, round(protocol.block_s * 1e6 / (call_us * self._group)))
        self.n_runs = self._group * self._samples

    def _warm_up(self, warm_up_s: float) -> float:
        """Call for `warm_up_s`, and at least twice; return the shortest time in microseconds."""
        self._call()  # first calls allocate, so their time says nothing
        end = perf_counter_ns() + warm_up_s * 1e9
        shortest_us = math.inf
        while math.isinf(shortest_us) or perf_counter_ns() < end:
            start = perf_counter_ns()
            self._call()
            shortest_us = min(shortest_us, (perf_counter_ns() - start) / 1e3)
        return max(shortest_us, 0.01)

    def time_us(self) -> float:
        """Run the block; return the median time of one call.

        The median is over short samples, so an interruption spoils few of them. One call goes
        before them, as the other model has just filled the caches.
        """
        self._call()
        waits_before = _n_waits()
        walls, cpus = self._time_samples()
        # A thread that never waited was off its core only when the scheduler gave the core to
        # another process. That time says nothing about the model, and a pinned process cannot
        # evade it, so the thread's CPU time counts then.
        has_waited = _n_waits() != waits_before
        times = walls if has_waited else [min(pair) for pair in zip(walls, cpus, strict=True)]
        return max(median(times), 1) / (1e3 * self._group)

    def _time_samples(self) -> tuple[list[int], list[int]]:
        """Return wall and CPU time of each sample, in nanoseconds."""
        call, calls = self._call, range(self._group)
        walls, cpus = [], []
        for _ in range(self._samples):
            cpu_start = thread_time_ns()
            start = perf_counter_ns()
            for _ in calls:
                call()
            walls.append(perf_counter_ns() - start)
            cpus.append(thread_time_ns() - cpu_start)
        return walls, cpus


def _n_waits() -> int:
    """Return how often this thread gave up its core of itself: for a lock, a device, a sleep."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class ContentionMeter:
    """How much the other threads of this process have waited for a core since it was made.

    The calling thread corrects for its own waits (see `Block.time_us`); its helpers cannot, and
    it waits for them.
    """

    def __init__(self) -> None:
        self._delay_ns = _helpers_delay_ns()
        self._start_ns = perf_counter_ns()

    def share(self) -> float:
        """Return the waiting time of all helper threads over the time that has passed."""
        elapsed_ns = perf_counter_ns() - self._start_ns
        return max(0, _helpers_delay_ns() - self._delay_ns) / max(1, elapsed_ns)


def _helpers_delay_ns() -> int:
    """Return how long the other threads of this process waited for a core so far.

    Where the kernel does not tell (`CONFIG_SCHED_INFO`), that is 0.
    """
    own = threading.get_native_id()
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        if int(task.parent.name) != own:
            with contextlib.suppress(OSError):  # the thread has just ended
                total += int(task.read_text().split()[1])
    return total


def time_rounds(candidate: Call, baseline: Call | None, protocol: LatencyProtocol) -> Rounds:
    """Time `candidate`, in turns with `baseline` if there is one, by `protocol`."""
    with without_garbage_collection():
        candidate_block = Block(candidate, protocol)
        baseline_block = None if baseline is None else Block(baseline, protocol)
        contention = ContentionMeter()
        rounds = alternate(candidate_block, baseline_block, protocol)
        share = contention.share()
        energy_mj = energy_per_run(candidate_block, EnergyMeter())
    return replace(rounds, contention=share, energy_mj=energy_mj)


def alternate(
    candidate: TimedBlock, baseline: TimedBlock | None, protocol: LatencyProtocol
) -> Rounds:
    """Time two blocks in turns, their order swapped from round to round, by `protocol`."""
    candidate_us: list[float] = []
    baseline_us: list[float] = []
    start = perf_counter_ns()
    while not _is_done(candidate_us, baseline_us, (perf_counter_ns() - start) / 1e9, protocol):
        if baseline is None:
            candidate_us.append(candidate.time_us())
        elif len(candidate_us) % 2:
            baseline_us.append(baseline.time_us())
            candidate_us.append(candidate.time_us())
        else:
            candidate_us.append(candidate.time_us())
            baseline_us.append(baseline.time_us())
    return Rounds(
        tuple(candidate_us),
        None if baseline is None else tuple(baseline_us),
        n_runs=len(candidate_us) * candidate.n_runs,
    )


def energy_per_run(block: TimedBlock, meter: Meter) -> float | None:
    """Return the millijoules of one call, None where nothing shows them.

    Args:
        block: Calls of the model, with no pauses between them.
        meter: Measures what the machine uses meanwhile.
    """
    if not meter.is_there:
        return None
    n_runs, start_ns = 0, perf_counter_ns()
    meter.start()
    while perf_counter_ns() - start_ns < ENERGY_S * 1e9:
        block.time_us()
        n_runs += block.n_runs + 1  # one call goes before those that are timed
    used_mj = meter.stop()
    return used_mj / n_runs if used_mj else None


def _is_done(
    candidate_us: list[float],
    baseline_us: list[float],
    elapsed_s: float,
    protocol: LatencyProtocol,
) -> bool:
    n_rounds = len(candidate_us)
    if n_rounds >= protocol.max_rounds:
        return True
    if elapsed_s > protocol.limit_s:
        return n_rounds >= min(_MIN_ROUNDS_AT_LIMIT, protocol.min_rounds)
    if n_rounds < protocol.min_rounds or n_rounds % 2:
        return False
    if elapsed_s > protocol.budget_s:
        return True
    return is_settled(candidate_us, baseline_us or None, protocol.goal)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the collector from running while the clock does."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
