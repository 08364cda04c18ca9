"""ONNX operators in torch: the registry, arithmetic and activations.

An entry of the registry is a builder: it sees a node with its attributes and constant inputs once
and returns the function that runs for every batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto
from torch import Tensor

from ..hw_profiles.errors import ParedownError


class UnsupportedOperatorError(ParedownError):
    """An ONNX operator, or the form of it that a node has, cannot be run here."""


@dataclass(frozen=True)
class OpNode:
    """A node as its builder sees it.

    Attributes:
        proto: The node itself.
        static: Its constant inputs that play the part of attributes, by position.
        is_batch_free: Whether the first axis of its inputs is a batch of any size; otherwise
            they have the shapes of the file.
    """

    proto: NodeProto
    static: Mapping[int, Tensor] = field(default_factory=dict)
    is_batch_free: bool = True

    @property
    def name(self) -> str:
        """The node's name, or the name of its output if it has none."""
        return self.proto.name or self.proto.output[0]

    @functools.cached_property
    def attributes(self) -> dict[str, Any]:
        """Values of the attributes that the node sets; text is decoded."""
        values = {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or the default where the node does not set it."""
        return self.attributes.get(name, default)

    def number(self, position: int) -> float | None:
        """Return the constant input at a position as one number, None if it is absent."""
        tensor = self.static.get(position)
        return None if tensor is None else tensor.item()

    def integers(self, position: int, attribute: str | None = None) -> list[int] | None:
        """Return integers from a constant input, or from the attribute of older opsets."""
        tensor = self.static.get(position)
        if tensor is not None:
            return [int(i) for i in tensor.reshape(-1).tolist()]
        value = self.get(attribute) if attribute else None
        return None if value is None else [int(i) for i in value]

    def unsupported(self, why: str) -> UnsupportedOperatorError:
        """Make the error that names this node and what about it is not supported."""
        return UnsupportedOperatorError(
            f"Operator '{self.proto.op_type}' at node '{self.name}' cannot be run: {why}. "
            "Express it with another operator, or keep this part out of the compressed model."
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """What runs for each batch.

    Attributes:
        apply: Function of the node's tensor inputs (None where an optional one is absent).
        reuse: The same, but free to overwrite its first input; None if there is no such form.
        is_view: Whether the result may share memory with the first input.
        keeps_grid: Whether values on a quantization grid stay on the same grid.
    """

    apply: Callable[..., Any]
    reuse: Callable[..., Any] | None = None
    is_view: bool = False
    keeps_grid: bool = False


Builder = Callable[[OpNode], Operation]


@dataclass(frozen=True, slots=True)
class OperatorEntry:
    """A builder and the positions of the inputs that must be constant for it."""

    build: Builder
    static: tuple[int, ...]


OPERATORS: dict[str, OperatorEntry] = {}


def operator(*names: str, static: tuple[int, ...] = ()) -> Callable[[Builder], Builder]:
    """Make a builder available for ONNX operators; a second builder for a name is an error."""

    def add(builder: Builder) -> Builder:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"Operator '{name}' must have one builder, but has two.")
            OPERATORS[name] = OperatorEntry(builder, static)
        return builder

    return add


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Div": torch.div,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}


def _plain(function: Callable[..., Tensor]) -> Builder:
    return lambda node: Operation(function)


for _name, _function in _ELEMENTWISE.items():
    operator(_name)(_plain(_function))


def _add_into(a: Tensor, b: Tensor) -> Tensor:
    return a.add_(b) if a.shape == b.shape else a + b


@operator("Add")
def _add(node: OpNode) -> Operation:
    return Operation(torch.add, reuse=_add_into)


@operator("Relu")
def _relu(node: OpNode) -> Operation:
    return Operation(torch.relu, reuse=torch.relu_)


def clip_bounds(node: OpNode) -> tuple[float | None, float | None]:
    """Return the bounds of a Clip node, None where there is none."""
    low = node.number(1) if 1 in node.static else node.get("min")
    high = node.number(2) if 2 in node.static else node.get("max")
    return low, high


@operator("Clip", static=(1, 2))
def _clip(node: OpNode) -> Operation:
    low, high = clip_bounds(node)
    if low is None and high is None:
        return Operation(lambda x: x, is_view=True)
    return Operation(lambda x: x.clamp(low, high), reuse=lambda x: x.clamp_(low, high))


@operator("LeakyRelu")
def _leaky_relu(node: OpNode) -> Operation:
    slope = node.get("alpha", 0.01)
    return Operation(lambda x: F.leaky_relu(x, slope))


@operator("PRelu")
def _prelu(node: OpNode) -> Operation:
    return Operation(lambda x, slope: torch.where(x < 0, x * slope, x))


@operator("Elu")
def _elu(node: OpNode) -> Operation:
    alpha = node.get("alpha", 1.0)
    return Operation(lambda x: F.elu(x, alpha))


@operator("HardSigmoid")
def _hard_sigmoid(node: OpNode) -> Operation:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return Operation(lambda x: (x * alpha + beta).clamp(0, 1))


@operator("Gelu")
def _gelu(node: OpNode) -> Operation:
    approximate = node.get("approximate", "none")
    return Operation(lambda x: F.gelu(x, approximate=approximate))


@operator("Softmax")
def _softmax(node: OpNode) -> Operation:
    axis = node.get("axis", -1)
    return Operation(lambda x: torch.softmax(x, axis))


@operator("LogSoftmax")
def _log_softmax(node: OpNode) -> Operation:
    axis = node.get("axis", -1)
    return Operation(lambda x: torch.log_softmax(x, axis))


def _reduction(function: Callable[..., Tensor]) -> Builder:
    def build(node: OpNode) -> Operation:
        axes = node.integers(1, "axes")
        keep = bool(node.get("keepdims", 1))
        if not axes:
            if node.get("noop_with_empty_axes", 0):
                return Operation(lambda x: x, is_view=True, keeps_grid=True)
            raise node.unsupported("it reduces all axes, the batch among them")
        return Operation(lambda x: function(x, dim=axes, keepdim=keep))

    return build


operator("ReduceMean", static=(1,))(_reduction(torch.mean))
operator("ReduceSum", static=(1,))(_reduction(torch.sum))
operator("ReduceMax", static=(1,))(_reduction(torch.amax))
operator("ReduceMin", static=(1,))(_reduction(torch.amin))


def _place_of(function: Callable[..., Tensor]) -> Builder:
    def build(node: OpNode) -> Operation:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            raise node.unsupported("of equal numbers it takes the last")
        return Operation(lambda x: function(x, dim=axis, keepdim=keep))

    return build


operator("ArgMax")(_place_of(torch.argmax))
operator("ArgMin")(_place_of(torch.argmin))

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


@operator("Cast")
def _cast(node: OpNode) -> Operation:
    dtype = _DTYPES.get(node.get("to"))
    if dtype is None:
        raise node.unsupported(f"it casts to ONNX type {node.get('to')}")
    return Operation(lambda x: x.to(dtype), is_view=True)
