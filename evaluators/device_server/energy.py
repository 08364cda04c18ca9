"""Energy that a machine uses, by the counters and sensors that it shows.

What is measured is all that a source feeds, idle power included: it compares models on one
machine, not machines.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.005  # an INA3221 needs some milliseconds for a round through its channels
_INPUTS = ("VDD_IN", "POM_5V_IN", "VDD_5V_IN")
"""Rails that feed all of a Jetson module; the others are behind them."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter of energy since some moment.

    Attributes:
        read: Returns it, in millijoules; raises OSError where it cannot be read.
        span: What it runs over at, in millijoules; 0 if it does not.
    """

    read: Callable[[], float]
    span: float = 0.0

    def since(self, start: float) -> float:
        """Return the energy since the counter stood at `start`."""
        used = self.read() - start
        return used + self.span if used < 0 else used


class EnergyMeter:
    """Measures the energy from `start` to `stop`.

    Intel's and AMD's RAPL counters of whole CPU packages and the counter of the first NVIDIA GPU
    are added up. Linux lets only root read the former, unless the machine's owner opens them; the
    latter takes the package `nvidia-ml-py`. Where there is neither, the INA3221 sensors of a
    Jetson are read by a thread every few milliseconds.

    Args:
        root: Where `sys` is.

    References:
        https://docs.kernel.org/power/powercap/powercap.html
        https://docs.kernel.org/hwmon/ina3221.html
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = [*_packages(root), *_gpu()]
        self._sampler = None if self._counters else _sampler(root)
        self._starts: list[float] = []

    @property
    def is_there(self) -> bool:
        """Whether the machine shows what it uses."""
        return bool(self._counters) or self._sampler is not None

    def start(self) -> None:
        """Begin to measure."""
        self._starts = [counter.read() for counter in self._counters]
        if self._sampler is not None:
            self._sampler.start()

    def stop(self) -> float | None:
        """Return the millijoules since `start`, None where nothing shows them."""
        if self._sampler is not None:
            return self._sampler.stop()
        if not self._counters:
            return None
        pairs = zip(self._counters, self._starts, strict=True)
        return sum(counter.since(start) for counter, start in pairs)


class Sampler:
    """Adds up a power that can only be read at moments.

    Args:
        power_mw: Returns the power of this moment in milliwatts.
    """

    def __init__(self, power_mw: Callable[[], float]) -> None:
        self._power_mw = power_mw
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._energy_mj = 0.0

    def start(self) -> None:
        """Begin to sample."""
        self._over.clear()
        self._energy_mj = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """Return the millijoules since `start`, None without it."""
        if self._thread is None:
            return None
        self._over.set()
        self._thread.join()
        self._thread = None
        return self._energy_mj

    def _run(self) -> None:
        last, power_mw = time.monotonic(), self._power_mw()
        while True:
            is_over = self._over.wait(_SAMPLE_S)
            now, power_now_mw = time.monotonic(), self._power_mw()
            self._energy_mj += (now - last) * (power_mw + power_now_mw) / 2
            last, power_mw = now, power_now_mw
            if is_over:
                return


def _packages(root: Path) -> Iterator[Counter]:
    """Yield the counters of whole CPU packages that can be read."""
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        if re.fullmatch(r"intel-rapl:\d+", folder.name):  # its parts have a second number
            with contextlib.suppress(OSError, ValueError):
                span = _number(folder / "max_energy_range_uj") / 1e3
                counter = Counter(_millijoules(folder / "energy_uj"), span)
                counter.read()
                yield counter


def _millijoules(path: Path) -> Callable[[], float]:
    return lambda: _number(path) / 1e3


def _gpu() -> Iterator[Counter]:
    """Yield the counter of the GPU that CUDA takes first, where NVML can be had."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with contextlib.suppress(Exception):  # the library is missing, or the GPU, or its counter
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        find = nvml.nvmlDeviceGetHandleByIndex
        handle = find(int(first)) if first.isdigit() else nvml.nvmlDeviceGetHandleByUUID(first)
        counter = Counter(lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))
        counter.read()
        yield counter


def _sampler(root: Path) -> Sampler | None:
    """Return what reads a Jetson's power: of the rail that feeds it, else of all rails."""
    rails: dict[str, tuple[Path, Path]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for channel in "123":  # further ones are sums
            label = _text(chip / f"in{channel}_label")
            paths = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if label not in ("", "NC") and all(map(_text, paths)):
                rails[label] = paths
    chosen = [rails[name] for name in _INPUTS if name in rails][:1] or list(rails.values())
    if not chosen:
        return None
    return Sampler(lambda: sum(_number(volt) * _number(amp) / 1e3 for volt, amp in chosen))


def _number(path: Path) -> int:
    return int(path.read_text("ascii"))


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
