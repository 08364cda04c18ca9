"""Layers in float whose weights are float16 numbers: stored, and read by the GPU, as such.

They are multiplied in float32, so results are those of float32 weights of the same values. TVM's
own operators would cast the weights when the network is compiled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, topi

from ...onnx_graph.graph import Graph, Node, conv_pads


def emit_layer(
    builder: relax.BlockBuilder,
    graph: Graph,
    node: Node,
    data: Any,
    weights: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
) -> Any | None:
    """Emit a layer, its schedule left to dlight.

    Args:
        builder: Builds the function.
        graph: Knows shapes.
        node: A Conv, Gemm or MatMul node.
        data: Its input as a Relax variable.
        weights: Its constant weights, float16 numbers.
        bias: Constants that it adds.

    Returns:
        The Relax variable of the result; None for forms that are left to TVM's frontend.
    """
    half = relax.const(weights.astype(np.float16))
    if node.op == "Conv" and weights.ndim == 4:
        value = builder.emit_te(
            lambda a, w: topi.nn.conv(
                *(a, topi.cast(w, "float32"), node.get("strides", [1, 1])),
                *(conv_pads(graph, node), node.get("dilations", [1, 1]), node.get("group", 1)),
                *("NCHW", "OIHW", "float32"),
            ),
            *(data, half),
            primfunc_name_hint="conv_half",
        )
        return value if bias is None else _add(builder, value, bias.reshape(-1, 1, 1))
    is_scaled = node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0
    if node.op == "Conv" or weights.ndim != 2 or is_scaled or node.get("transA", 0):
        return None
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    rows = builder.emit(relax.op.reshape(data, (math.prod(before[:-1]), before[-1])))
    is_turned = bool(node.get("transB", 0))
    value = builder.emit_te(
        lambda a, w: topi.matmul(a, topi.cast(w, "float32"), transp_b=is_turned),
        *(rows, half),
        primfunc_name_hint="matmul_half",
    )
    if bias is not None:
        value = _add(builder, value, bias)
    return builder.emit(relax.op.reshape(value, after))


def _add(builder: relax.BlockBuilder, value: Any, bias: NDArray[np.float32]) -> Any:
    return builder.emit(relax.op.add(value, relax.const(bias)))
