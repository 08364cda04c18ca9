"""Shows on stderr what a longer command is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .options import messages


@contextmanager
def show_steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that takes a line: one line that changes on a terminal, else a log."""
    console = messages()
    if not console.is_terminal:
        yield lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    from rich.text import Text

    with console.status("") as status:
        yield lambda text: status.update(Text(text))
