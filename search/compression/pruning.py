"""Making the smaller model of a candidate, and putting its batch normalisation right."""

from __future__ import annotations

import copy

from torch import nn

from ..candidate import Candidate
from ..space import SearchSpace
from .batch_norm import fold_batch_norm, reestimate_batch_norm
from .surgery import remove_channels
from .units import Removal, Unit, merge_units

__all__ = ["fold_batch_norm", "prune", "reestimate_batch_norm", "removed_channels"]


def prune(model: nn.Module, candidate: Candidate, space: SearchSpace) -> nn.Module:
    """Return a copy of a model without the channels that a candidate removes.

    Which channels go was settled when the space was made, by the magnitude of the weights over
    all layers that share a channel; a higher ratio removes a superset of what a lower one does.

    Args:
        model: The model the space was made from, with these or other weights.
        candidate: A candidate of the space.
        space: The space.

    Returns:
        A smaller copy with the same module names.

    Raises:
        SpaceError: If the candidate does not belong to the space.
    """
    pruned = copy.deepcopy(model)
    remove_channels(pruned, removed_channels(candidate, space))
    return pruned


def removed_channels(candidate: Candidate, space: SearchSpace) -> Removal:
    """Return the channels that a candidate removes, at each place of the model.

    Raises:
        SpaceError: If the candidate does not belong to the space.
    """
    space.check(candidate)
    removed: list[Unit] = []
    for group, plan, (_, ratio) in zip(
        space.groups, space.channel_groups, candidate.pruning, strict=True
    ):
        removed += plan.removed(group.kept(ratio))
    return merge_units(removed)
