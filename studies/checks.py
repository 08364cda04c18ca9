"""What must hold before a study begins, or goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from ..evaluators.device_server.energy import EnergyMeter
from ..evaluators.runtimes import get_runtime, require_installed
from ..hw_profiles import HardwareProfile, check_runs_here, load_profile
from ..search.compression.calibration import CalibrationMethod
from ..search.compression.criteria import CRITERIA
from ..search.compression.sparsity import Sparsity
from ..search.samplers import make_sampler
from .config import StudyConfig
from .errors import StudyError
from .records import (
    ACCURACY_MODES,
    FURTHER_OBJECTIVES,
    Constraints,
    StudyRecord,
    StudySettings,
)
from .tasks import BUILTIN_TASKS

# Fields of a profile that describe it without changing what is measured.
_DESCRIPTIVE = (
    *("name", "description", "sources", "cores", "memory_bytes", "cache_bytes"),
    *("connection", "job_timeout_s", "runtimes"),
)


def check_profiles(config: StudyConfig) -> tuple[HardwareProfile, ...]:
    """Load the study's profiles and check what can be said of them without their devices.

    Raises:
        ParedownError: If a profile is unknown or meant for this machine and does not run on it,
            or the runtime is unknown, not installed, or not one of the profile's.
    """
    profiles = tuple(_check_profile(name, config) for name in config.profiles)
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise StudyError(
            f"`profile` must name each device once, but got {', '.join(names)}. Give a device a "
            "name of its own in a profile file with `base`."
        )
    if len(profiles) > 1:
        for profile in profiles:
            if not profile.has_latency:
                raise StudyError(
                    f"Each profile of a study with several must have a latency, but "
                    f"'{profile.name}' is {_kind_without_latency(profile)}. Leave it out."
                )
        if config.threads is not None:
            raise StudyError(
                "`threads` must be left to the profiles of a study with several, but got "
                f"{config.threads}. Set it in a profile file with `base`."
            )
    return profiles


def _kind_without_latency(profile: HardwareProfile) -> str:
    return "compile-only" if profile.connection == "compile-only" else "emulated"


def _check_profile(name: str, config: StudyConfig) -> HardwareProfile:
    profile = load_profile(name)
    if config.threads is not None:
        profile = profile.with_threads(config.threads)
    if profile.connection == "local":
        check_runs_here(profile)
    runtime = get_runtime(config.runtime)
    if config.runtime not in profile.runtimes:
        raise StudyError(
            f"`runtime` must be one of {', '.join(profile.runtimes)} on profile "
            f"'{profile.name}', but got '{config.runtime}'."
        )
    if profile.is_remote and config.runtime != "tvm":
        raise StudyError(
            f"`runtime` must be 'tvm' on a device behind RPC, but got '{config.runtime}' for "
            f"profile '{profile.name}'."
        )
    require_installed(runtime)
    return profile


def check_objectives(names: Sequence[str], profiles: Sequence[HardwareProfile]) -> None:
    """Check that further objectives are known and can be measured.

    Raises:
        StudyError: If one cannot.
    """
    for name in names:
        if name not in FURTHER_OBJECTIVES or names.count(name) > 1:
            raise StudyError(
                f"`objectives` may hold {', '.join(FURTHER_OBJECTIVES)}, each once, beside "
                f"accuracy, size and latency, but got '{name}'."
            )
    if names and not profiles[0].has_latency:
        raise StudyError(
            f"`objectives` {', '.join(names)} need a device that is measured, but profile "
            f"'{profiles[0].name}' has none. Leave them out, or name another profile."
        )
    if "energy" in names and not profiles[0].is_remote and not EnergyMeter().is_there:
        raise StudyError(
            "`objectives` holds 'energy', but this machine shows no energy that may be read. On "
            "Linux: `sudo chmod a+r /sys/class/powercap/*/energy_uj`; for NVIDIA GPUs: "
            "`pip install nvidia-ml-py`."
        )


def check_settings(settings: StudySettings) -> None:
    """Check the names among the settings.

    Raises:
        ParedownError: If the sampler, the calibration method, the mode or the criterion is
            unknown, or epochs are given that the mode has no use for.
    """
    try:
        make_sampler(settings.sampler, settings.seed)
    except ValueError as error:
        raise StudyError(str(error)) from error
    methods = ("default", *get_args(CalibrationMethod))
    if settings.calibration not in methods:
        raise StudyError(
            f"`calibration` must be one of {', '.join(methods)}, but got '{settings.calibration}'."
        )
    if settings.accuracy not in ("default", *ACCURACY_MODES):
        raise StudyError(
            f"`accuracy` must be one of {', '.join(ACCURACY_MODES)}, but got "
            f"'{settings.accuracy}'."
        )
    if settings.criterion not in CRITERIA:
        raise StudyError(
            f"`criterion` must be one of {', '.join(CRITERIA)}, but got '{settings.criterion}'."
        )
    if settings.sparsity is not None:
        try:
            Sparsity.parse(settings.sparsity)
        except ValueError as error:
            raise StudyError(str(error)) from error
    for name, mode in (("shared_epochs", "shared"), ("finetune_epochs", "finetune")):
        if getattr(settings, name) and settings.accuracy not in ("default", mode):
            raise StudyError(
                f"`{name}` goes with `accuracy` '{mode}', but that is '{settings.accuracy}'. "
                f"Leave one of the two out."
            )
    if settings.shared_epochs and settings.finetune_epochs:
        raise StudyError(
            "`shared_epochs` and `finetune_epochs` belong to different ways to train. Leave one "
            "of the two out."
        )


def check_constraints(
    constraints: Constraints, *, metric_name: str, smallest_size_bytes: int | None = None
) -> None:
    """Check that a trial can meet the constraints.

    Args:
        constraints: The bounds.
        metric_name: An accuracy lies between 0 and 1; other metrics are not known.
        smallest_size_bytes: Size of the smallest candidate, once the space is known.

    Raises:
        StudyError: If no trial can.
    """
    bound = constraints.min_accuracy
    if metric_name == "accuracy" and bound is not None and not 0 <= bound <= 1:
        raise StudyError(
            f"`min_accuracy` must lie between 0 and 1, but got {bound:g}: no trial could meet it. "
            "Give a share, such as 0.97."
        )
    limit = constraints.max_size_bytes
    if limit is not None and smallest_size_bytes is not None and limit < smallest_size_bytes:
        raise StudyError(
            f"`max_size_bytes` must be at least {smallest_size_bytes}, the smallest model of the "
            f"search space, but got {limit}: no trial could meet it. Raise it, or widen the space."
        )


def check_task_bounds(config: StudyConfig) -> None:
    """Check what can be said of a study's constraints before its task is loaded."""
    if config.task in BUILTIN_TASKS:
        check_constraints(config.settings().constraints, metric_name="accuracy")


def check_same_study(found: StudyRecord, wanted: StudyRecord) -> None:
    """Check that a stored study may go on with the given options.

    Numbers of one study must mean the same, so all options that decide them are compared; an
    empty digest of `wanted` is not known yet and is left out.

    Args:
        found: The study in the storage.
        wanted: What the options ask for.

    Raises:
        StudyError: If they differ; names the first difference with both values.
    """
    for name, old, new in _differences(found, wanted):
        raise StudyError(
            f"Study '{found.name}' in '{found.storage}' has {name} {old}, but this run asks for "
            f"{new}. Use the same {name.split()[-1]}, or start another study with --study NAME."
        )
    for what, old, new in (
        ("task's model or data have", found.task_digest, wanted.task_digest),
        ("search space has", found.space_digest, wanted.space_digest),
    ):
        if new and old != new:
            raise StudyError(
                f"The {what} changed since study '{found.name}' began, so its trials cannot be "
                "compared with new ones. Start another study with --study NAME."
            )


def _differences(found: StudyRecord, wanted: StudyRecord) -> list[tuple[str, str, str]]:
    old, new = _identity(found), _identity(wanted)
    return [(key, _text(old.get(key)), _text(new[key])) for key in new if old.get(key) != new[key]]


def _identity(study: StudyRecord) -> dict[str, Any]:
    settings = asdict(study.settings)
    constraints = settings.pop("constraints")
    # How candidates are chosen does not change what their numbers mean.
    for name in ("sampler", "early_stopping", "reference"):
        settings.pop(name)
    facts = _facts(study.profile)
    facts.pop("threads")
    others = {other.name: _facts(other) for other in study.other_profiles}
    return {
        "task": study.task,
        "profile": study.profile.name,
        "other profiles": list(others),
        "threads": study.threads,
        **{f"description of profile {name}": facts for name, facts in others.items()},
        **{f"profile field {key}": value for key, value in facts.items()},
        **{f"setting {key}": value for key, value in settings.items()},
        **{f"constraint {key}": value for key, value in constraints.items()},
    }


def _facts(profile: HardwareProfile) -> dict[str, Any]:
    """Return what of a profile decides the meaning of a study's numbers."""
    values = asdict(profile)
    facts = {key: value for key, value in values.items() if key not in _DESCRIPTIVE}
    return {**facts, "target": dict(facts["target"])}


def _text(value: object) -> str:
    if value is None:
        return "unset"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
