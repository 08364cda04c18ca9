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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from tvm import relax

from ...hw_profiles import HardwareProfile
from ..measurement import EvaluationError
from ..runtimes.base import TensorSpec
from .activations import find_activation
from .cache import KernelCache
from .emitter import Emitter
from .fallback import discard, import_node
from .graph import Graph, Node, conv_pads
from .image import Image
from .knobs import KnobChooser
from .layers import ConvLayer
from .moves import Move
from .quantizers import constant_reals, is_constant, quantizer
from .signature import Signature, add_signature
from .sink import Sink
from .transposed import transposed_axes

Rule = Callable[["Lowering", Node, Sink], Image | None]
RULES: dict[str, Rule] = {}
IsWorth = Callable[["Lowering", Node], bool]
_WORTH: dict[str, IsWorth] = {}
# Their kernels activate what they store.
_ACTIVATING = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul"),
    *("Add", "Mul", "Sub", "Div", "BatchNormalization", "PRelu"),
)

_OWN_ONLY = ("mish", "silu")  # activations that TVM has not, or less exact


def rule(*operators: str, worth: IsWorth | None = None) -> Callable[[Rule], Rule]:
    """Register a rule that lowers ONNX operators to own kernels.

    Args:
        operators: Their names.
        worth: Whether a float node is worth an own kernel; by default, if an input comes from one.
    """

    def add(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"Operator '{operator}' must have one rule, but it has two.")
            RULES[operator] = function
            if worth is not None:
                _WORTH[operator] = worth
        return function

    return add


class Lowering:
    """Builds one network.

    Args:
        graph: The network.
        cache: Compiles the kernels.
        chooser: Chooses their settings.
        profile: The device.
    """

    def __init__(
        self, graph: Graph, cache: KernelCache, chooser: KnobChooser, profile: HardwareProfile
    ) -> None:
        self.graph, self.threads = graph, profile.threads
        self._profile, self._cache, self._chooser = profile, cache, chooser
        self._builder = relax.BlockBuilder()
        self.emit = Emitter(self._builder, profile.threads)
        self._images: dict[str, Image] = {}
        self._plain: dict[str, Any] = {}
        self._own: set[str] = set()  # tensors that own kernels make
        self.moves: dict[str, Move | None] = {}  # what `find_move` found, by tensor
        for node in graph:
            if self._has_own_kernel(node):
                self._own.add(node.output)

    def run(self) -> Any:
        """Return the Relax module of the network, its kernels attached as external modules."""
        graph, builder = self.graph, self._builder
        for name in graph.inputs:
            kind = relax.TensorType(graph.shape(name), graph.dtype(name))
            self._plain[name] = relax.Var(_identifier(name), kind)
        try:
            with builder.function("main", [self._plain[name] for name in graph.inputs]):
                with builder.dataflow(), _recursion(len(graph.nodes)):
                    outputs = [builder.emit_output(self.plain(name)) for name in graph.outputs]
                builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        except BaseException:
            discard(builder)
            raise
        add_signature(builder, self._signature())
        libraries = [self._cache.static_library(k) for k in self.emit.kernels.values()]
        module = builder.get()
        return module.with_attr("external_mods", libraries) if libraries else module

    def _signature(self) -> Signature:
        graph = self.graph
        output_names = [v.name for v in graph.model.graph.output]
        inputs = [TensorSpec(name, graph.shape(name), graph.dtype(name)) for name in graph.inputs]
        outputs = [
            TensorSpec(label, graph.shape(name), graph.dtype(name))
            for label, name in zip(output_names, graph.outputs, strict=True)
        ]
        return Signature(tuple(inputs), tuple(outputs), self._profile.features)

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
        node = self.graph.producer(name)
        if node is None or node.op != "DequantizeLinear":
            return None
        maker = self.graph.producer(node.inputs[0])
        if maker is None or maker.op != "QuantizeLinear":
            return None
        stored, read = quantizer(self.graph, maker), quantizer(self.graph, node)
        return self.image(node.inputs[0]) if stored is not None and stored == read else None

    def plain(self, name: str) -> Any:
        """Return a tensor as a Relax variable or constant of the ONNX tensor's shape."""
        if name not in self._plain:
            value = self.constant(name)
            if value is not None:
                self._plain[name] = relax.const(value, str(value.dtype))
            elif name in self._own:
                image = self.source(name)
                if name not in self._plain:  # a refused operator has left its plain form
                    self._plain[name] = self.emit.to_plain(image, self.graph.shape(name))
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
        found = RULES[node.op](self, node, sink) if node is not None and node.op in RULES else None
        if found is not None:
            return found
        if not sink.activation.name:
            return self._from_plain(name, sink)
        return self.emit.store([self._from_plain(name, Sink(0))], sink)

    def activation(self, node: Node) -> tuple[float, float] | None:
        """Return the bounds of a float Relu or Clip node; None for any other."""
        if node.op not in ("Relu", "Clip") or self.graph.dtype(node.output) != "float32":
            return None
        if node.op == "Relu":
            return 0.0, math.inf
        # Up to opset 10 the bounds are attributes.
        bounds = [float(node.get("min", -math.inf)), float(node.get("max", math.inf))]
        for i, name in enumerate(node.inputs[1:3]):
            if name:
                value = self.constant(name)
                if value is None:
                    return None
                bounds[i] = float(value.item())
        return min(bounds), bounds[1]

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
        return widest

    def _has_own_kernel(self, node: Node) -> bool:
        """Whether a node is worth an own kernel: it has weights, or its input comes from one."""
        if self.graph.dtype(node.output) != "float32":
            return False
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
        if node.op in _WORTH:
            return _WORTH[node.op](self, node)
        if node.op not in RULES and self.activation(node) is None:
            return False
        return any(name in self._own for name in node.inputs)

    # ---- what rules emit

    def call_layer(self, layer: ConvLayer) -> Image:
        """Emit a convolution or linear layer."""
        call = layer.call(self._chooser.choose(layer))
        residual = [layer.sink.residual.var] if layer.sink.residual is not None else []
        *constants, ints, floats = call.constants
        arguments = [layer.source.var, *constants, *residual, ints, floats]
        return self.emit.image(call.kernel, arguments, call.output)

    def _from_plain(self, name: str, sink: Sink) -> Image:
        """Turn the plain form of a tensor that no rule makes into an image."""
        if name not in self._plain:
            if self.constant(name) is not None:
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
