"""Servers and trackers as real processes on this machine's loopback, which tests may ill-treat."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_START_S = 120.0  # an emulated one on a busy machine


class Process:
    """A process in a group of its own; its output goes to a file.

    Args:
        command: What to run.
        log: Where its output goes.
        ready: It is ready once this stands in its output.
        environment: Added to this process's.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        ready: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._log, self._ready = [str(part) for part in command], log, ready
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, for the first time or again."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
        self.wait_for(self._ready)

    def log(self) -> str:
        """Return what it has written since it was started."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, *, times: int = 1, within_s: float = _START_S) -> None:
        """Wait until a text stands so many times in its output."""
        end = time.monotonic() + within_s
        while self.log().count(text) < times:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no '{text}' from {self._command}: {self.log()}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it started."""
        assert self._process is not None
        for pid in (self._process.pid, *children(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def children(self) -> list[int]:
        """Return the processes that it started and that still run."""
        assert self._process is not None
        return children(self._process.pid)

    def kill(self) -> None:
        """Kill it and all that it started."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()


class DeviceServer(Process):
    """The server of a device.

    Args:
        folder: For its output.
        port: Where it listens.
        key: Its name.
        tracker: Port of the tracker that hands it out.
        command: What runs it, instead of this Python's module.
        environment: Added to this process's.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        key: str = "",
        tracker: int | None = None,
        command: Sequence[str | Path] = (
            sys.executable,
            "-m",
            "paredown.evaluators.device_server",
        ),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        options = ["--port", str(port), *(["--key", key] if key else [])]
        if tracker is not None:
            options += ["--tracker", f"127.0.0.1:{tracker}"]
        log = folder / f"server-{port}.log"
        super().__init__([*command, *options], log, "listening on", environment)
        if tracker is not None:
            self.wait_for("registered at tracker")

    def wait_for_session(self, number: int = 1) -> None:
        """Wait until its nth session has begun."""
        self.wait_for("session begins", times=number)

    def wait_for_work(self, limit_s: float = 60.0) -> int:
        """Wait until a session computes with what it was sent, and return its process.

        To load a library takes a small part of the CPU time that is waited for.
        """
        started: dict[int, float] = {}  # CPU time when the library was loaded
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            for pid in self.children():
                with contextlib.suppress(OSError):  # it has just ended
                    folder = os.readlink(f"/proc/{pid}/cwd")
                    if f"{folder}/" in Path(f"/proc/{pid}/maps").read_text():
                        used_s = cpu_seconds(pid)
                        if used_s > started.setdefault(pid, used_s) + 0.5:
                            return pid
            time.sleep(0.02)
        raise TimeoutError("No session computes.")


class Tracker(Process):
    """TVM's own tracker."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--port-end", str(port + 1)]
        log = folder / f"tracker-{port}.log"
        super().__init__(command, log, f"bind to 127.0.0.1:{port}", {"TVM_USE_RUNTIME_LIB": "1"})


class Cable:
    """A TCP connection to a server that can be cut: it listens on a port of its own."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections that stand now; new ones are carried again."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_carry, args=(source, sink), daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """Return all processes below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
