"""Graphs in awkward forms: outputs, shared tensors, activations, foreign operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

STEP = 0.03
Network = Callable[[Any], Any]
CASES: list[Network] = []


def case(network: Network) -> Network:
    CASES.append(network)
    return network


@case
def input_is_output(b: Any) -> Any:
    return b.model((1, 4, 5, 5), "input", b.float_conv("input", (8, 4, 3, 3)))


@case
def identity_input_output(b: Any) -> Any:
    return b.model((1, 4, 5, 5), b.op("Identity", "input"))


@case
def two_outputs(b: Any) -> Any:
    x = b.conv(b.quantized("input", 0.02, 128), (9, 4, 3, 3), 6, 0.02)
    y = b.op("Relu", x)
    return b.model((1, 4, 6, 7), x, b.op("GlobalAveragePool", b.quantized(y, STEP)))


@case
def output_used_inside(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (8, 4, 3, 3), pads=[1] * 4))
    return b.model((2, 4, 6, 7), x, b.float_conv(x, (8, 8, 3, 3), pads=[1] * 4))


@case
def same_output_twice(b: Any) -> Any:
    x = b.op("Relu", b.float_conv("input", (8, 4, 3, 3), pads=[1] * 4))
    return b.model((2, 4, 6, 7), x, b.op("Identity", x))


@case
def relu_on_shared(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3), pads=[1] * 4)
    return b.model(
        (1, 4, 9, 9), b.op("Add", b.op("Relu", x), b.float_conv(x, (8, 8, 3, 3), pads=[1] * 4))
    )


@case
def relu_on_shared_quantized(b: Any) -> Any:
    x = b.quantized(b.float_conv("input", (8, 4, 3, 3), pads=[1] * 4), STEP, 128)
    r = b.quantized(b.op("Relu", x), STEP)
    return b.model((1, 4, 9, 9), b.op("Add", r, b.conv(x, (8, 8, 3, 3), 6, STEP, pads=[1] * 4)))


@case
def quantize_shared(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3), pads=[1] * 4)
    q = b.quantized(x, STEP, 128)
    return b.model(
        (1, 4, 9, 9), b.op("Sigmoid", x), b.conv(q, (8, 8, 3, 3), 6, STEP, pads=[1] * 4)
    )


@case
def conv1d(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3), pads=[1, 1])
    return b.model((1, 4, 9), b.op("Relu", x))


@case
def conv1d_q(b: Any) -> Any:
    x = b.quantized(
        b.op("Relu", b.conv(b.quantized("input", 0.02, 128), (8, 4, 3), 6, 0.02, pads=[1, 1])),
        STEP,
    )
    return b.model((1, 4, 9), b.conv(x, (8, 8, 3), 6, STEP))


@case
def conv3d(b: Any) -> Any:
    x = b.float_conv("input", (8, 2, 3, 3, 3))
    return b.model((1, 2, 5, 5, 5), b.op("MaxPool", b.op("Relu", x), kernel_shape=[2, 2, 2]))


@case
def clip_missing(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    x = b.op("Clip", x, "", b.number(0.5))
    x = b.float_conv(x, (8, 8, 1, 1))
    x = b.op("Clip", x, b.number(-0.1))
    x = b.float_conv(x, (8, 8, 1, 1))
    return b.model((1, 4, 5, 5), b.op("Clip", x))


@case
def clip_huge(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    x = b.op("Clip", x, b.number(-3.4e38), b.number(3.4e38))
    return b.model((1, 4, 5, 5), b.quantized(x, STEP, 128))


@case
def clip_inside_out(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    return b.model((1, 4, 5, 5), b.op("Clip", x, b.number(0.5), b.number(-0.5)))


@case
def clip_zero(b: Any) -> Any:
    x = b.conv(b.quantized("input", 0.02, 128), (8, 4, 3, 3), 6, 0.02)
    x = b.quantized(b.op("Clip", x, b.number(0), b.number(0)), STEP)
    return b.model((1, 4, 5, 5), b.conv(x, (8, 8, 1, 1), 6, STEP))


@case
def nested_clips(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3, 3))
    x = b.op("Relu", b.op("Clip", x, b.number(-0.5), b.number(0.3)))
    return b.model((1, 4, 5, 5), b.op("Clip", x, b.number(0.1)))


@case
def dequantize_many(b: Any) -> Any:
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 4, 1, 1), 6, STEP), STEP, 100)
    return b.model(
        (1, 4, 6, 5),
        b.op("Sigmoid", x),
        b.op("Tanh", x),
        b.op("Mul", x, x),
        b.float_conv(x, (8, 8, 3, 3), pads=[1] * 4),
    )


@case
def int8_activations(b: Any) -> Any:
    a = (b.number(0.02), b.constant(np.int8(3)))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", "input", *a), *a)
    x = b.conv(x, (8, 3, 3, 3), 8, 0.02)
    x = b.op("Relu", x)
    a = (b.number(0.05), b.constant(np.int8(-128)))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, *a), *a)
    return b.model((1, 3, 6, 7), b.conv(x, (8, 8, 3, 3), 8, 0.05))


@case
def no_zero_point(b: Any) -> Any:
    a = (b.number(0.02),)
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", "input", *a), *a)
    return b.model((1, 3, 6, 7), b.conv(x, (8, 3, 3, 3), 8, 0.02))


@case
def transposed_steps(b: Any) -> Any:
    a = (b.number(0.02), b.constant(np.uint8(128)))
    q = b.op(
        "Transpose",
        b.op("QuantizeLinear", b.float_conv("input", (8, 3, 1, 1)), *a),
        perm=[0, 1, 3, 2],
    )
    return b.model((1, 3, 6, 7), b.conv(b.op("DequantizeLinear", q, *a), (8, 8, 3, 3), 6, 0.02))


@case
def shape_chain(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    s = b.op("Shape", x)
    n = b.op("Gather", s, b.constant(np.int64(0)))
    s2 = b.op("Concat", b.op("Unsqueeze", n, b.integers(0)), b.integers(-1), axis=0)
    return b.model((1, 3, 6, 7), b.op("Gemm", b.op("Reshape", x, s2), b.floats(160, 4)))


@case
def constant_node(b: Any) -> Any:
    b.nodes.append(helper.make_node("Constant", [], ["cc"], value_floats=[0.1, 0.2, 0.3, 0.4]))
    b.nodes.append(helper.make_node("Constant", [], ["lo"], value_float=0.05))
    return b.model((1, 4), b.op("Clip", b.op("Add", "input", "cc"), "lo"))


@case
def constant_output(b: Any) -> Any:
    b.nodes.append(helper.make_node("Constant", [], ["cc"], value_floats=[0.1, 0.2, 0.3, 0.4]))
    return b.model((1, 4), "cc", b.op("Relu", "input"))


@case
def split_outputs(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    b.nodes.append(helper.make_node("Split", [x], ["s1", "s2"], axis=1, num_outputs=2))
    return b.model((1, 3, 6, 7), b.op("Relu", "s1"), b.float_conv("s2", (8, 4, 1, 1)))


@case
def batch_norm(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    v = b.constant(b.rng.uniform(0.5, 1.5, 8).astype(np.float32))
    x = b.op("BatchNormalization", x, v, b.floats(8), b.floats(8), v)
    return b.model((1, 3, 6, 7), b.float_conv(b.op("Relu", x), (8, 8, 3, 3)))


@case
def swish_resize(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 100), (8, 3, 3, 3), 6, STEP)
    x = b.op(
        "Resize",
        b.op("Mul", x, b.op("Sigmoid", x)),
        "",
        b.constant(np.array([1, 1, 2, 2], np.float32)),
        mode="nearest",
    )
    return b.model(
        (1, 3, 6, 7), b.op("LeakyRelu", b.conv(b.quantized(x, STEP, 100), (8, 8, 3, 3), 6, STEP))
    )


@case
def layernorm_attention(b: Any) -> Any:
    x = b.op("LayerNormalization", "input", b.floats(16), b.floats(16))
    q, k, v = (b.op("Add", b.op("MatMul", x, b.floats(16, 16)), b.floats(16)) for _ in range(3))
    a = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    return b.model(
        (2, 5, 16), b.op("Add", "input", b.op("MatMul", b.op("MatMul", a, v), b.floats(16, 16)))
    )


@case
def deep(b: Any) -> Any:
    x = "input"
    for _ in range(400):
        x = b.op("Relu", b.float_conv(x, (8, 8, 1, 1)))
    return b.model((1, 8, 2, 2), x)


@case
def deep_qdq(b: Any) -> Any:
    x = b.quantized("input", STEP, 128)
    for _ in range(150):
        x = b.quantized(b.op("Relu", b.conv(x, (8, 8, 1, 1), 5, STEP)), STEP)
    return b.model((1, 8, 2, 2), x)


@case
def conv_transpose_q(b: Any) -> Any:
    w, _ = b.weights((8, 4, 2, 2), 6, axis=1)
    x = b.quantized(b.conv(b.quantized("input", STEP, 100), (8, 3, 3, 3), 6, STEP), STEP, 100)
    return b.model(
        (1, 3, 6, 7),
        b.conv(
            b.quantized(b.op("ConvTranspose", x, w, strides=[2, 2]), STEP, 100),
            (8, 4, 3, 3),
            6,
            STEP,
        ),
    )


@case
def shuffle(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 100), (16, 3, 1, 1), 6, STEP)
    x = b.op("Reshape", x, b.integers(1, 2, 8, 6, 7))
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = b.op("Reshape", x, b.integers(1, 16, 6, 7))
    return b.model(
        (1, 3, 6, 7), b.conv(b.quantized(x, STEP, 100), (16, 1, 3, 3), 6, STEP, group=16)
    )


@case
def se_block(b: Any) -> Any:
    x = b.quantized(
        b.op(
            "Relu", b.conv(b.quantized("input", STEP, 100), (16, 3, 3, 3), 6, STEP, pads=[1] * 4)
        ),
        STEP,
    )
    s = b.quantized(b.op("GlobalAveragePool", x), 0.01)
    s = b.quantized(b.op("Relu", b.conv(s, (8, 16, 1, 1), 6, 0.01)), 0.01)
    s = b.op("HardSigmoid", b.conv(s, (16, 8, 1, 1), 6, 0.01), alpha=1 / 6)
    return b.model(
        (1, 3, 6, 7), b.conv(b.quantized(b.op("Mul", x, s), STEP), (8, 16, 1, 1), 6, STEP)
    )


@case
def activations_of_float_layers(b: Any) -> Any:
    x = b.op("HardSwish", b.float_conv("input", (12, 3, 3, 3)))
    x = b.op("Sigmoid", b.float_conv(x, (12, 1, 3, 3), group=12, pads=[1] * 4))
    x = b.op("LeakyRelu", b.op("Add", x, b.float_conv(x, (12, 12, 1, 1))), alpha=0.2)
    x = b.op("PRelu", b.float_conv(x, (8, 12, 1, 1)), b.number(0.3))
    return b.model((1, 3, 6, 7), b.op("Relu", b.op("Tanh", b.float_conv(x, (8, 8, 1, 1)))))


@case
def activation_of_shared(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    s = b.op("Sigmoid", x)
    y = b.op("Mul", s, x)
    return b.model((1, 3, 6, 7), y, b.float_conv(b.op("Gelu", y), (8, 8, 1, 1)), s)


@case
def activation_between_clips(b: Any) -> Any:
    x = b.op("Clip", b.float_conv("input", (8, 3, 3, 3)), b.number(-0.4), b.number(0.3))
    x = b.op("Clip", b.op("HardSwish", b.op("Tanh", x)), b.number(-0.01), b.number(0.1))
    return b.model((1, 3, 6, 7), b.op("MaxPool", b.op("Sigmoid", x), kernel_shape=[2, 2]))


@case
def silu_quantized(b: Any) -> Any:
    x = b.conv(b.quantized("input", STEP, 100), (16, 3, 3, 3), 6, STEP, pads=[1] * 4)
    x = b.quantized(b.op("Mul", x, b.op("Sigmoid", x)), STEP, 10)
    y = b.conv(x, (16, 1, 3, 3), 6, STEP, group=16, pads=[1] * 4)
    y = b.quantized(b.op("Mul", b.op("HardSigmoid", y, alpha=0.2), y), STEP, 10)
    y = b.quantized(b.conv(y, (16, 16, 1, 1), 5, STEP), STEP, 128)
    z = b.quantized(b.op("HardSwish", b.op("Add", x, y)), STEP, 20)
    return b.model((1, 3, 6, 7), b.conv(z, (8, 16, 1, 1), 6, STEP))


@case
def gelu_written_out(b: Any) -> Any:
    x = b.op("Add", b.op("MatMul", "input", b.floats(16, 24)), b.floats(24))
    erf = b.op("Erf", b.op("Div", x, b.number(2**0.5)))
    x = b.op("Mul", b.op("Mul", x, b.op("Add", erf, b.number(1))), b.number(0.5))
    x = b.op("MatMul", x, b.floats(24, 24))
    erf = b.op("Erf", b.op("Mul", x, b.number(0.5**0.5)))
    x = b.op("Mul", b.op("Mul", b.number(0.5), x), b.op("Add", b.number(1), erf))
    x = b.op("Gelu", b.op("MatMul", x, b.floats(24, 16)), approximate="tanh")
    return b.model((2, 5, 16), b.op("MatMul", x, b.floats(16, 8)))


@case
def layer_norms(b: Any) -> Any:
    x = b.op("MatMul", "input", b.floats(16, 40))
    x = b.op("LayerNormalization", x, b.floats(40), b.floats(40), epsilon=0.01)
    x = b.op("Relu", b.op("LayerNormalization", b.op("MatMul", x, b.floats(40, 24)), b.floats(24)))
    x = b.op("MatMul", x, b.floats(24, 20))
    x = b.op("LayerNormalization", x, b.floats(20), b.floats(20))
    return b.model((2, 5, 16), b.op("LayerNormalization", x, b.floats(5, 20), axis=1))


@case
def layer_norm_quantized(b: Any) -> Any:
    x = b.quantized(b.layer("Gemm", "input", (24, 16), 32, 0.0, transB=1), STEP, 128)
    x = b.quantized(b.op("LayerNormalization", x, b.floats(24), b.floats(24)), STEP, 100)
    return b.model((5, 16), b.layer("Gemm", x, (8, 24), 6, STEP, transB=1))


@case
def feed_forward(b: Any) -> Any:
    x = b.op("Add", b.op("MatMul", "input", b.floats(16, 24)), b.floats(24))
    y = b.op("Gelu", b.op("Add", b.op("MatMul", x, b.floats(24, 40)), b.floats(40)))
    y = b.op("Add", b.op("MatMul", y, b.floats(40, 24)), b.floats(24))
    z = b.op("LayerNormalization", b.op("Add", y, x), b.floats(24), b.floats(24))
    return b.model((2, 5, 16), b.op("Mul", z, b.op("Add", z, b.op("MatMul", z, b.floats(24, 24)))))


@case
def sums_of_other_ranks(b: Any) -> Any:
    x = b.float_conv("input", (8, 4, 3), pads=[1, 1])
    y = b.op("Relu", b.op("Add", x, b.op("Relu", b.float_conv(x, (8, 8, 1)))))
    m = b.op("Add", b.op("MatMul", y, b.floats(9, 9)), y)
    return b.model((2, 4, 9), b.op("Reshape", b.op("Add", m, m), b.integers(-1)))


@case
def product_with_scalar(b: Any) -> Any:
    x = b.op("Mul", b.float_conv("input", (8, 3, 3, 3)), b.number(0.7))
    return b.model((1, 3, 6, 7), b.op("Mul", x, b.constant(np.ones((1, 8, 1, 1), np.float32))))


@case
def gate_with_rows(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    gate = b.op("ReduceMean", x, b.integers(3))
    return b.model((2, 3, 6, 7), b.op("Mul", gate, x), b.op("Mul", x, x))


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))
