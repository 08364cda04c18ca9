import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.timing import LatencyProtocol
from paredown.evaluators.worker import Worker
from paredown.hw_profiles.profile import HardwareProfile

QUICK = LatencyProtocol(warm_up_s=0, budget_s=0.05, limit_s=0.1, min_rounds=2)


class Bench:
    """A worker with the ill-behaved runtime, and a short way to ask it for something."""

    def __init__(self, worker: Worker, folder: Path, profile: HardwareProfile) -> None:
        self.worker = worker
        self.artifact = folder / "artifact.txt"
        self._folder = folder
        self._profile = profile

    def do(self, action: str, timeout_s: float = 30.0) -> float:
        model = self._folder / f"{action}.model"
        model.write_text(action)
        return self.worker.build(
            "ill-behaved", model, self.artifact, self._profile, timeout_s=timeout_s
        )

    def fail(self, action: str, timeout_s: float = 30.0) -> EvaluationError:
        with pytest.raises(EvaluationError, match=r"Building '.*' with ill-behaved") as info:
            self.do(action, timeout_s)
        return info.value


@pytest.fixture
def bench(ill_behaved: str, tmp_path: Path, profile: HardwareProfile) -> Iterator[Bench]:
    with Worker() as worker:
        yield Bench(worker, tmp_path, profile)


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_build_leaves_the_whole_artifact(bench: Bench) -> None:
    assert bench.do("fine") >= 0
    assert bench.artifact.read_text() == "whole"


@pytest.mark.parametrize(
    ("action", "reason", "match"),
    [
        ("segfault", "crash", "SIGSEGV"),
        ("abort", "crash", "SIGABRT.*LLVM ERROR: Cannot select intrinsic"),
        ("exit", "crash", "exit status 3"),
        ("kill", "memory", "SIGKILL, most likely as the machine ran out of memory"),
    ],
)
def test_crash_fails_one_job_only(bench: Bench, action: str, reason: str, match: str) -> None:
    bench.do("fine")
    first = bench.worker.pid
    bench.artifact.unlink()
    error = bench.fail(action)
    assert error.reason == reason
    assert re.search(match, str(error))
    assert [path.name for path in bench.artifact.parent.glob("*artifact*")] == []
    bench.do("fine")
    assert bench.worker.pid != first


def test_failed_build_keeps_an_older_artifact(bench: Bench) -> None:
    bench.artifact.write_text("old")
    bench.fail("segfault")
    assert bench.artifact.read_text() == "old"


def test_library_error_is_passed_on_and_the_child_lives(bench: Bench) -> None:
    bench.do("fine")
    pid = bench.worker.pid
    error = bench.fail("fail")
    assert error.reason == "build"
    assert "RuntimeError: first words" in str(error)
    assert str(error).endswith("last words")
    assert len(str(error)) < 1000
    assert "in build" in error.__notes__[0]
    assert bench.fail("sysexit").reason == "build"
    assert bench.worker.pid == pid


def test_hang_ends_at_the_time_limit(bench: Bench) -> None:
    bench.do("fine")
    start = time.monotonic()
    error = bench.fail("hang", timeout_s=0.5)
    assert time.monotonic() - start < 3
    assert error.reason == "timeout"
    assert "must end within 0.5 s" in str(error)
    bench.do("fine")


def test_time_limit_ends_what_the_child_started(bench: Bench, tmp_path: Path) -> None:
    bench.do("fine")
    bench.fail("linker", timeout_s=1.0)
    linker = int((tmp_path / "linker.pid").read_text())
    wait_until(lambda: not is_running(linker))


def test_memory_limit_fails_the_job(
    ill_behaved: str, tmp_path: Path, profile: HardwareProfile
) -> None:
    with Worker(memory_limit_bytes=2 << 30) as worker:
        bench = Bench(worker, tmp_path, profile)
        error = bench.fail("memory")
        assert error.reason == "memory"
        pid = worker.pid
        bench.do("fine")
        assert worker.pid == pid


def test_output_of_libraries_stays_out_of_ours(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.do("noise")
    assert capfd.readouterr() == ("", "")


def test_child_is_a_pinned_session_of_its_own() -> None:
    with Worker() as worker:
        worker.start()
        pid = worker.pid
        assert pid is not None
        assert os.getsid(pid) == pid  # Ctrl-C goes to the terminal's session
        with pytest.raises(EvaluationError, match=r"No such file"):
            worker.predict("onnxruntime", Path("nothing.onnx"), np.zeros((1, 1)))
        assert len(os.sched_getaffinity(pid)) == 1
        assert b"TVM_NUM_THREADS=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    assert worker.pid is None
    assert not is_running(pid)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this needs two cores")
def test_pool_rests_when_a_block_is_timed(large_net: Path, profile: HardwareProfile) -> None:
    def pool_ns() -> int:
        tasks = Path(f"/proc/{worker.pid}/task")
        pool = (task for task in tasks.iterdir() if task.name != str(worker.pid))
        return sum(int((task / "schedstat").read_text().split()[0]) for task in pool)

    library = large_net.with_suffix(".so")
    with Worker(threads=2) as worker:
        worker.build("tvm", large_net, library, profile.with_threads(2))
        before_ns = pool_ns()
        worker.time_block("tvm", library, protocol=QUICK)
        used_ns = pool_ns()
        assert used_ns - before_ns > 1_000_000
        time.sleep(0.05)
        assert pool_ns() == used_ns


PARENT = """
import signal
import sys
from pathlib import Path
from paredown.evaluators.worker import Worker
from paredown.hw_profiles.detect import detect_profile

def do(action):
    Path(f"{action}.model").write_text(action)
    worker.build("ill-behaved", Path(f"{action}.model"), Path("a.txt"), detect_profile())

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run
worker = Worker()
do("fine")
print(worker.pid, flush=True)
try:
    do(sys.argv[1])
except KeyboardInterrupt:
    print(worker.pid, flush=True)
do("fine")
print(worker.pid, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def parent_of_worker(action: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process whose worker has the job in hand; yield it, and its worker's process id.

    It hangs in native code, with the interpreter lock held, so no Python thread can help.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, action],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            if action == "fine":
                assert int(parent.stdout.readline()) == child
            else:
                wait_until((folder / "hangs.txt").exists)
            assert is_running(child)
            yield parent, child
        finally:
            parent.kill()


@pytest.mark.usefixtures("ill_behaved")
def test_interrupt_in_the_parent_ends_the_job(tmp_path: Path) -> None:
    with parent_of_worker("hang", tmp_path) as (parent, child):
        parent.send_signal(signal.SIGINT)
        assert parent.stdout is not None
        assert parent.stdout.readline() == "None\n"  # there is no worker any more
        assert not is_running(child)
        assert int(parent.stdout.readline()) != child  # the next job has a new one


@pytest.mark.usefixtures("ill_behaved")
@pytest.mark.parametrize("action", ["fine", "hang"])
def test_child_ends_with_a_killed_parent(tmp_path: Path, action: str) -> None:
    with parent_of_worker(action, tmp_path) as (parent, child):
        parent.kill()
    wait_until(lambda: not is_running(child))


def test_baseline_stays_loaded(bench: Bench, ill_behaved: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("base.txt", "a.txt", "b.txt")]
    for path in paths:
        path.write_text("whole")
    base, *candidates = paths
    for candidate in [*candidates, *candidates]:
        rounds = bench.worker.time(ill_behaved, candidate, baseline=base, protocol=QUICK)
        assert rounds.baseline_us is not None
        assert len(rounds.candidate_us) == len(rounds.baseline_us)
    bench.worker.time(ill_behaved, base, baseline=base, protocol=QUICK)
    loads = (tmp_path / "loads.txt").read_text().split()
    # The first one twice: once for what the library allocates for all models.
    assert loads == ["base.txt", "base.txt", "a.txt", "b.txt", "a.txt", "b.txt"]


def test_changed_artifact_is_loaded_again(bench: Bench, ill_behaved: str, tmp_path: Path) -> None:
    artifact = tmp_path / "a.txt"
    for content in ("first", "second!"):
        artifact.write_text(content)
        bench.worker.predict(ill_behaved, artifact, np.ones((1, 1), np.float32))
        bench.worker.predict(ill_behaved, artifact, np.ones((1, 1), np.float32))
    # Once for what the library allocates for all models, then once for each content.
    assert (tmp_path / "loads.txt").read_text().split() == ["a.txt", "a.txt", "a.txt"]


def test_large_inputs_go_in_pieces(bench: Bench, ill_behaved: str, tmp_path: Path) -> None:
    artifact = tmp_path / "wide.txt"
    artifact.write_text("whole")
    inputs = np.ones((5, 5_000_000), np.float32) * np.arange(5, dtype=np.float32)[:, None]
    outputs = bench.worker.predict(ill_behaved, artifact, inputs)
    assert outputs.shape == inputs.shape
    np.testing.assert_array_equal(outputs[:, 17], 2 * np.arange(5))


def test_wrong_inputs_are_refused(bench: Bench, ill_behaved: str, tmp_path: Path) -> None:
    artifact = tmp_path / "a.txt"
    artifact.write_text("whole")
    with pytest.raises(ValueError, match="at least one sample"):
        bench.worker.predict(ill_behaved, artifact, np.ones((0, 1)))
    with pytest.raises(EvaluationError, match=r"takes the shape \(None, 1\)"):
        bench.worker.predict(ill_behaved, artifact, np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"`threads` must be in 1\.\.1"):
        bench.worker.predict(ill_behaved, artifact, np.ones((1, 1)), threads=2)


def test_unknown_runtime_is_named(bench: Bench) -> None:
    with pytest.raises(EvaluationError, match="Did you mean 'openvino'") as info:
        bench.worker.predict("openvin", Path("nothing"), np.ones((1, 1)))
    assert info.value.reason == "unavailable"


def test_start_keeps_a_running_child() -> None:
    with Worker() as worker:
        worker.start()
        first = worker.pid
        worker.start()
        assert worker.pid == first


def test_impossible_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="`threads` must be 1 or more"):
        Worker(0)
    with pytest.raises(ValueError, match="`memory_limit_bytes` must be above 0"):
        Worker(memory_limit_bytes=0)


@pytest.mark.slow
def test_memory_does_not_grow_over_many_jobs(
    tmp_path: Path, small_net: Path, large_net: Path, profile: HardwareProfile
) -> None:
    inputs = np.ones((4, 2, 12, 12), np.float32)
    sizes = []
    with Worker() as worker:
        for index in range(150):
            artifact = tmp_path / f"candidate-{index % 7}.onnx"
            worker.build("onnxruntime", small_net if index % 2 else large_net, artifact, profile)
            worker.predict("onnxruntime", artifact, inputs)
            worker.time("onnxruntime", artifact, baseline=large_net, protocol=QUICK)
            pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    assert max(sizes[100:]) - max(sizes[30:60]) < 8 << 20
