"""Finding a device: the address of a server, or what a tracker hands out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...hw_profiles import Connection
from ..device_server.wire import REQUEST, SUCCESS, SUMMARY, Wire, WireError

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Location:
    """Where a server listens, and the key that lets a client in.

    Attributes:
        host, port: Address of the server.
        key: The server's key, or the match key that a tracker gave out for one session.
    """

    host: str
    port: int
    key: str

    @property
    def address(self) -> str:
        """Name of the device: it is the same in every session."""
        return f"{self.host}:{self.port}"


class NotFreeError(Exception):
    """No device can be had at the moment; the message says why."""


def locate(connection: Connection, resting: Collection[str] = ()) -> Location:
    """Return a device that should be free.

    Args:
        connection: A server or a tracker.
        resting: Addresses of devices not to take now.

    Raises:
        NotFreeError: If there is none at the moment.
    """
    if connection.kind == "server":
        location = Location(connection.host, connection.port, connection.key)
        if location.address in resting:
            raise NotFreeError(f"device {location.address} failed and rests")
        return location
    try:
        return _request(connection, resting)
    except WireError as error:
        raise NotFreeError(f"tracker {connection.host}:{connection.port}: {error}") from error


def registered(connection: Connection) -> tuple[str, ...]:
    """Return the addresses of the devices that a tracker lists under the key.

    Raises:
        NotFreeError: If the tracker cannot be asked, or lists none; the message has its keys.
    """
    try:
        with _greet(connection) as wire:
            return _listed(wire, connection)[0]
    except WireError as error:
        raise NotFreeError(f"tracker {connection.host}:{connection.port}: {error}") from error


def _request(connection: Connection, resting: Collection[str]) -> Location:
    with _greet(connection) as wire:
        addresses, n_free = _listed(wire, connection)
        if not n_free:
            raise NotFreeError(
                f"all devices of key '{connection.key}' are busy: {', '.join(addresses)}"
            )
        # A request is only answered when a device is free, which is why the list comes first.
        answer = wire.ask(REQUEST, connection.key, "", 1)
        try:
            code, (host, port, match_key) = answer
        except (TypeError, ValueError):
            code = None
        if code != SUCCESS:
            raise WireError(f"the tracker's answer to a request is {answer!r}")
    location = Location(str(host), int(port), str(match_key))
    if location.address in resting:
        # Its server offers itself again when nobody has come for some seconds.
        raise NotFreeError(f"device {location.address} failed and rests")
    return location


def _greet(connection: Connection) -> Wire:
    wire = Wire.connect(connection.host, connection.port, _TIMEOUT_S)
    try:
        wire.greet_tracker()
    except WireError:
        wire.close()
        raise
    return wire


def _listed(wire: Wire, connection: Connection) -> tuple[tuple[str, ...], int]:
    """Return the addresses under the key, and how many of them are free."""
    try:
        _, summary = wire.ask(SUMMARY)
        servers = [(s["key"], s["addr"]) for s in summary["server_info"] if "key" in s]
        queue = summary["queue_info"].get(connection.key, {"free": 0})
    except (TypeError, ValueError, KeyError) as error:
        raise WireError("the tracker's summary is not as TVM 0.27 writes it") from error
    found = tuple(f"{a[0]}:{a[1]}" for key, a in servers if key == f"server:{connection.key}")
    if not found:
        known = sorted({key.partition(":")[2] for key, _ in servers})
        raise NotFreeError(
            f"tracker {connection.host}:{connection.port} lists no device under key "
            f"'{connection.key}'; its keys are: {', '.join(known) or 'none'}"
        )
    return found, int(queue["free"])
