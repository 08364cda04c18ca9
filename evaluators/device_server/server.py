"""The listening loop of the server on a device."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from .registration import PING_S, Registration
from .session import serve_session
from .wire import SESSION_MAGIC, SESSION_MISMATCH, Wire, WireError

_HANDSHAKE_S = 5.0


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens.

    Attributes:
        host: Address to listen on; "127.0.0.1" lets no other machine in.
        port: Port to listen on; 0 takes a free one.
        key: What the server is called; clients must know it.
        tracker: Host and port of a tracker that hands the server out.
        advertise: Address that the tracker's clients are told.
        session_limit_s: Most seconds that a session may take, whatever its client asks for.
        nice: Added to the niceness of a session.
    """

    host: str = "127.0.0.1"
    port: int = 9090
    key: str = ""
    tracker: tuple[str, int] | None = None
    advertise: str | None = None
    session_limit_s: float = 600.0
    nice: int = 0


class DeviceServer:
    """Serves one client after the other, each in a process of its own.

    Args:
        options: How to listen.
        log: Told what happens.

    Raises:
        OSError: If the address cannot be listened on.
    """

    def __init__(self, options: ServerOptions, log: Callable[[str], None]) -> None:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        self._listener = socket.create_server(
            (options.host, options.port), family=family, backlog=16
        )
        self._options = options
        self._log = log
        self.port: int = self._listener.getsockname()[1]
        self._registration: Registration | None = None
        if options.tracker is not None:
            self._registration = Registration(
                options.tracker, options.key, self.port, options.advertise, log
            )

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            client, limit_s = self._wait_for_client()
            serve_session(client, limit_s, self._options.nice, self._log)

    def _wait_for_client(self) -> tuple[socket.socket, float]:
        """Return the next client that shows the right key, and the time limit it asks for."""
        if self._registration is not None:
            self._registration.offer()
        next_ping = time.monotonic() + PING_S
        while True:
            wait_s = max(0.0, next_ping - time.monotonic())
            if select.select([self._listener], [], [], wait_s)[0]:
                connection, _ = self._listener.accept()
                client = self._greet(connection)
                if client is not None:
                    return client
            if time.monotonic() >= next_ping:
                if self._registration is not None:
                    self._registration.ping()
                next_ping = time.monotonic() + PING_S

    def _greet(self, connection: socket.socket) -> tuple[socket.socket, float] | None:
        """Do TVM's handshake; None if the client knows no key, or says nothing in time."""
        wire = Wire(connection, _HANDSHAKE_S)
        try:
            if wire.read_int() != SESSION_MAGIC:
                raise WireError("a client that does not speak TVM's RPC")
            shown, *options = wire.read_text().split()
            registration, key = self._registration, self._options.key
            if shown != f"client:{key if registration is None else registration.match_key}":
                wire.write_int(SESSION_MISMATCH)
                raise WireError("a client with a wrong key")
            wire.write_int(SESSION_MAGIC)
            wire.write_text(f"server:{key}")
            return connection, self._limit(options)
        except (WireError, ValueError) as error:
            self._log(f"refused: {error}")
            wire.close()
            return None

    def _limit(self, options: list[str]) -> float:
        asked = [float(text[9:]) for text in options if text.startswith("-timeout=")]
        return min([self._options.session_limit_s, *(limit for limit in asked if limit > 0)])
