"""Small QDQ models, and the way to run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import get_runtime
from paredown.hw_profiles import HardwareProfile, ProfileError, check_runs_here, load_profile


class ModelBuilder:
    """Writes ONNX graphs in the project's QDQ form, with random weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.counter = 0

    def name(self, stem: str) -> str:
        self.counter += 1
        return f"{stem}{self.counter}"

    def constant(self, value: Any, kind: int | None = None) -> str:
        name = self.name("const")
        array = np.asarray(value)
        if kind is None:
            self.constants.append(numpy_helper.from_array(array, name))
        else:
            values = array.flatten().tolist()
            self.constants.append(helper.make_tensor(name, kind, array.shape, values))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = self.name(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def quantized(self, name: str, scale: float, zero_point: int = 0, bits: int = 8) -> str:
        if bits == 7:
            low, high = (np.float32((q - zero_point) * np.float32(scale)) for q in (0, 127))
            name = self.op("Clip", name, self.constant(low), self.constant(high))
        args = (self.constant(np.float32(scale)), self.constant(np.uint8(zero_point)))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", name, *args), *args)

    def weights(self, shape: Sequence[int], bits: int, axis: int = 0) -> tuple[str, Any]:
        top = 2 ** (bits - 1) - 1
        steps = self.rng.integers(-top, top + 1, shape)
        scale = self.rng.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / (
            top * np.sqrt(np.prod(shape) / shape[axis])
        ).astype(np.float32)
        kind = TensorProto.INT4 if bits <= 4 else TensorProto.INT8
        stored = self.constant(steps, kind)
        return self.op("DequantizeLinear", stored, self.constant(scale), axis=axis), scale

    def layer(
        self,
        op_type: str,
        data: str,
        shape: Sequence[int],
        bits: int,
        step: float,
        **attributes: Any,
    ) -> str:
        """A layer; 32 bits is float."""
        if bits == 32:
            weights = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            bias = self.constant(self.rng.standard_normal(shape[0]).astype(np.float32) * 0.1)
            return self.op(
                op_type, data, self.constant(weights.astype(np.float32)), bias, **attributes
            )
        weight, scale = self.weights(shape, bits)
        unit = (np.float32(step) * scale).astype(np.float32)
        steps = np.rint(self.rng.standard_normal(shape[0]) * 0.1 / unit).astype(np.int32)
        bias = self.op("DequantizeLinear", self.constant(steps), self.constant(unit), axis=0)
        return self.op(op_type, data, weight, bias, **attributes)

    def model(self, input_shape: Sequence[int], output: str) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        data = helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)
        graph = helper.make_graph(self.nodes, "test", [data], [result], self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


@pytest.fixture
def builder() -> ModelBuilder:
    return ModelBuilder()


Run = Callable[[onnx.ModelProto, NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture(params=["local", "x86-64-v3", "x86-64", "aarch64"])
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    """A profile of each kernel family that this machine can run."""
    found = load_profile(request.param)
    try:
        check_runs_here(found)
    except ProfileError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def run_tvm(profile: HardwareProfile, tmp_path: Path) -> Run:
    """Compile a model for the profile and run it."""

    def run(model: onnx.ModelProto, data: NDArray[np.float32]) -> NDArray[np.float32]:
        path, library = tmp_path / "model.onnx", tmp_path / "model.so"
        onnx.save(model, path)
        runtime = get_runtime("tvm")
        runtime.build(path, library, profile)
        return runtime.load(library, 1).run(data)[0]

    return run


@pytest.fixture
def run_reference() -> Run:
    """Run a model by its literal meaning: ONNX Runtime without any optimization."""
    import onnxruntime

    def run(model: onnx.ModelProto, data: NDArray[np.float32]) -> NDArray[np.float32]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        output: NDArray[np.float32] = session.run(None, {"input": data})[0]
        return output

    return run
