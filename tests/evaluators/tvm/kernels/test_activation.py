"""Activations over the whole range of arguments, against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paredown.evaluators.onnx_graph.activations import Activation
from paredown.evaluators.tvm.image import Image
from paredown.evaluators.tvm.kernels.pointwise import elementwise_kernel
from paredown.evaluators.tvm.layers import parameter_arrays
from paredown.evaluators.tvm.sink import Sink

pytestmark = pytest.mark.slow


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def hard_sigmoid(x: float) -> float:
    return min(max(x / 6 + 0.5, 0.0), 1.0)


REFERENCES: dict[str, Callable[[float], float]] = {
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
    "erf": math.erf,
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": lambda x: x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "hard_sigmoid": hard_sigmoid,
    "hard_swish": lambda x: x * hard_sigmoid(x),
    "leaky_relu": lambda x: x if x > 0 else x / 6,
}


def activated(kernels: Any, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    sink = Sink(0, activation=Activation(name, 1 / 6, 0.5))
    image = Image(None, "float32", 1, 1, len(values) // 8, 8, 8)
    kernel = elementwise_kernel(("float32",), "float32", 1, "add", name)
    parameters = {**sink.image(1, 1, image.w, 8).as_output(), **sink.parameters()}
    parameters |= {**image.as_source("0"), "f0": 1.0}
    buffer = kernels.fill(image, values.reshape(1, 1, -1, 8))
    arguments = [buffer, *parameter_arrays(kernel, parameters)]
    found: NDArray[np.float32] = kernels.run(kernel, arguments, sink.image(1, 1, image.w, 8))
    return found.reshape(-1)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_activation(kernels: Any, name: str) -> None:
    exponents = np.linspace(-20, math.log10(80), 2000)
    values = np.concatenate([10**exponents, -(10**exponents), np.linspace(-9, 9, 20000)])
    values = values.astype(np.float32)
    got = activated(kernels, name, values)
    # `exp(-x)` of the reference is finite down to -700; gelu's cubes stay below that.
    limit = 12 if name == "gelu_tanh" else 80
    inside = np.abs(values) < limit
    expected = np.array([REFERENCES[name](float(x)) for x in values[inside]])
    if name.startswith("gelu"):  # 1 + erf(x) cancels, as it does in every float32 runtime
        np.testing.assert_allclose(got[inside], expected, rtol=1e-6, atol=1.5e-6)
    else:
        # `hard_sigmoid` cancels next to its zero; numbers near the smallest one lose bits.
        atol = 1e-7 * name.startswith("hard") * 6 + 1e-37
        np.testing.assert_allclose(got[inside], expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_huge_arguments_stay_finite(kernels: Any, name: str) -> None:
    values = np.array([1e4, -1e4, 1e10, -1e10, 88, -88, 0.0, -0.0], np.float32)
    found = activated(kernels, name, values)
    assert np.isfinite(found).all()
    assert abs(found[6]) == (0.5 if "sigmoid" in name else 0.0)
