"""What a user says about single layers: plain values, kept with a study."""

from __future__ import annotations

from dataclasses import dataclass

TIES = ("layer", "block", "stage")
"""What layers may be tied by."""


@dataclass(frozen=True, slots=True)
class LayerRule:
    """Other limits for some layers; None leaves a limit as it is for all layers.

    Attributes:
        match: Pattern of module names, such as `stage1.*`.
        max_pruning_ratio: Largest share of their output channels that is removed.
        weight_bits: Widths on offer; none at all leaves the layers in floating point.
        activation_bits: Widths of their inputs on offer.
        include_float: Whether they may stay in floating point.
    """

    match: str
    max_pruning_ratio: float | None = None
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    include_float: bool | None = None
