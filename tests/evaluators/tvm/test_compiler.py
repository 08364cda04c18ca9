"""Whole small networks: the compiled library means what the file says."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.emitter import Emitter
from paredown.evaluators.tvm.kernels.script import Kernel
from paredown.hw_profiles import load_profile

SCALE = 0.03
Model = tuple[onnx.ModelProto, tuple[int, ...]]


def residual_network(b: Any, bits: int, activation_bits: int = 8) -> Model:
    """Stem, residual block with a strided shortcut, pooling, linear layer."""
    step = SCALE * 255 / (2**activation_bits - 1)
    x = b.quantized("input", 0.02, 128)
    x = b.op("Relu", b.layer("Conv", x, (16, 3, 3, 3), bits, 0.02, pads=[1] * 4))
    x = b.quantized(x, step, bits=activation_bits)
    y = b.op("Relu", b.layer("Conv", x, (24, 16, 3, 3), bits, step, pads=[1] * 4, strides=[2, 2]))
    y = b.quantized(y, step, bits=activation_bits)
    y = b.quantized(b.layer("Conv", y, (24, 24, 3, 3), bits, step, pads=[1] * 4), SCALE, 110)
    s = b.quantized(b.layer("Conv", x, (24, 16, 1, 1), bits, step, strides=[2, 2]), SCALE, 120)
    x = b.quantized(b.op("Relu", b.op("Add", y, s)), step, bits=activation_bits)
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = b.quantized(x, step, bits=activation_bits)
    x = b.quantized(b.op("GlobalAveragePool", x), 0.01)
    x = b.quantized(b.op("Flatten", x), 0.01)
    return b.model((1, 3, 12, 10), b.layer("Gemm", x, (10, 24), bits, 0.01, transB=1)), (
        1,
        3,
        12,
        10,
    )


def compare(model: Model, run_tvm: Any, run_reference: Any, step: float, share: float) -> None:
    """At most `share` of the outputs may be off, and none by more than `step`.

    Both compute sums exactly, but ONNX Runtime's literal meaning rounds float sums: a tie may fall
    to either side, and one step inside the network is a little of the output.
    """
    proto, shape = model
    data = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    (got,), (expected,) = run_tvm(proto, data), run_reference(proto, data)
    assert got.shape == expected.shape
    error = np.abs(got - expected)
    assert error.max() <= step
    assert (error > 1e-4 * max(1.0, float(np.abs(expected).max()))).mean() <= share


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4, 5, 7, 8, 32])
def test_residual_network(builder: Any, bits: int, run_tvm: Any, run_reference: Any) -> None:
    compare(residual_network(builder, bits), run_tvm, run_reference, 5e-3, 0.2)


@pytest.mark.slow
def test_layers_of_one_input_share_its_widened_copy(
    builder: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    call = Emitter.call

    def noted(self: Emitter, kernel: Kernel, *rest: Any) -> Any:
        kinds.append(kernel.kind)
        return call(self, kernel, *rest)

    monkeypatch.setattr(Emitter, "call", noted)
    # The first setting of a layer is taken where kernels cannot be timed: that of form `words`.
    profile = replace(load_profile("x86-64-v3"), connection="compile-only")
    compile_onnx(residual_network(builder, 8)[0], profile, tmp_path / "model.so")
    assert sum("_words_" in kind for kind in kinds) == 5
    assert kinds.count("widen") == 4  # the strided layers read the same


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [4, 5, 6, 7])
def test_activations_of_fewer_bits(
    builder: Any, activation_bits: int, run_tvm: Any, run_reference: Any
) -> None:
    step = 5e-3 * 255 / (2**activation_bits - 1)
    compare(residual_network(builder, 8, activation_bits), run_tvm, run_reference, step, 0.2)


def mixed(b: Any) -> Model:
    """Integer and float layers in turn, with an add between the two forms."""
    x = b.quantized("input", 0.02, 128)
    y = b.op("Relu", b.layer("Conv", x, (8, 4, 3, 3), 6, 0.02, pads=[1] * 4))
    z = b.op("Relu", b.layer("Conv", y, (8, 8, 3, 3), 32, 0.0, pads=[1] * 4))
    z = b.op("Add", z, y)
    q = b.quantized(z, SCALE)
    return b.model((1, 4, 9, 9), b.layer("Conv", q, (8, 8, 3, 3), 5, SCALE)), (1, 4, 9, 9)


def grouped(b: Any) -> Model:
    """Depthwise, grouped and dilated convolutions with asymmetric padding."""
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(
        b.layer("Conv", x, (16, 4, 3, 3), 7, 0.02, dilations=[2, 2], pads=[2, 1, 2, 3]), SCALE, 100
    )
    x = b.quantized(
        b.layer("Conv", x, (16, 1, 3, 3), 8, SCALE, group=16, pads=[1] * 4, strides=[2, 1]),
        SCALE,
        90,
    )
    x = b.quantized(b.layer("Conv", x, (24, 4, 3, 3), 4, SCALE, group=4, pads=[1] * 4), SCALE, 120)
    return b.model((1, 4, 11, 12), b.layer("Conv", x, (10, 24, 5, 5), 7, SCALE, pads=[2] * 4)), (
        1,
        4,
        11,
        12,
    )


def float_grouped(b: Any) -> Model:
    """The same kinds of layers in float, and average pooling."""
    x = b.op(
        "Clip",
        b.layer("Conv", "input", (12, 3, 7, 7), 32, 0.0, strides=[2, 2], pads=[3] * 4),
        b.constant(np.float32(0)),
        b.constant(np.float32(6)),
    )
    x = b.op("Relu", b.layer("Conv", x, (12, 1, 3, 3), 32, 0.0, group=12, pads=[1] * 4))
    x = b.layer("Conv", x, (20, 3, 3, 3), 32, 0.0, group=4, dilations=[2, 1], pads=[2, 1, 2, 1])
    x = b.op("AveragePool", x, kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 0, 1])
    x = b.op("ReduceMean", x, b.constant(np.array([2, 3])), keepdims=0)
    return b.model((2, 3, 18, 20), b.layer("Gemm", x, (7, 20), 32, 0.0, transB=1)), (2, 3, 18, 20)


def joined(b: Any) -> Model:
    """Concatenation of channel counts that are no multiple of eight, then a linear layer."""
    x = b.quantized("input", 0.0231, 128)
    y = b.quantized(b.op("Relu", b.layer("Conv", x, (12, 3, 1, 1), 6, 0.0231)), 0.0313)
    z = b.quantized(b.layer("Conv", x, (9, 3, 3, 3), 6, 0.0231, pads=[1] * 4), 0.0231, 128)
    c = b.quantized(b.op("Concat", y, z, axis=1), 0.04, 100)
    p = b.op("AveragePool", c, kernel_shape=[2, 2], strides=[2, 2])
    # A step of its own: with the input's, means of four steps would be ties by the dozen.
    p = b.quantized(b.op("Flatten", b.quantized(p, 0.0371, 100)), 0.0371, 100)
    return b.model((1, 3, 6, 6), b.layer("Gemm", p, (5, 21 * 9), 5, 0.0371, transB=1)), (
        1,
        3,
        6,
        6,
    )


def other_operators(b: Any) -> Model:
    """Operators without own kernels between layers."""
    x = b.layer("Conv", "input", (8, 3, 3, 3), 32, 0.0, pads=[1] * 4)
    x = b.op("Mul", x, b.op("Sigmoid", x))
    x = b.op("Pad", x, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    weights = b.rng.standard_normal((8, 4, 2, 2)).astype(np.float32) * 0.2
    x = b.op("ConvTranspose", x, b.constant(weights), strides=[2, 2])
    x = b.op("HardSwish", b.layer("Conv", b.quantized(x, 0.02, 128), (8, 4, 3, 3), 6, 0.02))
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    return b.model((1, 3, 5, 5), b.op("Softmax", x, axis=-1)), (1, 3, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [mixed, grouped, float_grouped, joined, other_operators], ids=lambda f: f.__name__
)
def test_network(make: Any, builder: Any, run_tvm: Any, run_reference: Any) -> None:
    compare(make(builder), run_tvm, run_reference, 2e-2, 0.05)


def test_truncated_file_is_an_error(builder: Any, tmp_path: Any) -> None:
    model, _ = residual_network(builder, 7)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString()[:-2000])
    with pytest.raises(EvaluationError, match=r"not a readable ONNX file|invalid"):
        get_runtime("tvm").build(path, tmp_path / "model.so", load_profile("local"))


def test_empty_file_is_an_error(tmp_path: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(EvaluationError, match="must have an output"):
        get_runtime("tvm").build(path, tmp_path / "model.so", load_profile("local"))


@pytest.mark.slow
def test_missing_folder_is_an_error(builder: Any, tmp_path: Any) -> None:
    model = builder.model((1, 4), builder.op("Relu", "input"))
    with pytest.raises(EvaluationError, match=r"none/model\.so' could not be written: No such"):
        compile_onnx(model, load_profile("local"), tmp_path / "none" / "model.so")


@pytest.mark.slow
def test_missing_cross_compiler_is_named(
    builder: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = "aarch64" if load_profile("local").arch == "x86_64" else "x86-64"
    triple = str(load_profile(foreign).target["mtriple"])
    monkeypatch.setenv("PATH", str(tmp_path))
    model = builder.model((1, 4), builder.op("Relu", "input"))
    with pytest.raises(EvaluationError, match=rf"`{triple}-ld`, which is not on the path"):
        compile_onnx(model, load_profile(foreign), tmp_path / "model.so")


def test_unsupported_operator_is_named(builder: Any, tmp_path: Any) -> None:
    model = builder.model((1, 4, 4), builder.op("Det", "input"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        EvaluationError, match=r"Operator Det \(node 'det1'\) must be one that can"
    ):
        get_runtime("tvm").build(tmp_path / "model.onnx", tmp_path / "m.so", load_profile("local"))


@pytest.mark.slow
def test_failure_of_the_frontend_is_silent_and_named(
    builder: Any, tmp_path: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no such form")

    monkeypatch.setattr("tvm.relax.frontend.onnx.onnx_frontend.Sin._impl_v7", fail)
    model = builder.model((1, 4, 4), builder.op("Sin", builder.op("Cos", "input")))
    with pytest.raises(EvaluationError, match=r"Sin \(node 'sin2'\) .* TVM: no such form"):
        compile_onnx(model, load_profile("local"), tmp_path / "m.so")
    gc.collect()
    assert capfd.readouterr() == ("", "")
