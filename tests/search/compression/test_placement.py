import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from paredown.search.compression.placement import QuantizedTensor, place_quantizers

SHAPE = [1, 4, 8, 8]


def make_graph(text: str) -> GraphProto:
    """Read lines of the form `output = Op(input, ...)`; `w` and `c` are constants."""
    nodes = []
    for line in text.strip().splitlines():
        output, _, call = line.strip().partition(" = ")
        op, _, inputs = call.rstrip(")").partition("(")
        nodes.append(helper.make_node(op, inputs.split(", "), [output], name=output))
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, SHAPE)],
        [value("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(np.zeros(4, np.float32), name) for name in ("w", "c")],
    )


def place(text: str, **activation_bits: int) -> dict[str, QuantizedTensor]:
    return place_quantizers(make_graph(text), activation_bits)


def names(text: str, *layers: str) -> list[str]:
    return list(place(text, **dict.fromkeys(layers, 8)))


def test_without_integer_layers_nothing_is_quantized() -> None:
    assert names("y = Conv(x, w)") == []


def test_what_a_layer_reads_is_quantized_and_the_output_is_not() -> None:
    assert names("a = Conv(x, w)\ny = Gemm(a, w)", "a", "y") == ["x", "a"]


RESIDUAL = """
    a = Conv(x, w)
    ar = Relu(a)
    b = Conv(ar, w)
    s = Add(b, x)
    sr = Relu(s)
    y = Gemm(sr, w)
"""


def test_relu_belongs_to_the_layer_or_addition_before_it() -> None:
    assert names(RESIDUAL, "a", "b", "y") == ["x", "ar", "b", "sr"]


def test_an_addition_whose_sum_stays_float_adds_floats() -> None:
    assert names(RESIDUAL, "a", "b") == ["x", "ar"]
    assert names(RESIDUAL, "b") == ["ar"]


def test_float_layers_feed_integer_ones_through_quantizers() -> None:
    """`a` is float: its result is quantized for `b`; `b` is in float and `y` is not."""
    assert names(RESIDUAL, "b", "y") == ["x", "ar", "b", "sr"]
    assert names(RESIDUAL, "y") == ["x", "b", "sr"]


def test_a_relu_with_a_shared_operand_is_an_operation_of_its_own() -> None:
    graph = "a = Conv(x, w)\nr = Relu(a)\ns = Add(a, r)\ny = Gemm(s, w)"
    assert names(graph, "a", "y") == ["x", "a", "r", "s"]


POOLS = """
    a = Conv(x, w)
    r = Clip(a, c, c)
    m = MaxPool(r)
    b = Conv(m, w)
    p = AveragePool(b)
    g = GlobalAveragePool(p)
    f = Flatten(g)
    y = Gemm(f, w)
"""


def test_pools_pass_quantization_on_and_views_share_the_grid() -> None:
    placed = place(POOLS, a=8, b=8, y=8)
    assert list(placed) == ["x", "r", "m", "b", "p", "g", "f"]
    roots = {name: tensor.root for name, tensor in placed.items()}
    assert roots == {"x": "x", "r": "r", "m": "r", "b": "b", "p": "p", "g": "g", "f": "g"}


def test_bits_are_the_least_that_readers_ask_for() -> None:
    graph = "a = Conv(x, w)\nb = Conv(x, w)\ns = Add(a, b)\ny = Conv(s, w)"
    placed = place(graph, a=8, b=7, y=7)
    assert {n: t.bits for n, t in placed.items()} == {"x": 7, "a": 8, "b": 8, "s": 7}


def test_bits_of_a_shared_grid_are_the_least_of_all_its_readers() -> None:
    placed = place(POOLS, a=8, b=7, y=7)
    assert {n: t.bits for n, t in placed.items()} == {
        "x": 8, "r": 7, "m": 7, "b": 8, "p": 8, "g": 7, "f": 7,
    }  # fmt: skip


def test_concatenation_passes_quantization_on_with_grids_of_their_own() -> None:
    placed = place("a = Conv(x, w)\nb = Conv(x, w)\nj = Concat(a, b)\ny = Conv(j, w)", y=8)
    assert {n: t.root for n, t in placed.items()} == {"a": "a", "b": "b", "j": "j"}


@pytest.mark.parametrize("op", ["Sigmoid", "Mul", "HardSwish", "Softmax", "BatchNormalization"])
def test_operators_without_an_integer_form_read_floats(op: str) -> None:
    assert names(f"a = Conv(x, w)\nh = {op}(a)\nb = Conv(h, w)\ny = Relu(b)", "a", "b") == [
        "x",
        "h",
    ]


def test_relu_after_an_operator_without_an_integer_form_is_part_of_it() -> None:
    graph = "a = Conv(x, w)\nh = BatchNormalization(a)\nr = Relu(h)\ny = Conv(r, w)"
    assert names(graph, "a", "y") == ["x", "r"]


def test_relu_after_a_pool_is_not_part_of_it() -> None:
    assert names("p = MaxPool(x)\nr = Relu(p)\ny = Conv(r, w)", "y") == ["x", "p", "r"]


def test_the_bias_added_to_a_matmul_is_part_of_it() -> None:
    graph = "m = MatMul(x, w)\nb = Add(m, c)\nr = Relu(b)\ny = MatMul(r, w)"
    assert names(graph, "m", "y") == ["x", "r"]


def test_an_output_that_is_also_read_keeps_its_float_value() -> None:
    """Its readers see the quantized value; the name of the output is left to the float one."""
    placed = place("y = Conv(x, w)\nz = Conv(y, w)", y=8, z=8)
    assert list(placed) == ["x", "y"]


def test_a_weight_is_not_an_activation() -> None:
    assert names("t = Transpose(w)\ny = MatMul(x, t)", "y") == ["x"]
