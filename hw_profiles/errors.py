"""The base of every error type of Paredown, and the errors of this room."""

import difflib
from collections.abc import Iterable


class ParedownError(Exception):
    """A failure that the user can understand and act on; the CLI prints it without a traceback."""


class ProfileError(ParedownError):
    """A hardware profile that does not exist, is not valid, or does not fit this machine."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: the close matches, or all known names."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=3)
    listed = " or ".join(f"'{match}'" for match in matches)
    return f"Did you mean {listed}?" if matches else f"Known: {', '.join(names)}."
