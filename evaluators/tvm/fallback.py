"""Single ONNX operators through TVM's own frontend, for everything that has no kernel of ours."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import tvm
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from ..measurement import EvaluationError
from ..onnx_graph.graph import Graph, Node


def import_node(
    builder: relax.BlockBuilder,
    graph: Graph,
    node: Node,
    arguments: Mapping[str, Any],
    constants: Mapping[str, NDArray[Any]],
) -> Any:
    """Emit one ONNX node into a function under construction.

    Args:
        builder: Builds the function.
        graph: Knows shapes and types.
        node: The operator.
        arguments: Relax variables of its inputs that are not constant.
        constants: Values of its other inputs.

    Returns:
        The Relax variable of the result, a tuple if there are several outputs.

    Raises:
        EvaluationError: If TVM does not know the operator, or makes another shape than ONNX; the
            message names it.
    """
    model = _single_node_model(graph, node, list(arguments), constants)
    importer = ONNXGraphImporter({}, {}, keep_params_in_input=False)
    opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    try:
        # It prints what it raises, and warns of names that it changes for the one operator.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importer.from_onnx(model.graph, opset)
        value = _inlined(builder, module, list(arguments.values()))
    except Exception as error:  # the frontend raises exceptions of many types
        discard(importer.bb)
        label = node.proto.name or node.output
        raise EvaluationError(
            f"Operator {node.op} (node '{label}') cannot be compiled by TVM: {error}", "build"
        ) from error
    _check_shapes(graph, node, value)
    return value


def _check_shapes(graph: Graph, node: Node, value: Any) -> None:
    """Refuse what TVM makes of a node if it has not the shapes that ONNX gives it."""
    kinds = [value.ty] if len(node.outputs) == 1 else value.ty.fields
    for name, kind in zip(node.outputs, kinds, strict=False):
        found = "an unknown one" if kind.shape is None else tuple(map(int, kind.shape))
        if name and found != graph.shape(name):
            raise EvaluationError(
                f"Operator {node.op} (node '{node.proto.name or node.output}') must make "
                f"'{name}' with the shape {graph.shape(name)}, but TVM makes it with {found}. "
                "Replace it in the model.",
                "build",
            )


def discard(builder: relax.BlockBuilder) -> None:
    """End the block that an exception has left open: TVM would warn of it on stderr."""
    with contextlib.suppress(tvm.error.InternalError):
        builder._end_block()  # there is no public way


def _inlined(builder: relax.BlockBuilder, module: Any, arguments: list[Any]) -> Any:
    """Emit the body of a module's `main`, and take over its other functions."""
    known: dict[Any, Any] = {
        handle: builder.add_func(function.without_attr("global_symbol"), handle.name_hint)
        for handle, function in module.functions.items()
        if handle.name_hint != "main"
    }
    main = module["main"]
    known |= dict(zip(main.params, arguments, strict=True))
    for block in main.body.blocks:
        for binding in block.bindings:
            known[binding.var] = builder.emit(_substitute(binding.value, known))
    return _substitute(main.body.body, known)


def _single_node_model(
    graph: Graph, node: Node, free: list[str], constants: Mapping[str, NDArray[Any]]
) -> onnx.ModelProto:
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(node.inputs)

    def value_info(name: str) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(graph.dtype(name)))
        return helper.make_tensor_value_info(name, kind, graph.shape(name))

    body = helper.make_graph(
        [proto],
        "node",
        [value_info(i) for i in free],
        [value_info(o) for o in node.outputs if o],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(body, opset_imports=graph.model.opset_import)


def _substitute(expression: Any, known: Mapping[Any, Any]) -> Any:
    """Return an expression with variables and functions replaced."""
    if isinstance(expression, (relax.Var, relax.GlobalVar)):
        return known.get(expression, expression)
    if isinstance(expression, relax.Tuple):
        return relax.Tuple([_substitute(field, known) for field in expression.fields])
    if isinstance(expression, relax.TupleGetItem):
        return relax.TupleGetItem(_substitute(expression.tuple_value, known), expression.index)
    if isinstance(expression, relax.Call):
        arguments = [_substitute(a, known) for a in expression.args]
        return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)
    return expression
