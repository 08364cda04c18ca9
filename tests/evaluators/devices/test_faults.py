"""Each way in which a device can fail, with real processes: jobs go on or end with a reason."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from paredown.evaluators import EvaluationError, LatencyProtocol
from paredown.evaluators.devices.pool import DevicePool
from paredown.evaluators.devices.session import remote_errors
from paredown.evaluators.timing import Rounds
from paredown.hw_profiles import HardwareProfile
from tests.rpc.processes import Cable, DeviceServer, Tracker, free_port

pytestmark = pytest.mark.slow

Libraries = tuple[Path, Path]
ProfileOf = Callable[..., HardwareProfile]
LONG = LatencyProtocol(budget_s=3.0, goal=1e-9)  # long enough to do something to the device
SHORT = LatencyProtocol(budget_s=0.2)
ONE_CALL = LatencyProtocol(block_s=60.0, min_rounds=1, budget_s=60.0)  # of a minute
LIMIT_S = 8
# What `evaluators/README.md` states: each of three tries may take the limit of a job, and as long
# and 30 s to get a device.
BOUND_S = 3 * (2 * LIMIT_S + 30)


class Bench:
    """A pool, what it reported, and a job that runs in a thread."""

    def __init__(self, profile: HardwareProfile, library: Path) -> None:
        self.reports: list[str] = []
        self.pool = DevicePool(profile, report=self.reports.append)
        self._library = library
        self._executor = ThreadPoolExecutor(1)

    def begin(self, protocol: LatencyProtocol = LONG) -> "Future[Rounds]":
        return self._executor.submit(
            self.pool.time, "tvm", self._library, baseline=None, protocol=protocol
        )

    def close(self) -> None:
        self.pool.stop()
        self._executor.shutdown()


@pytest.fixture
def bench(libraries: Libraries, profile_of: ProfileOf) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(connection: str, limit_s: int = LIMIT_S) -> Bench:
        made.append(Bench(profile_of(connection, limit_s), libraries[0]))
        made[-1].pool.start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def test_a_device_that_is_killed_and_comes_back_finishes_the_job(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one = bench(f"rpc://{server.address}")
    job = one.begin()
    server.wait_for_session()
    server.kill()
    server.start()
    assert job.result(BOUND_S).candidate_us
    assert any(f"{server.address} is lost" in text for text in one.reports)
    assert any(f"{server.address} is back" in text for text in one.reports)


def test_a_device_that_stays_away_ends_the_job_with_its_reason(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one = bench(f"rpc://{server.address}")
    job = one.begin()
    server.wait_for_session()
    server.kill()
    with pytest.raises(EvaluationError, match=f"No device behind rpc://{server.address}") as error:
        job.result(BOUND_S)
    assert error.value.reason == "device"


@pytest.mark.parametrize(
    "words",
    [
        "Check failed: code != RPCCode::kShutdown (1 vs. 1)",
        "Check failed: (code == RPCCode::kReturn) is false: code=1",  # as a library was loaded
        "Socket SockChannel::Recv Error:Connection reset by peer",
    ],
)
def test_a_server_that_goes_in_the_middle_of_a_call_is_a_lost_device(words: str) -> None:
    with pytest.raises(EvaluationError, match="the connection is lost") as error:
        with remote_errors("Timing"):
            raise RuntimeError(words)
    assert error.value.reason == "device"


def test_a_device_that_freezes_is_given_up_at_the_limit_and_taken_back_when_it_thaws(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one = bench(f"rpc://{server.address}")
    assert one.begin(SHORT).result(60).candidate_us  # the child has imported TVM now
    job = one.begin()
    server.wait_for_session(2)
    server.signal(signal.SIGSTOP)
    give_up = time.monotonic() + LIMIT_S + 10
    while not one.reports:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert re.search(rf"must end within ({LIMIT_S}|15) s, but did not", one.reports[0])
    server.signal(signal.SIGCONT)
    assert job.result(BOUND_S).candidate_us


def test_a_device_frozen_for_good_is_no_hang(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one = bench(f"rpc://{server.address}")
    assert one.begin(SHORT).result(60).candidate_us
    server.signal(signal.SIGSTOP)
    with within(BOUND_S), pytest.raises(EvaluationError, match="can be had") as error:
        one.begin().result()
    assert error.value.reason == "device"
    server.signal(signal.SIGCONT)


def test_a_wrong_key_is_named(server: DeviceServer, bench: Callable[..., Bench]) -> None:
    one = bench(f"rpc://{server.address}/other")
    with pytest.raises(EvaluationError, match="needs the server's key") as error:
        one.pool.first_contact()
    assert error.value.reason == "device"


def test_an_unknown_key_of_a_tracker_brings_those_it_has(
    tracker: Tracker, tmp_path: Path, bench: Callable[..., Bench]
) -> None:
    with DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port):
        one = bench(f"tracker://127.0.0.1:{tracker.port}/po")
        with pytest.raises(EvaluationError, match="no device under key 'po'; its keys are: pi"):
            one.pool.first_contact()


def test_what_is_no_tracker_is_told(server: DeviceServer, bench: Callable[..., Bench]) -> None:
    one = bench(f"tracker://{server.address}/pi")
    with pytest.raises(EvaluationError, match=r"closed the connection|no TVM RPC tracker"):
        one.pool.first_contact()


def test_a_tracker_that_goes_and_comes_back_is_waited_for(
    tracker: Tracker, tmp_path: Path, bench: Callable[..., Bench]
) -> None:
    with DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port) as server:
        one = bench(f"tracker://127.0.0.1:{tracker.port}/pi")
        assert one.begin(SHORT).result(60).candidate_us
        tracker.kill()
        server.wait_for("is away")
        job = one.begin(SHORT)
        time.sleep(1.0)  # the job looks for the tracker in vain
        assert not job.done()
        tracker.start()
        assert job.result(BOUND_S).candidate_us


def test_the_other_device_takes_over_when_one_dies(
    tracker: Tracker, tmp_path: Path, bench: Callable[..., Bench]
) -> None:
    with (
        DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port) as first,
        DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port) as second,
    ):
        one = bench(f"tracker://127.0.0.1:{tracker.port}/pi")
        job = one.begin()
        deadline = time.monotonic() + 60
        while "session begins" not in first.log() + second.log():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        dying, other = (first, second) if "session begins" in first.log() else (second, first)
        dying.kill()
        assert job.result(BOUND_S).candidate_us
        health = {device.address: device for device in one.pool.health}
        assert health[dying.address].lost_because
        assert health[other.address].n_jobs == 1


def test_a_cut_network_is_a_lost_device(server: DeviceServer, bench: Callable[..., Bench]) -> None:
    with Cable(server.port) as cable:
        one = bench(f"rpc://127.0.0.1:{cable.port}")
        job = one.begin()
        server.wait_for_session()
        cable.cut()
        assert job.result(BOUND_S).candidate_us
        assert any("is lost" in text for text in one.reports)


def test_a_crash_of_the_session_is_the_candidates_and_the_server_lives_on(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one = bench(f"rpc://{server.address}", 60)
    job = one.begin(ONE_CALL)
    os.kill(server.wait_for_work(), signal.SIGSEGV)
    with pytest.raises(EvaluationError, match=r"ended the session on it \(SIGSEGV\)") as error:
        job.result(60)
    assert error.value.reason == "crash"
    assert one.begin(SHORT).result(60).candidate_us
    assert one.reports == []


def test_the_server_does_not_wait_for_a_client_that_is_gone(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    one, other = bench(f"rpc://{server.address}"), bench(f"rpc://{server.address}")
    assert other.begin(SHORT).result(60).candidate_us
    job = one.begin(ONE_CALL)
    server.wait_for_work()
    one.pool.stop()
    with within(5), pytest.raises(EvaluationError, match="ended the worker process"):
        job.result()  # it is not tried again
    assert one.reports == []
    with within(LIMIT_S):
        assert other.begin(SHORT).result().candidate_us


def test_a_client_that_says_nothing_is_sent_away(
    server: DeviceServer, bench: Callable[..., Bench]
) -> None:
    import socket

    one = bench(f"rpc://{server.address}")
    with socket.create_connection(("127.0.0.1", server.port)):
        assert one.begin(SHORT).result(60).candidate_us
    assert "refused: no answer in time" in server.log()
