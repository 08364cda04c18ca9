"""Memory that a model takes in this process."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

_PEAK_FROM_NOW = "5"  # `clear_refs` then sets the highest resident size to the present one


class MemoryGrowth:
    """By how much this process's resident memory grows at most, from the moment this is made.

    Linux counts pages, in portions per thread: the result is right within some 100 kB. What the
    C library keeps for reuse is given back first, as a model would go there without growth.

    References:
        https://docs.kernel.org/filesystems/proc.html
    """

    def __init__(self) -> None:
        self._before: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # a kernel that cannot do that
            Path("/proc/self/clear_refs").write_text(_PEAK_FROM_NOW)
            self._before = _status("VmRSS")

    def peak_bytes(self) -> int | None:
        """Return the largest growth so far, None where the kernel does not tell it."""
        peak = _status("VmHWM")
        if self._before is None or peak is None:
            return None
        return max(0, peak - self._before)


def _status(name: str) -> int | None:
    """Return a size in bytes of `/proc/self/status`."""
    text = Path("/proc/self/status").read_text("ascii", errors="replace")
    match = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None
