"""What a user runs: studies, their storage, reports and exports, and the command line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import StudyConfig, make_config
    from .engine import run_study
    from .observer import Observer, StopSignal
    from .records import StudyRecord, TrialRecord
    from .storage import load_model, read_study
    from .tasks import load_task

__all__ = [
    "Observer",
    "StopSignal",
    "StudyConfig",
    "StudyRecord",
    "TrialRecord",
    "load_model",
    "load_task",
    "make_config",
    "read_study",
    "run_study",
]

# The command line lies in this package and must not wait for torch: names load on use.
_PLACES = {
    "Observer": "observer",
    "StopSignal": "observer",
    "StudyConfig": "config",
    "StudyRecord": "records",
    "TrialRecord": "records",
    "load_model": "storage",
    "load_task": "tasks",
    "make_config": "config",
    "read_study": "storage",
    "run_study": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
