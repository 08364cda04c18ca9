"""From the nodes of an ONNX graph to the steps that `OnnxModule` runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from .onnx_ops import OPERATORS, Operation, OpNode, UnsupportedOperatorError, clip_bounds
from .onnx_quantize import Grid, dequantize, fake_quantize, quantize_into, tensor_values

NO_SLOT = -1  # an optional input that is absent


@dataclass(slots=True)
class Step:
    """One operation on numbered values.

    Attributes:
        operation: What it does.
        inputs: Slots of its inputs; `NO_SLOT` for an absent one.
        outputs: Slots of its outputs.
        may_reuse: Whether it may overwrite its first input when no gradient is wanted.
        frees: Slots that no later step reads.
        clip: Bounds of a Relu or Clip, which a quantization right after it takes over.
    """

    operation: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    may_reuse: bool = False
    frees: tuple[int, ...] = ()
    clip: tuple[float | None, float | None] | None = None


@dataclass
class Program:
    """Steps of a graph with one input and one output, and the tensors they share.

    Attributes:
        steps: In the order they run.
        slots: Where each tensor of the graph that exists at run time is kept.
        weights: Float tensors that are parameters, by name.
        constants: Other tensors that steps read, by slot.
        is_batch_free: Whether every step treats the first axis as a batch of any size. If not,
            the graph means what it says for one sample only.
    """

    steps: list[Step] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    input_slot: int = 0
    output_slot: int = 0
    n_slots: int = 0
    is_batch_free: bool = True


def build_program(graph: GraphProto) -> Program:
    """Translate a graph.

    Raises:
        UnsupportedOperatorError: If a node's operator, or its form, is not supported.
        ValueError: If the graph has more than one input or output.
    """
    try:
        return _Builder(graph, is_batch_free=True).build()
    except _BatchMovedError:
        return _Builder(graph, is_batch_free=False).build()


class _BatchMovedError(Exception):
    """A node treats the first axis as something else than a batch."""


class _Builder:
    def __init__(self, graph: GraphProto, is_batch_free: bool) -> None:
        self.graph = graph
        self.program = Program(is_batch_free=is_batch_free)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.grids: dict[int, Grid] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.names: dict[int, str] = {}
        self.done: set[str] = set()  # outputs of DequantizeLinear nodes that are no step

    def build(self) -> Program:
        inputs = [i.name for i in self.graph.input if i.name not in self.initializers]
        outputs = [o.name for o in self.graph.output]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(
                "An `OnnxModule` must have one input and one output, but the graph has inputs "
                f"{inputs} and outputs {outputs}."
            )
        self.program.input_slot = self._new_slot(inputs[0])
        for node in self.graph.node:
            if node.output[0] not in self.done:
                self._add_node(node)
        if outputs[0] not in self.program.slots:
            raise ValueError(f"Output '{outputs[0]}' must depend on the input, but does not.")
        self.program.output_slot = self.program.slots[outputs[0]]
        self._plan_memory()
        return self.program

    # Constants -------------------------------------------------------------------------------

    def _is_constant(self, name: str) -> bool:
        return name in self.tensors or name in self.values or name in self.initializers

    def _value(self, name: str) -> np.ndarray[Any, Any]:
        if name not in self.values:
            if name in self.tensors:
                self.values[name] = self.tensors[name].numpy()
            else:
                self.values[name] = tensor_values(self.initializers[name])
        return self.values[name]

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            # A copy, as the array may be a view of the file's read-only bytes.
            self.tensors[name] = torch.from_numpy(self._value(name).copy())
        return self.tensors[name]

    # Nodes -----------------------------------------------------------------------------------

    def _add_node(self, node: NodeProto) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperatorError(_unsupported(node, f"{node.domain}.{node.op_type}"))
        if node.op_type == "Constant":
            self.tensors[node.output[0]] = _constant(node)
        elif node.op_type == "QuantizeLinear":
            self._add_quantize(node)
        elif node.op_type == "DequantizeLinear":
            self._add_dequantize(node)
        elif node.op_type in OPERATORS:
            self._add_operation(node)
        else:
            raise UnsupportedOperatorError(_unsupported(node, node.op_type))

    def _add_operation(self, node: NodeProto) -> None:
        entry = OPERATORS[node.op_type]
        static: dict[int, Tensor] = {}
        for position in entry.static:
            if position < len(node.input) and node.input[position]:
                name = node.input[position]
                if not self._is_constant(name):
                    raise OpNode(node).unsupported(f"its input '{name}' is computed")
                static[position] = self._tensor(name)
        op_node = OpNode(node, static, self.program.is_batch_free)
        operation = entry.build(op_node)
        names = [n for i, n in enumerate(node.input) if i not in entry.static]
        if names and all(self._is_constant(n) for n in names if n):
            self._fold(node, operation, names)
            return
        self._check_batch(op_node, names)
        inputs = tuple(self._read(n) for n in names)
        outputs = tuple(self._new_slot(n) for n in node.output if n)
        clip: tuple[float | None, float | None] | None = None
        if node.op_type == "Relu":
            clip = (0.0, None)
        elif node.op_type == "Clip":
            clip = clip_bounds(op_node)
        self.program.steps.append(Step(operation, inputs, outputs, clip=clip))
        grids = {self.grids.get(slot) for slot in inputs}
        if operation.keeps_grid or node.op_type == "Concat":
            grid = grids.pop()
            if grid is not None and not grids:
                self.grids.update(dict.fromkeys(outputs, grid))

    def _fold(self, node: NodeProto, operation: Operation, names: Sequence[str]) -> None:
        result = operation.apply(*(self._tensor(n) if n else None for n in names))
        results = result if isinstance(result, tuple) else (result,)
        self.tensors.update(zip(node.output, results, strict=False))

    def _read(self, name: str) -> int:
        """Return the slot of a tensor; a constant becomes a weight or a fixed value."""
        if not name:
            return NO_SLOT
        if name not in self.program.slots:
            if not self._is_constant(name):
                raise ValueError(f"Tensor '{name}' must be made before it is read, but is not.")
            tensor = self._tensor(name)
            slot = self._new_slot(name)
            if tensor.is_floating_point() and tensor.ndim:
                self.program.weights[name] = tensor
            else:
                self.program.constants[slot] = tensor
        return self.program.slots[name]

    def _new_slot(self, name: str) -> int:
        slot = self.program.n_slots
        self.program.slots[name] = slot
        self.names[slot] = name
        self.program.n_slots += 1
        return slot

    # Quantization ----------------------------------------------------------------------------

    def _grid(self, node: NodeProto) -> Grid:
        scale = self._quantization_input(node, 1)
        if scale is None or scale.size != 1:
            raise OpNode(node).unsupported("activations are quantized per channel")
        zero_point = self._quantization_input(node, 2)
        if zero_point is None:
            zero_point = np.zeros((), np.uint8)
        try:
            return Grid.of(scale.item(), int(zero_point.item()), zero_point.dtype)
        except KeyError:
            raise OpNode(node).unsupported(f"it quantizes to {zero_point.dtype}") from None

    def _quantization_input(self, node: NodeProto, position: int) -> np.ndarray[Any, Any] | None:
        if position >= len(node.input) or not node.input[position]:
            return None
        name = node.input[position]
        if not self._is_constant(name):
            raise OpNode(node).unsupported(f"its scale or zero point '{name}' is computed")
        return self._value(name)

    def _add_quantize(self, node: NodeProto) -> None:
        grid = self._grid(node)
        readers = self.readers[node.output[0]]
        for reader in readers:
            if reader.op_type != "DequantizeLinear" or self._grid(reader) != grid:
                raise OpNode(node).unsupported(
                    f"'{reader.op_type}' reads its integers and is no DequantizeLinear of the "
                    "same scale and zero point"
                )
        slot = self._read(node.input[0])
        while (step := self._take_clip(slot)) is not None:
            assert step.clip is not None
            slot, grid = step.inputs[0], grid.clip(*step.clip)
        if self.grids.get(slot) != grid:  # else the values are on the grid already
            source, slot = slot, self._new_slot(node.output[0])
            operation = Operation(
                lambda x, grid=grid: fake_quantize(x, grid),
                reuse=lambda x, grid=grid: quantize_into(x, grid),
            )
            self.program.steps.append(Step(operation, (source,), (slot,)))
            self.grids[slot] = grid
        for reader in readers:
            self.program.slots[reader.output[0]] = slot
            self.done.add(reader.output[0])

    def _take_clip(self, slot: int) -> Step | None:
        """Remove and return the Relu or Clip step whose result is only quantized."""
        name = self.names[slot]
        if len(self.readers[name]) > 1 or name == self.graph.output[0].name:
            return None
        step = next((s for s in reversed(self.program.steps) if slot in s.outputs), None)
        if step is None or step.clip is None:
            return None
        self.program.steps.remove(step)
        del self.program.slots[name]
        return step

    def _add_dequantize(self, node: NodeProto) -> None:
        if not self._is_constant(node.input[0]):
            raise OpNode(node).unsupported("its input is neither a weight nor quantized here")
        op_node = OpNode(node)
        if op_node.get("block_size", 0):
            raise op_node.unsupported("its scales are blocked")
        scale = self._quantization_input(node, 1)
        assert scale is not None  # a required input
        values = self._value(node.input[0])
        zero_point = self._quantization_input(node, 2)
        self.tensors[node.output[0]] = dequantize(
            values, scale, zero_point, op_node.get("axis", 1)
        )

    # Batch and memory ------------------------------------------------------------------------

    def _check_batch(self, node: OpNode, names: Sequence[str]) -> None:
        """Find out whether a node for the file's single sample also stands for a batch."""
        if not self.program.is_batch_free:
            return
        op, first = node.proto.op_type, 0
        axes = node.integers(1, "axes") or []
        if op == "Reshape":
            shape = node.integers(1) or [-1]
            breaks = shape[0] not in (0, 1)
        elif op == "Transpose":
            breaks = (node.get("perm") or [-1])[0] != 0
        elif op in ("Squeeze", "Unsqueeze", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
            breaks = first in axes
        elif op == "Slice":
            breaks = first in (node.integers(3) or [0])
        elif op == "Pad":
            pads, axes = node.integers(1) or [], node.integers(3) or [0]
            at = axes.index(0) if 0 in axes else None
            breaks = at is not None and bool(pads[at] or pads[len(pads) // 2 + at])
        elif op in ("Concat", "Split", "Gather", "Softmax", "LogSoftmax", "ArgMax", "ArgMin"):
            breaks = node.get("axis", -1 if "Softmax" in op else 0) == 0
        elif op == "Gemm":
            breaks = bool(node.get("transA", 0)) or not self._is_constant(names[1])
        else:
            breaks = False
        if breaks:
            raise _BatchMovedError

    def _plan_memory(self) -> None:
        """Decide which steps may overwrite their input and when a value is let go."""
        steps = self.program.steps
        last_read: dict[int, int] = {}
        reads: dict[int, int] = defaultdict(int)
        for number, step in enumerate(steps):
            for slot in step.inputs:
                last_read[slot] = number
                reads[slot] += 1
        own = {s for step in steps if not step.operation.is_view for s in step.outputs}
        own -= {self.program.output_slot}
        made = {s for step in steps for s in step.outputs}
        for number, step in enumerate(steps):
            # An addition may as well overwrite its second operand.
            if step.operation.apply is torch.add and step.inputs[0] not in own:
                step.inputs = step.inputs[::-1]
            first = step.inputs[0]
            step.may_reuse = (
                step.operation.reuse is not None and first in own and reads[first] == 1
            )
            step.frees = tuple(
                s
                for s in dict.fromkeys(step.inputs)
                if s in made and last_read[s] == number and s != self.program.output_slot
            )


def _constant(node: NodeProto) -> Tensor:
    value = OpNode(node).attributes
    (key, content), *_ = value.items()
    if key == "value":
        return torch.from_numpy(tensor_values(content).copy())
    if key.startswith("value_float"):
        return torch.tensor(content, dtype=torch.float32)
    if key.startswith("value_int"):
        return torch.tensor(content, dtype=torch.int64)
    raise OpNode(node).unsupported(f"its value is given as '{key}'")


def _unsupported(node: NodeProto, operator: str) -> str:
    return (
        f"Operator '{operator}' at node '{node.name or node.output[0]}' is not supported. "
        "Express it with operators that are (`supported_ops()` lists them), or keep this part "
        "out of the compressed model."
    )
