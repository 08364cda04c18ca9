"""The command of the server: `python paredown-device.pyz --port 9090`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import platform
import signal
import sys
import time
from types import FrameType

from .facts import device_state
from .server import DeviceServer, ServerOptions

_WARNING = (
    "warning: TVM RPC has no authentication and no encryption. Whoever can connect to {host} can "
    "run any code as this user. Listen on 127.0.0.1 and let clients come through an SSH tunnel "
    "(ssh -L {port}:127.0.0.1:{port} THIS-BOARD), or use a network of trusted machines only."
)


def main(arguments: list[str] | None = None) -> None:
    """Serve until the process is told to end."""
    options = _parse(arguments)
    # The compiler's library is not needed here, and takes memory and seconds to load.
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    import tvm  # each session inherits it

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    server = DeviceServer(options, _log)
    if not _is_loopback(options.host):
        _log(_WARNING.format(host=options.host, port=server.port))
    state = device_state()
    emulated = " (emulated)" if state["emulated"] else ""
    _log(f"{platform.machine()}{emulated}, {os.cpu_count()} cores, TVM {tvm.__version__}")
    _log(f"listening on {options.host}:{server.port}")
    server.run()


def _parse(arguments: list[str] | None) -> ServerOptions:
    parser = argparse.ArgumentParser(
        prog="paredown device serve", description="Let studies on other machines measure here."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=9090, help="port to listen on (9090; 0: any)")
    parser.add_argument("--key", default="", help="name of the device; clients must know it")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="tracker that hands it out")
    parser.add_argument("--advertise", metavar="HOST", help="address the tracker's clients use")
    parser.add_argument(
        "--session-limit", type=float, default=600.0, metavar="SECONDS", help="longest session"
    )
    parser.add_argument("--nice", type=int, default=0, help="niceness of the sessions (0)")
    values = parser.parse_args(arguments)
    tracker = None
    if values.tracker is not None:
        host, _, port = values.tracker.rpartition(":")
        if not host or not port.isdigit():
            parser.error(f"--tracker must be HOST:PORT, but got '{values.tracker}'")
        if not values.key:
            parser.error("--tracker needs --key, the name under which the device is listed")
        tracker = (host.strip("[]"), int(port))
    if any(ch.isspace() for ch in values.key):
        parser.error(f"--key must have no blanks, but got '{values.key}'")
    return ServerOptions(
        values.host,
        values.port,
        values.key,
        tracker,
        values.advertise,
        values.session_limit,
        values.nice,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    _log(f"ended by {signal.Signals(number).name}")
    sys.exit(0)


if __name__ == "__main__":
    main()
