from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from paredown.evaluators.onnx_module import (
    OnnxModule,
    UnsupportedOperatorError,
    supported_ops,
)

Constants = dict[str, NDArray[Any]]

rng = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return rng.normal(size=shape).astype(np.float32)


def number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def node(op: str, inputs: str, outputs: str = "output", **attributes: Any) -> onnx.NodeProto:
    names = [name if name != "-" else "" for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op} to {outputs}", **attributes)


def make_model(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    constants: Constants | None = None,
    tensors: tuple[TensorProto, ...] = (),
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, *shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()] + list(tensors),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_onnxruntime(model: ModelProto, inputs: Tensor) -> Tensor:
    """Run one sample at a time, with every node as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    outputs = [session.run(None, {"input": x[None].numpy()})[0] for x in inputs]
    return torch.from_numpy(np.concatenate(outputs))


def assert_equal_to_onnxruntime(model: ModelProto, shape: tuple[int, ...]) -> None:
    inputs = torch.from_numpy(floats(3, *shape))
    module = OnnxModule(model)
    expected = run_onnxruntime(model, inputs)
    torch.testing.assert_close(module(inputs).detach(), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():  # the path that overwrites what it can
        kept = inputs.clone()
        torch.testing.assert_close(module(inputs), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(inputs, kept), "the inputs must stay as they are"


IMAGE = (4, 9, 7)
KERNEL, BIAS = {"w": floats(6, 4, 3, 3)}, {"b": floats(6)}

SINGLE: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], Constants]] = {
    "conv": ([node("Conv", "input w b", pads=[1, 1, 1, 1])], IMAGE, KERNEL | BIAS),
    "conv_no_bias": ([node("Conv", "input w")], IMAGE, KERNEL),
    "conv_stride": ([node("Conv", "input w b", strides=[2, 3])], IMAGE, KERNEL | BIAS),
    "conv_dilation": ([node("Conv", "input w", dilations=[2, 1])], IMAGE, KERNEL),
    "conv_asymmetric": ([node("Conv", "input w b", pads=[0, 1, 2, 3])], IMAGE, KERNEL | BIAS),
    "conv_same_upper": (
        [node("Conv", "input w", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, KERNEL,
    ),
    "conv_same_lower": (
        [node("Conv", "input w", auto_pad="SAME_LOWER", strides=[2, 2])], IMAGE, KERNEL,
    ),
    "conv_groups": (
        [node("Conv", "input w b", group=2)], IMAGE, {"w": floats(6, 2, 3, 3)} | BIAS,
    ),
    "conv_depthwise": (
        [node("Conv", "input w", group=4, pads=[2] * 4)], IMAGE, {"w": floats(4, 1, 5, 5)},
    ),
    "conv_1d": ([node("Conv", "input w b")], (4, 9), {"w": floats(6, 4, 3)} | BIAS),
    "conv_3d": ([node("Conv", "input w")], (2, 5, 6, 4), {"w": floats(3, 2, 3, 3, 3)}),
    "transposed": (
        [node("ConvTranspose", "input w b", strides=[2, 2], pads=[1] * 4, output_padding=[1, 0])],
        IMAGE,
        {"w": floats(4, 6, 3, 3)} | BIAS,
    ),
    "transposed_asymmetric": (
        [node("ConvTranspose", "input w", strides=[2, 1], pads=[0, 1, 1, 0])],
        IMAGE,
        {"w": floats(4, 6, 3, 3)},
    ),
    "transposed_groups": (
        [node("ConvTranspose", "input w b", group=2)], IMAGE, {"w": floats(4, 3, 3, 3)} | BIAS,
    ),
    "gemm": (
        [node("Gemm", "input w b", transB=1)], (8,), {"w": floats(5, 8), "b": floats(5)},
    ),
    "gemm_general": (
        [node("Gemm", "input w b", alpha=0.5, beta=2.0)],
        (8,),
        {"w": floats(8, 5), "b": floats(5)},
    ),
    "matmul": ([node("MatMul", "input w")], (7, 8), {"w": floats(8, 5)}),
    "max_pool": (
        [node("MaxPool", "input", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], IMAGE, {},
    ),
    "max_pool_asymmetric": (
        [node("MaxPool", "input", kernel_shape=[2, 3], pads=[0, 1, 1, 0])], IMAGE, {},
    ),
    "max_pool_ceil": (
        [node("MaxPool", "input", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], IMAGE, {},
    ),
    "average_pool": (
        [node("AveragePool", "input", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)],
        IMAGE,
        {},
    ),
    "average_pool_with_pads": (
        [node("AveragePool", "input", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)],
        IMAGE,
        {},
    ),
    "average_pool_asymmetric": (
        [node("AveragePool", "input", kernel_shape=[3, 3], pads=[0, 0, 1, 2])], IMAGE, {},
    ),
    "global_average_pool": ([node("GlobalAveragePool", "input")], IMAGE, {}),
    "global_max_pool": ([node("GlobalMaxPool", "input")], IMAGE, {}),
    "reduce_mean": ([node("ReduceMean", "input axes", keepdims=0)], IMAGE, {"axes": ints(-1, 2)}),
    "reduce_max": ([node("ReduceMax", "input axes")], IMAGE, {"axes": ints(1)}),
    "reduce_sum": ([node("ReduceSum", "input axes")], IMAGE, {"axes": ints(3)}),
    "batch_norm": (
        [node("BatchNormalization", "input s b m v", epsilon=1e-3)],
        IMAGE,
        {"s": floats(4), "b": floats(4), "m": floats(4), "v": np.abs(floats(4))},
    ),
    "instance_norm": (
        [node("InstanceNormalization", "input s b")], IMAGE, {"s": floats(4), "b": floats(4)},
    ),
    "group_norm": (
        [node("GroupNormalization", "input s b", num_groups=2)],
        IMAGE,
        {"s": floats(4), "b": floats(4)},
    ),
    "layer_norm": (
        [node("LayerNormalization", "input s b", axis=-2)],
        (5, 6, 7),
        {"s": floats(6, 7), "b": floats(6, 7)},
    ),
    "softmax": ([node("Softmax", "input", axis=1)], IMAGE, {}),
    "log_softmax": ([node("LogSoftmax", "input")], IMAGE, {}),
    "relu": ([node("Relu", "input")], IMAGE, {}),
    "clip": (
        [node("Clip", "input low high")], IMAGE, {"low": number(-1), "high": number(1)},
    ),
    "clip_below": ([node("Clip", "input low")], IMAGE, {"low": number(0.5)}),
    "clip_above": ([node("Clip", "input - high")], IMAGE, {"high": number(0.5)}),
    "leaky_relu": ([node("LeakyRelu", "input", alpha=0.2)], IMAGE, {}),
    "prelu": ([node("PRelu", "input s")], IMAGE, {"s": floats(4, 1, 1)}),
    "elu": ([node("Elu", "input", alpha=0.5)], IMAGE, {}),
    "hard_sigmoid": ([node("HardSigmoid", "input", alpha=0.3)], IMAGE, {}),
    "gelu": ([node("Gelu", "input")], IMAGE, {}),
    "gelu_tanh": ([node("Gelu", "input", approximate="tanh")], IMAGE, {}),
    "pow": ([node("Pow", "input p")], IMAGE, {"p": number(2.0)}),
    "sub": ([node("Sub", "c input")], IMAGE, {"c": floats(4, 1, 1)}),
    "div": ([node("Div", "input c")], IMAGE, {"c": floats(7) + 5}),
    "max": ([node("Max", "input c")], IMAGE, {"c": floats(7)}),
    "min": ([node("Min", "input c")], IMAGE, {"c": floats(7)}),
    "flatten": ([node("Flatten", "input")], IMAGE, {}),
    "reshape": ([node("Reshape", "input shape")], IMAGE, {"shape": ints(1, 2, 2, 9, -1)}),
    "reshape_copy": ([node("Reshape", "input shape")], IMAGE, {"shape": ints(0, 0, -1)}),
    "transpose": ([node("Transpose", "input", perm=[0, 2, 3, 1])], IMAGE, {}),
    "squeeze": ([node("Squeeze", "input axes")], (4, 1, 5, 1), {"axes": ints(2, -1)}),
    "unsqueeze": ([node("Unsqueeze", "input axes")], IMAGE, {"axes": ints(1, -1)}),
    "slice": (
        [node("Slice", "input starts ends axes steps")],
        IMAGE,
        {"starts": ints(1, -5), "ends": ints(9999, -1), "axes": ints(2, 3), "steps": ints(2, 1)},
    ),
    "gather": ([node("Gather", "input i", axis=2)], IMAGE, {"i": np.array([[0, -1], [3, 3]])}),
    "gather_one": ([node("Gather", "input i", axis=1)], IMAGE, {"i": np.array(2)}),
    "pad": (
        [node("Pad", "input pads value axes")],
        IMAGE,
        {"pads": ints(1, 0, 2, 3), "value": number(7), "axes": ints(2, 3)},
    ),
    "pad_reflect": (
        [node("Pad", "input pads", mode="reflect")], IMAGE, {"pads": ints(0, 0, 2, 1, 0, 0, 1, 2)},
    ),
    "pad_edge": (
        [node("Pad", "input pads", mode="edge")], IMAGE, {"pads": ints(0, 0, 2, 1, 0, 0, 1, 2)},
    ),
    "expand": ([node("Expand", "input shape")], (4, 1, 7), {"shape": ints(1, 1, 3, 7)}),
    "cast": ([node("Cast", "input", to=TensorProto.FLOAT)], IMAGE, {}),
    "identity": ([node("Identity", "input")], IMAGE, {}),
    "depth_to_space": ([node("DepthToSpace", "input", blocksize=2)], IMAGE, {}),
    "pixel_shuffle": ([node("DepthToSpace", "input", blocksize=2, mode="CRD")], IMAGE, {}),
    "resize_bilinear": (
        [node("Resize", "input - scales", mode="linear")],
        IMAGE,
        {"scales": np.array([1, 1, 2, 1.5], np.float32)},
    ),
    "resize_to_sizes": (
        [node("Resize", "input - - sizes", mode="linear",
              coordinate_transformation_mode="align_corners")],
        IMAGE,
        {"sizes": ints(1, 4, 5, 16)},
    ),
    "resize_smooth": (
        [node("Resize", "input - - sizes", mode="linear", antialias=1)],
        IMAGE,
        {"sizes": ints(1, 4, 4, 3)},
    ),
    "resize_nearest": (
        [node("Resize", "input - scales", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")],
        IMAGE,
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize_cubic_axes": (
        [node("Resize", "input - - sizes", mode="cubic", axes=[3, 2])],
        IMAGE,
        {"sizes": ints(11, 20)},
    ),
    "argmax": (
        [node("ArgMax", "input", "i", axis=1), node("Cast", "i", to=TensorProto.FLOAT)], IMAGE, {},
    ),
    "argmax_flat": (
        [
            node("ArgMax", "input", "i", axis=-1, keepdims=0),
            node("Cast", "i", to=TensorProto.FLOAT),
        ],
        IMAGE,
        {},
    ),
    "argmin": (
        [node("ArgMin", "input", "i", axis=2), node("Cast", "i", to=TensorProto.FLOAT)], IMAGE, {},
    ),
    "concat_with_constant": (
        [node("Concat", "c input", axis=1)], (5, 6), {"c": floats(1, 2, 6)},
    ),
    "constants_are_folded": (
        [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "input t")],
        (8,),
        {"w": floats(5, 8)},
    ),
}  # fmt: skip
for unary in (
    "Abs", "Erf", "Exp", "HardSwish", "Mish", "Neg", "Round", "Sigmoid", "Softplus", "Softsign",
    "Tanh",
):  # fmt: skip
    SINGLE[unary.lower()] = ([node(unary, "input")], IMAGE, {})


@pytest.mark.parametrize("name", SINGLE)
def test_operators_give_what_onnxruntime_gives(name: str) -> None:
    nodes, shape, constants = SINGLE[name]
    assert_equal_to_onnxruntime(make_model(nodes, shape, constants), shape)


def test_gradients_pass_a_resize_that_ran_without_them_before() -> None:
    scales = np.array([1, 1, 2, 3], np.float32)
    model = make_model(
        [node("Resize", "input - scales", mode="linear")], (2, 3, 5), {"scales": scales}
    )
    module, inputs = OnnxModule(model), torch.from_numpy(floats(1, 2, 3, 5))
    with torch.inference_mode():
        module(inputs)
    module(inputs.requires_grad_()).sum().backward()
    assert inputs.grad is not None
    # Each output's weights add up to one, and there are 6 times as many outputs.
    torch.testing.assert_close(inputs.grad.sum(), torch.tensor(180.0))


def test_every_supported_operator_is_known_to_onnx() -> None:
    assert all(onnx.defs.has(op) for op in supported_ops())


def test_values_that_are_read_again_are_not_overwritten() -> None:
    nodes = [
        node("Conv", "input w", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("Add", "r a", "s"),
        node("Identity", "s", "view"),
        node("Clip", "view low high", "c"),
        node("Add", "c s", "t"),
        node("Relu", "t", "u"),
        node("Add", "u u", "v"),
        node("Split", "v", "x y", axis=1, num_outputs=2),
        node("Relu", "x", "rx"),
        node("Add", "rx y"),
    ]
    constants: Constants = {"w": floats(6, 4, 3, 3), "low": number(-0.2), "high": number(0.7)}
    assert_equal_to_onnxruntime(make_model(nodes, IMAGE, constants), IMAGE)


def test_uneven_split_has_a_small_last_part() -> None:
    nodes = [
        node("Split", "input", "x y", axis=1, num_outputs=2),
        node("Concat", "y x", axis=1),
    ]
    assert_equal_to_onnxruntime(make_model(nodes, (5, 3)), (5, 3))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_graph_that_moves_the_batch_runs_sample_by_sample(requires_grad: bool) -> None:
    """As exporters write attention: the batch of 1 is merged with the heads."""
    constants: Constants = {"heads": ints(5, 2, 3), "merged": ints(5, 6), "back": ints(5, 1, 6)}
    constants["w"] = floats(6, 6)
    nodes = [
        node("Transpose", "input", "t", perm=[1, 0, 2]),
        node("Reshape", "t heads", "h"),
        node("Transpose", "h", "k", perm=[1, 2, 0]),
        node("Transpose", "h", "q", perm=[1, 0, 2]),
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "p"),
        node("MatMul", "p q", "o"),
        node("Transpose", "o", "ot", perm=[1, 0, 2]),
        node("Reshape", "ot merged", "m"),
        node("Gemm", "m w", "g"),
        node("Reshape", "g back", "b"),
        node("Transpose", "b", perm=[1, 0, 2]),
    ]
    model = make_model(nodes, (5, 6), constants)
    inputs = torch.from_numpy(floats(4, 5, 6)).requires_grad_(requires_grad)
    outputs = OnnxModule(model)(inputs)
    torch.testing.assert_close(
        outputs.detach(), run_onnxruntime(model, inputs.detach()), rtol=1e-5, atol=1e-5
    )
    if requires_grad:
        outputs.sum().backward()
        assert inputs.grad is not None


def quantizer(name: str, of: str, *, per_clip: bool = False) -> list[onnx.NodeProto]:
    nodes = [node("Clip", f"{of} low high", f"{of}.c")] if per_clip else []
    source = f"{of}.c" if per_clip else of
    return [
        *nodes,
        helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{of}.q"]),
        helper.make_node("DequantizeLinear", [f"{of}.q", "s", "z"], [name]),
    ]


SCALE, ZERO = number(0.037), np.array(100, np.uint8)


@pytest.mark.parametrize("scale", [0.037, 0.1, 1 / 3, 2.0**-5])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_rounding_is_that_of_the_file_to_the_bit(scale: float, dtype: type[Any]) -> None:
    """The inputs are ties and their neighbours, where a reciprocal would go astray."""
    constants: Constants = {"s": np.array(scale, np.float32), "z": np.array(3, dtype)}
    model = make_model(quantizer("output", "input"), (4096,), constants)
    steps = np.arange(-300, 300, 0.5, dtype=np.float32) * np.float32(scale)
    neighbours = np.concatenate([steps, np.nextafter(steps, -9), np.nextafter(steps, 9)])
    values = np.resize(neighbours.astype(np.float32), 4096)
    inputs = torch.from_numpy(values)[None]
    expected = run_onnxruntime(model, inputs)
    assert torch.equal(OnnxModule(model)(inputs), expected)
    with torch.inference_mode():
        assert torch.equal(OnnxModule(model)(inputs), expected)


def test_gradients_pass_straight_through_within_the_range_alone() -> None:
    model = make_model(quantizer("output", "input"), (4,), {"s": SCALE, "z": ZERO})
    inputs = torch.tensor([[-9.0, 0.012, 1.0, 9.0]], requires_grad=True)
    OnnxModule(model)(inputs).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [[0.0, 2.0, 3.0, 0.0]]


def test_clip_before_quantization_bounds_the_integers() -> None:
    constants: Constants = {"low": number(-20 * SCALE.item()), "high": number(27 * SCALE.item())}
    nodes = [node("Relu", "input", "r"), *quantizer("output", "r", per_clip=True)]
    model = make_model(nodes, (2000,), constants | {"s": SCALE, "z": ZERO})
    inputs = torch.linspace(-4, 4, 2000)[None]
    outputs = OnnxModule(model)(inputs)
    assert torch.equal(outputs, run_onnxruntime(model, inputs))
    assert outputs.max().item() == number(27) * SCALE
    assert outputs.min().item() == 0.0


def quantized_network(bits: int) -> ModelProto:
    """A residual block as `paredown.search` writes it: conv, add, pool, linear."""
    top = 2 ** (bits - 1) - 1
    kind = TensorProto.INT4 if bits <= 4 else TensorProto.INT8
    constants: Constants = {"s": number(0.04), "z": np.array(128, np.uint8)}
    tensors = []
    nodes = quantizer("x", "input")
    for name, shape, source, target in (
        ("c1", (8, 4, 3, 3), "x", "a"),
        ("c2", (8, 8, 3, 3), "ad", "b"),
        ("fc", (5, 8), "fd", "output"),
    ):
        integers = rng.integers(-top, top + 1, shape)
        tensors.append(helper.make_tensor(f"{name}.q", kind, shape, integers.reshape(-1).tolist()))
        constants[f"{name}.s"] = np.abs(floats(shape[0])) * np.float32(0.2 / top) + np.float32(
            1e-4
        )
        constants[f"{name}.b"] = rng.integers(-900, 900, shape[0]).astype(np.int32)
        constants[f"{name}.bs"] = constants[f"{name}.s"] * np.float32(0.04)
        nodes += [
            node("DequantizeLinear", f"{name}.q {name}.s", f"{name}.w", axis=0),
            node("DequantizeLinear", f"{name}.b {name}.bs", f"{name}.bf", axis=0),
        ]
        inputs = f"{source} {name}.w {name}.bf"
        if name == "fc":
            nodes.append(node("Gemm", inputs, target, transB=1))
        else:
            nodes.append(node("Conv", inputs, target, pads=[1, 1, 1, 1]))
        if name == "c1":
            nodes += [node("Relu", "a", "ar"), *quantizer("ad", "ar")]
        elif name == "c2":
            nodes += [*quantizer("bd", "b"), node("Add", "bd ad", "sum"), node("Relu", "sum", "r")]
            nodes += [*quantizer("rd", "r"), node("MaxPool", "rd", "m", kernel_shape=[2, 2])]
            nodes += [*quantizer("md", "m"), node("GlobalAveragePool", "md", "g")]
            nodes += [*quantizer("gd", "g"), node("Flatten", "gd", "f"), *quantizer("fd", "f")]
    return make_model(nodes, IMAGE, constants, tuple(tensors))


@pytest.mark.parametrize("bits", [8, 7, 5, 4, 2])
def test_quantized_networks_give_what_onnxruntime_gives(bits: int) -> None:
    """Sums in another order flip a rounding now and then, by one step."""
    model = quantized_network(bits)
    inputs = torch.from_numpy(floats(40, *IMAGE))
    expected = run_onnxruntime(model, inputs)
    with torch.inference_mode():
        outputs = OnnxModule(model)(inputs)
    assert (outputs.argmax(1) == expected.argmax(1)).all()
    assert ((outputs - expected).abs() < 1e-5).float().mean() > 0.9
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(OnnxModule(model)(inputs).detach(), outputs, rtol=0, atol=0.05)


def test_integer_weights_are_parameters_as_they_are_dequantized() -> None:
    module = OnnxModule(quantized_network(4))
    weight = module.weights["c1.w"]
    assert isinstance(weight, torch.nn.Parameter)
    assert set(module.state_dict()) >= {"c1__w", "c1__bf", "fc__w"}
    assert len(weight[0].unique()) <= 15


def test_weights_can_be_replaced_for_one_run() -> None:
    model = make_model([node("Gemm", "input w", transB=1)], (3,), {"w": floats(2, 3)})
    module, inputs = OnnxModule(model), torch.ones(1, 3)
    replaced = module.run(inputs, {"w": torch.ones(2, 3)})
    assert replaced.tolist() == [[3.0, 3.0]]
    assert module(inputs).tolist() != [[3.0, 3.0]]


def test_observed_tensors_are_shown_in_order_and_can_be_replaced() -> None:
    nodes = [node("Relu", "input", "a"), node("Neg", "a", "b"), node("Abs", "b")]
    module = OnnxModule(make_model(nodes, (2,)))
    seen: dict[str, list[list[float]]] = {}

    def observer(name: str, values: Tensor) -> Tensor | None:
        seen[name] = values.tolist()
        return values * 10 if name == "a" else None

    module.observe(torch.tensor([[-1.0, 2.0]]), ["output", "b", "a", "input"], observer)
    assert list(seen) == ["input", "a", "b", "output"]
    assert seen["b"] == [[0.0, -20.0]]
    assert seen["output"] == [[0.0, 20.0]]
    with pytest.raises(ValueError, match="'nowhere'"):
        module.observe(torch.zeros(1, 2), ["nowhere"], observer)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Det", "input")], "Operator 'Det' at node 'Det to output' is not supported"),
        (
            [node("ReduceMean", "input")],
            "'ReduceMean' at node 'ReduceMean to output'.*reduces all axes",
        ),
        ([node("Slice", "input a b c d")], "runs backwards"),
        ([node("Resize", "input - twice", mode="linear")], "'Resize'.*resizes the batch"),
        ([node("ArgMax", "input", axis=1, select_last_index=1)], "takes the last"),
        ([node("Cast", "input", "i", to=TensorProto.INT8), node("Cast", "i", to=1)], "casts to"),
        ([node("Cast", "input", "n", to=7), node("Reshape", "input n")], "'n' is computed"),
        ([node("MaxPool", "input", "output i", kernel_shape=[1, 1])], "indices"),
        (
            [node("QuantizeLinear", "input s z", "q"), node("Cast", "q", to=1)],
            "'Cast' reads its integers",
        ),
        (
            [node("QuantizeLinear", "input s z", "q"), node("DequantizeLinear", "q t z")],
            "no DequantizeLinear of the same scale",
        ),
        ([node("QuantizeLinear", "input v w", "q"), node("Cast", "q", to=1)], "per channel"),
        ([node("Abs", "input", "t2"), node("QuantizeLinear", "input t2 z")], "'t2' is computed"),
        ([node("DequantizeLinear", "input s z")], "neither a weight nor quantized"),
        ([node("DequantizeLinear", "w v w", "d", block_size=2)], "blocked"),
        ([helper.make_node("Gelu", ["input"], ["output"], domain="com.x")], r"'com\.x\.Gelu'"),
        ([helper.make_node("Constant", [], ["c2"], value_string="x")], "'value_string'"),
    ],
)
def test_forms_that_are_not_supported_are_named(nodes: list[onnx.NodeProto], message: str) -> None:
    constants: Constants = {"a": ints(3), "b": ints(0), "c": ints(2), "d": ints(-1)}
    constants |= {"s": number(0.1), "t": number(0.2), "z": np.array(3, np.uint8)}
    constants |= {"twice": np.full(4, 2, np.float32)}
    constants |= {"v": floats(4), "w": np.zeros(4, np.uint8)}
    with pytest.raises(UnsupportedOperatorError, match=message):
        OnnxModule(make_model(nodes, (4, 4, 4), constants))


def test_constants_in_nodes_are_read() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(floats(7))),
        helper.make_node("Constant", [], ["c"], value_float=2.5),
        helper.make_node("Constant", [], ["i"], value_ints=[1, 7, 36]),
        node("Add", "input w", "a"),
        node("Mul", "a c", "m"),
        node("Reshape", "m i"),
    ]
    assert_equal_to_onnxruntime(make_model(nodes, IMAGE), IMAGE)


def test_a_tensor_must_be_made_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="'later' must be made before"):
        OnnxModule(make_model([node("Relu", "later"), node("Relu", "input", "later")], (2,)))
    with pytest.raises(ValueError, match="'output' must depend on the input"):
        OnnxModule(make_model([node("Relu", "input", "x")], (2,)))


def test_a_graph_needs_one_input_and_one_output() -> None:
    model = make_model([node("Relu", "input")], (2,))
    model.graph.output.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match="one input and one output"):
        OnnxModule(model)
