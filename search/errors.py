"""The errors of choosing and pruning."""

from __future__ import annotations

from ..hw_profiles.errors import ParedownError


class SpaceError(ParedownError):
    """A search space cannot be made, or a candidate does not belong to it."""


class PruningError(ParedownError):
    """The channels of a model cannot be followed, or cannot be removed."""
