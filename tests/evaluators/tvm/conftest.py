"""Small QDQ models, single kernels, and the ways to run both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.cache import KernelCache
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.script import Kernel
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

    def floats(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.3).astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

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

    def conv(
        self, data: str, shape: Sequence[int], bits: int, step: float, **attributes: Any
    ) -> str:
        return self.layer("Conv", data, shape, bits, step, **attributes)

    def float_conv(self, data: str, shape: Sequence[int], **attributes: Any) -> str:
        return self.layer("Conv", data, shape, 32, 0.0, **attributes)

    def model(self, input_shape: Sequence[int], *outputs: str) -> onnx.ModelProto:
        data = helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)
        results = [
            data
            if name == "input"
            else helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in outputs
        ]
        graph = helper.make_graph(self.nodes, "test", [data], results, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


@pytest.fixture
def builder() -> ModelBuilder:
    return ModelBuilder()


@pytest.fixture
def make_builder() -> type[ModelBuilder]:
    """For tests that make several models."""
    return ModelBuilder


Run = Callable[[onnx.ModelProto, NDArray[np.float32]], list[NDArray[np.float32]]]


def runnable(name: str) -> HardwareProfile:
    """Return a profile, or skip the test if this machine cannot run it."""
    profile = load_profile(name)
    try:
        check_runs_here(profile)
    except ProfileError as error:
        pytest.skip(str(error))
    return profile


@pytest.fixture(params=["local", "x86-64-v3", "x86-64", "aarch64"])
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    """A profile of each kernel family that this machine can run."""
    return runnable(request.param)


@pytest.fixture
def run_tvm(profile: HardwareProfile, tmp_path: Path) -> Run:
    """Compile a model for the profile and run it."""

    def run(model: onnx.ModelProto, data: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        path, library = tmp_path / "model.onnx", tmp_path / "model.so"
        onnx.save(model, path)
        runtime = get_runtime("tvm")
        runtime.build(path, library, profile)
        return runtime.load(library, 1).run(data)

    return run


@pytest.fixture
def run_reference() -> Run:
    """Run a model by its literal meaning: ONNX Runtime without any optimization."""
    import onnxruntime

    def run(model: onnx.ModelProto, data: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs: list[NDArray[np.float32]] = session.run(None, {"input": data})
        return outputs

    return run


@pytest.fixture
def same_as_reference(run_reference: Run, tmp_path: Path) -> Callable[[onnx.ModelProto], None]:
    """Check all outputs of a model, compiled for this machine, on random input."""

    def check(model: onnx.ModelProto) -> None:
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        data = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        library = tmp_path / "model.so"
        compile_onnx(model, runnable("local"), library)
        found = get_runtime("tvm").load(library, 1).run(data)
        for got, expected in zip(found, run_reference(model, data), strict=True):
            assert got.shape == expected.shape
            largest = float(np.abs(expected).max())
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * largest)

    return check


class KernelRunner:
    """Runs single kernels of a family on images made of numpy arrays."""

    def __init__(self, isa: str, cache: KernelCache) -> None:
        self.isa, self.cache = isa, cache

    def fill(self, image: Image, values: NDArray[Any]) -> NDArray[Any]:
        """Return the buffer of an NHWC array; what no kernel may use is random."""
        rng = np.random.default_rng(1)
        flat = rng.integers(0, 255, image.size).astype(image.dtype)
        n, height, width = image.n, image.h + 2 * image.border, image.w + 2 * image.border
        pixels = flat[: n * image.plane].reshape(n, height, width, image.cp)
        pixels[..., : image.c] = image.zero_point
        self.inside(image, flat)[:] = values
        return flat

    def inside(self, image: Image, flat: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels without border and padding, as a view of the buffer."""
        border = image.border
        shape = (image.n, image.h + 2 * border, image.w + 2 * border, image.cp)
        pixels = flat[: image.n * image.plane].reshape(shape)
        return pixels[:, border : border + image.h, border : border + image.w, : image.c]

    def run(
        self, kernel: Kernel, arguments: Sequence[NDArray[Any]], output: Image
    ) -> NDArray[Any]:
        """Return the pixels that a kernel writes, after a look at the border it writes, too."""
        import tvm

        tensors = [tvm.runtime.tensor(a) for a in arguments]
        result = tvm.runtime.tensor(np.full(output.size, 77, output.dtype))
        self.cache.function(kernel)(*tensors, result)
        flat: NDArray[Any] = result.numpy()
        pixels = self.inside(output, flat).copy()
        self.inside(output, flat)[:] = output.zero_point
        whole = replace(output, h=output.h + 2 * output.border, w=output.w + 2 * output.border)
        assert (self.inside(replace(whole, border=0), flat) == output.zero_point).all()
        return pixels


def machine_targets() -> dict[str, dict[str, object]]:
    """Return the targets that kernels are tested for, by family, those that run here."""
    targets: dict[str, dict[str, object]] = {}
    for name in ("local", "x86-64-v3", "x86-64", "aarch64"):
        profile = load_profile(name)
        try:
            check_runs_here(profile)
        except ProfileError:
            continue
        targets.setdefault(profile.isa, dict(profile.target))
    if "avx512vnni" in targets:  # has all that the family without the dot product needs
        targets["avx512"] = targets["avx512vnni"]
    return targets


@pytest.fixture(scope="module", params=sorted(machine_targets()))
def kernels(request: pytest.FixtureRequest) -> KernelRunner:
    """A runner for each kernel family of this machine."""
    return KernelRunner(request.param, KernelCache(machine_targets()[request.param]))
