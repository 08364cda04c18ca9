"""From a task's name, or the place of the user's own, to the task itself."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ...evaluators.task import Task, TaskError

TaskFactory = Callable[..., Task]

# name -> (module of this package, function); imported on use, for the modules need torch.
BUILTIN_TASKS: dict[str, tuple[str, str]] = {
    "digits": ("digits", "make_digits"),
    "fashion-mnist": ("fashion_mnist", "make_fashion_mnist"),
}


def check_task_spec(spec: str) -> str:
    """Check a task's spec without loading it and return its absolute form.

    Args:
        spec: The name of a built-in task, or `path/to/file.py:function`.

    Raises:
        TaskError: If there is no such task or file.
    """
    if spec in BUILTIN_TASKS:
        return spec
    path, colon, function = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        close = difflib.get_close_matches(spec, BUILTIN_TASKS, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise TaskError(
            f"Task must be one of {', '.join(BUILTIN_TASKS)} or a function given as "
            f"'path/to/task.py:make_task', but got '{spec}'. {hint}".rstrip()
        )
    if not Path(path).is_file():
        raise TaskError(f"Task file '{path}' must exist, but does not.")
    if not function.isidentifier():
        raise TaskError(f"Task '{spec}' must name a function after the colon.")
    return f"{Path(path).resolve()}:{function}"


def load_task(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    needs_model: bool = True,
    report: Callable[[str], None] | None = None,
) -> Task:
    """Load a task, training its base model if the cache does not have it.

    The user's function is called without arguments, or with `data_dir` where it has a parameter
    of that name and a folder was given.

    Args:
        spec: The name of a built-in task, or `path/to/file.py:function`.
        data_dir: Folder of the task's data; None for the task's default.
        seed: Seed of the base model's training (built-in tasks).
        needs_model: False leaves the network of a built-in task untrained, for those who need
            the data alone.
        report: Told what happens, in one line each time.

    Raises:
        TaskError: If the task cannot be loaded or its data are missing or broken.
    """
    spec = check_task_spec(spec)
    tell = report or _ignore
    if spec in BUILTIN_TASKS:
        module_name, function_name = BUILTIN_TASKS[spec]
        module = importlib.import_module(f".{module_name}", __package__)
        factory: TaskFactory = getattr(module, function_name)
        return factory(data_dir=data_dir, seed=seed, is_trained=needs_model, report=tell)
    path, _, function_name = spec.rpartition(":")
    return _call_factory(_import_file(Path(path)), function_name, path, data_dir)


def _ignore(text: str) -> None:
    """Take a report that nobody reads."""


def _import_file(path: Path) -> ModuleType:
    name = f"paredown_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    sys.path.insert(0, str(path.parent))  # a task may import what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise TaskError(
            f"Task file '{path}' must import, but {_where(error, path)}{type(error).__name__}: "
            f"{error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _call_factory(module: ModuleType, name: str, path: str, data_dir: str | Path | None) -> Task:
    factory: Any = getattr(module, name, None)
    if not callable(factory):
        found = "is not a function" if factory is not None else "does not exist"
        raise TaskError(f"'{name}' must be a function of task file '{path}', but {found}.")
    try:
        if data_dir is not None and "data_dir" in inspect.signature(factory).parameters:
            task = factory(data_dir=data_dir)
        else:
            task = factory()
    except TaskError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise TaskError(
            f"'{name}' of '{path}' must return a task, but {_where(error, Path(path))}"
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(task, Task):
        raise TaskError(
            f"'{name}' of '{path}' must return a `paredown.evaluators.task.Task`, but returned "
            f"{type(task).__name__}."
        )
    return task


def _where(error: BaseException, path: Path) -> str:
    """Return "line N: " for the innermost line of the user's file in a traceback."""
    row = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(path):
            row = line
    return f"line {row}: " if row is not None else ""
