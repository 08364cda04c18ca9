"""What happens to an accumulator before it is stored: scale, residual, activation, rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from . import activation, x86
from .activation import activate
from .neon import to_u8 as neon_to_u8
from .script import shuffle

Narrows = Literal["", "neon", "x86"]
# Parameters that every epilogue reads. The clamping bounds of quantized values are relative to
# their zero point and in float, since a float that leaves the int32 range must not be converted
# before it is clamped.
INTS = ("zo", "zr", "rns", "rrs", "rcs", "roff")
FLOATS = (
    *("flo", "fhi", "inv", "qlo", "qhi", "clo", "chi", "fc", "fr", "cz", "fz"),
    *activation.FLOATS,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the numbers of some neighbouring channels of a pixel are.

    Attributes:
        lanes: How many channels.
        channel: Index of what is known per channel.
        output: What they are stored as, such as `D[T.ramp(0, 1, 8)]`.
        residual: Index of those that are added.
    """

    lanes: int
    channel: str
    output: str
    residual: str = ""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The part of a kernel that says what it stores.

    Attributes:
        output: `uint8` (rounded half to even, clamped to `qlo`..`qhi`, plus the zero point `zo`)
            or `float32` (clamped to `flo`..`fhi`).
        residual: dtype of the image that is added, or an empty string. With a `uint8` output of an
            integer kernel the sum is that of two quantized tensors, as the file says: the
            kernel's own result is rounded to its own step first (range `clo`..`chi`), then `fc`
            and `fr` turn both into output steps, or reals where an activation follows. With a
            `float32` output the reals are added; `fr` is the step of a `uint8` residual, which
            only integer kernels read.
        is_residual_first: Whether the residual is the first operand of a sum in output steps:
            ONNX Runtime adds the second one to what all zero points come to (`fz`) before it adds
            the first one, and near a tie that makes a step of difference.
        has_fraction: Whether an integer kernel adds a float per channel to the scaled sum: what
            is left of a bias that is no whole number of steps.
        activation: Name of the activation before the clamp, if there is one. What comes before it
            is then in real units, also where the output is `uint8`.
        narrows: Whose instructions clamp, round and narrow: `neon`, `x86` (scaled sums that go to
            uint8 as they are must fit int32), or "" for any CPU's.
    """

    output: str
    residual: str = ""
    is_residual_first: bool = False
    has_fraction: bool = False
    activation: str = ""
    narrows: Narrows = ""

    @property
    def tag(self) -> str:
        """Short form for names: `u8` or `f32`, and what is added."""
        stored = {"uint8": "u8", "float32": "f32"}[self.output]
        stored += "_add" * bool(self.residual) + "_first" * self.is_residual_first
        stored += "_fraction" * self.has_fraction
        return stored + f"_{self.activation}" * bool(self.activation)

    @property
    def buffers(self) -> tuple[tuple[str, str], ...]:
        """Buffers of what is added: `C` numbers per channel, `R` residual image."""
        fraction = (("C", "float32"),) if self.has_fraction else ()
        return (*fraction, *((("R", self.residual),) if self.residual else ()))

    @property
    def narrows_together(self) -> bool:
        """Whether several vectors of an integer kernel take fewer instructions than one by one."""
        return self.narrows == "x86" and self.output == "uint8"

    @property
    def keeps_order(self) -> bool:
        """Whether the numbers of a vector must be in their order before they are stored."""
        return not self.narrows_together or bool(self.residual)

    def integer(
        self,
        places: Sequence[Place],
        total: str,
        register: int = 0,
        order: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the lines that store a vector of int32 sums, bias included.

        `S` holds the scale per channel.

        Args:
            places: Of the vector's parts; several only with `narrows_together`.
            total: Expression of the vector.
            register: How many sums are in a register, for x86.
            order: Where each number comes among all that are stored, for x86; the default is the
                order of the vector.
        """
        lanes = sum(place.lanes for place in places)
        order = order or range(lanes)
        real = f"T.Cast('float32x{lanes}', {total}) * {_joined('S', places)}"
        if self.has_fraction:
            real = f"{real} + {_joined('C', places)}"
        if self.residual and self.output == "uint8":
            own = self._clamp(f"T.nearbyint({real})", "clo", "chi", lanes)
            if not self.activation:
                total = self._sum_of_steps(own, places, lanes)
                return self._steps(places, total, register, order, is_shifted=True)
            other = f"T.Cast('int32x{lanes}', {_joined('R', places)}) - T.broadcast(zr, {lanes})"
            other = f"T.Cast('float32x{lanes}', {other}) * T.broadcast(fr, {lanes})"
            real = f"{own} * T.broadcast(fc, {lanes}) + {other}"
        if self.residual and self.output == "float32":
            other = _joined("R", places)
            if self.residual == "uint8":
                steps = f"T.Cast('int32x{lanes}', {other}) - T.broadcast(zr, {lanes})"
                other = f"T.Cast('float32x{lanes}', {steps}) * T.broadcast(fr, {lanes})"
            real = f"{real} + {other}"
        if self.activation or self.output == "float32":
            return self._real(places, real, register, order)
        return self._steps(places, real, register, order, is_bounded=True)

    def _sum_of_steps(self, own: str, places: Sequence[Place], lanes: int) -> str:
        """Return a vector of float32 in output steps, their zero point included."""
        terms = [
            f"({own} + T.broadcast(cz, {lanes})) * T.broadcast(fc, {lanes})",
            f"T.Cast('float32x{lanes}', {_joined('R', places)}) * T.broadcast(fr, {lanes})",
        ]
        first, second = terms[::-1] if self.is_residual_first else terms
        return f"{first} + ({second} + T.broadcast(fz, {lanes}))"

    def real(self, place: Place, total: str, register: int = 0) -> list[str]:
        """Return the lines that store a vector of float32 sums, bias included."""
        if self.residual:
            total = f"{total} + R[{place.residual}]"
        return self._real([place], total, register, range(place.lanes))

    def _real(
        self, places: Sequence[Place], total: str, register: int, order: Sequence[int]
    ) -> list[str]:
        lanes = len(order)
        lines, value = activate(self.activation, total, lanes)
        value = self._clamp(value, "flo", "fhi", lanes)
        if self.output == "float32":
            return [*lines, f"{places[0].output} = {value}"]
        steps = f"{value} * T.broadcast(inv, {lanes})"
        if self.narrows == "x86":
            steps = x86.product(value, f"T.broadcast(inv, {lanes})", lanes)
        return [*lines, *self._steps(places, steps, register, order)]

    def _steps(
        self,
        places: Sequence[Place],
        steps: str,
        register: int,
        order: Sequence[int],
        *,
        is_shifted: bool = False,
        is_bounded: bool = False,
    ) -> list[str]:
        """Lines that round a vector of float32 in output steps and store it as uint8."""
        lanes = len(order)
        if self.narrows == "x86":
            outputs = [(place.output, place.lanes) for place in places]
            return x86.store_u8(
                outputs, steps, register, order, is_shifted=is_shifted, is_bounded=is_bounded
            )
        to = places[0].output
        if self.narrows != "neon":
            return [f"{to} = {to_u8(steps, lanes, is_shifted=is_shifted)}"]
        named = f"stored: T.let[T.float32x{lanes}] = {steps}"
        return [named, f"{to} = {neon_to_u8('stored', lanes, is_shifted=is_shifted)}"]

    def _clamp(self, value: str, low: str, high: str, lanes: int) -> str:
        if self.narrows != "neon":
            return clamp(value, low, high, lanes)
        # One instruction each; those of a comparison and a choice are two.
        for name, bound in (("minnum", high), ("maxnum", low)):
            arguments = f"{value}, T.broadcast({bound}, {lanes})"
            value = f"T.call_llvm_pure_intrin('float32x{lanes}', 'llvm.{name}', {arguments})"
        return value


def _joined(buffer: str, places: Sequence[Place]) -> str:
    """Return the expression of what a buffer holds for all places."""
    index = [place.residual if buffer == "R" else place.channel for place in places]
    parts = [f"{buffer}[{at}]" for at in index]
    lanes = sum(place.lanes for place in places)
    return parts[0] if len(parts) == 1 else shuffle(parts, range(lanes))


def clamp(value: str, low: str, high: str, lanes: int) -> str:
    """Return the expression of a vector kept between two scalars."""
    return f"T.max(T.min({value}, T.broadcast({high}, {lanes})), T.broadcast({low}, {lanes}))"


def to_u8(steps: str, lanes: int, *, is_shifted: bool = False) -> str:
    """Return the expression that turns a vector of float32 in output steps into uint8.

    Args:
        steps: The vector.
        lanes: Its length.
        is_shifted: Whether the zero point has been added already.
    """
    low, high = "qlo", "qhi"
    if is_shifted:
        low, high = (f"{bound} + T.Cast('float32', zo)" for bound in (low, high))
    rounded = f"T.Cast('int32x{lanes}', {clamp(f'T.nearbyint({steps})', low, high, lanes)})"
    stored = rounded if is_shifted else f"{rounded} + T.broadcast(zo, {lanes})"
    return f"T.Cast('uint8x{lanes}', {stored})"
