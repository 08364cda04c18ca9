"""Whether a candidate belongs to a space: each check raises a `SpaceError` at the first fault."""

from __future__ import annotations

from collections.abc import Sequence

from .candidate import Candidate, LayerChoice
from .errors import SpaceError
from .options import LayerInfo, PruningGroup


def check_names(kind: str, expected: list[str], found: list[str]) -> None:
    """Check that a candidate names what its space has, in the same order."""
    if expected == found:
        return
    for name in found:
        if name not in expected:
            raise SpaceError(
                f"A candidate must name the {kind}s of its space, but '{name}' is none of them. "
                "It belongs to another model or other settings."
            )
    missing = [name for name in expected if name not in found]
    if missing:
        raise SpaceError(
            f"A candidate must name every {kind} of its space, but '{missing[0]}' is missing. "
            "It belongs to another model or other settings."
        )
    raise SpaceError(f"A candidate must name the {kind}s in the order of its space: {expected}.")


def check_groups(groups: Sequence[PruningGroup], candidate: Candidate) -> list[int]:
    """Check the pruning ratios of a candidate that names its groups; return what they keep."""
    counts = []
    for group, (_, ratio) in zip(groups, candidate.pruning, strict=True):
        kept = group.kept(ratio)
        if kept not in group.kept_options or group.ratio(kept) != ratio:
            raise SpaceError(
                f"The kept channels must be one of {group.kept_options} in group "
                f"'{group.name}', but the pruning ratio {ratio} keeps "
                f"{group.channels * (1.0 - ratio):g} of {group.channels}."
            )
        counts.append(kept)
    return counts


def check_choice(layer: LayerInfo, choice: LayerChoice) -> None:
    """Check the widths of one layer."""
    if choice.weight_bits not in layer.weight_bits:
        raise SpaceError(
            f"`weight_bits` must be one of {layer.weight_bits} in layer '{layer.name}', but the "
            f"candidate asks for {choice.weight_bits}."
        )
    if not choice.is_float and choice.activation_bits not in layer.activation_bits:
        raise SpaceError(
            f"`activation_bits` must be one of {layer.activation_bits} in layer '{layer.name}', "
            f"but the candidate asks for {choice.activation_bits}."
        )


def check_ties(groups: Sequence[PruningGroup], kept: Sequence[int], tied: Sequence[int]) -> None:
    """Check that groups keep what those that they follow make of them."""
    for group, count, wanted in zip(groups, kept, tied, strict=True):
        if count != wanted:
            raise SpaceError(
                f"Tied groups must keep the same share, so group '{group.name}' must keep "
                f"{wanted} channels, but keeps {count}."
            )


def check_tied_layers(candidate: Candidate, leaders: Sequence[int]) -> None:
    """Check that layers have the widths of those that they follow."""
    for (name, choice), leader in zip(candidate.layers, leaders, strict=True):
        first, wanted = candidate.layers[leader]
        if choice != wanted:
            raise SpaceError(
                f"Tied layers must have the same widths, but '{name}' has {choice} and "
                f"'{first}' {wanted}."
            )
