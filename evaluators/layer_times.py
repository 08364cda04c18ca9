"""Where the time of a network goes: its layers, timed in place while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .runtimes.base import Array

Calls = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Shortest time of each layer in place, over several runs of a network.

    Attributes:
        layers_us: Microseconds by layer; the runs of a layer that is called twice are added up.
        other_us: All other kernels: pooling, sums, conversions.
    """

    layers_us: Mapping[str, float]
    other_us: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers_us", MappingProxyType(dict(self.layers_us)))

    def __reduce__(self) -> tuple[type[LayerTimes], tuple[dict[str, float], float]]:
        return LayerTimes, (dict(self.layers_us), self.other_us)

    @property
    def total_us(self) -> float:
        """All kernels together, without the time between them."""
        return sum(self.layers_us.values()) + self.other_us

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"layers_us": dict(self.layers_us), "other_us": self.other_us}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerTimes:
        """Read what `to_json` wrote."""
        return cls(data["layers_us"], data["other_us"])

    def scaled(self, factor: float) -> LayerTimes:
        """Return all times multiplied by a factor."""
        layers = {name: us * factor for name, us in self.layers_us.items()}
        return LayerTimes(layers, self.other_us * factor)


@runtime_checkable
class LayerSession(Protocol):
    """A session that can time its kernels one by one."""

    def call_timer(self, *inputs: Array) -> Callable[[], Calls]:
        """Return a call that runs once and yields the name and microseconds of each kernel.

        A kernel that is no layer has the name "".
        """
        ...


def time_layers(timers: Sequence[Callable[[], Calls]], n_runs: int) -> list[LayerTimes]:
    """Run networks in turns, and return the times of each.

    Args:
        timers: One for each network, as `LayerSession.call_timer` returns them.
        n_runs: Timed runs of each.

    Raises:
        ValueError: If `n_runs` is not positive.
    """
    if n_runs < 1:
        raise ValueError(f"`n_runs` must be 1 or more, but got {n_runs}.")
    names = [[name for name, _ in timer()] for timer in timers]  # the first run warms up
    runs: list[list[list[float]]] = [[] for _ in timers]
    for _ in range(n_runs):
        for timer, times in zip(timers, runs, strict=True):
            times.append([us for _, us in timer()])
    return [_add_up(n, np.min(np.array(t), axis=0)) for n, t in zip(names, runs, strict=True)]


def _add_up(names: Sequence[str], times_us: Array) -> LayerTimes:
    layers: dict[str, float] = {}
    for name, us in zip(names, times_us.tolist(), strict=True):
        layers[name] = layers.get(name, 0.0) + us
    other_us = layers.pop("", 0.0)
    return LayerTimes(layers, other_us)
