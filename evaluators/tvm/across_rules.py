"""Rules for operators that look across the channels of every pixel."""

from __future__ import annotations

from ..onnx_graph.graph import Node
from .image import Image
from .image_rules import reduced_axes
from .kernels.across import POWERS, across_kernel, response_kernel
from .kernels.script import worth_threads
from .layers import parameter_arrays
from .lowering import Lowering
from .rule_table import rule
from .sink import Sink


@rule("ReduceMax", "ReduceMean", "ReduceSum")
def lower_across(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Largest, mean or sum of the channels of every pixel, as spatial attention has it."""
    shape = low.graph.shape(node.inputs[0])
    if len(shape) != 4 or reduced_axes(low, node) != [1] or not node.get("keepdims", 1):
        return None
    source = low.source(node.inputs[0])
    if source.cp % 8 or sink.residual is not None:
        return None
    output = sink.image(source.n, source.h, source.w, 1)
    how = "max" if node.op == "ReduceMax" else "sum"
    threads = worth_threads(low.threads, source.size)
    kernel = across_kernel(source.dtype, how, sink.epilogue, threads)
    values = {**output.as_output(), **sink.parameters(1.0 / sink.scale), **source.as_source("0")}
    values |= {"z0": source.zero_point, "f0": source.scale, "width": source.c}
    values["share"] = 1.0 / source.c if node.op == "ReduceMean" else 1.0
    return low.emit.image(kernel, [source.var, *parameter_arrays(kernel, values)], output)


@rule("LRN", worth=lambda low, node: low.is_image(node.inputs[0]))
def lower_response(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Local response normalization."""
    size, beta = node.get("size", 1), node.get("beta", 0.75)
    power = next((p for p in POWERS if abs(beta - p) < 1e-6), None)
    is_image = len(low.graph.shape(node.output)) == 4
    if not is_image or power is None or size > 16 or sink.residual is not None:
        return None
    source = low.source(node.inputs[0])
    if source.dtype != "float32" or source.border == 0 or source.cp % 8:
        source = low.emit.store([source], Sink(1))
    output = sink.image(source.n, source.h, source.w, source.c)
    threads = worth_threads(low.threads, 4 * source.size)
    kernel = response_kernel(sink.epilogue, power, threads)
    values = {**output.as_output(), **sink.parameters(1.0 / sink.scale), **source.as_source("0")}
    values |= {"width": source.c, "size": size, "before": (size - 1) // 2}
    values |= {"rate": node.get("alpha", 1e-4) / size, "offset": node.get("bias", 1.0)}
    return low.emit.image(kernel, [source.var, *parameter_arrays(kernel, values)], output)
