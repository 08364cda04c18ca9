"""Rules for attention: products of two activations, and softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..onnx_graph.graph import Node
from ..onnx_graph.quantizers import quantizer
from .image import Image
from .kernels.script import worth_threads
from .kernels.softmax import softmax_kernel
from .layers import parameter_arrays
from .lowering import Lowering
from .products import PARTS_PER_THREAD, Product, choose_knobs
from .rule_table import row_rule, rule
from .sink import Sink
from .views import MOVES, View, joined


@row_rule("MatMul")
def lower_matmul(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Product of two activations."""
    shape = low.graph.shape(node.output)
    if not low.multiplies_activations(node):
        return None
    image = sink.image(1, 1, math.prod(shape[:-1]), shape[-1])
    return _multiply(low, node, sink, View.of_rows(image, shape))


@rule(*MOVES)
def lower_moved_matmul(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """A change of shape or order of a product's result: the product writes through strides."""
    graph, shape = low.graph, low.graph.shape(node.output)
    if len(shape) in (0, 4):
        return None
    image = sink.image(1, 1, math.prod(shape[:-1]), shape[-1])
    view: View | None = View.of_rows(image, shape)
    maker: Node | None = node
    while maker is not None and maker.op in MOVES and view is not None:
        view = view.before(graph, maker)
        name, user, sink = _behind_same_steps(low, maker, sink)
        if graph.only_user(name) is not user:
            return None
        maker = graph.producer(name)
    if maker is None or maker.op != "MatMul" or not low.multiplies_activations(maker):
        return None
    return None if view is None or view.strides[-1] != 1 else _multiply(low, maker, sink, view)


def _behind_same_steps(low: Lowering, node: Node, sink: Sink) -> tuple[str, Node, Sink]:
    """Return what a node reads, its reader, and the sink; behind a Q and DQ pair of its steps.

    Such a pair changes nothing that is stored in these steps afterwards. The bounds of a Clip in
    front of it become those of the sink.
    """
    graph, name = low.graph, node.inputs[0]
    dequantize = graph.producer(name)
    if dequantize is None or dequantize.op != "DequantizeLinear" or sink.dtype != "uint8":
        return name, node, sink
    quantize = graph.producer(dequantize.inputs[0])
    steps = quantizer(graph, dequantize)
    if (
        quantize is None
        or steps is None
        or steps != quantizer(graph, quantize)
        or graph.only_user(name) is not node
        or graph.only_user(dequantize.inputs[0]) is not dequantize
        or (steps.scale, steps.zero_point) != (sink.scale, sink.zero_point)
        or sink.activation.name
    ):
        return name, node, sink
    name = quantize.inputs[0]
    clip = graph.producer(name)
    bounds = low.activation(clip) if clip is not None else None
    if clip is None or bounds is None or graph.only_user(name) is not quantize:
        return name, quantize, sink
    return clip.inputs[0], clip, sink.clamped(*bounds)


# ---- operands


def operand(low: Lowering, name: str) -> View:
    """Return a float or dequantized tensor as a view, looking through changes of shape."""
    graph = low.graph
    node = graph.producer(name)
    if node is not None and node.op == "DequantizeLinear":
        found = _moved_steps(low, node)
        if found is not None:
            return found
    if node is not None and node.op in MOVES:
        view = operand(low, node.inputs[0]).after(graph, node)
        if view is not None:
            return view
    shape = graph.shape(name)
    image = low.emit.rows(low.plain(name), shape) if low.is_plain(name) else low.row_source(name)
    return View.of_rows(image, shape)


def _moved_steps(low: Lowering, node: Node) -> View | None:
    """Return the steps behind a DQ node, if they are those of a tensor before it was moved."""
    graph = low.graph
    user = graph.producer(node.inputs[0])
    steps = quantizer(graph, node)
    if user is None or steps is None or quantizer(graph, user) != steps:
        return None
    name, moves = user.inputs[0], []
    while (maker := graph.producer(name)) is not None and maker.op in MOVES:
        moves.append(maker)
        name, user = maker.inputs[0], maker
    if not moves:
        return None
    if maker is not None and quantizer(graph, maker) == steps:
        view: View | None = operand(low, name)
    else:
        view = View.of_rows(low.quantized(name, steps, user), graph.shape(name))
    for move in reversed(moves):
        view = None if view is None else view.after(graph, move)
    return view


def _operands(low: Lowering, node: Node) -> tuple[View, View]:
    """Return both operands in one number form, the left one contiguous in its rows."""
    views = [operand(low, name) for name in node.inputs]
    if {view.image.dtype for view in views} != {"uint8"} or views[0].strides[-1] != 1:
        views = [replace(v, image=low.emit.store([v.image], Sink(v.image.border))) for v in views]
    left, right = views
    if left.strides[-1] != 1:
        left = View.of_rows(low.emit.rows(low.plain(node.inputs[0]), left.shape), left.shape)
    return left, right


def _multiply(low: Lowering, node: Node, sink: Sink, output: View) -> Image | None:
    """Emit a product that writes through a view of its output image."""
    if sink.residual is not None:
        return None
    left, right = _operands(low, node)
    batch = output.shape[:-2]
    left, right = (view.spread((*batch, *view.shape[-2:])) for view in (left, right))
    batches = joined(batch, [view.strides[:-2] for view in (left, right, output)])
    if len(batches) > 2:
        return None
    outer, inner = [(1, 0, 0, 0)] * (2 - len(batches)) + batches
    is_integer = left.image.dtype == "uint8"
    knobs = choose_knobs(low.isa, output.shape[-1], output.shape[-2], is_integer=is_integer)
    work = math.prod(output.shape) * left.shape[-1] / (64 if is_integer else 32)
    threads = worth_threads(low.threads, work)
    product = Product(left, right, output, (outer, inner), sink, knobs, threads)
    pack = product.pack_kernel()
    arguments = [right.image.var, *parameter_arrays(pack, product.packing())]
    packed = low.emit.call(pack, arguments, product.packed_size, product.packed_dtype)
    kernel = product.kernel()
    parameters = parameter_arrays(kernel, product.multiplying())
    arguments = [left.image.var, packed, *product.constants(), *parameters]
    return low.emit.image(kernel, arguments, output.image)


# ---- softmax


@row_rule("Softmax")
def lower_softmax(low: Lowering, node: Node, sink: Sink) -> Image | None:
    """Softmax over the last dimension, with the scale and the mask in front of it."""
    shape = low.graph.shape(node.output)
    if not shape or node.get("axis", -1) % len(shape) != len(shape) - 1 or sink.residual:
        return None
    name, factor, mask = _scores(low, node)
    source = low.emit.store([low.row_source(name)], Sink(0))
    output = sink.image(1, 1, source.w, source.c)
    lanes = 16 if low.isa.startswith("avx512") and source.c % 16 == 0 else 8
    threads = worth_threads(low.threads, 4 * source.size)
    kernel = softmax_kernel(sink.epilogue, lanes, threads, has_mask=mask is not None)
    per = -(-source.w // (PARTS_PER_THREAD * threads))
    values: dict[str, float] = {
        **sink.parameters(1.0 / sink.scale),
        **{"rows": source.w, "per": per, "width": source.c},
        **{"factor": factor, "rate": math.log2(math.e) * (1.0 if mask else factor)},
        **{"acs": source.cp, "aoff": source.origin, "dcs": output.cp, "doff": output.origin},
        **{"behind": output.size},
    }
    masks: list[object] = []
    if mask is not None:
        masks, places = mask
        values |= places
    arguments = [source.var, *masks, *parameter_arrays(kernel, values)]
    room = -(-source.c // lanes) * lanes * 4 * -(-source.w // per)
    size = output.size + (room if sink.dtype == "uint8" else 0)
    return replace(output, var=low.emit.call(kernel, arguments, size, output.dtype))


def _scores(
    low: Lowering, node: Node
) -> tuple[str, float, tuple[list[object], dict[str, float]] | None]:
    """Return the tensor behind a softmax, the positive number that scales it, and the mask."""
    name, factor = node.inputs[0], 1.0
    mask = None
    for data, other, maker in _sums(low, name, node):
        shape = low.graph.shape(name)
        mask = _mask(low, other, shape) if low.graph.shape(data) == shape else None
        if mask is not None:
            name, node = data, maker
            break
    while (scaled := _scaled(low, name, node)) is not None:
        name, node, number = scaled
        factor *= number
    return name, factor, mask


def _sums(low: Lowering, name: str, user: Node) -> Iterator[tuple[str, str, Node]]:
    """Return the ways to see a tensor as the sum of scores and a mask."""
    maker = low.graph.producer(name)
    if maker is not None and maker.op == "Add" and low.graph.only_user(name) is user:
        first, second = maker.inputs
        yield from ((first, second, maker), (second, first, maker))


def _scaled(low: Lowering, name: str, user: Node) -> tuple[str, Node, float] | None:
    """Return what a Mul or Div node scales by a positive number, if `name` comes from one."""
    maker = low.graph.producer(name)
    if maker is None or maker.op not in ("Mul", "Div") or low.graph.only_user(name) is not user:
        return None
    pairs = [maker.inputs] if maker.op == "Div" else [maker.inputs, maker.inputs[::-1]]
    for data, other in pairs:
        number = low.constant(other)
        if number is None or number.size != 1 or number.item() <= 0:
            continue
        if low.graph.shape(data) == low.graph.shape(name):
            value = float(number.item())
            return data, maker, value if maker.op == "Mul" else 1.0 / value
    return None


def _mask(
    low: Lowering, name: str, shape: tuple[int, ...]
) -> tuple[list[object], dict[str, float]] | None:
    """Return a mask that is broadcast to the scores' shape, and its strides, or None."""
    own = low.graph.shape(name)
    if own == shape or not own or own[-1] != shape[-1] or len(own) > len(shape):
        return None
    rows = (math.prod(own[:-1]), own[-1])  # as an image, which may be read beyond its end
    plain = View.of_rows(low.emit.from_plain(low.plain(name), rows, Sink(0)), own).spread(shape)
    dims = joined(shape[:-2], [plain.strides[:-2]])
    if len(dims) > 2:
        return None
    (_, ms0), (inner, ms1) = [(1, 0)] * (2 - len(dims)) + dims
    m, ms2 = (shape[-2], plain.strides[-2]) if len(shape) > 1 else (1, 0)
    values = {"m": m, "inner": inner, "ms0": ms0, "ms1": ms1, "ms2": ms2, "moff": plain.offset}
    return [plain.image.var], {**values}
