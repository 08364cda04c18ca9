"""A whole residual network with depthwise layers, in each format."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert")


def network(b: Any, bits: int, activation_bits: int) -> onnx.ModelProto:
    """Stem, pool, an inverted residual block, a strided block with a shortcut, head."""

    wide = 2 ** (8 - activation_bits)  # the same reals in fewer steps

    def q(x: str, scale: float, zero_point: int = 0) -> str:
        if bits == 32:
            return x
        result: str = b.quantized(x, scale * wide, zero_point // wide, activation_bits)
        return result

    def conv(x: str, shape: tuple[int, ...], step: float, **attributes: Any) -> str:
        result: str = b.conv(x, shape, bits, step * wide, **attributes)
        return result

    pads = {"pads": [1, 1, 1, 1]}
    x = q("input", 0.03, 128)
    x = q(b.op("Relu", conv(x, (16, 3, 3, 3), 0.03, strides=[2, 2], **pads)), 0.01)
    x = q(b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], **pads), 0.01)
    y = q(b.op("Clip", conv(x, (32, 16, 1, 1), 0.01), b.number(0), b.number(6)), 0.01)
    y = q(b.op("Relu", conv(y, (32, 1, 3, 3), 0.01, group=32, **pads)), 0.01)
    y = q(conv(y, (16, 32, 1, 1), 0.01), 0.02, 128)
    x = q(b.op("Add", x, y), 0.03, 100)
    y = q(conv(x, (24, 16, 3, 3), 0.03, strides=[2, 2], **pads), 0.02, 128)
    shortcut = q(conv(x, (24, 16, 1, 1), 0.03, strides=[2, 2]), 0.02, 128)
    x = q(b.op("Relu", b.op("Add", y, shortcut)), 0.02)
    x = q(b.op("GlobalAveragePool", x), 0.008)
    x = q(b.op("Flatten", x), 0.008)
    output = b.layer("Gemm", x, (10, 24), bits, 0.008 * wide, transB=1)
    model: onnx.ModelProto = b.model((1, 3, 32, 32), output)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "activation_bits"), [(32, 8), (8, 8), (4, 8), (7, 7), (4, 5), (8, 4)]
)
def test_predictions_agree(
    bits: int, activation_bits: int, builder: Any, convert: Any, run_reference: Any
) -> None:
    model = network(builder, bits, activation_bits)
    converted = convert(model)
    rng = np.random.default_rng(1)
    samples = [rng.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(200)]
    found = np.concatenate([converted.run(sample)[0] for sample in samples])
    expected = np.concatenate([run_reference(model, sample)[0] for sample in samples])
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    if bits == 32:
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        assert converted.types("CONV_2D") == ["INT8"] * 5
        assert converted.types("DEPTHWISE_CONV_2D") == ["INT8"]
        # Ties that are rounded the other way; a fault in a bound would be far larger.
        assert np.abs(found - expected).mean() < 0.02 * expected.std()
