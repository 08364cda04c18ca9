"""Rules for operators without weights: pooling, concatenation, changes of shape and form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..onnx_graph.graph import Node, factors, pads_of
from .channel_rules import is_worth_scaling, lower_scale
from .image import Image
from .kernels.norm import layer_norm_kernel
from .kernels.script import worth_threads
from .layers import parameter_arrays
from .lowering import Lowering
from .rule_table import rule
from .sink import Sink

_MAX_OPERANDS = 32


@rule("DequantizeLinear")
def lower_dequantize(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Float values of a quantized tensor."""
    steps = low.steps(node.output)
    return None if steps is None else low.emit.store([steps], sink)


@rule("MaxPool")
def lower_max_pool(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Max pooling, in the number form of its input."""
    shape = low.graph.shape(node.output)
    if (
        len(shape) != 4
        or len([o for o in node.outputs if o]) > 1
        or set(node.get("dilations", [1])) != {1}
    ):
        return None
    source = low.source(node.inputs[0])
    if source.cp % 8 or not _windows_begin_inside(node, source, shape):
        return None
    image = replace(source, var=None, n=shape[0], h=shape[2], w=shape[3], border=sink.border)
    return _max_pool(low, source, image, _window(node, source), sink)


@rule("GlobalMaxPool", "ReduceMax")
def lower_global_max(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Largest number of each channel over height and width."""
    before, shape = low.graph.shape(node.inputs[0]), low.graph.shape(node.output)
    if len(before) != 4 or (node.op == "ReduceMax" and not _is_spatial(low, node)):
        return None
    source = low.source(node.inputs[0])
    if source.cp % 8:
        return None
    n, h, w = (1, 1, before[0]) if len(shape) == 2 else (before[0], 1, 1)
    image = replace(source, var=None, n=n, h=h, w=w, border=sink.border)
    window = _whole(source)
    if len(shape) == 2:  # one pixel per image, so that rows of pixels come out
        window |= {"n": before[0], "wo": 1, "dns": image.cp}
    return _max_pool(low, source, image, window, sink)


def _max_pool(
    low: Lowering, source: Image, image: Image, window: Mapping[str, float], sink: Sink
) -> Image:
    return low.emit.store([low.emit.max_pool(source, image, window)], sink)


def _whole(source: Image) -> dict[str, float]:
    """Parameters of a window over the whole image."""
    return {"hi": source.h, "wi": source.w, "kh": source.h, "kw": source.w, "sh": 1, "sw": 1}


@rule("AveragePool", "GlobalAveragePool", "ReduceMean")
def lower_average_pool(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Average pooling and the mean over height and width."""
    shape = low.graph.shape(node.inputs[0])
    if len(shape) != 4 or (node.op == "ReduceMean" and not _is_spatial(low, node)):
        return None
    is_window = node.op == "AveragePool"
    if is_window and set(node.get("dilations", [1])) != {1}:
        return None
    if node.get("ceil_mode", 0) and node.get("count_include_pad", 0):
        return None  # the divisor of the last windows is neither whole nor the numbers inside
    source = low.source(node.inputs[0])
    if source.cp % 8:
        return None
    if is_window and not _windows_begin_inside(node, source, low.graph.shape(node.output)):
        return None
    n, c = shape[:2]
    h, w = low.graph.shape(node.output)[2:] if is_window else (1, 1)
    is_row = len(low.graph.shape(node.output)) == 2
    output = sink.image(1, 1, n, c) if is_row else sink.image(n, h, w, c)
    window = _window(node, source) if is_window else _whole(source)
    if is_row:  # one pixel per image, so that rows of pixels come out
        window |= {"n": n, "wo": 1, "dns": output.cp}
    image = low.emit.average_pool(source, output, sink, window)
    return low.emit.store([image], sink) if sink.dtype == "float32" else image


@rule("ReduceMean")
def lower_token_mean(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Mean over the rows of each matrix of a batch."""
    shape = low.graph.shape(node.inputs[0])
    if len(shape) != 3 or reduced_axes(low, node) != [1]:
        return None
    n, tokens, channels = shape
    source = low.source(node.inputs[0])
    if source.cp % 8 or source.border:
        return None
    source, output = replace(source, n=n, w=tokens), sink.image(1, 1, n, channels)
    window: dict[str, float] = {"n": n, "wo": 1, "dns": output.cp, "hi": 1, "wi": tokens}
    window |= {"kh": 1, "kw": tokens, "sh": 1, "sw": 1}
    image = low.emit.average_pool(source, output, sink, window)
    return low.emit.store([image], sink) if sink.dtype == "float32" else image


def _is_spatial(low: Lowering, node: Node) -> bool:
    return reduced_axes(low, node) == [2, 3]


def reduced_axes(low: Lowering, node: Node) -> list[int]:
    """Return the axes that a reduction names, counted from the first one."""
    axes = node.get("axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        value = low.graph.constant(node.inputs[1])
        axes = None if value is None else value.reshape(-1).tolist()
    return sorted(a % len(low.graph.shape(node.inputs[0])) for a in axes or ())


def _windows_begin_inside(node: Node, source: Image, shape: Sequence[int]) -> bool:
    """Whether every pooling window has a number in it; with `ceil_mode` the last may have none."""
    window = _window(node, source)
    below = (shape[2] - 1) * window["sh"] - window["pt"] < source.h
    return below and (shape[3] - 1) * window["sw"] - window["pl"] < source.w


def _window(node: Node, source: Image) -> dict[str, float]:
    """Parameters of a pooling window."""
    kh, kw = node.get("kernel_shape", [source.h, source.w])
    sh, sw = node.get("strides", [1, 1])
    top, left, _, _ = pads_of(node, source.h, source.w, (kh, kw))
    whole = kh * kw if node.get("count_include_pad", 0) else 0
    sizes = {"hi": source.h, "wi": source.w, "kh": kh, "kw": kw, "sh": sh, "sw": sw}
    return {**sizes, "pt": top, "pl": left, "whole": whole}


def _is_worth_multiplying(low: Lowering, node: Node) -> bool:
    has_factors = factors(low.graph, node) is not None
    return is_worth_scaling(low, node) or (has_factors and any(map(low.is_own, node.inputs)))


@rule("Mul", worth=_is_worth_multiplying)
def lower_mul(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Product of two images, one of which may be a gate for each channel or for each pixel."""
    scaled = lower_scale(low, node, sink)
    if scaled is not None:
        return scaled
    operands = factors(low.graph, node)
    if operands is None:
        return None
    return low.emit.store([low.source(name) for name in operands], sink, "mul")


@rule("LayerNormalization")
def lower_layer_norm(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Normalization over the last dimension, whose numbers are the channels of a row of pixels."""
    shape = low.graph.shape(node.output)
    if len(shape) == 4 or node.get("axis", -1) % len(shape) != len(shape) - 1 or shape[-1] % 8:
        return None
    if any(node.outputs[1:]) or sink.residual is not None:
        return None
    weights = [low.constant(name) for name in node.inputs[1:] if name]
    if any(value is None or value.shape != shape[-1:] for value in weights):
        return None
    scale, shift = [*weights, np.zeros(shape[-1], np.float32)][:2]
    source = low.emit.store([low.source(node.inputs[0])], Sink(0))
    output = sink.image(1, 1, source.w, source.c)
    lanes = 16 if low.isa.startswith("avx512") and source.cp % 16 == 0 else 8
    kernel = layer_norm_kernel(sink.epilogue, lanes, worth_threads(low.threads, source.size))
    values = {**output.as_output(), **sink.parameters(1.0 / sink.scale), **source.as_source()}
    values |= {"eps": node.get("epsilon", 1e-5), "share": 1.0 / shape[-1]}
    arguments = [source.var, scale, shift, *parameter_arrays(kernel, values)]
    return low.emit.image(kernel, arguments, output)


@rule("Concat")
def lower_concat(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Concatenation of images along the channels."""
    shape = low.graph.shape(node.output)
    if len(shape) != 4 or node.get("axis", 1) % 4 != 1 or len(node.inputs) > _MAX_OPERANDS:
        return None
    if any(low.constant(i) is not None for i in node.inputs):
        return None
    sources = [low.source(i) for i in node.inputs]
    output = sink.image(shape[0], shape[2], shape[3], shape[1])
    return low.emit.concat(sources, output, sink)
