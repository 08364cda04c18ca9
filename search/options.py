"""What is on offer for one group of channels and for one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..hw_profiles.profile import HardwareProfile
from .candidate import FLOAT_BITS, FLOAT_WIDTHS, HALF_BITS
from .compression.channels import ChannelGroup
from .errors import SpaceError
from .layers import LayerTrace
from .rules import TIES, LayerRule


@dataclass(frozen=True, slots=True)
class PruningGroup:
    """Channels that can only be removed together.

    Attributes:
        name: Name of the first layer that produces the channels.
        channels: How many channels that layer has in this group.
        kept_options: How many of them may be kept, ascending; the last one is `channels`.
        layers: Every layer that produces these channels, in the order of execution.
    """

    name: str
    channels: int
    kept_options: tuple[int, ...]
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.kept_options) < 2 or self.kept_options[-1] != self.channels:
            raise ValueError(
                f"`kept_options` must hold two values or more and end with {self.channels} in "
                f"group '{self.name}', but got {self.kept_options}."
            )

    @property
    def step(self) -> int:
        """Distance of the kept counts; only the last option may be off the grid."""
        return self.kept_options[1] - self.kept_options[0]

    def ratio(self, kept: int) -> float:
        """Return the pruning ratio that keeps `kept` channels."""
        return 1.0 - kept / self.channels

    def kept(self, ratio: float) -> int:
        """Return how many channels stay at a pruning ratio."""
        return round(self.channels * (1.0 - ratio))


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantizable layer and the widths it may take.

    Attributes:
        name: Module name, as in `named_modules`.
        kind: "conv", "depthwise", "conv_transpose" or "linear".
        weight_shape: Shape of the weight before pruning.
        macs: Multiply-accumulate operations for one input, before pruning.
        output_shape: Shape of the output for the example input, batch included.
        weight_bits: Widths on offer, ascending, with 16 (float16) and 32 (float) last.
        activation_bits: Widths of the layer's input on offer, ascending.
        n_groups: Groups of channels that are convolved apart.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    output_shape: tuple[int, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    n_groups: int = 1

    @property
    def has_integer_widths(self) -> bool:
        """Whether the layer may become an integer one, so that the width of its input counts."""
        return self.weight_bits[0] not in FLOAT_WIDTHS


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """What a study may change.

    Attributes:
        max_pruning_ratio: Largest share of channels removed from a group; 0 turns pruning off.
        weight_bits: Widths on offer; None stands for all that the profile has kernels for. A
            single bit, for -1 and 1, and 16, for weights in float16, are on offer only where they
            are asked for.
        activation_bits: Widths of activations on offer; 4, 5 and 6 only where they are asked for.
        include_float: Whether a layer may stay as it is, in floating point.
        rules: Limits of single layers; a later rule wins over an earlier one.
        exclude: Patterns of layers that stay as they are: in floating point, with all channels.
        tie: What is chosen once for several layers: "layer" ties nothing, "block" the layers of
            one module (`blocks.1` of `blocks.1.conv1` and `blocks.1.shortcut.0`), "stage" those
            whose outputs have the same resolution; or sets of patterns, each of which makes a tie.
        criterion: What decides which channels of a group go first: one of `criteria.CRITERIA`.
    """

    max_pruning_ratio: float = 0.75
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] = (8,)
    include_float: bool = True
    rules: tuple[LayerRule, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: str | tuple[tuple[str, ...], ...] = "layer"
    criterion: str = "l2"

    def for_layer(self, name: str) -> SpaceSettings:
        """Return the settings that hold for one layer."""
        settings = self
        for rule in self.rules:
            if fnmatchcase(name, rule.match):
                fields = ("max_pruning_ratio", "weight_bits", "activation_bits", "include_float")
                values = {key: getattr(rule, key) for key in fields}
                settings = replace(settings, **{k: v for k, v in values.items() if v is not None})
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            settings = replace(settings, max_pruning_ratio=0.0, weight_bits=(), include_float=True)
        return settings

    def check_patterns(self, layers: Sequence[str]) -> None:
        """Raise unless every pattern fits a layer.

        Args:
            layers: Names of all layers.

        Raises:
            SpaceError: Names the first pattern that fits none.
        """
        ties = () if isinstance(self.tie, str) else self.tie
        patterns = [rule.match for rule in self.rules] + [*self.exclude]
        for pattern in [*patterns, *(p for tie in ties for p in tie)]:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise SpaceError(
                    f"Every pattern must fit the name of a layer, but '{pattern}' fits none of "
                    f"{', '.join(layers)}."
                )

    def __post_init__(self) -> None:
        if isinstance(self.tie, str) and self.tie not in TIES:
            raise ValueError(f"`tie` must be one of {TIES} or patterns, but got '{self.tie}'.")
        if not 0.0 <= self.max_pruning_ratio < 1.0:
            raise ValueError(
                f"`max_pruning_ratio` must lie in [0, 1), but got {self.max_pruning_ratio}."
            )
        if not self.activation_bits:
            raise ValueError("`activation_bits` must hold at least one width, but is empty.")
        if self.weight_bits == () and not self.include_float:
            raise ValueError(
                "`weight_bits` must hold at least one width where `include_float` is false, "
                "but is empty."
            )


def layer_options(
    trace: LayerTrace, profile: HardwareProfile, settings: SpaceSettings
) -> LayerInfo:
    """Return a layer with the widths it may take.

    Args:
        trace: The layer as it ran.
        profile: The device: it says which widths have kernels.
        settings: Limits of the search.

    Returns:
        The layer.

    Raises:
        SpaceError: If the settings ask for a width that has no kernel.
    """
    asked = profile.weight_bits if settings.weight_bits is None else settings.weight_bits
    widths = _checked(trace.name, "weight_bits", asked, profile.weight_bits, profile.name)
    activations = _checked(
        trace.name,
        "activation_bits",
        settings.activation_bits,
        profile.activation_bits,
        profile.name,
    )
    if settings.include_float or not widths:
        widths = (*widths, FLOAT_BITS)
    return LayerInfo(
        trace.name,
        trace.kind,
        trace.weight_shape,
        trace.macs,
        trace.output_shape,
        widths,
        activations,
        trace.n_groups,
    )


def _checked(
    layer: str, field: str, asked: Sequence[int], offered: Sequence[int], profile: str
) -> tuple[int, ...]:
    """Return the widths in ascending order, or raise if the device lacks one."""
    widths = sorted({bits for bits in asked if bits != FLOAT_BITS})
    extra = _extra_widths(field, offered)
    for bits in widths:
        if bits not in offered and bits not in extra:
            raise SpaceError(
                f"`{field}` must be among {sorted({*offered, *extra})} on '{profile}', but layer "
                f"'{layer}' asks for {bits}. Pick another width, or extend `{field}` in the "
                "profile."
            )
    return tuple(widths)


def _extra_widths(field: str, offered: Sequence[int]) -> set[int]:
    """Return the widths that a device runs, too, but that are on offer only where asked for."""
    if field == "activation_bits":
        return {4, 5, 6} if 7 in offered else set()  # kernels take the range of their input
    # -1 and 1 run where -1, 0 and 1 do; every runtime computes with float16 weights in float32.
    return {1, HALF_BITS} if 2 in offered else {HALF_BITS}


def group_options(plan: ChannelGroup, multiple: int, max_ratio: float) -> PruningGroup | None:
    """Return a group with the counts that may be kept: multiples, of whole units, and all.

    Args:
        plan: The channels.
        multiple: The counts are multiples of it.
        max_ratio: Largest share that may be removed.

    Returns:
        The group, or None where nothing but all channels may be kept.
    """
    step = math.lcm(multiple, plan.unit_size)
    # The tolerance keeps 80 * (1 - 0.7) = 24.000000000000004 at 24.
    low = step * max(1, math.ceil(plan.channels * (1.0 - max_ratio) / step - 1e-9))
    kept = (*range(low, plan.channels, step), plan.channels)
    return PruningGroup(plan.name, plan.channels, kept, plan.layers) if len(kept) > 1 else None
