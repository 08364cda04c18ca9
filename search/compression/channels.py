"""Which channels of a model hang together, found with Torch-Pruning's dependency graph.

Removing an output channel of one layer removes an input of the next, and through a residual
addition an output of another layer too. A *unit* is a smallest set of such channels; the units
that touch the same layers form a *group*, out of which a search removes any number. Torch-Pruning
follows the indices through concatenation, splitting and flattening. It knows no module that works
on blocks of channels (grouped convolution, group normalisation), so those blocks are joined here:
a block is kept or removed as a whole.

Tracing treats an operation it does not know as elementwise, which would wire channels wrongly
without any error. So each group is tried out (`surgery.is_exact`) before it is offered.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import PruningError
from ..layers import LAYER_TYPES
from .criteria import Criterion
from .importance import rank_units
from .surgery import is_exact
from .units import Channel, ChannelForest, Unit, merge_units

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU)

# Torch-Pruning's nodes for functions without weights.
_FUNCTIONS = (
    tp.ops._ConcatOp,
    tp.ops._SplitOp,
    tp.ops._UnbindOp,
    tp.ops._ReshapeOp,
    tp.ops._SliceOp,
    tp.ops._ElementWiseOp,
    tp.ops._ExpandOp,
)

_IS_OUTPUT = "its outputs are the model's output"


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Units of channels that can be removed independently of each other.

    Attributes:
        name: Name of the first layer that produces the channels.
        channels: How many channels of that layer belong to the group.
        layers: Every layer that produces the channels, in the order of execution.
        units: The units; each has the same number of channels at the same places.
        order: Positions in `units`, most important first.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    units: tuple[Unit, ...]
    order: tuple[int, ...]

    @property
    def unit_size(self) -> int:
        """How many channels of the first layer go together."""
        return self.channels // len(self.units)

    def removed(self, kept: int) -> list[Unit]:
        """Return the units to remove so that the `kept` most important channels stay."""
        return [self.units[unit] for unit in self.order[kept // self.unit_size :]]


def find_channel_groups(
    model: nn.Module,
    example_input: Tensor,
    layers: Sequence[str],
    criterion: Criterion | None = None,
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the groups of channels that can be removed without touching the model's output.

    Args:
        model: The model; it is left as it is.
        example_input: One input, batch dimension first.
        layers: Names of the layers in the order of execution.
        criterion: Says which channels are worth most; None goes by their squared L2 norm.

    Returns:
        The groups in the order of execution, and for other layers why their outputs must stay.

    Raises:
        PruningError: If the model cannot be traced.
    """
    probe = copy.deepcopy(model).eval().requires_grad_(True)
    couplings = _follow_channels(probe, example_input, layers)
    groups: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    for units in couplings.forest.groups(layers):
        reason = couplings.reason_to_stay(units, probe)
        producers = tuple(name for name in layers if (name, "out") in units[0])
        if reason is not None:
            refused.setdefault(producers[0], reason)
            continue
        channels = sum(len(unit[producers[0], "out"]) for unit in units)
        order = rank_units(model, units, criterion)
        groups.append(ChannelGroup(producers[0], channels, producers, tuple(units), order))
    exact = _keep_exact(probe, example_input, groups)
    for group in groups:
        if group not in exact:
            refused.setdefault(group.name, "removing its channels changes more than they do")
    return _named_apart(exact), refused


@dataclass
class _Couplings:
    """What was learnt about the channels of a model."""

    forest: ChannelForest = field(default_factory=ChannelForest)
    fixed: dict[Channel, str] = field(default_factory=dict)  # why a channel must stay

    def reason_to_stay(self, units: Sequence[Unit], model: nn.Module) -> str | None:
        """Return why a group must stay as it is, or None."""
        for unit in units:
            for (name, side), idxs in unit.items():
                for idx in idxs:
                    if (name, side, idx) in self.fixed:
                        return self.fixed[name, side, idx]
        has_reader = any(
            side == "in" and getattr(model.get_submodule(name), "groups", 1) == 1
            for name, side in units[0]
        )
        return None if has_reader else _IS_OUTPUT


def _follow_channels(probe: nn.Module, example_input: Tensor, layers: Sequence[str]) -> _Couplings:
    """Join all channels that Torch-Pruning or a block of channels couples."""
    graph = _build_graph(probe, example_input)
    names = {module: name for name, module in probe.named_modules()}
    couplings = _Couplings()
    for name in layers:
        module = probe.get_submodule(name)
        count = _out_channels(module)
        if all((name, "out", idx) in couplings.forest for idx in range(count)):
            continue
        for idx in range(count):
            couplings.forest.find((name, "out", idx))
        try:
            group = graph.get_pruning_group(
                module, graph.get_pruner_of_module(module).prune_out_channels, list(range(count))
            )
        except Exception as error:  # whatever a third-party tracer raises concerns this layer
            reason = f"its channels cannot be followed: {error!r}"
            couplings.fixed.update({(name, "out", idx): reason for idx in range(count)})
            continue
        for item in group:
            _join_item(couplings, graph, names, name, item)
    for name, module in probe.named_modules():
        _join_blocks(couplings.forest, name, module)
    return couplings


def _build_graph(probe: nn.Module, example_input: Tensor) -> Any:
    try:
        with torch.enable_grad():
            # A bare tensor would be unpacked along its batch dimension.
            return tp.DependencyGraph().build_dependency(probe, (example_input,), verbose=False)
    except Exception as error:  # the tracer raises all kinds, of torch and of its own
        raise PruningError(
            "The channels of a model must be traceable by Torch-Pruning, but tracing "
            f"'{type(probe).__name__}' failed: {error!r}. Set `max_pruning_ratio` to 0 to search "
            "bit widths alone."
        ) from error


def _join_item(
    couplings: _Couplings, graph: Any, names: Mapping[nn.Module, str], root: str, item: Any
) -> None:
    """Enter one dependency: channels of `root` and those of another module that go with them."""
    target = item.dep.target.module
    if isinstance(target, _FUNCTIONS):
        return
    name = names.get(target, "") if isinstance(target, nn.Module) else ""
    reason = None
    if isinstance(target, tp.ops._OutputOp):
        reason = _IS_OUTPUT
    elif isinstance(target, nn.Parameter):
        reason = "a parameter that belongs to no layer goes with its channels"
    elif not isinstance(target, LAYER_TYPES + _NORMS):
        reason = f"'{name}' ({type(target).__name__}) cannot lose channels"
    is_reader = isinstance(target, LAYER_TYPES) and not graph.is_out_channel_pruning_fn(
        item.dep.handler
    )
    for idx, root_idx in zip(item.idxs, item.root_idxs, strict=True):
        if reason is not None:
            couplings.fixed.setdefault((root, "out", root_idx), reason)
        else:
            couplings.forest.join(
                (root, "out", root_idx), (name, "in" if is_reader else "out", idx)
            )


def _join_blocks(forest: ChannelForest, name: str, module: nn.Module) -> None:
    """Join the channels that a module handles as a block."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        ends = (("in", module.in_channels), ("out", module.out_channels))
        for side, count in ends:
            for idx in range(count):
                block = idx * module.groups // count
                first_out = block * (module.out_channels // module.groups)
                forest.join((name, "out", first_out), (name, side, idx))
    elif isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups
        for idx in range(module.num_channels):
            forest.join((name, "out", idx - idx % size), (name, "out", idx))


def _out_channels(layer: nn.Module) -> int:
    assert isinstance(layer, LAYER_TYPES)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _keep_exact(
    probe: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]
) -> list[ChannelGroup]:
    """Return the groups whose removal was tried out and is exact, also all together."""
    if _try_out(probe, example_input, groups):
        return list(groups)
    kept: list[ChannelGroup] = []
    for group in groups:
        if _try_out(probe, example_input, [*kept, group]):
            kept.append(group)
    return kept


def _try_out(probe: nn.Module, example_input: Tensor, groups: Iterable[ChannelGroup]) -> bool:
    rng = random.Random(0)
    # A scattered half: contiguous channels could hide a wrong order.
    units = [unit for group in groups for unit in rng.sample(group.units, len(group.units) // 2)]
    return is_exact(probe, example_input, merge_units(units))


def _named_apart(groups: Iterable[ChannelGroup]) -> list[ChannelGroup]:
    """Number the groups that begin at the same layer: "conv", "conv#2" and so on."""
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        seen[group.name] += 1
        count = seen[group.name]
        name = group.name if count == 1 else f"{group.name}#{count}"
        named.append(replace(group, name=name))
    return named
