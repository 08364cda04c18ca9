import dataclasses
import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from paredown.evaluators.timing import (
    Block,
    ContentionMeter,
    LatencyProtocol,
    energy_per_run,
    time_rounds,
)

SHORT = LatencyProtocol(warm_up_s=0.005, block_s=0.001, budget_s=0.1, limit_s=1.0)


def count_to(n: int) -> None:
    for _ in range(n):
        pass


class Meter:
    """Tells ten millijoules for each call that it is told of."""

    def __init__(self, is_there: bool = True) -> None:
        self.is_there = is_there
        self.n_calls = 0

    def start(self) -> None:
        self.n_calls = 0

    def stop(self) -> float | None:
        return 10.0 * self.n_calls


@pytest.mark.slow
def test_energy_is_that_of_one_call() -> None:
    meter = Meter()

    def call() -> None:
        time.sleep(0.001)
        meter.n_calls += 1

    assert energy_per_run(Block(call, SHORT), meter) == pytest.approx(10.0)
    assert energy_per_run(Block(call, SHORT), Meter(is_there=False)) is None


@pytest.mark.slow
def test_ratio_of_work_known_beforehand() -> None:
    rounds = time_rounds(
        lambda: count_to(20_000), lambda: count_to(10_000), LatencyProtocol(budget_s=0.5)
    )
    assert rounds.baseline_us is not None
    ratio = np.median(np.divide(rounds.candidate_us, rounds.baseline_us))
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_waiting_counts_as_time() -> None:
    """A call that waits, as for a device, takes its wall time and not its CPU time."""
    rounds = time_rounds(lambda: time.sleep(0.005), None, SHORT)
    assert rounds.baseline_us is None
    assert 5_000 <= np.median(rounds.candidate_us) < 50_000


def test_time_lost_to_other_processes_does_not_count() -> None:
    """Two processes share one core, so a call lasts about twice as long as it computes."""
    lasted_us: list[float] = []
    computed_us: list[float] = []

    def call() -> None:
        start, cpu_start = time.perf_counter_ns(), time.thread_time_ns()
        count_to(300_000)
        computed_us.append((time.thread_time_ns() - cpu_start) / 1e3)
        lasted_us.append((time.perf_counter_ns() - start) / 1e3)

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    rival = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        assert rival.stdout is not None
        rival.stdout.readline()  # it runs
        rounds = time_rounds(call, None, dataclasses.replace(SHORT, min_rounds=20))
    finally:
        rival.kill()
        rival.communicate()
        os.sched_setaffinity(0, cores)
    assert sum(lasted_us) > 1.3 * sum(computed_us)
    assert np.median(rounds.candidate_us) == pytest.approx(np.median(computed_us), rel=0.2)


def test_order_is_swapped_from_round_to_round() -> None:
    calls: list[str] = []

    def candidate() -> None:
        calls.append("candidate")
        time.sleep(0.002)

    def baseline() -> None:
        calls.append("baseline")
        time.sleep(0.002)

    protocol = dataclasses.replace(SHORT, warm_up_s=0, min_rounds=4, max_rounds=4, goal=1e-9)
    rounds = time_rounds(candidate, baseline, protocol)
    order = [call for index, call in enumerate(calls) if index == 0 or calls[index - 1] != call]
    assert len(rounds.candidate_us) == 4
    assert order[-5:] == ["candidate", "baseline", "candidate", "baseline", "candidate"]


def test_slow_call_gets_a_few_rounds_within_the_limit() -> None:
    protocol = LatencyProtocol(warm_up_s=0, budget_s=0.01, limit_s=0.02)
    rounds = time_rounds(lambda: time.sleep(0.03), None, protocol)
    assert len(rounds.candidate_us) == 3
    assert rounds.n_runs == 3


def test_rounds_go_on_until_the_budget_is_used_up() -> None:
    rng = np.random.default_rng(0)
    protocol = dataclasses.replace(SHORT, goal=1e-9, min_rounds=2)
    start = time.perf_counter()
    time_rounds(lambda: time.sleep(rng.uniform(0, 0.003)), None, protocol)
    assert 0.1 <= time.perf_counter() - start < 1.0


def test_garbage_collector_rests_meanwhile() -> None:
    states: set[bool] = set()
    time_rounds(lambda: states.add(gc.isenabled()), None, SHORT)
    assert states == {False}
    assert gc.isenabled()


def test_idle_helpers_are_no_contention() -> None:
    wait = threading.Event()
    helper = threading.Thread(target=wait.wait)
    helper.start()
    meter = ContentionMeter()
    time.sleep(0.05)
    assert meter.share() < 0.5
    wait.set()
    helper.join()


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("tolerance", 0.0, "`tolerance` must be finite and above 0"),
        ("goal", float("nan"), "`goal` must be finite"),
        ("block_s", -1.0, "`block_s` must be finite"),
        ("warm_up_s", -1.0, "`warm_up_s` must be finite and >= 0"),
        ("min_rounds", 0, "`min_rounds` must be at least 1"),
        ("max_rounds", 2, "at most `max_rounds`"),
    ],
)
def test_impossible_protocol_is_refused(field: str, value: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LatencyProtocol(**{field: value})  # type: ignore[arg-type]  # ints and floats mixed
