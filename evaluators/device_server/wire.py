"""Messages of TVM's RPC handshake and of its tracker, every wait with an end.

The protocol is that of `tvm/rpc/base.py` and `tvm/rpc/tracker.py` of TVM 0.27; their own clients
wait for ever for a peer that is frozen, which is why this module is here.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Self

SESSION_MAGIC = 0xFF271
SESSION_MISMATCH = SESSION_MAGIC + 2
TRACKER_MAGIC = 0x2F271

SUCCESS = 0
PUT = 3
REQUEST = 4
UPDATE_INFO = 5
SUMMARY = 6
PENDING_MATCH_KEYS = 7

_MAX_BYTES = 1 << 20


class WireError(OSError):
    """The peer is not there, does not answer in time, or does not speak the protocol."""


class Wire:
    """A socket whose reads and writes end after `timeout_s` at the latest.

    Args:
        connection: An open socket; it belongs to this object from now on.
        timeout_s: Longest wait of a single read or write.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.socket = connection
        connection.settimeout(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def connect(cls, host: str, port: int, timeout_s: float) -> Self:
        """Connect to an address.

        Raises:
            WireError: If nothing listens there or answers in time.
        """
        try:
            return cls(socket.create_connection((host, port), timeout_s), timeout_s)
        except OSError as error:
            raise WireError(f"no connection to {host}:{port}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def read(self, n_bytes: int) -> bytes:
        """Read exactly so many bytes."""
        data = b""
        try:
            while len(data) < n_bytes:
                chunk = self.socket.recv(n_bytes - len(data))
                if not chunk:
                    raise WireError("the other side closed the connection")
                data += chunk
        except WireError:
            raise
        except OSError as error:
            raise WireError(_reason(error)) from error
        return data

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise WireError(_reason(error)) from error

    def read_int(self) -> int:
        """Read a 32-bit integer."""
        value: int = struct.unpack("<i", self.read(4))[0]
        return value

    def write_int(self, value: int) -> None:
        """Write a 32-bit integer."""
        self.write(struct.pack("<i", value))

    def read_text(self) -> str:
        """Read a text with its length before it."""
        size = self.read_int()
        if not 0 <= size <= _MAX_BYTES:
            raise WireError(f"a message of {size} bytes is none of this protocol")
        return self.read(size).decode(errors="replace")

    def write_text(self, text: str) -> None:
        """Write a text with its length before it."""
        data = text.encode()
        self.write(struct.pack("<i", len(data)) + data)

    def greet_tracker(self) -> None:
        """Open a conversation with a tracker.

        Raises:
            WireError: If there is none at the other end.
        """
        self.write_int(TRACKER_MAGIC)
        if self.read_int() != TRACKER_MAGIC:
            raise WireError("what answers there is no TVM RPC tracker")

    def ask(self, *message: object) -> Any:
        """Send a message to the tracker and return its answer."""
        self.write_text(json.dumps(message))
        try:
            return json.loads(self.read_text())
        except ValueError as error:
            raise WireError("the tracker's answer is no JSON") from error


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__
