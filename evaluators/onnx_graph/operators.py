"""The ONNX operators that can be compiled, and what each must look like.

What is listed here is checked with ONNX's own test cases: every case within these limits gives the
right result (`tests/evaluators/tvm/test_onnx_backend.py`). Anything else is refused with its name,
although TVM might take it, as some of its operators give wrong results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from ..measurement import EvaluationError

if TYPE_CHECKING:
    from .graph import Graph, Node

Check = Callable[["Graph", "Node"], bool]

TYPES = frozenset(
    (
        *("float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
"""Types of computed tensors. Constants may have any, such as int4 weights."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator must look like to be compiled.

    Attributes:
        constants: Positions of the inputs that must be constant.
        outputs: How many outputs may be used, from the first on.
        only: The part of the operator that is supported, in words; empty for all of it.
        check: Whether a node is of that part.
    """

    constants: tuple[int, ...] = ()
    outputs: int = 1
    only: str = ""
    check: Check | None = None


def _inputs_are(*types: str) -> Check:
    return lambda graph, node: all(graph.dtype(name) in types for name in node.inputs if name)


def _first_is(*types: str) -> Check:
    return lambda graph, node: graph.dtype(node.inputs[0]) in types


def _attribute_is(name: str, value: object) -> Check:
    return lambda graph, node: node.get(name, value) == value


_INTEGERS = tuple(sorted(t for t in TYPES if "int" in t))
_FLOATS = ("float32", "float64")
_NUMBERS = (*_INTEGERS, *_FLOATS)


def _is_plain_swish(graph: Graph, node: Node) -> bool:
    return node.get("alpha", 1.0) == 1.0 and graph.dtype(node.output) == "float32"


def _has_own_resize(graph: Graph, node: Node) -> bool:
    from .resampling import resampled_axes

    if graph.dtype(node.output) != "float32" or len(graph.shape(node.output)) != 4:
        return False
    axes = resampled_axes(graph, node)
    return axes is not None and axes.keys() <= {2, 3}


def _is_inference(graph: Graph, node: Node) -> bool:
    training = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    return training is None or not training.item()


def _has_known_size(graph: Graph, node: Node) -> bool:
    if "output_shape" not in node.attributes:
        return True
    return len(graph.shape(node.output)) == 4 and graph.dtype(node.output) == "float32"


def _are_floats(graph: Graph, node: Node) -> bool:
    types = {graph.dtype(name) for name in node.inputs}
    return len(types) == 1 and types <= set(_FLOATS)


def _has_no_blocks(graph: Graph, node: Node) -> bool:
    # A constant is dequantized here, whatever its form.
    return len(graph.shape(node.inputs[1])) <= 1 or graph.is_constant(node.inputs[0])


def _is_behind_first(graph: Graph, node: Node) -> bool:
    return bool(node.get("axis", -1) % len(graph.shape(node.output)))


_STEPS = Limits((1, 2), 1, "without blocks", _has_no_blocks)

_WHOLE = """
    LayerNormalization MaxPool SpaceToDepth
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Cast Ceil Clip Concat Constant Conv Cos Cosh DepthToSpace Div
    Einsum Elu Equal Erf Exp Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsNaN LRN LeakyRelu Less
    LessOrEqual Log LogSoftmax LpPool MatMul MatMulInteger Max Mean Min Mish Mul Neg Not Or
    PRelu Reciprocal Relu Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
    Sin Sinh Size Softmax Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Transpose
    Where Xor
"""
_WITH_AXES = """
    CumSum Expand ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum
    ReduceSumSquare Reshape Squeeze Tile Trilu Unsqueeze
"""

SUPPORTED: Mapping[str, Limits] = {
    **dict.fromkeys(_WHOLE.split(), Limits()),
    **dict.fromkeys(_WITH_AXES.split(), Limits(constants=(1,))),
    "BatchNormalization": Limits(only="inference", check=_attribute_is("training_mode", 0)),
    "ConvTranspose": Limits(
        constants=(1,),
        only="with `output_shape` float32 images",
        check=_has_known_size,
    ),
    "DequantizeLinear": _STEPS,
    "Dropout": Limits(constants=(1, 2), outputs=2, only="inference", check=_is_inference),
    "Mod": Limits(only="integers", check=_first_is(*_INTEGERS)),
    "Pad": Limits(constants=(1, 2, 3)),
    "Pow": Limits(only="floats of one type", check=_are_floats),
    "QuantizeLinear": _STEPS,
    "RMSNormalization": Limits(only="an axis behind the first", check=_is_behind_first),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), Limits((1,), 1, "numbers", _first_is(*_NUMBERS))),
    "Resize": Limits(
        constants=(1, 2, 3),
        only="height and width of float32 images, without `tf_crop_and_resize`",
        check=_has_own_resize,
    ),
    "Slice": Limits(constants=(1, 2, 3, 4)),
    "Split": Limits(constants=(1,), outputs=1 << 16),
    "Swish": Limits(only="float32, `alpha` of 1", check=_is_plain_swish),
    "TopK": Limits((1,), 2, "signed numbers", _first_is("int32", "int64", *_FLOATS)),
    "Upsample": Limits(
        constants=(1,), only="height and width of float32 images", check=_has_own_resize
    ),
}
"""Limits of every operator that can be compiled, by name."""


def not_supported(op: str, proto: onnx.NodeProto) -> EvaluationError:
    """Return the error of an operator that is not in the list."""
    return EvaluationError(
        f"{_title(op, proto)} must be one that can be compiled, but is not. The list is in "
        "`evaluators/README.md`; replace it in the model.",
        "model",
    )


def _title(op: str, proto: onnx.NodeProto) -> str:
    return f"Operator {op} (node '{proto.name or next(filter(None, proto.output), '')}')"


def check_node(graph: Graph, node: Node) -> None:
    """Refuse an operator that cannot be compiled, or not in this form.

    Raises:
        EvaluationError: If so; the message names operator and node.
    """
    limits = SUPPORTED.get(node.op)
    if limits is None:
        raise not_supported(node.op, node.proto)
    title = _title(node.op, node.proto)
    for name in (*node.inputs, *node.outputs):
        if name and graph.constant(name) is None:
            _check_tensor(graph, name, title)
    for position in limits.constants:
        name = node.inputs[position] if position < len(node.inputs) else ""
        if name and not graph.is_constant(name):
            raise EvaluationError(
                f"{title} must have a constant as input {position}, but '{name}' is computed or "
                "an input of the model.",
                "model",
            )
    if any(graph.is_read(name) for name in node.outputs[limits.outputs :] if name):
        raise EvaluationError(
            f"{title} must have no used output but the first {limits.outputs}. "
            "Remove what reads the others.",
            "model",
        )
    if limits.check is not None and not limits.check(graph, node):
        raise EvaluationError(
            f"{title} is supported for {limits.only} only. Replace it in the model.", "model"
        )


def _check_tensor(graph: Graph, name: str, title: str) -> None:
    try:
        shape, dtype = graph.shape(name), graph.dtype(name)
    except EvaluationError as error:
        raise EvaluationError(f"{title} must have static tensors. {error}", "model") from error
    if 0 in shape:
        raise EvaluationError(
            f"{title} must have no empty tensor, but '{name}' has the shape {shape}.", "model"
        )
    if dtype not in TYPES:
        raise EvaluationError(
            f"{title} must have tensors of {', '.join(sorted(TYPES))}, but '{name}' is {dtype}.",
            "model",
        )


def operator_table() -> str:
    """Return the supported operators as a list in Markdown, for the README."""
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})
    supported = [_entry(name) for name in names if name in SUPPORTED]
    others = [f"`{name}`" for name in names if name not in SUPPORTED]
    return "\n".join(
        (
            f"Supported ({len(supported)}): {', '.join(supported)}.",
            "",
            f"Not supported ({len(others)}): {', '.join(others)}.",
        )
    )


def _entry(name: str) -> str:
    only = SUPPORTED[name].only
    return f"`{name}` ({only})" if only else f"`{name}`"
