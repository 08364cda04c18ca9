"""A candidate: one complete answer to what to prune and how many bits to give each layer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLOAT_BITS = 32
"""The width that means "left in floating point"."""

HALF_BITS = 16
"""The width of a layer in floating point whose weights are rounded to float16."""

FLOAT_WIDTHS = (HALF_BITS, FLOAT_BITS)
"""The widths of layers that compute in float32."""

_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class LayerChoice:
    """What the search decided for one layer.

    A layer in floating point reads 32 bits, so that equal layers compare equal; its weights have
    32 bits, too, or 16: those are rounded to float16.
    """

    weight_bits: int
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if self.is_float:
            if self.activation_bits != FLOAT_BITS:
                raise ValueError(
                    f"`activation_bits` must be 32 where `weight_bits` is {self.weight_bits}, "
                    f"but got {self.activation_bits}. Use `LayerChoice.of` for a layer in float."
                )
            return
        if not 1 <= self.weight_bits <= 8:
            raise ValueError(
                "`weight_bits` must lie between 1 and 8, or be 16 or 32 for float, "
                f"but got {self.weight_bits}."
            )
        if not 4 <= self.activation_bits <= 8:
            raise ValueError(
                "`activation_bits` must lie between 4 and 8 in an integer layer, "
                f"but got {self.activation_bits}."
            )

    @classmethod
    def of(cls, weight_bits: int, activation_bits: int) -> LayerChoice:
        """Return a choice; the activation width of a layer in floating point is ignored."""
        is_float = weight_bits in FLOAT_WIDTHS
        return cls(weight_bits, FLOAT_BITS if is_float else activation_bits)

    @property
    def is_float(self) -> bool:
        """Whether the layer stays in floating point."""
        return self.weight_bits in FLOAT_WIDTHS


FLOAT_LAYER = LayerChoice(FLOAT_BITS, FLOAT_BITS)
"""The choice that leaves a layer as it is."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One point of the search space, immutable and comparable.

    Attributes:
        pruning: Group name and share of its channels removed, in the order of the space.
        layers: Layer name and its choice, in the order of the space.
    """

    pruning: tuple[tuple[str, float], ...]
    layers: tuple[tuple[str, LayerChoice], ...]

    def __post_init__(self) -> None:
        _check_unique("pruning", [name for name, _ in self.pruning])
        _check_unique("layers", [name for name, _ in self.layers])
        for name, ratio in self.pruning:
            if not 0.0 <= ratio < 1.0:
                raise ValueError(
                    f"A pruning ratio must lie in [0, 1), but group '{name}' has {ratio}."
                )

    @property
    def pruning_ratios(self) -> dict[str, float]:
        """Share of channels removed by group name."""
        return dict(self.pruning)

    @property
    def layer_choices(self) -> dict[str, LayerChoice]:
        """Choice by layer name."""
        return dict(self.layers)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the candidate across runs and machines."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as plain JSON values."""
        return {
            "version": _VERSION,
            "pruning": dict(self.pruning),
            "layers": {
                name: {
                    "weight_bits": choice.weight_bits,
                    "activation_bits": choice.activation_bits,
                }
                for name, choice in self.layers
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read what `to_json` wrote.

        Args:
            data: The parsed JSON object.

        Returns:
            An equal candidate.

        Raises:
            ValueError: If the version is unknown, or a field is missing or wrong.
        """
        version = data.get("version")
        if version != _VERSION:
            raise ValueError(
                f"`version` of a candidate must be {_VERSION}, but got {version!r}. "
                "It was written by another version of Paredown."
            )
        try:
            pruning = tuple((str(name), float(ratio)) for name, ratio in data["pruning"].items())
            layers = tuple(
                (str(name), LayerChoice(int(c["weight_bits"]), int(c["activation_bits"])))
                for name, c in data["layers"].items()
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                "A candidate must hold `pruning` and `layers` with `weight_bits` and "
                f"`activation_bits` in each, but reading it failed: {error!r}."
            ) from error
        return cls(pruning, layers)


def width_name(weight_bits: int) -> str:
    """Return what a width is called: "4", "float16", or "float" where nothing is rounded."""
    return {FLOAT_BITS: "float", HALF_BITS: "float16"}.get(weight_bits, str(weight_bits))


def digest_of(data: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `data` as canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_unique(field: str, names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"`{field}` must name each entry once, but '{repeated[0]}' repeats.")
