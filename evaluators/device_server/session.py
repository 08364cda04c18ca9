"""One client's session: a process of its own, which may crash or be killed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from .energy import EnergyMeter
from .facts import device_state

STATE_FUNCTION = "paredown.device_state"
"""Global function of the session: returns `DeviceState` as JSON."""
ENERGY_FUNCTIONS = ("paredown.has_energy", "paredown.start_energy", "paredown.stop_energy")
"""The methods of an `EnergyMeter` as global functions of the session; values come as JSON."""

_GRACE_S = 2.0
_POLL_S = 1.0
_PR_SET_PDEATHSIG = 1


def serve_session(
    connection: socket.socket, limit_s: float, nice: int, log: Callable[[str], None]
) -> None:
    """Serve a client until it leaves, its time is up, or its session crashes.

    Args:
        connection: The client, after its handshake; closed when this returns.
        limit_s: Most seconds the session may take; the client is told when they are over.
        nice: Added to the niceness of the session's process.
        log: Told what happens.
    """
    folder = tempfile.mkdtemp(prefix="paredown-session-")
    pid = os.fork()
    if pid == 0:
        _run_child(connection, Path(folder), nice)
    log("session begins")
    try:
        end = _watch(pid, connection, limit_s)
        if end is not None:
            log(end)
            _tell(connection, end)
    finally:
        _kill(pid)
        connection.close()
        shutil.rmtree(folder, ignore_errors=True)
        log("session is over")


def _run_child(connection: socket.socket, folder: Path, nice: int) -> NoReturn:
    """Serve TVM's RPC on the connection, and end."""
    status = 1
    try:
        os.setsid()  # all that the session starts can be ended with it
        _end_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.nice(nice)
        os.chdir(folder)
        connection.settimeout(None)
        _register_functions(folder)
        from tvm.rpc import _ffi_api

        _ffi_api.ServerLoop(connection.fileno())
        status = 0
    except BaseException:  # nothing may run on into the code of the parent
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_with_parent() -> None:
    """Let Linux kill this process when the server dies, so that none is left behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _register_functions(folder: Path) -> None:
    """Define what a client of TVM expects of a server, and the state of the device."""
    import tvm_ffi
    from tvm.runtime import load_module

    def path_of(name: str) -> str:
        return str(folder / name)

    meter = EnergyMeter()
    answers = (lambda: meter.is_there, meter.start, meter.stop)
    functions: dict[str, Callable[..., object]] = {
        "tvm.rpc.server.workpath": path_of,
        "tvm.rpc.server.load_module": lambda name: load_module(path_of(name)),
        STATE_FUNCTION: lambda: json.dumps(device_state()),
    }
    for name, answer in zip(ENERGY_FUNCTIONS, answers, strict=True):
        functions[name] = _as_json(answer)
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)


def _as_json(answer: Callable[[], object]) -> Callable[[], str]:
    return lambda: json.dumps(answer())


def _watch(pid: int, connection: socket.socket, limit_s: float) -> str | None:
    """Wait for the end of the session; return why it did not end well, None if it did."""
    deadline = time.monotonic() + limit_s
    events = select.poll()
    events.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    is_gone = False
    with _process_events(pid, events):
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return _describe(status)
            left_s = deadline - time.monotonic()
            if left_s <= 0 and is_gone:
                # The client was killed or the network is gone, and a kernel runs on for nobody.
                return "the client is gone; its session is ended"
            if left_s <= 0:
                # TVM's client turns this beginning into an exception of its own.
                return f"RPCSessionTimeoutError: the session took its {limit_s:g} s"
            found = [fd for fd, _ in events.poll(min(left_s, _POLL_S) * 1000)]
            if connection.fileno() in found:
                is_gone = True
                events.unregister(connection)
                deadline = min(deadline, time.monotonic() + _GRACE_S)


@contextlib.contextmanager
def _process_events(pid: int, events: select.poll) -> Iterator[None]:
    """Wake up `events` when the process ends, where the kernel can do that."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield
        return
    events.register(fd, select.POLLIN)
    try:
        yield
    finally:
        os.close(fd)


def _describe(status: int) -> str | None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"the session crashed with {signal.Signals(number).name}"
        return f"the session crashed with signal {number}"
    code = os.WEXITSTATUS(status)
    return None if code == 0 else f"the session crashed with exit status {code}"


def _tell(connection: socket.socket, end: str) -> None:
    """Answer the client's call, which would otherwise only see the connection close."""
    from tvm.rpc import _ffi_api

    connection.settimeout(None)
    with contextlib.suppress(Exception):  # the client may be gone
        _ffi_api.ReturnException(connection.fileno(), end)


def _kill(pid: int) -> None:
    """Kill the session's process, if it still runs, and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
