"""What Linux says about a device: what it is, and what could spoil a measurement on it."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

_NATIVE_MARKS = {"aarch64": "CPU implementer", "x86_64": "vendor_id"}


class DeviceState(TypedDict):
    """The state of a device at one moment. What Linux does not tell there is None or empty."""

    arch: str
    emulated: bool  # the CPU of `/proc/cpuinfo` is of another architecture than this process
    flags: list[str]  # CPU flags
    load: float | None  # processes that run or wait, mean over the last minute
    running: int | None  # processes that run or wait at this moment, this one included
    governors: list[str]  # each frequency governor in use, once
    frequency_share: float | None  # lowest current frequency of a core over its highest
    temperature_c: float | None  # of the hottest zone
    throttled: bool | None  # the firmware lowers the frequency: heat, or too little voltage
    wait_s: float | None  # how long this process waited for a core, over its life
    peak_bytes: int | None  # most memory that this process has held


def device_state(root: Path = Path("/")) -> DeviceState:
    """Read the state of this machine and process.

    Args:
        root: Where `proc` and `sys` are.
    """
    cpus = root / "sys/devices/system/cpu"
    machine = platform.machine()
    info = _read(root / "proc/cpuinfo") or ""
    load = (_read(root / "proc/loadavg") or "").split()
    return DeviceState(
        arch=machine,
        emulated=is_emulated(machine, info),
        flags=_flags(info),
        load=float(load[0]) if load else None,
        running=int(load[3].partition("/")[0]) if len(load) > 3 else None,
        governors=sorted(set(_texts(cpus, "cpu[0-9]*/cpufreq/scaling_governor"))),
        frequency_share=_frequency_share(cpus),
        temperature_c=_temperature(root),
        throttled=_throttled(root),
        wait_s=_wait_s(root),
        peak_bytes=_peak_bytes(root),
    )


def is_emulated(machine: str, cpuinfo: str) -> bool:
    """Whether an emulator of user processes runs this one: it shows the host's `/proc/cpuinfo`.

    Args:
        machine: What the kernel, or the emulator in its place, says the architecture is.
        cpuinfo: Text of `/proc/cpuinfo`.
    """
    mark = _NATIVE_MARKS.get(machine)
    others = [other for other in _NATIVE_MARKS.values() if other != mark]
    return mark is not None and mark not in cpuinfo and any(o in cpuinfo for o in others)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return None


def _texts(folder: Path, pattern: str) -> Iterator[str]:
    for path in folder.glob(pattern):
        if text := _read(path):
            yield text


def _flags(cpuinfo: str) -> list[str]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return sorted(match[1].split()) if match else []


def _frequency_share(cpus: Path) -> float | None:
    shares = []
    for folder in cpus.glob("cpu[0-9]*/cpufreq"):
        now, most = _read(folder / "scaling_cur_freq"), _read(folder / "cpuinfo_max_freq")
        if now and most and int(most):
            shares.append(int(now) / int(most))
    return min(shares, default=None)


def _temperature(root: Path) -> float | None:
    degrees = []
    for text in _texts(root / "sys/class/thermal", "thermal_zone[0-9]*/temp"):
        with contextlib.suppress(ValueError):
            degrees.append(int(text) / 1000)
    return max(degrees, default=None)


def _throttled(root: Path) -> bool | None:
    """Return what a Raspberry Pi's firmware says of this moment: the lowest four bits."""
    for text in _texts(root / "sys/devices/platform/soc", "*firmware/get_throttled"):
        with contextlib.suppress(ValueError):
            return bool(int(text, 16) & 0xF)
    return None


def _wait_s(root: Path) -> float | None:
    """Return the time that all threads of this process waited for a core."""
    waits = [text.split()[1] for text in _texts(root / "proc/self/task", "*/schedstat")]
    return sum(map(int, waits)) / 1e9 if waits else None


def _peak_bytes(root: Path) -> int | None:
    match = re.search(r"VmHWM:\s*(\d+) kB", _read(root / "proc/self/status") or "")
    return int(match[1]) * 1024 if match else None
