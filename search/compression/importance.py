"""Which channels of a group are worth most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .criteria import Criterion, make_criterion
from .units import Unit


def rank_units(
    model: nn.Module, units: Sequence[Unit], criterion: Criterion | None = None
) -> tuple[int, ...]:
    """Order units of channels by what they are worth, in all layers they touch.

    The worth of a unit is the mean over these layers of what the criterion says about its
    channels, each layer scaled to a mean of 1: otherwise one layer with large weights would
    decide alone. Where the criterion says nothing at all, the squared norm of the weights does.

    Args:
        model: The model.
        units: Units that touch the same places.
        criterion: Scores the channels; None takes the squared L2 norm of their weights.

    Returns:
        Positions in `units`, most important first; equal ones in their order.

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: towards any structural pruning. CVPR 2023.
    """
    total = None if criterion is None else _worth(model, units, criterion)
    if total is None:
        total = _worth(model, units, make_criterion("l2", model))
    if total is None:
        total = torch.zeros(len(units))
    return tuple(torch.sort(total, descending=True, stable=True).indices.tolist())


def _worth(model: nn.Module, units: Sequence[Unit], criterion: Criterion) -> torch.Tensor | None:
    """Return the worth of each unit, None where the criterion says nothing about any."""
    found = []
    for name, side in units[0]:
        scores = criterion.scores(name, model.get_submodule(name), side)
        if scores is None:
            continue
        sums = torch.stack([scores[list(unit[name, side])].sum() for unit in units])
        if sums.mean() > 0:
            found.append(sums / sums.mean())
    return torch.stack(found).sum(0) if found else None
