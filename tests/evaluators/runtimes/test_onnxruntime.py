from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import get_runtime
from paredown.hw_profiles.profile import HardwareProfile


def test_float_layer_behind_a_quantizer_stays_in_float(
    tmp_path: Path, profile: HardwareProfile
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 8, 1, 1)).astype(np.float32)
    weight[0] *= 1000  # one scale for all weights would round the others to zero
    bias = rng.standard_normal(4).astype(np.float32)
    arrays: dict[str, NDArray[Any]]
    arrays = {"weight": weight, "bias": bias, "zero": np.asarray(128, np.uint8)}
    arrays |= {"step": np.asarray(0.02, np.float32), "coarse": np.asarray(0.1, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "step", "zero"], ["read"]),
        helper.make_node("Conv", ["read", "weight", "bias"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "coarse", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "coarse", "zero"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 8, 5, 5])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4, 5, 5])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path, built = tmp_path / "net.onnx", tmp_path / "built.onnx"
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    runtime = get_runtime("onnxruntime")
    runtime.build(path, built, profile)
    inputs = rng.uniform(-2, 2, (1, 8, 5, 5)).astype(np.float32)
    read = 0.02 * np.rint(inputs / 0.02)
    sums = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], read) + bias[:, None, None]
    expected = np.clip(sums, -128 * 0.1, 127 * 0.1)
    (output,) = runtime.load(built, 1).run(inputs)
    np.testing.assert_allclose(output, expected, atol=0.06)  # half a step, and a little
