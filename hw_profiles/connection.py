"""How a device is reached: on this machine, through TVM's RPC, or not at all."""

import re
from dataclasses import dataclass

from .errors import ProfileError

_REMOTE = re.compile(
    r"(?P<scheme>rpc|tracker)://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})"
    r"(?:/(?P<key>[A-Za-z0-9._-]+))?"
)
_KINDS = {"rpc": "server", "tracker": "tracker"}
FORMS = "'local', 'compile-only', 'rpc://HOST:PORT' or 'tracker://HOST:PORT/KEY'"


@dataclass(frozen=True, slots=True)
class Connection:
    """How a device is reached.

    Attributes:
        kind: "local" (this machine), "compile-only" (there is no device), "server" (an RPC server
            at an address) or "tracker" (any RPC server that a tracker lists under a key).
        host: Name or address of the server or the tracker.
        port: Its port.
        key: Key that the device is registered under; a server may have none.
    """

    kind: str
    host: str = ""
    port: int = 0
    key: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether the device is reached through RPC."""
        return self.kind in _KINDS.values()

    def __str__(self) -> str:
        if not self.is_remote:
            return self.kind
        scheme = "rpc" if self.kind == "server" else "tracker"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}" + (f"/{self.key}" if self.key else "")


def parse_connection(text: str) -> Connection:
    """Read a connection as profiles write it.

    Args:
        text: "local", "compile-only", "rpc://HOST:PORT", "rpc://HOST:PORT/KEY" or
            "tracker://HOST:PORT/KEY"; an IPv6 address stands in brackets.

    Raises:
        ProfileError: If it is none of these.
    """
    if text in ("local", "compile-only"):
        return Connection(text)
    match = _REMOTE.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ProfileError(f"`connection` must be {FORMS}, but got '{text}'.")
    kind, key = _KINDS[match["scheme"]], match["key"] or ""
    if kind == "tracker" and not key:
        raise ProfileError(
            f"`connection` to a tracker must name the key of its devices, but got '{text}'. "
            "Write 'tracker://HOST:PORT/KEY'."
        )
    return Connection(kind, match["host"].strip("[]"), int(match["port"]), key)
