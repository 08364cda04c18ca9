"""QDQ models quantized around 0, for runtimes that know no other zero point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .measurement import EvaluationError
from .onnx_quantize import dequantize

_BOUNDS = {"uint8": (0, 255), "int8": (-128, 127)}
_LOWEST, _HIGHEST = _BOUNDS["int8"]


def quantize_around_zero(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the same meaning in which every zero point is 0.

    Activations whose steps lie within -128..127 of their zero point become int8 with the zero
    point 0: all of 7 bits, and those of 8 bits with the zero point 128. Any other is written out
    in float32 (divide, round, clip, multiply), so that its layers run in float. Weights of fewer
    than 8 bits become int8; other constants, such as biases, become float32.

    Raises:
        EvaluationError: If a quantizer has no fixed scale and zero point, or works otherwise than
            per tensor on 8 bits; it is named.
    """
    rewriter = _Rewriter(model)
    for node in model.graph.node:
        rewriter.add(node)
    return rewriter.result()


@dataclass(frozen=True, slots=True)
class _Steps:
    """A quantized tensor in its new form: int8, or whole numbers in float32."""

    zero_point: int  # that it had
    is_int8: bool


class _Rewriter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._nodes: list[onnx.NodeProto] = []
        self._added: list[onnx.TensorProto] = []
        self._steps: dict[str, _Steps] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node of the model in its new form."""
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node)
        else:
            self._nodes.append(node)

    def result(self) -> onnx.ModelProto:
        """Return the model with the nodes that were added, and the constants that they read."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input}
        read |= {value.name for value in graph.output}
        kept = [t for t in (*graph.initializer, *self._added) if t.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return model

    def _quantize(self, node: onnx.NodeProto) -> None:
        source, (output,) = node.input[0], node.output
        scale, zero_point, kind = self._scale_of(node)
        low, high = (bound - zero_point for bound in _BOUNDS[kind])
        cut_low, cut_high = (self._in_steps(b, scale) for b in self._bounds_of(source))
        is_int8 = max(low, cut_low) >= _LOWEST and min(high, cut_high) <= _HIGHEST
        self._steps[output] = _Steps(zero_point, is_int8)
        step = self._constant(f"{output}.step", np.array(scale, np.float32))
        if not is_int8:
            scaled = self._node("Div", [source, step], f"{output}.scaled")
            rounded = self._node("Round", [scaled], f"{output}.rounded")
            self._node("Clip", [rounded, *self._limits(output, low, high)], output)
            return
        # Where uint8 ends before int8 does, it cuts values that int8 would let through.
        if (low > _LOWEST and cut_low < low) or (high < _HIGHEST and cut_high > high):
            limits = self._limits(output, low * scale, high * scale)
            source = self._node("Clip", [source, *limits], f"{output}.cut")
        zero = self._constant(f"{output}.zero", np.zeros((), np.int8))
        self._node("QuantizeLinear", [source, step, zero], output)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        source, (output,) = node.input[0], node.output
        if source in self._values:
            self._dequantize_constant(node)
            return
        scale, zero_point, _ = self._scale_of(node)
        steps = self._steps.get(source)
        if steps is None or steps.zero_point != zero_point:
            raise _unsupported(node, "undo a QuantizeLinear node")
        step = self._constant(f"{output}.step", np.array(scale, np.float32))
        if steps.is_int8:
            zero = self._constant(f"{output}.zero", np.zeros((), np.int8))
            self._node("DequantizeLinear", [source, step, zero], output)
        else:
            self._node("Mul", [source, step], output)

    def _dequantize_constant(self, node: onnx.NodeProto) -> None:
        """Keep int8 and fewer bits around 0 quantized; what else there is becomes float32."""
        values, (output,) = self._values[node.input[0]], node.output
        scale = self._values.get(node.input[1])
        zero = self._values.get(node.input[2]) if len(node.input) > 2 else None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if scale is None or scale.ndim > 1:
            raise _unsupported(node, "have one fixed scale per tensor or channel")
        axis = attributes.get("axis", 1)
        is_centred = zero is None or not zero.astype(np.int64).any()
        if not is_centred or values.dtype.name not in ("int8", "int4", "int2"):
            points = None if zero is None else zero.astype(np.int64)
            reals = dequantize(values.astype(np.int64), scale, points, axis).numpy()
            self._constant(output, reals)
            return
        name = self._constant(f"{output}.steps", values.astype(np.int8))
        step = self._constant(f"{output}.step", scale.astype(np.float32))
        zeros = self._constant(f"{output}.zero", np.zeros(scale.shape, np.int8))
        self._node("DequantizeLinear", [name, step, zeros], output, axis=axis)

    def _scale_of(self, node: onnx.NodeProto) -> tuple[float, int, str]:
        """Return scale, zero point and type of an activation's quantizer."""
        scale = self._values.get(node.input[1])
        zero = np.uint8(0) if len(node.input) < 3 else self._values.get(node.input[2])
        if scale is None or scale.size != 1 or zero is None or str(zero.dtype) not in _BOUNDS:
            raise _unsupported(node, "have one fixed scale and a zero point of 8 bits")
        return float(scale.item()), int(zero.item()), str(zero.dtype)

    def _bounds_of(self, name: str) -> tuple[float, float]:
        """Return what a tensor was cut at by the Relu and Clip nodes right before it."""
        low, high = -math.inf, math.inf
        node = self._producers.get(name)
        while node is not None and node.op_type in ("Relu", "Clip"):
            limits = [0.0, math.inf] if node.op_type == "Relu" else self._clip_limits(node)
            low, high = max(low, limits[0]), min(high, limits[1])
            node = self._producers.get(node.input[0])
        return low, high

    def _clip_limits(self, node: onnx.NodeProto) -> list[float]:
        limits = [-math.inf, math.inf]
        for k, name in enumerate(node.input[1:3]):
            if name and name in self._values:
                limits[k] = float(self._values[name].item())
        return limits

    @staticmethod
    def _in_steps(bound: float, scale: float) -> float:
        return (
            bound if math.isinf(bound) else float(np.rint(np.float32(bound) / np.float32(scale)))
        )

    def _limits(self, stem: str, low: float, high: float) -> list[str]:
        return [
            self._constant(f"{stem}.{side}", np.array(bound, np.float32))
            for side, bound in (("low", low), ("high", high))
        ]

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._added.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output


def _unsupported(node: onnx.NodeProto, what: str) -> EvaluationError:
    return EvaluationError(
        f"Every quantizer must {what}, but {node.op_type} '{node.name or node.output[0]}' does "
        "not. Use another runtime for this model.",
        "build",
    )
