"""What builds and times for each profile of a study."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ..evaluators.devices.pool import DevicePool
from ..evaluators.worker import Worker
from ..hw_profiles.profile import HardwareProfile
from .errors import StudyError
from .observer import Observer
from .records import StudyRecord

Bench = Worker | DevicePool


@contextmanager
def open_benches(study: StudyRecord, report: Callable[[str], None]) -> Iterator[list[Bench]]:
    """Give what builds and times for each profile of a study; their slow imports have begun.

    Args:
        study: The study.
        report: Told when a device is lost or taken back.
    """
    with ExitStack() as stack:
        benches = [make_bench(p, study.settings.runtime, report) for p in study.profiles]
        for bench in benches:
            stack.push(bench)
        yield benches


def make_bench(profile: HardwareProfile, runtime: str, report: Callable[[str], None]) -> Bench:
    """Return what builds and times for a profile; its slow imports have begun.

    Args:
        profile: The device.
        runtime: Name of the runtime.
        report: Told when a device is lost or taken back.
    """
    bench: Bench
    if profile.is_remote:
        bench = DevicePool(profile, report=report)
    else:
        # A compile-only profile may have more threads than this machine has cores.
        threads = min(profile.threads, len(os.sched_getaffinity(0)))
        bench = Worker(threads, preload=(runtime,))
    bench.start()
    return bench


def meet_devices(wanted: StudyRecord, benches: Sequence[Bench], observer: Observer) -> StudyRecord:
    """Connect to the remote devices of a study once, before any work is done for it.

    Returns:
        The study, with a profile marked as emulated whose device says that it is.

    Raises:
        ParedownError: If a device does not answer, or one of several is emulated.
    """
    profiles = []
    for profile, bench in zip(wanted.profiles, benches, strict=True):
        if profile.is_remote:
            observer.preparing(f"connecting to {profile.connection}")
        profiles.append(meet_device(profile, bench, observer.message))
    if len(profiles) > 1 and not all(profile.has_latency for profile in profiles):
        raise StudyError(
            "Each device of a study with several must have a latency, but one is emulated. "
            "Leave its profile out."
        )
    return replace(wanted, profile=profiles[0], other_profiles=tuple(profiles[1:]))


def meet_device(
    profile: HardwareProfile, bench: Bench, report: Callable[[str], None]
) -> HardwareProfile:
    """Connect to a device once, if it is a remote one.

    Args:
        profile: The device.
        bench: What builds and times for it.
        report: Told if the device says that it is emulated.

    Returns:
        The profile, marked as emulated if the device says so.

    Raises:
        EvaluationError: If it does not answer.
    """
    if not isinstance(bench, DevicePool):
        return profile
    state = bench.first_contact()
    if state is None or not state["emulated"] or profile.emulated:
        return profile
    report(
        f"The device of profile '{profile.name}' is emulated: models run there, but no latency is "
        "reported."
    )
    return replace(profile, emulated=True)
