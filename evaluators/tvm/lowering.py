"""From a QDQ ONNX graph to Relax: own kernels where they fit, TVM's own for the rest.

The walk is driven by demand, from the graph's outputs back. Each tensor can be wanted as an image
(the kernels' own form, see `image.Image`) or as a plain NCHW tensor; conversions appear only where
the two meet. A rule per operator makes an image out of images; it looks forward through a `Sink`
that already includes what follows it (activation, residual add, quantization), so that one kernel
does it all. A rule that does not fit returns None, and the operator alone goes through TVM's ONNX
frontend.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from tvm import relax

from ...hw_profiles import HardwareProfile
from ..measurement import EvaluationError
from ..onnx_graph.activations import clip_bounds, find_activation
from ..onnx_graph.graph import Graph, Node, conv_pads
from ..onnx_graph.quantizers import Quantizer, constant_reals, is_constant, quantizer
from ..onnx_graph.transposed import transposed_axes
from ..runtimes.base import TensorSpec
from .cache import KernelCache
from .emitter import Emitter
from .fallback import discard, import_node
from .image import Image
from .knobs import KnobChooser
from .layers import ConvLayer
from .moves import Move
from .rule_table import ROW_RULES, RULES, WORTH, Rule
from .signature import Signature, add_signature
from .sink import Sink

# Their kernels activate what they store.
_ACTIVATING = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul"),
    *("Add", "Mul", "Sub", "Div", "BatchNormalization", "PRelu"),
    *("InstanceNormalization", "GroupNormalization", "LRN"),
)
_OWN_ONLY = ("mish", "silu")  # activations that TVM has not, or less exact


class Lowering:
    """Builds one network.

    Args:
        graph: The network.
        cache: Compiles the kernels.
        chooser: Chooses their settings.
        profile: The device.
    """

    emitter: type[Emitter] = Emitter
    has_channel_kernels = True  # that scale every channel by a constant of its own

    def __init__(
        self, graph: Graph, cache: KernelCache, chooser: KnobChooser, profile: HardwareProfile
    ) -> None:
        self.graph, self.threads, self.isa = graph, profile.threads, profile.isa
        self._profile, self._cache, self._chooser = profile, cache, chooser
        self._builder = relax.BlockBuilder()
        self.emit = self.emitter(self._builder, profile.threads, profile.isa)
        self._images: dict[str, Image] = {}
        self._plain: dict[str, Any] = {}
        self._rows: dict[str, Image] = {}
        self._own: set[str] = set()  # tensors that own kernels make
        self._own_rows: set[str] = set()  # those of four dimensions that are no NCHW images
        self.moves: dict[str, Move | None] = {}  # what `find_move` found, by tensor
        self._layers: list[tuple[str, str]] = []
        for node in graph:
            if self._has_row_kernel(node):
                self._own_rows.add(node.output)
            elif self._has_own_kernel(node):
                self._own.add(node.output)

    def run(self) -> Any:
        """Return the Relax module of the network, without its kernels.

        The first parameters of `main` are those of `emit.weights`.
        """
        graph, builder = self.graph, self._builder
        for name in graph.inputs:
            kind = relax.TensorType(graph.shape(name), graph.dtype(name))
            self._plain[name] = relax.Var(_identifier(name), kind)
        try:
            with builder.function("main"):
                with builder.dataflow(), _recursion(len(graph.nodes)):
                    outputs = [builder.emit_output(self.plain(name)) for name in graph.outputs]
                parameters = [*self.emit.weights, *(self._plain[name] for name in graph.inputs)]
                result = outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)
                builder.emit_func_output(result, parameters)
        except BaseException:  # TVM complains about a builder that is left open
            discard(builder)
            raise
        add_signature(builder, self._signature())
        return builder.get()

    def _signature(self) -> Signature:
        graph = self.graph
        output_names = [v.name for v in graph.model.graph.output]
        inputs = [TensorSpec(name, graph.shape(name), graph.dtype(name)) for name in graph.inputs]
        outputs = [
            TensorSpec(label, graph.shape(name), graph.dtype(name))
            for label, name in zip(output_names, graph.outputs, strict=True)
        ]
        return Signature(
            tuple(inputs),
            tuple(outputs),
            tuple(sorted({*self._profile.features, *self._cache.cpu_flags()})),
            tuple(self._layers),
            self._profile.device,
        )

    # ---- the two forms of a tensor

    def image(self, name: str) -> Image:
        """Return a float tensor, or the output of a QuantizeLinear node to uint8, as an image."""
        if name not in self._images:
            self._images[name] = self._make_image(name)
        return self._images[name]

    def _make_image(self, name: str) -> Image:
        node = self.graph.producer(name)
        steps = quantizer(self.graph, node) if node and node.op == "QuantizeLinear" else None
        if node is None or steps is None:
            return self.produce(name, Sink(self.border(name)))
        sink = Sink(self.border(name), "uint8", steps.scale, steps.zero_point)
        reals = node.inputs[0]
        if reals in self._own and self.graph.only_user(reals) is not node:
            return self.emit.store([self.source(reals)], sink)  # others need the reals as well
        return self.produce(reals, sink)

    def source(self, name: str) -> Image:
        """Return a float tensor as an operand: where it is a dequantized one, as uint8 image."""
        image = self.steps(name)
        return self.image(name) if image is None else image

    def steps(self, name: str) -> Image | None:
        """Return the uint8 image behind the output of a DequantizeLinear node, if there is one."""
        stored = self._stored(name)
        return None if stored is None else self.image(stored)

    def _stored(self, name: str) -> str | None:
        """Return the output of the QuantizeLinear node behind that of a DequantizeLinear node."""
        node = self.graph.producer(name)
        if node is None or node.op != "DequantizeLinear":
            return None
        maker = self.graph.producer(node.inputs[0])
        if maker is None or maker.op != "QuantizeLinear":
            return None
        stored, read = quantizer(self.graph, maker), quantizer(self.graph, node)
        return node.inputs[0] if stored is not None and stored == read else None

    def rows(self, name: str) -> Image:
        """Return a float tensor, or the output of a QuantizeLinear node, as a row of pixels.

        Its last dimension is the channels. `image` does the same, but for four dimensions.
        """
        if len(self.graph.shape(name)) != 4:
            return self.image(name)
        if name not in self._rows:
            self._rows[name] = self._make_rows(name)
        return self._rows[name]

    def _make_rows(self, name: str) -> Image:
        node, sink = self.graph.producer(name), Sink(0)
        steps = quantizer(self.graph, node) if node and node.op == "QuantizeLinear" else None
        if node is not None and steps is not None:
            name, sink = node.inputs[0], Sink(0, "uint8", steps.scale, steps.zero_point)
            if name in self._own_rows and self.graph.only_user(name) is not node:
                return self.emit.store([self.row_source(name)], sink)
        stored = self._stored(name)
        if stored is not None:
            return self.emit.store([self.rows(stored)], sink)
        node = self.graph.producer(name)
        found = self._lowered(node, ROW_RULES.get(node.op, []), sink) if node is not None else None
        if found is not None:
            return found
        if name not in self._plain:
            if name in self._own_rows:
                self._fall_back(name)
            else:
                self.plain(name)
        shape = self.graph.shape(name)
        return self.emit.from_plain(self._plain[name], (math.prod(shape[:-1]), shape[-1]), sink)

    def row_source(self, name: str) -> Image:
        """Return a float tensor as `rows`; where it is a dequantized one, in uint8."""
        stored = self._stored(name)
        return self.rows(name if stored is None else stored)

    def quantized(self, name: str, steps: Quantizer, user: Node) -> Image:
        """Return a float tensor, which `user` reads, as `rows` in the given steps."""
        sink = Sink(0, "uint8", steps.scale, steps.zero_point)
        if len(self.graph.shape(name)) != 4 and self.graph.only_user(name) is user:
            return self.produce(name, sink)
        return self.emit.store([self.row_source(name)], sink)

    def is_plain(self, name: str) -> bool:
        """Whether no kernel of ours makes a tensor, so that its plain form is at hand."""
        own = name in self._own or name in self._own_rows
        return not own and self._stored(name) is None

    def plain(self, name: str) -> Any:
        """Return a tensor as a Relax variable or constant of the ONNX tensor's shape."""
        if name not in self._plain:
            value = self.constant(name)
            if value is not None:
                self._plain[name] = relax.const(value, str(value.dtype))
            elif name in self._own or name in self._own_rows:
                image = self.source(name) if name in self._own else self.row_source(name)
                if name not in self._plain:  # a refused operator has left its plain form
                    shape, is_rows = self.graph.shape(name), name in self._own_rows
                    self._plain[name] = self.emit.to_plain(image, shape, is_rows=is_rows)
            else:
                self._fall_back(name)
        return self._plain[name]

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant, dequantized if it is stored in steps."""
        return constant_reals(self.graph, name)

    def is_own(self, name: str) -> bool:
        """Whether an own kernel makes a tensor."""
        return name in self._own

    def is_image(self, name: str) -> bool:
        """Whether a tensor is at hand as an image, or must become one to be read."""
        return name in self._own or name in self.graph.inputs

    def produce(self, name: str, sink: Sink) -> Image:
        """Make the image of a float tensor, with the activations behind it, as the sink says."""
        node = self.graph.producer(name)
        while node is not None and (bounds := self.activation(node)) is not None:
            sink = sink.clamped(*bounds)
            name = node.inputs[0]
            if self.graph.only_user(name) is not node:
                return self.emit.store([self.source(name)], sink)
            node = self.graph.producer(name)
        match = find_activation(self.graph, self.constant, node) if node is not None else None
        if match is not None:
            name, sink = match.data, replace(sink, activation=match.activation)
            node = self.graph.producer(name)
            if node is None or node.op not in _ACTIVATING or not match.is_only_reader(self.graph):
                return self.emit.store([self.source(name)], sink)
        found = self._lowered(node, self._rules(node), sink) if node is not None else None
        if found is not None:
            return found
        if not sink.activation.name:
            return self._from_plain(name, sink)
        return self.emit.store([self._from_plain(name, Sink(0))], sink)

    def _lowered(self, node: Node, rules: Iterable[Rule], sink: Sink) -> Image | None:
        """Return what the first rule that fits makes of a node."""
        images = (lower(self, node, sink) for lower in rules)
        return next((image for image in images if image is not None), None)

    def _rules(self, node: Node) -> list[Rule]:
        """Return the rules for a node whose output is wanted as an image."""
        is_nchw = len(self.graph.shape(node.output)) == 4
        return RULES.get(node.op, []) + ([] if is_nchw else ROW_RULES.get(node.op, []))

    def activation(self, node: Node) -> tuple[float, float] | None:
        """Return the bounds of a float Relu or Clip node; None for any other."""
        return clip_bounds(self.graph, self.constant, node)

    def border(self, name: str) -> int:
        """Return the widest padding that a convolution wants around a tensor, in either form."""
        widest = 0
        for user in self.graph.users(name):
            if user.op == "DequantizeLinear":
                widest = max(widest, self.border(user.output))
            elif user.inputs[0] != name or len(self.graph.shape(name)) != 4:
                continue
            elif user.op == "Conv":
                widest = max(widest, *conv_pads(self.graph, user))
            elif user.op == "ConvTranspose":
                widest = max(widest, *(a.border for a in transposed_axes(self.graph, user)))
            elif user.op == "LRN":
                widest = max(widest, 1)
        return widest

    def _has_own_kernel(self, node: Node) -> bool:
        """Whether a node is worth an own kernel: it has weights, or its input comes from one."""
        if self.graph.dtype(node.output) != "float32":
            return False
        if self.multiplies_activations(node):
            return True
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            weights, dimensions = node.inputs[1], 4 if node.op.startswith("Conv") else 2
            shape = self.graph.shape(weights)
            if dimensions == 2 and len(self.graph.shape(node.output)) == 4:
                return False
            return is_constant(self.graph, weights) and len(shape) == dimensions
        if node.op == "DequantizeLinear":
            maker = self.graph.producer(node.inputs[0])
            return maker is not None and None not in (
                quantizer(self.graph, maker),
                quantizer(self.graph, node),
            )
        match = find_activation(self.graph, self.constant, node)
        if match is not None:
            return match.data in self._own or match.activation.name in _OWN_ONLY
        if not self._rules(node) and self.activation(node) is None:
            return False
        if len(self.graph.shape(node.output)) != 4 and set(node.inputs) & self._own_rows:
            return True
        if node.op in WORTH:
            return any(is_worth(self, node) for is_worth in WORTH[node.op])
        return any(name in self._own for name in node.inputs)

    def multiplies_activations(self, node: Node) -> bool:
        """Whether a node is a product of two matrices, neither of them a constant."""
        return (
            node.op == "MatMul"
            and all(len(self.graph.shape(name)) > 1 for name in node.inputs)
            and not any(is_constant(self.graph, name) for name in node.inputs)
            and {self.graph.dtype(name) for name in node.inputs} == {"float32"}
        )

    def _has_row_kernel(self, node: Node) -> bool:
        """Whether a tensor of four dimensions is made in rows, not as an NCHW image."""
        if self.graph.dtype(node.output) != "float32" or len(self.graph.shape(node.output)) != 4:
            return False
        if node.op == "DequantizeLinear":
            stored = self._stored(node.output)
            maker = self.graph.producer(stored) if stored is not None else None
            return maker is not None and maker.inputs[0] in self._own_rows
        if node.op == "Softmax":
            return node.get("axis", -1) in (-1, 3)
        return self.multiplies_activations(node)

    # ---- what rules emit

    def call_layer(self, layer: ConvLayer) -> Image | None:
        """Emit a convolution or linear layer; None if there is no kernel for it."""
        call = layer.call(self._chooser.choose(layer))
        self.add_layer(call.kernel.symbol, layer.name)
        residual = [layer.sink.residual.var] if layer.sink.residual is not None else []
        weights, *constants, ints, floats = call.constants
        if call.weights is not None:
            weights = self.emit.unpacked(call.weights)
        source = self.emit.widened(layer.source) if call.reads_words else layer.source.var
        arguments = [source, weights, *constants, *residual, ints, floats]
        return self.emit.image(call.kernel, arguments, call.output)

    def add_layer(self, symbol: str, name: str) -> None:
        """Remember which layer a kernel computes, for the library's signature."""
        self._layers.append((symbol, name))

    def _from_plain(self, name: str, sink: Sink) -> Image:
        """Turn the plain form of a tensor that no rule makes into an image."""
        if name not in self._plain:
            if self.constant(name) is not None or name in self._own_rows:
                self.plain(name)
            else:
                self._fall_back(name)
        return self.emit.from_plain(self._plain[name], self.graph.shape(name), sink)

    def _fall_back(self, name: str) -> None:
        """Emit one ONNX node through TVM's frontend."""
        node = self.graph.producer(name)
        if node is None:
            raise EvaluationError(f"Tensor '{name}' is read, but no node makes it.", "model")
        inputs = [i for i in dict.fromkeys(node.inputs) if i]
        constants = {i: value for i in inputs if (value := self.constant(i)) is not None}
        arguments = {i: self.plain(i) for i in inputs if i not in constants}
        value = import_node(self._builder, self.graph, node, arguments, constants)
        for i, output in enumerate(node.outputs):
            if output:
                single = len(node.outputs) == 1
                self._plain[output] = (
                    value if single else self._builder.emit(relax.TupleGetItem(value, i))
                )


@contextmanager
def _recursion(n_nodes: int) -> Iterator[None]:
    """Let the walk go as deep as the network: each node may take several calls."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 1000 + 20 * n_nodes))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _identifier(name: str) -> str:
    return "".join(ch if ch.isalnum() else "_" for ch in name)
