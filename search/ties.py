"""Ties: layers and groups for which a search chooses once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from .errors import SpaceError
from .options import LayerInfo, PruningGroup, SpaceSettings


def tie_of(layer: LayerInfo, settings: SpaceSettings) -> str:
    """Return the name of the tie that a layer belongs to; layers of one tie choose alike."""
    if not isinstance(settings.tie, str):
        for number, patterns in enumerate(settings.tie):
            if any(fnmatchcase(layer.name, pattern) for pattern in patterns):
                return f"tie {number}"
        return layer.name
    if settings.tie == "stage":
        return f"stage {layer.output_shape[2:]}"
    if settings.tie == "block":
        parts = layer.name.split(".")
        depth = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
        return ".".join(parts[: depth + 1]) or layer.name
    return layer.name


def layer_leaders(layers: Sequence[LayerInfo], settings: SpaceSettings) -> tuple[int, ...]:
    """Return for each layer the position of the first one in its tie."""
    ties = [tie_of(layer, settings) for layer in layers]
    return tuple(ties.index(tie) for tie in ties)


def group_leaders(
    groups: Sequence[PruningGroup], layers: Sequence[LayerInfo], settings: SpaceSettings
) -> tuple[int, ...]:
    """Return for each group the position of the coarsest one in its tie.

    A group is in the tie of the first layer that produces it. The others follow the leader's
    share of channels as closely as their options allow.
    """
    tie_by_layer = {layer.name: tie_of(layer, settings) for layer in layers}
    # Groups of one layer are separate branches of a concatenation: untied, each is its own.
    is_free = settings.tie == "layer"
    ties = [group.name if is_free else tie_by_layer[group.layers[0]] for group in groups]
    return tuple(
        min(
            (place for place, other in enumerate(ties) if other == tie),
            key=lambda place: (len(groups[place].kept_options), place),
        )
        for tie in ties
    )


def share_options(layers: Sequence[LayerInfo], leaders: Sequence[int]) -> tuple[LayerInfo, ...]:
    """Leave each layer the widths that all layers of its tie have.

    Raises:
        SpaceError: If tied layers have no width in common.
    """
    shared = []
    for layer, leader in zip(layers, leaders, strict=True):
        tied = [other for other, at in zip(layers, leaders, strict=True) if at == leader]
        weights = tuple(b for b in layer.weight_bits if all(b in o.weight_bits for o in tied))
        activations = tuple(
            b for b in layer.activation_bits if all(b in o.activation_bits for o in tied)
        )
        if not weights or not activations:
            raise SpaceError(
                f"Tied layers must have a width in common, but {[o.name for o in tied]} have "
                "none. Change the rule of one, or tie fewer layers."
            )
        shared.append(replace(layer, weight_bits=weights, activation_bits=activations))
    return tuple(shared)
