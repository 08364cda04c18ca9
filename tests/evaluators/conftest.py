"""Models, a profile and an ill-behaved runtime for the tests of this room."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import RUNTIMES
from paredown.hw_profiles.detect import detect_profile
from paredown.hw_profiles.profile import HardwareProfile

ILL_BEHAVED = '''
import ctypes, os, subprocess, sys, time
from pathlib import Path
import numpy as np
from paredown.evaluators.runtimes import TensorSpec, register


def hang():
    Path("hangs.txt").touch()
    ctypes.PyDLL(None).sleep(100)  # PyDLL: with the interpreter lock held


def noise():
    print("from Python")
    os.write(1, b"from a library, on stdout\\n" * 10_000)
    os.write(2, b"from a library, on stderr\\n")


def abort():
    os.write(2, b"LLVM ERROR: Cannot select intrinsic\\n")
    os.abort()


def linker():
    process = subprocess.Popen(["sleep", "100"])
    Path("linker.pid").write_text(str(process.pid))
    hang()


def fail():
    raise RuntimeError("first words " + "x" * 10_000 + " last words")


ACTIONS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": abort,
    "kill": lambda: os.kill(os.getpid(), 9),
    "exit": lambda: os._exit(3),
    "sysexit": lambda: sys.exit(3),
    "hang": hang,
    "linker": linker,
    "noise": noise,
    "memory": lambda: np.ones(4 << 30, np.uint8),
    "fail": fail,
    "fine": lambda: None,
}


class Session:
    inputs = (TensorSpec("input", (None, None), "float32"),)
    outputs = (TensorSpec("output", (None, None), "float32"),)

    def run(self, *inputs):
        return [2 * inputs[0]]

    def bind(self, *inputs):
        return lambda: time.sleep(0.002)


@register("ill-behaved")
class IllBehaved:
    """Does what the first line of its model file says."""

    name = "ill-behaved"
    suffix = ".txt"

    def version(self):
        return "1"

    def missing(self):
        return None

    def prepare(self):
        pass

    def build(self, model, artifact, profile):
        artifact.write_text("half")
        ACTIONS[model.read_text()]()
        artifact.write_text("whole")

    def load(self, artifact, threads):
        with open(artifact.parent / "loads.txt", "a") as file:
            print(artifact.name, file=file)
        session = Session()
        session.inputs = (TensorSpec("input", (None, 1), "float32"),)
        if artifact.name.startswith("wide"):
            session.inputs = (TensorSpec("input", (None, 5_000_000), "float32"),)
        return session
'''


@pytest.fixture
def ill_behaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install a runtime through an entry point, as another package would; return its name."""
    folder = tmp_path / "site"
    info = folder / "ill_behaved-1.dist-info"
    info.mkdir(parents=True)
    (folder / "ill_behaved.py").write_text(textwrap.dedent(ILL_BEHAVED))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ill-behaved\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[paredown.runtimes]\nill-behaved = ill_behaved\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    yield "ill-behaved"
    RUNTIMES.pop("ill-behaved", None)
    sys.modules.pop("ill_behaved", None)


@pytest.fixture(scope="session")
def profile() -> HardwareProfile:
    """Return the profile of this machine."""
    return detect_profile()


def write_conv_net(path: Path, *, channels: int, batch: int | str = 1, seed: int = 0) -> Path:
    """Write conv, relu, pool, linear on 2 x 12 x 12 inputs; 5 outputs."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv.weight": rng.standard_normal((channels, 2, 3, 3)),
        "fc.weight": rng.standard_normal((5, channels)),
        "fc.bias": rng.standard_normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 2, 12, 12])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def small_net(tmp_path: Path) -> Path:
    """Return a model file with 8 channels."""
    return write_conv_net(tmp_path / "small.onnx", channels=8)


@pytest.fixture
def large_net(tmp_path: Path) -> Path:
    """Return a model file that takes several times as long as `small_net`."""
    return write_conv_net(tmp_path / "large.onnx", channels=128, seed=1)


@pytest.fixture
def open_batch_net(tmp_path: Path) -> Path:
    """Return a model file whose batch size is open."""
    return write_conv_net(tmp_path / "open.onnx", channels=8, batch="N")


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
        if bits < 8:
            ends = (0, 2**bits - 1)
            low, high = (np.float32((q - zero_point) * np.float32(scale)) for q in ends)
            name = self.op("Clip", name, self.constant(low), self.constant(high))
        args = (self.constant(np.float32(scale)), self.constant(np.uint8(zero_point)))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", name, *args), *args)

    def weights(self, shape: Sequence[int], bits: int, axis: int = 0) -> tuple[str, Any]:
        top = max(1, 2 ** (bits - 1) - 1)
        steps = self.rng.integers(-top, top + 1, shape)
        if bits == 1:
            steps = np.where(steps < 0, -1, 1)
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
