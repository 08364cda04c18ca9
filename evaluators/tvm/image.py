"""The form in which own kernels pass tensors on: flat NHWC with a border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .kernels.script import SLACK


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A tensor in the kernels' own form.

    Pixels of `cp` numbers in rows, rows in images, all in one flat buffer. A border of `border`
    pixels on every side holds the padding value (0, or the zero point), so a convolution reads it
    like data. Numbers beyond `c` in a pixel are finite and meet zero weights. A two-dimensional
    tensor `(n, c)` is a row of `n` pixels.

    Attributes:
        var: The Relax variable.
        dtype: `uint8` or `float32`.
        n, h, w, c: Size without border and padding.
        cp: Channel pitch.
        border: Width of the border.
        scale: Real value of one step; 1 for floats.
        zero_point: Stored value that stands for 0.
        data_max: Largest stored value that can occur (uint8 only).
    """

    var: Any
    dtype: str
    n: int
    h: int
    w: int
    c: int
    cp: int
    border: int = 0
    scale: float = 1.0
    zero_point: int = 0
    data_max: int = 255

    @property
    def row(self) -> int:
        """Pitch of rows."""
        return (self.w + 2 * self.border) * self.cp

    @property
    def plane(self) -> int:
        """Pitch of images."""
        return (self.h + 2 * self.border) * self.row

    @property
    def size(self) -> int:
        """Length of the flat buffer."""
        return self.n * self.plane + SLACK

    @property
    def origin(self) -> int:
        """Place of the first pixel inside the border."""
        return self.border * (self.row + self.cp)

    def offset(self, top: int, left: int) -> int:
        """Place of the pixel `top` rows above and `left` columns before the first one."""
        return (self.border - top) * self.row + (self.border - left) * self.cp

    def as_source(self, k: str = "") -> dict[str, int]:
        """Strides and origin with which a kernel reads the image, named `a..` or `a<k>..`."""
        values = {"ns": self.plane, "rs": self.row, "cs": self.cp, "off": self.origin}
        return {f"a{k}{name}": value for name, value in values.items()}

    def as_output(self) -> dict[str, int]:
        """Sizes, strides and origin with which a kernel writes the image."""
        return {
            **{"n": self.n, "ho": self.h, "wo": self.w},
            **{"dns": self.plane, "drs": self.row, "dcs": self.cp, "doff": self.origin},
            **{"db": self.border, "zo": self.zero_point},
        }
