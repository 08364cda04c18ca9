"""Removing channels from the modules of a model, and the proof that nothing else changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import PruningError
from ..layers import LAYER_TYPES, Layer, eval_mode
from .units import Removal

# Rewired channels differ by the size of the signal, summation order by about 1e-6 of it.
_TOLERANCE = 1e-3


def remove_channels(model: nn.Module, removal: Removal) -> None:
    """Take channels out of a model, in place.

    Args:
        model: The model to shrink.
        removal: The channels to take out; they must be whole units of `find_channel_groups`.

    Raises:
        PruningError: If a module is of a type whose channels cannot be removed.
    """
    for (name, side), removed in removal.items():
        module = model.get_submodule(name)
        if isinstance(module, _ConvNd) and module.groups > 1:
            _shrink_grouped(module, side, removed)
        elif isinstance(module, LAYER_TYPES):
            _shrink_layer(module, side, removed)
        elif isinstance(module, _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.PReLU):
            _shrink_norm(module, removed)
        else:
            raise PruningError(
                "Channels can be removed from convolutions, linear layers, normalisation and "
                f"PReLU, but '{name}' is a {type(module).__name__}."
            )


def channel_dim(layer: Layer, side: str) -> int:
    """Return the dimension of a layer's weight that holds its "in" or "out" channels."""
    is_transposed = isinstance(layer, _ConvNd) and layer.transposed
    return int((side == "in") != is_transposed)


def is_exact(model: nn.Module, example_input: Tensor, removal: Removal) -> bool:
    """Try out whether removing channels does what ignoring them does.

    On a copy with random weights of sound scale (the user's own may hide a difference), the
    output after the removal must equal the output of the whole model in which the layers that
    read the removed channels have zeros for them.

    Args:
        model: The model; it is left as it is.
        example_input: An input that fixes shape and type; its values are replaced by noise.
        removal: The channels to take out.

    Returns:
        True if the smaller model runs and agrees.

    Raises:
        PruningError: If the model returns anything but one tensor.
    """
    rng = torch.Generator().manual_seed(0)
    data = example_input
    if data.is_floating_point():
        data = torch.randn(data.shape, generator=rng, dtype=torch.float32).to(data)
    whole = copy.deepcopy(model)
    _randomize(whole, rng)
    before = _run(whole, data)
    small = copy.deepcopy(whole)
    remove_channels(small, removal)
    _mask_readers(whole, removal)
    want = _run(whole, data)
    try:
        got = _run(small, data)
    except Exception:  # the wiring is wrong in some way; which one does not matter
        return False
    if got.shape != want.shape:
        return False
    effect = (want - before).abs().max()
    noise = 1e-6 * want.abs().max()
    return bool((got - want).abs().max() <= _TOLERANCE * effect + noise)


def _run(model: nn.Module, data: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        output: Any = model(data)
    if not isinstance(output, Tensor):
        raise PruningError(
            f"The model must return one tensor, but it returned {type(output).__name__}."
        )
    return output.double()


def _mask_readers(model: nn.Module, removal: Removal) -> None:
    for (name, side), idxs in removal.items():
        module = model.get_submodule(name)
        if side == "in" and isinstance(module, LAYER_TYPES):
            if isinstance(module, _ConvNd) and module.groups > 1:
                continue  # its own outputs go as well
            where = torch.tensor(sorted(idxs))
            with torch.no_grad():
                module.weight.index_fill_(channel_dim(module, side), where, 0.0)


@torch.no_grad()
def _randomize(model: nn.Module, rng: torch.Generator) -> None:
    """Give a model weights that keep the variance of the signal through every layer."""
    for module in model.modules():
        if isinstance(module, LAYER_TYPES):
            fan_in = module.weight.numel() // module.weight.shape[channel_dim(module, "out")]
            _fill(module.weight, torch.randn, math.sqrt(2.0 / fan_in), 0.0, rng)
            _fill(module.bias, torch.randn, 0.1, 0.0, rng)
        elif isinstance(module, _BatchNorm | _InstanceNorm | nn.GroupNorm):
            _fill(module.weight, torch.rand, 1.0, 0.5, rng)
            _fill(module.bias, torch.randn, 0.1, 0.0, rng)
            _fill(getattr(module, "running_mean", None), torch.randn, 0.1, 0.0, rng)
            _fill(getattr(module, "running_var", None), torch.rand, 1.0, 0.5, rng)


def _fill(
    target: Tensor | None, draw: Any, scale: float, offset: float, rng: torch.Generator
) -> None:
    if target is not None:
        target.copy_(draw(target.shape, generator=rng) * scale + offset)


def _shrink_layer(layer: Layer, side: str, removed: frozenset[int]) -> None:
    dim = channel_dim(layer, side)
    kept = _kept(layer.weight.shape[dim], removed)
    layer.weight = _select(layer.weight, dim, kept)
    if side == "out" and layer.bias is not None:
        layer.bias = _select(layer.bias, 0, kept)
    noun = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"{side}_{noun}", len(kept))


def _shrink_grouped(conv: _ConvNd, side: str, removed: frozenset[int]) -> None:
    """Remove one side of whole blocks; the other side removes their partners."""
    channels = conv.out_channels if side == "out" else conv.in_channels
    kept = _kept(channels, removed)
    # The first dimension of the weight runs over all channels of one side, the second one over
    # the channels of the other side within a block, which stay.
    if channel_dim(conv, side) == 0:
        conv.weight = _select(conv.weight, 0, kept)
    if side == "in":
        conv.in_channels = len(kept)
        return
    conv.groups = conv.groups * len(kept) // channels
    conv.out_channels = len(kept)
    if conv.bias is not None:
        conv.bias = _select(conv.bias, 0, kept)


def _shrink_norm(
    norm: _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.PReLU, removed: frozenset[int]
) -> None:
    if isinstance(norm, nn.PReLU):
        if norm.num_parameters > 1:
            kept = _kept(norm.num_parameters, removed)
            norm.weight = _select(norm.weight, 0, kept)
            norm.num_parameters = len(kept)
        return
    if isinstance(norm, nn.GroupNorm):
        kept = _kept(norm.num_channels, removed)
        norm.num_groups = norm.num_groups * len(kept) // norm.num_channels
        norm.num_channels = len(kept)
    else:
        kept = _kept(norm.num_features, removed)
        norm.num_features = len(kept)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean = norm.running_mean[kept]
            norm.running_var = norm.running_var[kept]
    if norm.weight is not None:
        norm.weight = _select(norm.weight, 0, kept)
    if norm.bias is not None:
        norm.bias = _select(norm.bias, 0, kept)


def _kept(count: int, removed: frozenset[int]) -> Tensor:
    return torch.tensor([idx for idx in range(count) if idx not in removed])


def _select(parameter: Tensor, dim: int, kept: Tensor) -> nn.Parameter:
    data = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(data, requires_grad=parameter.requires_grad)
