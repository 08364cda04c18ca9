"""The quantizable layers of a model: what runs, in which order, on which shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .errors import SpaceError

Layer: TypeAlias = _ConvNd | nn.Linear
"""The module types that become an integer kernel."""

LAYER_TYPES = (_ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """What one layer did on the example input.

    Attributes:
        name: Module name.
        kind: "conv", "depthwise", "conv_transpose" or "linear".
        weight_shape: Shape of the weight.
        macs: Multiply-accumulate operations for one input, over all calls.
        output_shape: Shape of the output of the first call.
        n_groups: Groups of channels that are convolved apart.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    output_shape: tuple[int, ...]
    n_groups: int = 1


def trace_layers(model: nn.Module, example_input: Tensor) -> tuple[LayerTrace, ...]:
    """Run a model once and note its layers in the order of execution.

    Args:
        model: The model; its mode and its weights are left as they are.
        example_input: One input, batch dimension first.

    Returns:
        One trace for each layer that ran.

    Raises:
        SpaceError: If the model does not run; names the module that failed.
    """
    traces: dict[str, LayerTrace] = {}
    running: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _inputs: object, name: str = name) -> None:
            running.append(name)

        def leave(
            module: nn.Module,
            inputs: tuple[Tensor, ...],
            named: dict[str, Tensor],
            output: Tensor,
            name: str = name,
        ) -> None:
            running.pop()
            if isinstance(module, LAYER_TYPES):
                data = inputs[0] if inputs else named["input"]
                _record(traces, name, module, data, output)

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with eval_mode(model), torch.no_grad():
            model(example_input)
    except Exception as error:  # whatever the user's model raises
        module_name = running[-1] if running else ""
        raise SpaceError(
            f"The model must run on the example input of shape {tuple(example_input.shape)}, but "
            f"{describe_module(model, module_name)} failed: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(traces.values())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode, then put every module back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def describe_module(model: nn.Module, name: str) -> str:
    """Return the words for a module in an error message."""
    if not name:
        return f"'{type(model).__name__}'"
    return f"module '{name}' ({type(model.get_submodule(name)).__name__})"


def _record(
    traces: dict[str, LayerTrace], name: str, layer: Layer, data: Tensor, output: Tensor
) -> None:
    macs = _count_macs(layer, data, output)
    if name in traces:
        first = traces[name]
        traces[name] = replace(first, macs=first.macs + macs)
        return
    traces[name] = LayerTrace(
        name,
        _kind(layer),
        tuple(layer.weight.shape),
        macs,
        tuple(output.shape),
        1 if isinstance(layer, nn.Linear) else layer.groups,
    )


def _count_macs(layer: Layer, data: Tensor, output: Tensor) -> int:
    """Return the multiply-accumulate operations for one input of the batch."""
    # Each output element of a convolution or linear layer sums one row of the weight; each
    # input element of a transposed convolution is multiplied by one row.
    row = prod(layer.weight.shape[1:])
    elements = data.numel() if isinstance(layer, _ConvTransposeNd) else output.numel()
    return elements * row // max(1, output.shape[0])


def _kind(layer: Layer) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, _ConvTransposeNd):
        return "conv_transpose"
    return "depthwise" if 1 < layer.groups == layer.in_channels else "conv"
