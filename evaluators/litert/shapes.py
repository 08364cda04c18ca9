"""Operators that move values and leave them as they are, quantized or not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..onnx_graph.graph import Node
from .network import TO_IMAGE, Network
from .rules import Call, Value, rule, unsupported


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", kind="move")
def reshape(network: Network, call: Call) -> Value:
    """`RESHAPE` of the values in ONNX's order."""
    value = network.get(call.inputs[0], image=False)
    return Value(network.reshaped(value, call.shape), False)


@rule("Transpose", kind="move")
def transpose(network: Network, call: Call) -> Value:
    """`TRANSPOSE`, or nothing where channels become the last dimension of what is an image."""
    rank = len(call.shape)
    order = list(call.node.get("perm", range(rank)[::-1]))
    image = network.is_image(call.inputs[0])
    if image:
        order = [TO_IMAGE.index(axis) for axis in order]
    value = network.get(call.inputs[0], image=image)
    return Value(network.permuted(value, order), False)


@rule("Concat", kind="move", n_data=None)
def concat(network: Network, call: Call) -> Value:
    """`CONCATENATION`."""
    image = any(network.is_image(name) for name in call.inputs)
    axis = call.node.get("axis", 0) % len(call.shape)
    return network.emit(
        "CONCATENATION",
        [network.get(name, image=image) for name in call.inputs],
        call.shape,
        image=image,
        grid=call.grid,
        options="ConcatenationOptions",
        axis=TO_IMAGE.index(axis) if image else axis,
    )


@rule("Pad", kind="move")
def pad(network: Network, call: Call) -> Value | None:
    """`PAD` with zeros."""
    node, rank = call.node, len(call.shape)
    pads = node.get("pads", None) if len(node.inputs) < 2 else _constant(network, node, 1)
    value = _constant(network, node, 2)
    if node.get("mode", b"constant") != b"constant" or pads is None or len(pads) != 2 * rank:
        raise unsupported(node, "it does not pad all dimensions by constant numbers")
    if any(value if value is not None else [node.get("value", 0.0)]) or min(pads) < 0:
        raise unsupported(node, "it pads with something other than 0, or cuts")
    image = network.is_image(call.inputs[0])
    both = [(int(pads[k]), int(pads[k + rank])) for k in range(rank)]
    if image:
        both = [both[axis] for axis in TO_IMAGE]
    return network.emit(
        "PAD",
        [network.get(call.inputs[0], image=image), network.integers(*both)],
        call.shape,
        image=image,
        grid=call.grid,
        options="PadOptions",
    )


@rule("Slice", kind="move")
def slice_(network: Network, call: Call) -> Value:
    """`SLICE`: a run of each dimension."""
    node = call.node
    starts = _constant(network, node, 1) if len(node.inputs) > 1 else node.get("starts", None)
    axes = _constant(network, node, 3) if len(node.inputs) > 1 else node.get("axes", None)
    steps = _constant(network, node, 4)
    if starts is None or (steps is not None and any(step != 1 for step in steps)):
        raise unsupported(node, "its bounds are not constant, or its steps are not 1")
    shape = network.graph.shape(node.inputs[0])
    begin = [0] * len(shape)
    for axis, start in zip(range(len(starts)) if axes is None else axes, starts, strict=True):
        size = shape[int(axis)]
        begin[int(axis)] = min(max(int(start) + (size if start < 0 else 0), 0), size)
    return _run(network, call, begin)


@rule("Gather", kind="move")
def gather(network: Network, call: Call) -> Value:
    """`GATHER` at constant places."""
    node = call.node
    places = network.graph.constant(node.inputs[1])
    if places is None:
        raise unsupported(node, "its indices are not constant")
    rank = len(network.graph.shape(node.inputs[0]))
    axis = node.get("axis", 0) % rank
    size = network.graph.shape(node.inputs[0])[axis]
    image = places.ndim == 1 and network.is_image(call.inputs[0])
    return network.emit(
        "GATHER",
        [
            network.get(call.inputs[0], image=image),
            network.constant(np.where(places < 0, places + size, places).astype(np.int32)),
        ],
        call.shape,
        image=image,
        grid=call.grid,
        options="GatherOptions",
        axis=TO_IMAGE.index(axis) if image else axis,
    )


@rule("Part", kind="move")
def part(network: Network, call: Call) -> Value:
    """One result of a Split node."""
    return _run(network, call, call.node.get("begin", []))


def _run(network: Network, call: Call, begin: Sequence[int]) -> Value:
    image = network.is_image(call.inputs[0])
    order = TO_IMAGE if image else range(len(begin))
    inputs = [
        network.get(call.inputs[0], image=image),
        network.integers(*(begin[axis] for axis in order)),
        network.integers(*(call.shape[axis] for axis in order)),
    ]
    return network.emit(
        "SLICE", inputs, call.shape, image=image, grid=call.grid, options="SliceOptions"
    )


def _constant(network: Network, node: Node, position: int) -> Sequence[float] | None:
    """Return a constant operand of a node as numbers, or None if it has none there."""
    if len(node.inputs) <= position or not node.inputs[position]:
        return None
    value = network.graph.constant(node.inputs[position])
    if value is None:
        raise unsupported(node, f"its operand '{node.inputs[position]}' is not constant")
    return [number.item() for number in np.ravel(value)]
