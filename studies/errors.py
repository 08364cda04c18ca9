"""Errors of a study as a whole."""

from ..hw_profiles.errors import ParedownError


class StudyError(ParedownError):
    """A study cannot begin or go on."""
