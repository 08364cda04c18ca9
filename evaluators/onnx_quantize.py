"""QuantizeLinear and DequantizeLinear in torch, to the bit, with straight-through gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

_RANGES = {
    np.dtype(np.uint8): (0, 255),
    np.dtype(np.int8): (-128, 127),
    np.dtype(np.uint16): (0, 65535),
    np.dtype(np.int16): (-32768, 32767),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Values that a quantized tensor can take: `scale * k` for whole `k` in `[low, high]`.

    The zero point is in the bounds: `k` is the stored integer minus the zero point.
    """

    scale: float
    low: int
    high: int

    @classmethod
    def of(cls, scale: float, zero_point: int, dtype: np.dtype[Any]) -> Grid:
        """Return the grid of a QuantizeLinear node with this zero point's type."""
        low, high = _RANGES[dtype]
        return cls(scale, low - zero_point, high - zero_point)

    def clip(self, low: float | None, high: float | None) -> Grid:
        """Return the grid that is left when values are clipped before they are quantized.

        Quantization is monotone, so clipping first is the same as clipping the integers at the
        quantized bounds.
        """
        bounds = torch.tensor([low or 0.0, high or 0.0], dtype=torch.float32)
        steps = torch.round(bounds / self.scale).clamp(self.low, self.high)
        return replace(
            self,
            low=self.low if low is None else int(steps[0]),
            high=self.high if high is None else int(steps[1]),
        )


class _FakeQuantize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, grid: Grid) -> Tensor:
        return quantize_into(x / grid.scale, grid, is_scaled=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Grid], output: Tensor) -> None:
        x, grid = inputs
        inside = (x >= (grid.low - 0.5) * grid.scale) & (x <= (grid.high + 0.5) * grid.scale)
        ctx.save_for_backward(inside)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """Round values onto a grid; gradients pass where the value lies within its bounds."""
    if not torch.is_grad_enabled():  # where they pass need not be found out
        return quantize_into(x / grid.scale, grid, is_scaled=True)
    result: Tensor = _FakeQuantize.apply(x, grid)  # type: ignore[no-untyped-call]  # torch's
    return result


def quantize_into(x: Tensor, grid: Grid, is_scaled: bool = False) -> Tensor:
    """Round values onto a grid and overwrite the tensor that holds them.

    Four passes over a tensor that is in the cache cost less than `torch.fake_quantize_*`, which
    takes longer than the convolution before it and multiplies by the inverse of the scale,
    where ONNX divides.
    """
    if not is_scaled:
        x = x.div_(grid.scale)
    return x.round_().clamp_(grid.low, grid.high).mul_(grid.scale)


def tensor_values(tensor: TensorProto) -> np.ndarray[Any, Any]:
    """Return an initializer's values; 4-bit integers come as int8."""
    values = onnx.numpy_helper.to_array(tensor)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return values.astype(np.int8)
    return values


def dequantize(
    values: np.ndarray[Any, Any],
    scale: np.ndarray[Any, Any],
    zero_point: np.ndarray[Any, Any] | None,
    axis: int,
) -> Tensor:
    """Return `(values - zero_point) * scale` in float32, per tensor or along an axis."""
    shape = [1] * values.ndim
    if scale.ndim == 1 and values.ndim:
        shape[axis] = -1
    result = torch.from_numpy(values.astype(np.float32))
    if zero_point is not None and zero_point.any():
        result -= torch.from_numpy(zero_point.astype(np.float32)).reshape(shape)
    return result.mul_(torch.from_numpy(scale.astype(np.float32)).reshape(shape))
