"""What happens to sums before they are stored, as `kernels.epilogue` says it for CPUs."""

from __future__ import annotations

from ..image import Image
from ..kernels.activation import activate
from ..sink import Sink
from .script import add, all4, at4, clamp, fma, let_reals, mul, real, steps_to_u8


def reals4(buffer: str, image: Image, place: str) -> str:
    """Return four numbers of an image as reals."""
    value = f"{buffer}[{at4(place)}]"
    if image.dtype == "float32":
        return value
    steps = f"T.Cast('int32x4', {value}) - {all4(str(image.zero_point))}"
    return mul(f"T.Cast('float32x4', {steps})", all4(real(image.scale)))


def store_reals(sink: Sink, value: str, place: str, divisor: str = "") -> list[str]:
    """Return the lines that activate, clamp and store four reals at `place` of `D`.

    Args:
        sink: What is stored.
        value: The reals.
        place: Of the first one.
        divisor: What turns them into steps by a division; by default they are multiplied with the
            inverse, as kernels with sums of integers do.
    """
    numbers = {"acta": sink.activation.a, "actb": sink.activation.b}
    lines, value = activate(sink.activation.name, value, 4)
    lines = [*let_reals(numbers), *lines] if lines else []
    value = clamp(value, sink.low, sink.high)
    if sink.dtype == "float32":
        return [*lines, f"D[{at4(place)}] = {value}"]
    if divisor:
        steps = f"{value} / {all4(divisor)}"
    else:
        steps = mul(value, all4(real(1.0 / sink.scale)))
    return [*lines, _store_steps(sink, steps, place)]


def store_sums(
    sink: Sink, total: str, channel: str, place: str, *, has_fraction: bool
) -> list[str]:
    """Return the lines that scale four int32 sums, bias included, and store them in `D`.

    `S` holds the scale of each channel, `C` what is added to the scaled sum, `R` the residual.

    Args:
        sink: What is stored; its residual lies as the output does.
        total: The sums.
        channel: The first channel.
        place: Of the first number in the output.
        has_fraction: Whether there is `C`.
    """
    value = mul(f"T.Cast('float32x4', {total})", f"S[{at4(channel)}]")
    if has_fraction:
        value = add(value, f"C[{at4(channel)}]")
    if sink.own is not None and sink.residual is not None:
        numbers = sink.parameters()
        own = clamp(f"T.nearbyint({value})", numbers["clo"], numbers["chi"])
        if sink.accumulates_in_steps:
            low, high = (bound + sink.zero_point for bound in sink.steps)
            total = _sum_of_steps(sink, own, place)
            return [f"D[{at4(place)}] = {steps_to_u8(total, low, high, 0)}"]
        steps = f"T.Cast('int32x4', R[{at4(place)}]) - {all4(str(sink.residual.zero_point))}"
        other = mul(f"T.Cast('float32x4', {steps})", all4(real(numbers["fr"])))
        value = add(mul(own, all4(real(numbers["fc"]))), other)
    elif sink.residual is not None:
        value = add(value, reals4("R", sink.residual, place))
    if not sink.accumulates_in_steps:
        return store_reals(sink, value, place)
    return [_store_steps(sink, value, place)]


def _sum_of_steps(sink: Sink, own: str, place: str) -> str:
    """Return four sums in output steps, zero point included, in the order of the CPU's kernels."""
    numbers = {name: all4(real(value)) for name, value in sink.parameters().items()}
    residual = f"T.Cast('float32x4', T.Cast('int32x4', R[{at4(place)}]))"
    terms = [(add(own, numbers["cz"]), numbers["fc"]), (residual, numbers["fr"])]
    first, second = terms[::-1] if sink.is_residual_first else terms
    return fma(*first, fma(*second, numbers["fz"]))


def _store_steps(sink: Sink, steps: str, place: str) -> str:
    return f"D[{at4(place)}] = {steps_to_u8(steps, *sink.steps, sink.zero_point)}"
