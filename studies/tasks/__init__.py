"""Built-in tasks and the loading of the user's own."""

from .loader import BUILTIN_TASKS, check_task_spec, load_task

__all__ = ["BUILTIN_TASKS", "check_task_spec", "load_task"]
