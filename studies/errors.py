"""Errors of a study as a whole, and of where it is kept."""

from ..hw_profiles.errors import ParedownError


class StudyError(ParedownError):
    """A study cannot begin or go on."""


class StorageError(ParedownError):
    """A storage cannot be opened, read or written, or lacks what was asked of it."""
