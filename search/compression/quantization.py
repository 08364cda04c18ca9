"""From a float graph and a candidate's widths to a graph with QuantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from torch import Tensor

from ..candidate import HALF_BITS, LayerChoice
from ._graph import (
    attribute,
    float_initializer,
    half_initializer,
    initializers,
    integer_initializer,
    layer_nodes,
    set_metadata,
    to_tensor,
)
from .accumulation import bound_weight
from .calibration import CalibrationMethod, Histogram
from .placement import QuantizedTensor, place_quantizers
from .quantizer import (
    ActivationGrid,
    QuantizedWeight,
    fit_scale_to_bias,
    quantize_bias,
    quantize_weight,
    weight_scales,
)
from .sparsity import Sparsity, sparsify

WEIGHT_BITS_KEY = "paredown.weight_bits"
ACTIVATION_BITS_KEY = "paredown.activation_bits"
_MAX_HALF = torch.finfo(torch.float16).max
_BIASED_OPS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class LayerValues:
    """Values of an integer layer that replace those of the float graph.

    Attributes:
        weight: In the form of the float graph's initializer; None takes that.
        scale: What the weight is rounded with, one for each output channel; None searches them.
        gain: Factor between that scale and the one in the file; None is 1.
        bias: None takes the float graph's, or zeros.
    """

    weight: Tensor | None = None
    scale: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None


def output_axis(node: NodeProto) -> int:
    """Return the axis of a layer's weight where its output channels are."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return 1


@dataclass(frozen=True, slots=True)
class AddedBias:
    """The bias of a MatMul, which an Add node brings.

    Attributes:
        add: Name of the node.
        position: Where it reads the bias.
        name: The initializer.
    """

    add: str
    position: int
    name: str


def added_biases(graph: GraphProto) -> dict[str, AddedBias]:
    """Return the biases of MatMul layers by the names of their nodes.

    In integers like those of other layers they let ONNX Runtime run the layer in integers, too.
    """
    constants = initializers(graph)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found: dict[str, AddedBias] = {}
    for node in (n for nodes in layer_nodes(graph).values() for n in nodes):
        after = readers.get(node.output[0], [])
        if node.op_type != "MatMul" or len(after) != 1 or node.output[0] in outputs:
            continue
        if after[0].op_type != "Add":
            continue
        channels = [constants[node.input[1]].dims[1]]
        for position, name in enumerate(after[0].input):
            if name in constants and list(constants[name].dims) == channels:
                found[node.name] = AddedBias(after[0].name, position, name)
    return found


def activation_names(graph: GraphProto) -> tuple[str, ...]:
    """Return the tensors that are quantized when all layers are integer ones."""
    every = {n.name: 8 for nodes in layer_nodes(graph).values() for n in nodes}
    placed = place_quantizers(graph, every)
    return tuple(dict.fromkeys(t.root for t in placed.values()))


def quantize(
    model: ModelProto,
    choices: Mapping[str, LayerChoice],
    histograms: Mapping[str, Histogram],
    method: CalibrationMethod = "mse",
    *,
    search_scales: bool = True,
    values: Mapping[str, LayerValues] | None = None,
    accumulation_run: int | None = None,
    sparsity: Sparsity | None = None,
) -> ModelProto:
    """Write a float graph with quantized activations, weights and biases.

    Weights of 16 bits become float16 initializers with a Cast to float32 behind them, which all
    runtimes compute once, when they load the file.

    Args:
        model: The float graph; it is left as it is.
        choices: What each layer becomes; layers that are not named stay float.
        histograms: What calibration saw of the tensors of `activation_names`.
        method: How ranges follow from the histograms.
        search_scales: Whether weight scales minimise the squared error or cover all weights.
        values: Weights, scales and biases, by the names of layers' nodes, that replace those of
            the float graph (after training, or to correct a bias).
        accumulation_run: Steps that kernels are to sum in 16 bits; see `accumulation.bound_sums`.
        sparsity: How many weights of integer layers are zero; a layer of -1 and 1 has none.

    Returns:
        The graph in QDQ form.

    Raises:
        ValueError: If a layer is named that the graph does not have, or a weight of 16 bits is
            too large for float16.
    """
    by_node = _choices_by_node(model.graph, choices)
    integer = {name: choice for name, choice in by_node.items() if not choice.is_float}
    placed = place_quantizers(
        model.graph, {name: choice.activation_bits for name, choice in integer.items()}
    )
    grids = {t.root: histograms[t.root].grid(t.bits, method) for t in placed.values()}
    added = added_biases(model.graph)
    floats = initializers(model.graph)
    writer = _Writer(floats, placed, grids, added, accumulation_run, sparsity)
    for value in model.graph.input:
        writer.add_quantizer(value.name)
    for node in model.graph.node:
        written = NodeProto()
        written.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in placed:
                written.input[position] = f"{name}.dequantized"
        writer.rename_bias(written, integer)
        if node.name in by_node:
            _note_widths(written, by_node[node.name])
            if by_node[node.name].weight_bits == HALF_BITS:
                writer.add_halves(written.input[1])
        if node.name in integer:
            given = (values or {}).get(node.name, LayerValues())
            writer.add_layer(written, node.input[0], integer[node.name], given, search_scales)
        writer.nodes.append(written)
        for name in node.output:
            writer.add_quantizer(name)
    return writer.assemble(model)


def _choices_by_node(
    graph: GraphProto, choices: Mapping[str, LayerChoice]
) -> dict[str, LayerChoice]:
    layers = layer_nodes(graph)
    missing = sorted(set(choices) - set(layers))
    if missing:
        raise ValueError(
            f"`choices` must name layers of the graph, but {missing} are not among {list(layers)}."
        )
    return {node.name: choice for name, choice in choices.items() for node in layers[name]}


def _note_widths(node: NodeProto, choice: LayerChoice) -> None:
    notes = {
        WEIGHT_BITS_KEY: str(choice.weight_bits),
        ACTIVATION_BITS_KEY: str(choice.activation_bits),
    }
    set_metadata(node, notes)


def _has_runs(node: NodeProto, weight: QuantizedWeight) -> bool:
    """Tell whether kernels of a layer sum over runs that `accumulation.bound_weight` knows."""
    # A single bit has no smaller value than 1; depthwise layers have kernels of their own.
    is_depthwise = 1 < len(weight.scale) == attribute(node, "group", 1)
    return (
        weight.bits > 1 and weight.axis == 0 and weight.values.ndim in (2, 4) and not is_depthwise
    )


class _Writer:
    """The nodes and initializers of the graph that is being written."""

    def __init__(
        self,
        floats: Mapping[str, TensorProto],
        placed: Mapping[str, QuantizedTensor],
        grids: Mapping[str, ActivationGrid],
        added: Mapping[str, AddedBias],
        accumulation_run: int | None,
        sparsity: Sparsity | None,
    ) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._floats = floats
        self._placed = placed
        self._grids = grids
        self._added = added
        self._run = accumulation_run
        self._sparsity = sparsity

    def rename_bias(self, node: NodeProto, integer: Collection[str]) -> None:
        """Let an Add behind a MatMul that becomes an integer layer read its integer bias."""
        for layer, bias in self._added.items():
            if bias.add == node.name and layer in integer:
                node.input[bias.position] = f"{layer}.bias"

    def add_quantizer(self, name: str) -> None:
        """Add the nodes that quantize a tensor, if that was decided."""
        if name not in self._placed:
            return
        root = self._placed[name].root
        self._add_grid(root)
        source = name
        if self._grids[root].bits < 8:  # QuantizeLinear saturates at 255 alone
            source = f"{name}.clipped"
            self._add_node("Clip", [name, f"{root}.low", f"{root}.high"], source, f"{name}.clip")
        grid = [f"{root}.scale", f"{root}.zero_point"]
        quantized, result = f"{name}.quantized", f"{name}.dequantized"
        self._add_node("QuantizeLinear", [source, *grid], quantized, f"{name}.quantize")
        self._add_node("DequantizeLinear", [quantized, *grid], result, f"{name}.dequantize")

    def _add_grid(self, root: str) -> None:
        grid = self._grids[root]
        zero = torch.tensor(grid.zero_point, dtype=torch.uint8)
        self._add(float_initializer(f"{root}.scale", np.float32(grid.scale)))
        self._add(integer_initializer(f"{root}.zero_point", zero, TensorProto.UINT8))
        if grid.bits < 8:
            self._add(float_initializer(f"{root}.low", np.float32(grid.low)))
            self._add(float_initializer(f"{root}.high", np.float32(grid.high)))

    def add_layer(
        self,
        node: NodeProto,
        source: str,
        choice: LayerChoice,
        given: LayerValues,
        search_scales: bool,
    ) -> None:
        """Add the integer weight and bias of a layer and let its node read them."""
        axis = output_axis(node)
        bits = choice.weight_bits
        weight, scale, bias = given.weight, given.scale, given.bias
        original = to_tensor(self._floats[node.input[1]])
        if weight is None:
            weight = original
        if self._sparsity is not None and bits > 1:
            weight = sparsify(weight, self._sparsity, axis)
            original = weight
        if scale is None:
            scale = weight_scales(weight, bits, axis, search=search_scales)
        gain = given.gain if given.gain is not None else torch.ones_like(scale)
        input_grid = self._grids[self._placed[source].root]
        has_bias = node.op_type in _BIASED_OPS or node.name in self._added
        repeats = attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1
        if has_bias:
            bias = self._bias(node, len(scale) * repeats) if bias is None else bias
            largest = bias.abs().reshape(repeats, -1).amax(dim=0)
            scale = fit_scale_to_bias(scale, largest, input_grid.scale)
        quantized = quantize_weight(weight, scale, bits, axis)
        if self._run is not None and _has_runs(node, quantized):
            data_max = (1 << input_grid.bits) - 1
            quantized = bound_weight(quantized, original, self._run, data_max)
        if bias is not None and has_bias:
            self._add_bias(node, bias, (gain * quantized.scale).repeat(repeats) * input_grid.scale)
        self._add_weight(node, replace(quantized, scale=gain * quantized.scale))

    def add_halves(self, name: str) -> None:
        """Add a float weight as float16 numbers, under its name once they are cast to float32."""
        stored = f"{name}.float16"
        if stored in self.initializers:  # two nodes of one layer
            return
        weight = to_tensor(self._floats[name])
        largest = weight.abs().max().item()
        if largest > _MAX_HALF:
            raise ValueError(
                f"Weights of 16 bits must lie between -{_MAX_HALF:g} and {_MAX_HALF:g}, but those "
                f"of '{name}' reach {largest:g}. Leave the layer in float32."
            )
        self._add(half_initializer(stored, weight))
        self.nodes.append(
            onnx.helper.make_node("Cast", [stored], [name], f"{name}.cast", to=TensorProto.FLOAT)
        )

    def _bias(self, node: NodeProto, n_channels: int) -> Tensor:
        if node.name in self._added:
            return to_tensor(self._floats[self._added[node.name].name])
        if len(node.input) > 2 and node.input[2]:
            return to_tensor(self._floats[node.input[2]])
        return torch.zeros(n_channels)

    def _add_weight(self, node: NodeProto, weight: QuantizedWeight) -> None:
        name = f"{node.name}.weight"
        kind = TensorProto.INT4 if weight.bits <= 4 else TensorProto.INT8
        self._add_constant(name, weight.values, weight.scale, kind, weight.axis)
        node.input[1] = name

    def _add_bias(self, node: NodeProto, bias: Tensor, scale: Tensor) -> None:
        name = f"{node.name}.bias"
        self._add_constant(name, quantize_bias(bias, scale), scale, TensorProto.INT32, 0)
        if node.name not in self._added:
            del node.input[2:]
            node.input.append(name)

    def _add_constant(
        self, name: str, integers: Tensor, scale: Tensor, kind: int, axis: int
    ) -> None:
        zeros = torch.zeros(len(scale), dtype=integers.dtype)
        self._add(integer_initializer(f"{name}.quantized", integers, kind))
        self._add(float_initializer(f"{name}.scale", scale.numpy()))
        self._add(integer_initializer(f"{name}.zero_point", zeros, kind))
        inputs = [f"{name}.quantized", f"{name}.scale", f"{name}.zero_point"]
        self._add_node("DequantizeLinear", inputs, name, f"{name}.dequantize", axis=axis)

    def _add(self, tensor: TensorProto) -> None:
        self.initializers[tensor.name] = tensor

    def _add_node(
        self, op: str, inputs: list[str], output: str, name: str, axis: int | None = None
    ) -> None:
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name, axis=axis))

    def assemble(self, model: ModelProto) -> ModelProto:
        """Return the graph, with what it still needs of the float one."""
        used = {name for node in self.nodes for name in node.input}
        used -= {name for node in self.nodes for name in node.output}  # integers took their place
        result = ModelProto(ir_version=model.ir_version, producer_name="paredown")
        result.opset_import.extend(model.opset_import)
        graph = result.graph
        graph.name = model.graph.name
        graph.input.extend(model.graph.input)
        graph.output.extend(model.graph.output)
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.initializers.values())
        graph.initializer.extend(t for name, t in self._floats.items() if name in used)
        return result
