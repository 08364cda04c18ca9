"""A server's place in the list of a tracker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .wire import PENDING_MATCH_KEYS, PUT, SUCCESS, UPDATE_INFO, Wire, WireError

PING_S = 2.0
_TIMEOUT_S = 5.0
_UNUSED_S = 6.0  # a match key that was given out this long ago is not going to be used


class Registration:
    """Offers a server to a tracker, and offers it again when the tracker has forgotten it.

    The tracker gives the server's *match key* to one client, which shows it when it connects. So
    the server stands for exactly one client at a time, and needs a new key after each.

    Args:
        address: Host and port of the tracker.
        key: What the server is listed under.
        port: Port that the server listens on.
        advertise: Address that clients are told; default: as the tracker sees the server.
        log: Told what happens.
    """

    def __init__(
        self,
        address: tuple[str, int],
        key: str,
        port: int,
        advertise: str | None,
        log: Callable[[str], None],
    ) -> None:
        self.match_key = ""
        self._address = address
        self._key = key
        self._port = port
        self._advertise = advertise
        self._log = log
        self._wire: Wire | None = None
        self._taken_since: float | None = None
        self._has_failed = False

    def offer(self) -> None:
        """Offer the server under a new match key."""
        self.match_key = f"{self._key}:{random.random()}"
        self._taken_since = None
        self._talk(self._put)

    def ping(self) -> None:
        """See whether the tracker is there and still offers the server; make good what is not."""
        self._talk(self._renew)

    def _talk(self, say: Callable[[Wire], None]) -> None:
        """Speak to the tracker; without one, the next ping tries again."""
        try:
            if self._wire is None:
                self._wire = self._connect()
            else:
                say(self._wire)
            self._has_failed = False
        except WireError as error:
            if self._wire is not None:
                self._wire.close()
                self._wire = None
            if not self._has_failed:
                host, port = self._address
                self._log(f"tracker {host}:{port} is away ({error}); looking for it again")
            self._has_failed = True

    def _connect(self) -> Wire:
        wire = Wire.connect(*self._address, _TIMEOUT_S)
        try:
            wire.greet_tracker()
            info = {"key": f"server:{self._key}", "addr": (self._advertise, self._port)}
            _check(wire.ask(UPDATE_INFO, info))
            self._put(wire)
        except WireError:
            wire.close()
            raise
        self._log(f"registered at tracker {self._address[0]}:{self._address[1]} as '{self._key}'")
        return wire

    def _put(self, wire: Wire) -> None:
        _check(wire.ask(PUT, self._key, (self._port, self.match_key), self._advertise))

    def _renew(self, wire: Wire) -> None:
        if self.match_key in wire.ask(PENDING_MATCH_KEYS):
            self._taken_since = None
            return
        now = time.monotonic()
        self._taken_since = self._taken_since or now
        if now - self._taken_since > _UNUSED_S:
            self.offer()


def _check(answer: object) -> None:
    if answer != SUCCESS:
        raise WireError(f"the tracker refused with {answer!r}")
