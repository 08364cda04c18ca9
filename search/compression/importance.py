"""Which channels of a group are worth most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..layers import LAYER_TYPES
from .surgery import channel_dim
from .units import Unit


@torch.no_grad()
def rank_units(model: nn.Module, units: Sequence[Unit]) -> tuple[int, ...]:
    """Order units of channels by the magnitude of their weights, in all layers they touch.

    The importance of a unit is the mean over these layers of the squared L2 norm of its weights,
    each layer scaled to a mean of 1: otherwise one layer with large weights would decide alone.

    Args:
        model: The model.
        units: Units that touch the same places.

    Returns:
        Positions in `units`, most important first; equal ones in their order.

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: towards any structural pruning. CVPR 2023.
    """
    total = torch.zeros(len(units), dtype=torch.float64)
    for name, side in units[0]:
        squares = _squares(model.get_submodule(name), side)
        if squares is None:
            continue
        sums = torch.stack([squares[list(unit[name, side])].sum() for unit in units])
        if sums.mean() > 0:
            total += sums / sums.mean()
    return tuple(torch.sort(total, descending=True, stable=True).indices.tolist())


def _squares(module: nn.Module, side: str) -> Tensor | None:
    """Return the sum of squared weights of each channel, if the module has one for each."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    dim = 0
    if isinstance(module, LAYER_TYPES):
        dim = channel_dim(module, side)
        if isinstance(module, _ConvNd) and module.groups > 1 and dim == 1:
            return None  # these weights count on the other side
    elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    squares = weight.detach().cpu().double().square()
    return squares.movedim(dim, 0).flatten(1).sum(1) if squares.dim() > 1 else squares
