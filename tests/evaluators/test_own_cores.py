import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from paredown.evaluators import own_cores
from paredown.evaluators.own_cores import OwnCores, let_helpers_rest

DATA = bytes(1 << 20)
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this needs two cores")


class Pool:
    """One helper that computes beside the caller, and one that only waits."""

    def __init__(self) -> None:
        self.helper, self.idle = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        ids = [pool.submit(threading.get_native_id).result() for pool in (self.helper, self.idle)]
        self.main, self.busy, self.waiting = threading.get_native_id(), *ids

    def __call__(self) -> None:
        half = self.helper.submit(self.compute)
        self.compute()
        half.result()

    def compute(self) -> None:
        hashlib.sha256(DATA).digest()  # without the interpreter's lock


def make_pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.helper.shutdown()
    pool.idle.shutdown()


pool = pytest.fixture(make_pool, name="pool")
other = pytest.fixture(make_pool, name="other")


@two_cores
def test_threads_that_compute_get_cores_of_their_own(pool: Pool, other: Pool) -> None:
    everywhere = os.sched_getaffinity(0)
    with OwnCores([pool, other], threads=2):
        main, busy, others = map(os.sched_getaffinity, (pool.main, pool.busy, other.busy))
        assert len(main) == len(busy) == 1
        assert main != busy == others
        assert os.sched_getaffinity(pool.waiting) == everywhere
    for thread in (pool.main, pool.busy, other.busy):
        assert os.sched_getaffinity(thread) == everywhere


@two_cores
def test_cores_are_free_again_after_an_error(pool: Pool) -> None:
    everywhere = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError, match="out"), OwnCores([pool], threads=2):
        raise RuntimeError("out")
    assert os.sched_getaffinity(pool.busy) == everywhere


def test_one_thread_is_left_alone(pool: Pool) -> None:
    everywhere = os.sched_getaffinity(0)
    with OwnCores([pool], threads=1):
        assert os.sched_getaffinity(0) == os.sched_getaffinity(pool.busy) == everywhere


def test_threads_that_end_meanwhile_are_no_error(pool: Pool) -> None:
    with OwnCores([pool], threads=2):
        pool.helper.shutdown()


def test_helpers_come_to_rest(pool: Pool) -> None:
    before_ns = own_cores._used_ns(pool.busy)
    work = pool.helper.submit(hashlib.pbkdf2_hmac, "sha256", b"", b"", 1_000_000)
    while own_cores._used_ns(pool.busy) - before_ns < 20_000_000:  # it computes, without the lock
        time.sleep(0.001)
    let_helpers_rest(limit_s=60.0)
    used_ns = own_cores._used_ns(pool.busy)
    work.result()
    assert own_cores._used_ns(pool.busy) - before_ns < 1.1 * (used_ns - before_ns)


def test_rest_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    monkeypatch.setattr(own_cores, "_is_runnable", lambda thread: True)
    let_helpers_rest(limit_s=0.05)  # without a limit this would not return
