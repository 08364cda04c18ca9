"""Sets of channels that can only be removed together, as names and numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Place: TypeAlias = tuple[str, str]
"""A module name and "in" or "out": one channel dimension of one module."""

Channel: TypeAlias = tuple[str, str, int]
"""A place and an index in it."""

Unit: TypeAlias = Mapping[Place, tuple[int, ...]]
"""Channels that go together: the indices at each place, ascending."""

Removal: TypeAlias = Mapping[Place, frozenset[int]]
"""The channels to take out at each place."""


def merge_units(units: Iterable[Unit]) -> Removal:
    """Return the removal of all channels of some units."""
    merged: dict[Place, set[int]] = defaultdict(set)
    for unit in units:
        for place, idxs in unit.items():
            merged[place].update(idxs)
    return {place: frozenset(idxs) for place, idxs in merged.items()}


@dataclass
class ChannelForest:
    """Channels joined into units, as a forest of disjoint sets."""

    _parents: dict[Channel, Channel] = field(default_factory=dict)

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._parents

    def find(self, channel: Channel) -> Channel:
        """Return the channel that stands for the unit of another one, which is added if new."""
        root = self._parents.setdefault(channel, channel)
        while root != self._parents[root]:
            root = self._parents[root]
        while channel != root:
            self._parents[channel], channel = root, self._parents[channel]
        return root

    def join(self, one: Channel, other: Channel) -> None:
        """Make one unit of the units of two channels."""
        self._parents[self.find(other)] = self.find(one)

    def groups(self, layers: Sequence[str]) -> list[list[Unit]]:
        """Return the units, grouped by the places they touch and how many channels at each.

        Args:
            layers: Names of the layers that produce channels, in the order of execution.

        Returns:
            Groups and the units in them, in the order in which their channels are produced;
            units that no layer produces are left out.
        """
        ranks = {name: rank for rank, name in enumerate(layers)}
        groups: dict[object, list[tuple[tuple[int, tuple[int, ...]], Unit]]] = defaultdict(list)
        for unit in self._units():
            begins = [
                (ranks[name], idxs)
                for (name, side), idxs in unit.items()
                if side == "out" and name in ranks
            ]
            if begins:
                shape = tuple((place, len(idxs)) for place, idxs in unit.items())
                groups[shape].append((min(begins), unit))
        ordered = [sorted(group, key=lambda item: item[0]) for group in groups.values()]
        ordered.sort(key=lambda group: group[0][0])
        return [[unit for _, unit in group] for group in ordered]

    def _units(self) -> list[Unit]:
        members: dict[Channel, list[Channel]] = defaultdict(list)
        for channel in self._parents:
            members[self.find(channel)].append(channel)
        units: list[Unit] = []
        for channels in members.values():
            unit: dict[Place, list[int]] = defaultdict(list)
            for name, side, idx in sorted(channels):
                unit[name, side].append(idx)
            units.append({place: tuple(idxs) for place, idxs in unit.items()})
        return units
