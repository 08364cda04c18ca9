"""Real servers, trackers and sessions; what goes wrong with them is in `test_faults.py`."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paredown.evaluators import EvaluationError, LatencyProtocol, Worker, measure_latency
from paredown.evaluators.devices.pool import DevicePool
from paredown.hw_profiles import HardwareProfile, load_profile
from tests.rpc.processes import DeviceServer, Process, Tracker, free_port

pytestmark = pytest.mark.slow

Libraries = tuple[Path, Path]
ProfileOf = Callable[..., HardwareProfile]
SHORT = LatencyProtocol(budget_s=0.5)


def connection_of(server: DeviceServer, key: str = "board") -> str:
    return f"rpc://{server.address}/{key}"


@pytest.fixture(scope="module")
def pool(lasting_server: DeviceServer) -> Iterator[DevicePool]:
    with DevicePool(load_profile(f"local@{connection_of(lasting_server)}")) as pool:
        yield pool


def test_the_first_contact_tells_what_the_device_is(pool: DevicePool) -> None:
    state = pool.first_contact()
    assert state is not None
    assert (state["arch"], state["emulated"]) == (os.uname().machine, False)
    assert pool.emulated is False


def test_times_are_those_of_the_device(pool: DevicePool, libraries: Libraries) -> None:
    small, large = libraries
    latency = measure_latency(pool, "tvm", large, baseline=small, protocol=SHORT)
    with Worker(1) as worker:
        here = measure_latency(worker, "tvm", large, baseline=small, protocol=SHORT)
    assert latency.ratio is not None
    assert here.ratio is not None
    # The same machine and core: the network's time would make them about equal, or far slower.
    assert latency.ratio == pytest.approx(here.ratio, rel=0.4)
    assert latency.latency_us == pytest.approx(here.latency_us, rel=0.6)
    assert latency.n_runs > 100


def test_outputs_are_those_of_this_machine(pool: DevicePool, libraries: Libraries) -> None:
    inputs = np.random.default_rng(0).standard_normal((70, 2, 12, 12)).astype(np.float32)
    remote = pool.predict("tvm", libraries[0], inputs)
    with Worker(1) as worker:
        here = worker.predict("tvm", libraries[0], inputs)
    assert remote.shape == (70, 5)
    np.testing.assert_array_equal(remote, here)


def test_what_the_device_tells_comes_with_the_times(
    pool: DevicePool, libraries: Libraries
) -> None:
    rounds = pool.time("tvm", libraries[1], baseline=libraries[0], protocol=SHORT)
    assert rounds.peak_memory_bytes is not None
    assert 0 <= rounds.peak_memory_bytes < 1 << 30
    assert all(isinstance(note, str) for note in rounds.notes)


def test_a_fault_of_the_file_is_told_at_once_and_leaves_the_device(
    pool: DevicePool, libraries: Libraries, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(EvaluationError, match=r"Timing 'broken\.so'.* failed") as caught:
        pool.time("tvm", broken, baseline=None, protocol=SHORT)
    assert caught.value.reason == "run"
    assert pool.predict("tvm", libraries[0], np.zeros((1, 2, 12, 12), np.float32)).shape == (1, 5)
    assert all(device.lost_because is None for device in pool.health)


def test_only_tvm_runs_behind_rpc(pool: DevicePool, libraries: Libraries) -> None:
    with pytest.raises(EvaluationError, match=r"must be 'tvm' .* but got 'onnxruntime'"):
        pool.time("onnxruntime", libraries[0], baseline=None, protocol=SHORT)


def test_a_local_profile_is_refused(profile_of: ProfileOf) -> None:
    with pytest.raises(ValueError, match="must be remote, but its connection is local"):
        DevicePool(profile_of("local"))


def test_two_devices_of_a_key_work_at_the_same_time(
    tracker: Tracker, tmp_path: Path, libraries: Libraries, profile_of: ProfileOf
) -> None:
    two = LatencyProtocol(budget_s=4.0, goal=1e-9)
    with (
        DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port) as first,
        DeviceServer(tmp_path, free_port(), key="pi", tracker=tracker.port) as second,
        DevicePool(profile_of(f"tracker://127.0.0.1:{tracker.port}/pi"), max_parallel=2) as pool,
    ):
        assert sorted(pool.addresses()) == sorted([first.address, second.address])
        threads = [
            threading.Thread(
                target=pool.time,
                args=("tvm", libraries[0]),
                kwargs={"baseline": None, "protocol": two},
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        first.wait_for_session()
        second.wait_for_session()
        # Both sessions have begun and neither is over: they overlap.
        assert "session is over" not in first.log() + second.log()
        for thread in threads:
            thread.join()
        assert {device.address: device.n_jobs for device in pool.health} == {
            first.address: 1,
            second.address: 1,
        }


def test_a_server_of_tvms_own_serves_too(
    tmp_path: Path, libraries: Libraries, profile_of: ProfileOf
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    with (
        Process(command, tmp_path / "log", f"bind to 127.0.0.1:{port}"),
        DevicePool(profile_of(f"rpc://127.0.0.1:{port}")) as pool,
    ):
        assert pool.first_contact() is None
        rounds = pool.time("tvm", libraries[0], baseline=None, protocol=SHORT)
        assert rounds.candidate_us
        assert rounds.peak_memory_bytes is None


def test_the_packed_server_needs_no_paredown(
    tmp_path: Path, libraries: Libraries, profile_of: ProfileOf
) -> None:
    from paredown.evaluators.devices.packing import pack_server

    pack_server(tmp_path / "device.pyz")
    command: list[str | Path] = [sys.executable, "-I", tmp_path / "device.pyz"]
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--tracker HOST:PORT" in said
    with (
        DeviceServer(tmp_path, free_port(), command=command) as server,
        DevicePool(profile_of(f"rpc://{server.address}")) as pool,
    ):
        assert pool.time("tvm", libraries[0], baseline=None, protocol=SHORT).candidate_us
