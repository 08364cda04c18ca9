"""Batch normalisation: new statistics after pruning, and folding into the layer before."""

from __future__ import annotations

import copy
import math
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import PruningError
from ..layers import LAYER_TYPES, Layer, eval_mode
from .surgery import channel_dim


def reestimate_batch_norm(model: nn.Module, inputs: Tensor, batch_size: int = 256) -> None:
    """Measure the statistics of all batch normalisation anew, in place.

    Removing channels shifts the mean and variance that later layers see. The new statistics are
    the plain average over the batches, which are cut to nearly equal size.

    Args:
        model: The model; its mode stays as it is.
        inputs: Samples the statistics are taken from.
        batch_size: Largest number of samples at once.

    Raises:
        ValueError: If there are no inputs, or `batch_size` is less than 1.
    """
    if len(inputs) == 0 or batch_size < 1:
        raise ValueError(
            "`inputs` must hold samples and `batch_size` be at least 1, but got "
            f"{len(inputs)} samples and {batch_size}."
        )
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        try:
            for batch in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):
                model(batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def fold_batch_norm(model: nn.Module, example_input: Tensor | None = None) -> nn.Module:
    """Return a copy in which batch normalisation is part of the layer before it.

    The normalisation becomes `nn.Identity`, so that module names stay, and its layer gets a bias.
    One that cannot be folded is left: it follows no layer, or something else reads the same
    output, or either of the two runs more than once or has a `forward` of its own.

    Args:
        model: The model; it is left as it is.
        example_input: Needed for a model whose `forward` depends on its input's values or shape;
            others are followed without running.

    Returns:
        The folded copy, in evaluation mode.

    Raises:
        PruningError: If the model cannot be followed.
    """
    folded = copy.deepcopy(model).eval()
    for layer_name, norm_name in _find_pairs(folded, example_input):
        layer = folded.get_submodule(layer_name)
        norm = folded.get_submodule(norm_name)
        assert isinstance(layer, LAYER_TYPES)
        assert isinstance(norm, _BatchNorm)
        _fold(layer, norm)
        folded.set_submodule(norm_name, nn.Identity())
    return folded


class _Tracer(fx.Tracer):
    """Follows tensors between modules, and into no layer or normalisation, subclasses included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_plain(m) or super().is_leaf_module(m, module_qualified_name)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer or normalisation computes what its base class in torch does.

    A subclass with a `forward` of its own may do anything after the product.
    """
    return isinstance(module, (*LAYER_TYPES, _BatchNorm)) and type(
        module
    ).forward.__module__.startswith("torch.nn.")


def _find_pairs(model: nn.Module, example_input: Tensor | None) -> list[tuple[str, str]]:
    """Return the names of each foldable layer and its normalisation."""
    try:
        pairs = _pairs_by_tracing(model)
    except Exception as error:  # fx raises what the user's own code raises on a proxy
        if example_input is None:
            raise PruningError(
                "A model must be traceable by torch.fx to fold its batch normalisation without "
                f"an example input, but '{type(model).__name__}' is not: {error}. "
                "Pass `example_input`."
            ) from error
        pairs = _pairs_by_running(model, example_input)
    return [
        (layer_name, norm_name)
        for layer_name, norm_name in pairs
        if _fits(model.get_submodule(layer_name), model.get_submodule(norm_name))
    ]


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    return (
        isinstance(layer, LAYER_TYPES)
        and isinstance(norm, _BatchNorm)
        and _is_plain(layer)
        and _is_plain(norm)
        and norm.running_mean is not None
        and norm.num_features == _out_channels(layer)
    )


def _pairs_by_tracing(model: nn.Module) -> list[tuple[str, str]]:
    graph = _Tracer().trace(model)
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    calls = Counter(model.get_submodule(str(node.target)) for node in nodes)
    pairs = []
    for node in nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        modules = [model.get_submodule(str(n.target)) for n in (source, node)]
        if len(source.users) == 1 and all(calls[module] == 1 for module in modules):
            pairs.append((str(source.target), str(node.target)))
    return pairs


def _pairs_by_running(model: nn.Module, example_input: Tensor) -> list[tuple[str, str]]:
    """Find the pairs from the autograd graph of one run."""
    calls: Counter[str] = Counter()
    made_by: dict[object, str] = {}
    read_from: list[tuple[object, str]] = []
    hooks = []
    for name, module in model.named_modules():

        def before(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            calls[name] += 1
            if inputs:
                read_from.append((inputs[0].grad_fn, name))

        def after(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            made_by[output.grad_fn] = name

        if isinstance(module, LAYER_TYPES):
            hooks.append(module.register_forward_hook(after))
        if isinstance(module, (*LAYER_TYPES, _BatchNorm)):
            hooks.append(module.register_forward_pre_hook(before))
    try:
        with torch.enable_grad():
            output = model(example_input.detach().clone().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    readers = _count_readers(output.grad_fn)
    return [
        (made_by[source], name)
        for source, name in read_from
        if source in made_by
        and readers[source] == 1
        and calls[name] == calls[made_by[source]] == 1
    ]


def _count_readers(root: object) -> Counter[object]:
    """Count for each node of an autograd graph how many others read its result."""
    readers: Counter[object] = Counter()
    pending = [root]
    while pending:
        node = pending.pop()
        for source, _ in getattr(node, "next_functions", ()):
            if source is not None:
                readers[source] += 1
                if readers[source] == 1:
                    pending.append(source)
    return readers


@torch.no_grad()
def _fold(layer: Layer, norm: _BatchNorm) -> None:
    """Put `y = (x - mean) / sqrt(var + eps) * weight + bias` into the layer, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double()
    dim = channel_dim(layer, "out")
    if dim == 0:
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    else:  # a transposed convolution: (groups, inputs of one group, outputs of one group, ...)
        assert isinstance(layer, _ConvNd)
        blocks = weight.unflatten(0, (layer.groups, -1))
        scale = scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (blocks * scale).flatten(0, 1)
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(kind), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(kind), layer.weight.requires_grad)


def _out_channels(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
