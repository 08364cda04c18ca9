"""What must hold before a study begins, or goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from ..evaluators.runtimes import get_runtime, require_installed
from ..hw_profiles import HardwareProfile, check_runs_here, load_profile
from ..search.compression.calibration import CalibrationMethod
from ..search.compression.criteria import CRITERIA
from ..search.samplers import make_sampler
from .config import StudyConfig
from .errors import StudyError
from .records import ACCURACY_MODES, Constraints, StudyRecord, StudySettings
from .tasks import BUILTIN_TASKS

# Fields of a profile that describe it without changing what is measured.
_DESCRIPTIVE = ("name", "description", "sources", "cores", "connection", "runtimes")


def check_profile(config: StudyConfig) -> HardwareProfile:
    """Load the study's profile and check that it and the runtime can be measured here.

    Raises:
        ParedownError: If the profile is unknown or does not run on this machine, or the runtime
            is unknown, not installed, or not one of the profile's.
    """
    profile = load_profile(config.profile)
    if config.threads is not None:
        profile = profile.with_threads(config.threads)
    check_runs_here(profile)
    runtime = get_runtime(config.runtime)
    if config.runtime not in profile.runtimes:
        raise StudyError(
            f"`runtime` must be one of {', '.join(profile.runtimes)} on profile "
            f"'{profile.name}', but got '{config.runtime}'."
        )
    require_installed(runtime)
    return profile


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
    return [(key, _text(old[key]), _text(new[key])) for key in new if old[key] != new[key]]


def _identity(study: StudyRecord) -> dict[str, Any]:
    settings = asdict(study.settings)
    constraints = settings.pop("constraints")
    # How candidates are chosen does not change what their numbers mean.
    for name in ("sampler", "early_stopping", "reference"):
        settings.pop(name)
    profile = asdict(study.profile)
    facts = {key: value for key, value in profile.items() if key not in _DESCRIPTIVE}
    facts.pop("threads")
    return {
        "task": study.task,
        "profile": study.profile.name,
        "threads": study.threads,
        **{f"profile field {key}": _plain(value) for key, value in facts.items()},
        **{f"setting {key}": value for key, value in settings.items()},
        **{f"constraint {key}": value for key, value in constraints.items()},
    }


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _text(value: object) -> str:
    if value is None:
        return "unset"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
