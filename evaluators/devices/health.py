"""What is known of each device: whether it answers, and when to try it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """The record of one device.

    Attributes:
        address: Host and port.
        n_jobs: Jobs that it finished.
        n_failures: Times that it was lost.
        failures_in_a_row: Times that it was lost since it last finished a job.
        lost_because: Why it counts as lost, None if it does not.
        rests_until: Time by the clock of `HealthTable` before which it is not tried.
    """

    address: str
    n_jobs: int = 0
    n_failures: int = 0
    failures_in_a_row: int = 0
    lost_because: str | None = None
    rests_until: float = 0.0


class HealthTable:
    """Keeps the health of all devices of a pool; safe to use from several threads.

    A device that was lost rests, for longer each time, and is taken back after that.

    Args:
        clock: Seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._devices: dict[str, DeviceHealth] = {}
        self._lock = threading.Lock()

    def has_worked(self, address: str) -> None:
        """Note that a device has finished a job."""
        with self._lock:
            known = self._get(address)
            self._devices[address] = replace(
                known,
                n_jobs=known.n_jobs + 1,
                failures_in_a_row=0,
                lost_because=None,
                rests_until=0.0,
            )

    def was_lost(self, address: str, because: str) -> None:
        """Note that a device does not answer, or has lost a job."""
        with self._lock:
            known = self._get(address)
            rest_s = min(FIRST_REST_S * 2**known.failures_in_a_row, LONGEST_REST_S)
            self._devices[address] = replace(
                known,
                n_failures=known.n_failures + 1,
                failures_in_a_row=known.failures_in_a_row + 1,
                lost_because=because,
                rests_until=self._clock() + rest_s,
            )

    def resting(self) -> frozenset[str]:
        """Return the addresses of the devices that are not to be tried now."""
        now = self._clock()
        with self._lock:
            return frozenset(d.address for d in self._devices.values() if d.rests_until > now)

    def is_lost(self, address: str) -> bool:
        """Whether the device was lost and has finished no job since."""
        with self._lock:
            return self._get(address).lost_because is not None

    def all(self) -> tuple[DeviceHealth, ...]:
        """Return all records, sorted by address."""
        with self._lock:
            return tuple(self._devices[address] for address in sorted(self._devices))

    def _get(self, address: str) -> DeviceHealth:
        return self._devices.get(address, DeviceHealth(address))
