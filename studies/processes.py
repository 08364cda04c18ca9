"""Who runs a trial, and whether that process is still alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def this_process() -> dict[str, object]:
    """Describe the running process so that another one can tell whether it lives."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": pid,
        "start": _start_time(pid),
    }


def is_dead(process: Mapping[str, object]) -> bool:
    """Say whether a described process has surely ended.

    A process of another machine cannot be looked at and counts as alive. A process identifier
    used again by another process is told by the start time, a restart of the machine by its
    boot identifier.
    """
    if process.get("host") != socket.gethostname():
        return False
    if process.get("boot") != _boot_id():
        return True
    pid = process.get("pid")
    return not isinstance(pid, int) or _start_time(pid) != process.get("start")


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name, in parentheses, may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    state, start = fields[0], int(fields[19])
    return None if state in "ZX" else start
