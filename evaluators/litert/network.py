"""Turns an ONNX graph into the tensors and operators of a LiteRT model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measurement import EvaluationError
from ..onnx_graph.activations import clip_bounds
from ..onnx_graph.graph import Graph, Node
from ..onnx_graph.quantizers import Quantizer, constant_reals
from .grids import Grid, Placement, place
from .model_writer import ModelWriter, Quantization
from .rules import FLOATS, RULES, Call, Rule, Value, title, unsupported
from .tails import FUSED, UNBOUNDED, Bounds, Tail, cut, find_tail, live_nodes, stepper

TO_IMAGE = (0, 2, 3, 1)
"""ONNX's order of an image's dimensions (batch, channels, height, width) in LiteRT's order."""

_FROM_IMAGE = (0, 3, 1, 2)


@dataclass(slots=True, eq=False)
class Network:
    """A LiteRT model on its way: what each tensor of the ONNX graph became.

    A tensor may exist with its channels last, as LiteRT's images have them, and in ONNX's
    order; the other form is made when it is first asked for. The same holds for the float form
    of a quantized tensor.
    """

    graph: Graph
    writer: ModelWriter = field(default_factory=ModelWriter)
    _values: dict[tuple[str, bool], int] = field(default_factory=dict)
    _grids: dict[str, tuple[Quantizer, Grid]] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)

    def convert(self) -> bytes:
        """Return the model as a file.

        Raises:
            EvaluationError: If an operator has no form in LiteRT; it is named.
        """
        inputs = []
        for name in self.graph.inputs:
            self._check_type(name, f"input '{name}'", FLOATS)
            inputs.append(self.writer.tensor(name, self.graph.shape(name)))
            self._values[name, False] = inputs[-1]
        for node in live_nodes(self.graph):
            if node.output not in self._done:
                self._convert_node(node)
        outputs = [self.get(name, image=False) for name in self.graph.outputs]
        for index, value in zip(outputs, self.graph.model.graph.output, strict=True):
            self.writer.rename(index, value.name)
        return self.writer.to_bytes(inputs, outputs)

    # ---- for rules

    def is_image(self, name: str) -> bool:
        """Whether a tensor was made with its channels last."""
        if not {(name, False), (name, True)} & self._values.keys():
            maker = self.graph.producer(name)
            name = maker.inputs[0] if maker and maker.op == "DequantizeLinear" else name
        return (name, True) in self._values and (name, False) not in self._values

    def get(self, name: str, *, image: bool) -> int:
        """Return a tensor in one of its forms, made now if it does not exist yet."""
        if (name, image) not in self._values:
            self._values[name, image] = self._make(name, image)
        return self._values[name, image]

    def emit(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        image: bool,
        grid: Grid | None = None,
        dtype: str = "float32",
        options: str = "",
        **values: Any,
    ) -> Value:
        """Add an operator with one result, whose shape is given in ONNX's order."""
        shape = [shape[axis] for axis in TO_IMAGE] if image else shape
        dtype = dtype if grid is None else "int8"
        quantization = None if grid is None else grid.quantization
        index = self.writer.tensor(code, shape, dtype, quantization)
        self.writer.operator(code, inputs, [index], options, values)
        return Value(index, image)

    def constant(self, values: NDArray[Any], quantization: Quantization | None = None) -> int:
        """Add a constant."""
        return self.writer.constant("constant", values, quantization)

    def integers(self, *values: int | Sequence[int]) -> int:
        """Add a constant of sizes, axes or the like."""
        return self.constant(np.array(values, np.int32))

    def reals(self, name: str) -> NDArray[np.float32] | None:
        """Return the value of a float constant, dequantized if it is stored in steps."""
        value = constant_reals(self.graph, name)
        return None if value is None else np.asarray(value, np.float32)

    def permuted(self, index: int, order: Sequence[int]) -> int:
        """Return a tensor with its dimensions in another order."""
        shape = self.writer.shape(index)
        result = [shape[axis] for axis in order]
        moved = [axis for axis in order if shape[axis] != 1]
        if moved == sorted(moved):
            return self.reshaped(index, result)
        output = self.writer.tensor_like(index, result)
        inputs = [index, self.integers(*order)]
        self.writer.operator("TRANSPOSE", inputs, [output], "TransposeOptions")
        return output

    def reshaped(self, index: int, shape: Sequence[int]) -> int:
        """Return a tensor with another shape, in the order of dimensions that it has."""
        if tuple(shape) == self.writer.shape(index):
            return index
        output = self.writer.tensor_like(index, shape)
        inputs = [index, self.integers(*shape)]
        self.writer.operator("RESHAPE", inputs, [output], "ReshapeOptions")
        return output

    # ---- one node

    def _convert_node(self, node: Node) -> None:
        if node.op == "DequantizeLinear":
            return  # made when it is first asked for
        bounds = clip_bounds(self.graph, self.graph.constant, node)
        if node.op == "QuantizeLinear" or bounds is not None:
            self._convert_bounds(node, bounds)
            return
        if node.op not in RULES:
            raise unsupported(node, "there is no rule for it")
        rule = RULES[node.op]
        for name in (*node.inputs[: rule.n_data], *node.outputs):
            if name:
                self._check_type(name, title(node), rule.takes)
        tail = find_tail(self.graph, node)
        if not self._convert_steps(node, rule, tail):
            self._convert_float(node, rule, tail)

    def _convert_bounds(self, node: Node, bounds: Bounds | None) -> None:
        """Convert a Relu, Clip or QuantizeLinear node that is in no other node's tail."""
        source = node.inputs[0]
        if bounds is None:
            found = stepper(self.graph, node)
            if found is None:
                raise unsupported(node, "it does not quantize float32 to 8 bits, with one step")
            tail = Tail(None, UNBOUNDED, found, node.output, ())
        else:
            tail = find_tail(self.graph, node)
            tail = replace(tail, bounds=cut(bounds, tail.bounds))
        image = self.is_image(source)
        steps = self.steps_of(source) if tail.quantizer is not None else None
        name, grid = steps or (source, None)
        self._finish(Value(self.get(name, image=image), image), grid, tail)

    def _convert_float(self, node: Node, rule: Rule, tail: Tail) -> None:
        fused = "NONE"
        if rule.fuses and tail.quantizer is None and tail.bounds in FUSED:
            fused, tail = FUSED[tail.bounds], replace(tail, bounds=UNBOUNDED)
        shape = self.graph.shape(node.output)
        value = rule.convert(self, Call(node, node.inputs, shape, tail.bias, fused))
        assert value is not None  # only on integers may a rule decline
        self._finish(value, None, tail)

    def _convert_steps(self, node: Node, rule: Rule, tail: Tail) -> bool:
        """Convert a node on integers; return False if that cannot be."""
        if tail.quantizer is None or rule.kind == "float":
            return False
        placement = place(tail.quantizer, tail.bounds, fuses_relu=rule.fuses)
        steps = [self.steps_of(name) for name in node.inputs[: rule.n_data]]
        known = [step for step in steps if step is not None]
        if placement is None or len(known) < len(steps):
            return False
        if rule.kind == "move":
            known = self._on_one_grid(known, placement)
        names = (*(name for name, _ in known), *node.inputs[len(known) :])
        call = Call(
            node,
            names,
            self.graph.shape(node.output),
            tail.bias,
            placement.activation if rule.kind == "sum" else "NONE",
            tuple(grid for _, grid in known),
            placement.first if rule.kind == "sum" else known[0][1],
        )
        value = rule.convert(self, call)
        if value is None:
            return False
        if rule.kind == "move":
            self._finish(value, call.grid, tail)
        else:
            self._define(
                tail, self._requantized(value, placement.first, placement), placement.last
            )
        return True

    def steps_of(self, name: str) -> tuple[str, Grid] | None:
        """Return the quantized tensor behind a float one, and its grid."""
        maker = self.graph.producer(name)
        if maker is None or maker.op != "DequantizeLinear":
            return None
        found, grid = self._grids.get(maker.inputs[0], (None, None))
        if grid is None or found != stepper(self.graph, maker):
            return None
        return maker.inputs[0], grid

    def _on_one_grid(
        self, known: list[tuple[str, Grid]], placement: Placement
    ) -> list[tuple[str, Grid]]:
        """Requantize the inputs of a node that passes values on, unless they agree already."""
        if all(grid.has_steps_of(known[0][1]) for _, grid in known):
            return known
        result = []
        for name, grid in known:
            image = self.is_image(name)
            value = Value(self.get(name, image=image), image)
            value = self._requantized(value, grid, placement)
            moved = f"{name} at {placement.last}"
            self._values[moved, image] = value.index
            result.append((moved, placement.last))
        return result

    # ---- the end of a node

    def _finish(self, value: Value, grid: Grid | None, tail: Tail) -> None:
        """Cut and quantize the result of a node as its tail asks."""
        if tail.quantizer is None:
            self._define(tail, self._bounded(value, tail.bounds), None)
            return
        placement = place(tail.quantizer, tail.bounds, fuses_relu=False)
        if placement is None:  # the bounds have no place in int8
            value = value if grid is None else self._to(value, "DEQUANTIZE", None)
            value, grid = self._bounded(value, tail.bounds), None
            placement = place(tail.quantizer, UNBOUNDED, fuses_relu=False)
            assert placement is not None  # uint8 has its zero point inside
        self._define(tail, self._requantized(value, grid, placement), placement.last)

    def _requantized(self, value: Value, grid: Grid | None, placement: Placement) -> Value:
        """Quantize a value, or move it from another grid, and cut it as the placement asks."""
        if grid is None or not grid.fits(placement.last):
            value, grid = self._to(value, "QUANTIZE", placement.first), placement.first
        if grid.has_steps_of(placement.last):
            return value
        return self._to(value, "QUANTIZE", placement.last)

    def _to(self, value: Value, code: str, grid: Grid | None) -> Value:
        options = f"{code.capitalize()}Options"
        output = self.writer.tensor(
            code,
            self.writer.shape(value.index),
            "float32" if grid is None else "int8",
            None if grid is None else grid.quantization,
        )
        self.writer.operator(code, [value.index], [output], options)
        return Value(output, value.is_image)

    def _bounded(self, value: Value, bounds: Bounds) -> Value:
        """Cut a float value."""
        index, shape = value.index, self.writer.shape(value.index)
        steps: list[tuple[str, list[int], str]] = []
        if bounds in FUSED:
            steps = [(FUSED[bounds], [], "")] if bounds != UNBOUNDED else []
        else:
            for code, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True):
                if not math.isinf(bound):
                    operand = self.constant(np.array([bound], np.float32))
                    steps.append((code, [operand], "MaximumMinimumOptions"))
        for code, operands, options in steps:
            output = self.writer.tensor_like(index, shape)
            self.writer.operator(code, [index, *operands], [output], options)
            index = output
        return Value(index, value.is_image)

    def _define(self, tail: Tail, value: Value, grid: Grid | None) -> None:
        """Note what the result of a node and its tail became."""
        self._done.update(node.output for node in tail.nodes)
        self._values[tail.result, value.is_image] = value.index
        if tail.quantizer is not None and grid is not None:
            self._grids[tail.result] = (tail.quantizer, grid)

    def _make(self, name: str, image: bool) -> int:
        """Make a tensor in a form that does not exist yet."""
        if (name, not image) in self._values:
            order = TO_IMAGE if image else _FROM_IMAGE
            return self.permuted(self._values[name, not image], order)
        reals = self.reals(name)
        if reals is not None:
            return self.constant(reals.transpose(TO_IMAGE) if image else reals)
        steps, maker = self.steps_of(name), self.graph.producer(name)
        if steps is None:
            assert maker is not None  # inputs and constants are known
            if maker.op == "DequantizeLinear":
                raise unsupported(maker, "it does not undo a QuantizeLinear node")
            raise unsupported(maker, f"its output '{name}' is used, and not the first one alone")
        return self._to(Value(self.get(steps[0], image=image), image), "DEQUANTIZE", None).index

    def _check_type(self, name: str, where: str, types: frozenset[str]) -> None:
        dtype = self.graph.dtype(name)
        if dtype not in types:
            known = " or ".join(sorted(types))
            raise EvaluationError(
                f"Tensors must be {known} to run in LiteRT, but '{name}' of {where} is {dtype}. "
                "Use another runtime for this model.",
                "build",
            )
