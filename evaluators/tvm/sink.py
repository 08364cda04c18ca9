"""Where a kernel's result goes: activation, residual, number form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..onnx_graph.activations import Activation
from .image import Image
from .kernels.epilogue import Epilogue

NONE = Activation()


@dataclass(frozen=True, slots=True)
class Sink:
    """What happens to a real-valued result on its way into an image.

    Attributes:
        border: Border of the image, for the convolutions that read it.
        dtype: `uint8` or `float32`.
        scale, zero_point: Of the stored numbers (uint8 only).
        low, high: Real bounds of what is stored.
        residual: Image to add first.
        is_residual_first: Whether it is the first operand of the sum.
        own: When the sum is one of quantized tensors: how the result itself is quantized before it
            is added.
        activation: Applied to the sum, before the bounds.
    """

    border: int
    dtype: str = "float32"
    scale: float = 1.0
    zero_point: int = 0
    low: float = -math.inf
    high: float = math.inf
    residual: Image | None = None
    is_residual_first: bool = False
    own: Sink | None = None
    activation: Activation = NONE

    def clamped(self, low: float, high: float) -> Sink:
        """Return the sink of a value that is clamped to `low`..`high` before it comes here."""
        low, high = (min(max(bound, self.low), self.high) for bound in (low, high))
        return replace(self, low=low, high=high)

    def within_steps(self) -> Sink:
        """Return the sink with real bounds beyond which nothing else is stored anyway."""
        low, high = (float(np.float32(self.scale) * np.float32(step)) for step in self.steps)
        return self.clamped(low, high)

    @property
    def accumulates_in_steps(self) -> bool:
        """Whether scaled integer sums come in steps of what is stored, not in real units."""
        return self.dtype == "uint8" and not self.activation.name

    @property
    def steps(self) -> tuple[int, int]:
        """Bounds of the stored uint8 value, relative to the zero point."""
        bottom, top = -self.zero_point, 255 - self.zero_point

        def step(real: float) -> int:
            # Half to even after a division in float32, as QuantizeLinear does it.
            near = float(np.float32(min(max(real / self.scale, -512.0), 512.0)))
            return min(max(round(near), bottom), top)

        return step(self.low), step(self.high)

    @property
    def epilogue(self) -> Epilogue:
        """The kernel's part of the sink."""
        residual = self.residual.dtype if self.residual else ""
        is_first = self.is_residual_first and self._adds_steps
        return Epilogue(self.dtype, residual, is_first, activation=self.activation.name)

    @property
    def _adds_steps(self) -> bool:
        """Whether the residual is added in steps of what is stored."""
        return self.own is not None and self.accumulates_in_steps

    def image(self, n: int, h: int, w: int, c: int) -> Image:
        """Return the image, without a variable, that a result of the given size is stored in."""
        image = Image(None, self.dtype, n, h, w, c, -(-c // 8) * 8, self.border)
        if self.dtype == "float32":
            return image
        return replace(
            image,
            scale=self.scale,
            zero_point=self.zero_point,
            data_max=max(self.zero_point, self.zero_point + self.steps[1]),
        )

    def leaves(self, image: Image) -> bool:
        """Whether the image already is what this sink would make of it."""
        if (self.dtype, self.border) != (image.dtype, image.border) or self.residual is not None:
            return False
        if self.activation.name:
            return False
        if self.dtype == "float32":
            return math.isinf(self.low) and math.isinf(self.high)
        same = self.scale == image.scale and self.zero_point == image.zero_point
        low, high = self.steps
        return same and low == -self.zero_point and high + self.zero_point >= image.data_max

    def parameters(self, factor: float = 1.0) -> dict[str, float]:
        """Return the epilogue's parameters; `factor` turns a real result into output units."""
        values: dict[str, float] = {
            **{"flo": self.low, "fhi": self.high},
            **{"inv": factor, "step": self.scale, "zo": self.zero_point},
            **{"acta": self.activation.a, "actb": self.activation.b},
        }
        if self.dtype == "uint8":
            values["qlo"], values["qhi"] = self.steps
        if self.residual is not None:
            source = self.residual.as_source()
            values |= {f"r{name[1:]}": value for name, value in source.items()}
            values["zr"], values["fr"] = self.residual.zero_point, self.residual.scale
        if self.own is not None and self.residual is not None:
            values["clo"], values["chi"] = self.own.steps
            unit = 1.0 if self.activation.name else self.scale
            values["fc"] = self.own.scale / unit
            values["fr"] = self.residual.scale / unit
            values["cz"] = self.own.zero_point
            values["fz"] = self._zero_of_sum(values["fc"], values["fr"])
        return values

    def _zero_of_sum(self, own_ratio: float, residual_ratio: float) -> float:
        """Return what all zero points make of a sum in steps, rounded as ONNX Runtime does it."""
        assert self.own is not None
        assert self.residual is not None
        terms = [
            (np.float32(own_ratio), self.own.zero_point),
            (np.float32(residual_ratio), self.residual.zero_point),
        ]
        (first, first_zero), (second, second_zero) = (
            terms[::-1] if self.is_residual_first else terms
        )
        # A product of a float32 and a byte is exact in float64, so this is a fused multiply-add.
        behind = float(np.float32(second * np.float32(second_zero)))
        both = np.float32(float(first) * first_zero + behind)
        return float(np.float32(self.zero_point) - both)
