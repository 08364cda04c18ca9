"""A network that all candidates are slices of: same weights, fewer channels and bits."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector

from ..candidate import FLOAT_WIDTHS, Candidate
from ..layers import LAYER_TYPES
from ..space import SearchSpace
from .finetuning import round_weight
from .pruning import prune
from .quantizer import along, weight_scales
from .surgery import channel_dim

_LEAST_SLICES, _MOST_SLICES = 8, 64  # that are kept, fewer of large networks
_KEPT_POSITIONS = 1 << 23
_KNOTS = (0.5, 1.0)  # degrees at which shifts are learned


@dataclass(frozen=True)
class _Degrees:
    """How far a candidate is compressed in one way: as a whole, and each of some modules."""

    mean: float
    by_module: Mapping[str, float]

    def of(self, module: str) -> float:
        """Return the degree that counts for a module."""
        return (self.mean + self.by_module.get(module, self.mean)) / 2


@dataclass(frozen=True)
class SlicedModel:
    """A candidate cut out of the shared network.

    Attributes:
        module: The pruned model; weights of integer layers are rounded, statistics of batch
            normalisation are those of the whole network and have to be taken anew.
        scales: Scale of each output channel of the integer layers, by their names.
    """

    module: nn.Module
    scales: Mapping[str, Tensor]

    def folded_scales(self, folded: nn.Module) -> dict[str, Tensor]:
        """Return the scales of rounded weights after their normalisation was folded into them.

        Folding multiplies each channel by a number, and so the step between its weights. A layer
        where it does something else (groups of a transposed convolution share their scales) is
        left out; its scales are searched for anew.

        Args:
            folded: The module after `fold_batch_norm`.
        """
        scales: dict[str, Tensor] = {}
        for name, scale in self.scales.items():
            layer = self.module.get_submodule(name)
            assert isinstance(layer, LAYER_TYPES)
            axis = channel_dim(layer, "out")
            before = layer.weight.detach().abs()
            after = folded.get_submodule(name).get_parameter("weight").detach().abs()
            peaks = [w.movedim(axis, 0).flatten(1).amax(dim=1) for w in (before, after)]
            growth = torch.where(peaks[0] > 0, peaks[1] / peaks[0], 1.0)
            expected = before * along(growth, axis, before.ndim)
            if torch.allclose(after, expected, rtol=1e-4, atol=0.0):
                # A channel whose weights are all zero has any scale, but it must be positive.
                scales[name] = scale * torch.where(growth > 0, growth, 1.0)
        return scales


@dataclass(frozen=True)
class _Slice:
    """A pruned model without values, and where they lie among those of the whole one.

    Attributes:
        skeleton: The model.
        positions: Of all its parameters one after the other, in the whole network's.
        shapes: Of its parameters, in that order.
        channels: Output channels that a layer keeps.
    """

    skeleton: nn.Module
    positions: Tensor
    shapes: Mapping[str, torch.Size]
    channels: Mapping[str, Tensor]

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        return [shape.numel() for shape in self.shapes.values()]


class SharedNetwork(nn.Module):
    """Weights for every candidate of a space, and a step size for each width and channel.

    Each group of channels is cut down to its most important ones, in the order that the space has
    settled, so that a smaller slice is a part of a larger one.

    The whole network in float keeps the weights `w` of the trained model. A candidate that is
    pruned to the degree `p` and rounded to the degree `r`, each from 0 to 1, is a slice of
    `w + v(p) + u(r)`. These shifts are what is trained: they are zero at 0 and straight lines
    between their values at the knots, so what suits small candidates costs large ones nothing.
    The degrees of a layer lie half way between its own and those of the whole candidate.

    Weights are rounded with scales per output channel: these commute with the batch normalisation
    that follows, so folding that into the layer leaves the integers as they are.

    References:
        Nunez et al. LCS: learning compressible subspaces for efficient, adaptive, real-time
        network compression at inference time. WACV 2023.
        Yu, Huang. Universally slimmable networks and improved training techniques. ICCV 2019.
        Esser, McKinstry, Bablani, Appuswamy, Modha. Learned step size quantization. ICLR 2020.
    """

    def __init__(self, model: nn.Module, space: SearchSpace) -> None:
        """Begin with the weights of a trained model.

        Args:
            model: The trained model; it is left as it is.
            space: The space that was made from it.
        """
        super().__init__()
        self.space = space
        self.network = copy.deepcopy(model).requires_grad_(False)
        n_parameters = sum(p.numel() for p in self.network.parameters())
        # What a candidate's weights are moved by where its degree is at one of the knots. All lie
        # one after the other, so that a candidate's are made in few steps.
        self.pruning_shifts = nn.Parameter(torch.zeros(len(_KNOTS), n_parameters))
        self.rounding_shifts = nn.Parameter(torch.zeros(len(_KNOTS), n_parameters))
        self._groups_of = _groups_by_module(space)
        self._widths = {
            layer.name: tuple(bits for bits in layer.weight_bits if bits not in FLOAT_WIDTHS)
            for layer in space.layers
        }
        scales: dict[str, Tensor] = {}
        for name, widths in self._widths.items():
            layer = self.network.get_submodule(name)
            assert isinstance(layer, LAYER_TYPES)
            axis = channel_dim(layer, "out")
            for bits in widths:
                scales[_key(name, bits)] = weight_scales(layer.weight, bits, axis)
        for key, scale in scales.items():
            self.register_buffer(f"scale_{key}", scale)
        # Scales are learned as factors: a step of the optimizer is then relative to their size.
        self.growth = nn.ParameterDict(
            {key: nn.Parameter(torch.zeros_like(scale)) for key, scale in scales.items()}
        )
        # To find a slice takes as long as a twentieth of a step; prunings alike everywhere recur.
        self._slices: OrderedDict[tuple[tuple[str, float], ...], _Slice] = OrderedDict()
        n_fitting = _KEPT_POSITIONS // max(1, n_parameters)
        self._n_kept = min(max(n_fitting, _LEAST_SLICES), _MOST_SLICES)

    def forward(self, inputs: Tensor, candidate: Candidate) -> Tensor:
        """Run a candidate on a batch, normalised with the statistics of the batch.

        Args:
            inputs: Shape `(n, ...)`.
            candidate: A candidate of the space.

        Returns:
            Its outputs; gradients flow to the shared weights and to the step sizes of its widths.
        """
        part = self._slice(candidate)
        values = self._weights(candidate, part)
        for name, choice in candidate.layers:
            if not choice.is_float:
                scale = self._scale(name, choice.weight_bits)[part.channels[name]]
                key = f"{name}.weight"
                values[key] = self._round(values[key], scale, name, choice.weight_bits)
        output: Tensor = torch.func.functional_call(part.skeleton, values, (inputs,))
        return output

    @torch.no_grad()
    def cut(self, candidate: Candidate) -> SlicedModel:
        """Return a candidate as a model of its own."""
        part = self._slice(candidate)
        module = prune(self.network, candidate, self.space)
        for name, weight in self._weights(candidate, part).items():
            module.get_parameter(name).copy_(weight)
        scales: dict[str, Tensor] = {}
        for name, choice in candidate.layers:
            if not choice.is_float:
                layer = module.get_submodule(name)
                assert isinstance(layer, LAYER_TYPES)
                scale = self._scale(name, choice.weight_bits)[part.channels[name]]
                layer.weight.copy_(self._round(layer.weight, scale, name, choice.weight_bits))
                scales[name] = scale
        return SlicedModel(module, scales)

    def pruning_degree(self, candidate: Candidate) -> float:
        """Return how far a candidate is pruned, from 0 to 1 for the smallest one."""
        return self._degrees(candidate)[0].mean

    def _weights(self, candidate: Candidate, part: _Slice) -> dict[str, Tensor]:
        """Return the parameters of a candidate, by name."""
        modules = [name.rpartition(".")[0] for name in part.shapes]
        sizes = torch.tensor(part.sizes)
        vector = parameters_to_vector(self.network.parameters())[part.positions]
        shifts = (self.pruning_shifts, self.rounding_shifts)
        for shift, degrees in zip(shifts, self._degrees(candidate), strict=True):
            weights = shift.new_tensor([hat_weights(degrees.of(m), _KNOTS) for m in modules])
            weights = weights.T.repeat_interleave(sizes, dim=1)
            vector = vector + (weights * shift.index_select(1, part.positions)).sum(dim=0)
        values = vector.split(part.sizes)
        pairs = zip(part.shapes.items(), values, strict=True)
        return {name: value.view(shape) for (name, shape), value in pairs}

    def _degrees(self, candidate: Candidate) -> tuple[_Degrees, _Degrees]:
        """Return how far modules are pruned and rounded, each from 0 to 1.

        That is the share of channels removed from a group, as a part of the largest one, and the
        size of a layer's rounding errors, as a part of that of 2 bits.
        """
        shares = {
            group.name: ratio / group.ratio(group.kept_options[0])
            for group, (_, ratio) in zip(self.space.groups, candidate.pruning, strict=True)
        }
        by_module = {
            module: sum(shares[name] for name in names) / len(names)
            for module, names in self._groups_of.items()
        }
        errors = {
            name: 0.0 if choice.is_float else min(1.0, 2.0 ** (2 - choice.weight_bits))
            for name, choice in candidate.layers
        }
        return _Degrees(_mean(shares), by_module), _Degrees(_mean(errors), errors)

    def _scale(self, name: str, bits: int) -> Tensor:
        key = _key(name, bits)
        growth: Tensor = self.growth[key]
        return self.get_buffer(f"scale_{key}") * growth.exp()

    def _round(self, weight: Tensor, scale: Tensor, name: str, bits: int) -> Tensor:
        layer = self.network.get_submodule(name)
        assert isinstance(layer, LAYER_TYPES)
        scale = along(scale, channel_dim(layer, "out"), weight.ndim)
        return round_weight(weight, scale, bits)

    def _slice(self, candidate: Candidate) -> _Slice:
        key = candidate.pruning
        if key not in self._slices:
            self._slices[key] = self._find_slice(candidate)
            if len(self._slices) > self._n_kept:
                self._slices.popitem(last=False)
        self._slices.move_to_end(key)
        return self._slices[key]

    @torch.no_grad()
    def _find_slice(self, candidate: Candidate) -> _Slice:
        skeleton = prune(self._marked, candidate, self.space).train()
        found = {name: p.long() for name, p in skeleton.named_parameters()}
        channels: dict[str, Tensor] = {}
        for name in self._widths:
            layer = self.network.get_submodule(name)
            assert isinstance(layer, LAYER_TYPES)
            axis = channel_dim(layer, "out")
            first = found[f"{name}.weight"].movedim(axis, 0).flatten(1)[:, 0]
            first = first - self._marked.get_parameter(f"{name}.weight").flatten()[0].long()
            below = layer.weight.shape[axis + 1 :].numel()
            channels[name] = first // below % layer.weight.shape[axis]
        for parameter in skeleton.parameters():
            parameter.data = torch.empty(0)  # each run brings its own
        positions = parameters_to_vector(found.values())
        return _Slice(skeleton, positions, {n: p.shape for n, p in found.items()}, channels)

    @cached_property
    def _marked(self) -> nn.Module:
        """The network with parameters that say where they are."""
        marked = copy.deepcopy(self.network).requires_grad_(False)
        for module in marked.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
        start = 0
        for parameter in marked.parameters():
            places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
            parameter.data = places.reshape(parameter.shape)  # exact up to 2**53
            start += parameter.numel()
        return marked


def _groups_by_module(space: SearchSpace) -> dict[str, list[str]]:
    """Return the names of the groups whose channels a module has, by the module's name."""
    found: dict[str, list[str]] = {}
    for group, plan in zip(space.groups, space.channel_groups, strict=True):
        for module in {name for name, _ in plan.units[0]}:
            found.setdefault(module, []).append(group.name)
    return found


def hat_weights(degree: float, knots: Sequence[float]) -> list[float]:
    """Return the shares of the knots in a function that is straight between them and 0 at 0.

    Args:
        degree: From 0 to the last knot.
        knots: Ascending, above 0.
    """
    points = np.array([0.0, *knots])
    return [float(np.interp(degree, points, row)) for row in np.eye(len(points))[1:]]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(1, len(values))


def _key(name: str, bits: int) -> str:
    return f"{name.replace('.', '__')}__{bits}"  # a parameter's name may hold no dot
