"""Activations as vector arithmetic in float32, for the epilogue of any kernel.

`exp`, `tanh` and `erf` are within 5e-7 of their true values, relatively (largest errors over all
arguments: 2.0e-7, 3.8e-7, 4.0e-7). Arguments beyond +-88 count as +-88, so that nothing overflows.

References:
    Moshier. Cephes mathematical library, `expf`. https://www.netlib.org/cephes/
    Guennebaud, Jacob and others. Eigen, `ptanh` and `erf` as rational functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# The kernel's float parameters that some activations read.
FLOATS = ("acta", "actb")

_EXP = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
# On -0.5 .. 0.5, with the least largest relative error.
_POWER_OF_TWO = (0.0013276472, 0.009675541, 0.05550713, 0.2402212, 0.69314694, 1.0000001)
_TANH = (
    (
        *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11),
        *(5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04),
        4.89352455891786e-03,
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_ERF = (
    (
        *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06),
        *(-5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03),
        -1.60960333262415e-02,
    ),
    (
        *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
        *(-7.37332916720468e-03, -1.42647390514189e-02),
    ),
)


class _Vector:
    """Writes the steps of a computation, each value a variable of its own."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.lines: list[str] = []

    def let(self, value: str) -> str:
        """Name a value."""
        name = f"act{len(self.lines)}"
        self.lines.append(f"{name}: T.let[T.float32x{self.lanes}] = {value}")
        return name

    def all(self, value: float | str) -> str:
        """Return a number, or a parameter of the kernel, in every lane."""
        number = value if isinstance(value, str) else f"T.float32({value!r})"
        return f"T.broadcast({number}, {self.lanes})"

    def clamp(self, x: str, low: float, high: float) -> str:
        """Keep `x` between two numbers."""
        return self.let(f"T.max(T.min({x}, {self.all(high)}), {self.all(low)})")

    def polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """Return the polynomial of `x`, coefficients from the highest power down."""
        total = self.all(coefficients[0])
        for coefficient in coefficients[1:]:
            total = self.let(f"{total} * {x} + {self.all(coefficient)}")
        return total

    def exp(self, x: str) -> str:
        """Return e to the power of `x`, by powers of two and a polynomial for what they leave."""
        x = self.clamp(x, -87.3, 88.3)
        n = self.let(f"T.nearbyint({x} * {self.all(1.44269504)})")
        # ln 2 in two parts, the first exact in a product with a small integer.
        rest = self.let(f"{x} - {n} * {self.all(0.693359375)} - {n} * {self.all(-2.12194440e-4)}")
        power = self.polynomial(rest, _EXP)
        mantissa = self.let(f"{rest} * {rest} * {power} + {rest} + {self.all(1.0)}")
        lanes = self.lanes
        bits = f"T.shift_left(T.Cast('int32x{lanes}', {n}) + {{}}, {{}})".format(
            *(f"T.broadcast({number}, {lanes})" for number in (127, 23))
        )
        return self.let(f"{mantissa} * T.reinterpret('float32x{lanes}', {bits})")

    def odd_rational(
        self, x: str, largest: float, terms: tuple[tuple[float, ...], tuple[float, ...]]
    ) -> str:
        """Return `x` times a quotient of polynomials of its square."""
        x = self.clamp(x, -largest, largest)
        square = self.let(f"{x} * {x}")
        above, below = (self.polynomial(square, side) for side in terms)
        return self.let(f"{x} * {above} / {below}")

    def sigmoid_below(self, x: str) -> str:
        """Return 1 + exp(-x), the divisor of a sigmoid."""
        power = self.exp(self.let(f"{self.all(0.0)} - {x}"))
        return self.let(f"{self.all(1.0)} + {power}")

    def hard_sigmoid(self, x: str) -> str:
        """Return the line of slope `acta` and height `actb`, kept between 0 and 1."""
        return self.clamp(f"{x} * {self.all('acta')} + {self.all('actb')}", 0.0, 1.0)


def _gelu(v: _Vector, x: str) -> str:
    error = v.odd_rational(v.let(f"{x} * {v.all(0.7071067811865476)}"), 4.0, _ERF)
    return f"{x} * {v.all(0.5)} * ({v.all(1.0)} + {error})"


def _gelu_tanh(v: _Vector, x: str) -> str:
    # 0.5 (1 + tanh(u)) is sigmoid(2 u).
    cube = v.let(f"{x} * ({x} * {x} * {v.all(0.044715)} + {v.all(1.0)})")
    return f"{x} / {v.sigmoid_below(v.let(f'{cube} * {v.all(1.5957691216057308)}'))}"


def _mish(v: _Vector, x: str) -> str:
    # tanh(log(1 + e)) is e (e + 2) / (e (e + 2) + 2); from 20 on it is 1.
    power = v.exp(v.let(f"T.min({x}, {v.all(20.0)})"))
    part = v.let(f"{power} * ({power} + {v.all(2.0)})")
    return f"{x} * {part} / ({part} + {v.all(2.0)})"


_WAYS: dict[str, Callable[[_Vector, str], str]] = {
    "sigmoid": lambda v, x: f"{v.all(1.0)} / {v.sigmoid_below(x)}",
    "silu": lambda v, x: f"{x} / {v.sigmoid_below(x)}",
    "tanh": lambda v, x: v.odd_rational(x, 7.90531, _TANH),
    "erf": lambda v, x: v.odd_rational(x, 4.0, _ERF),
    "mish": _mish,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hard_sigmoid": lambda v, x: v.hard_sigmoid(x),
    "hard_swish": lambda v, x: f"{x} * {v.hard_sigmoid(x)}",
    "leaky_relu": lambda v, x: (
        f"T.max({x}, {v.all(0.0)}) + T.min({x}, {v.all(0.0)}) * {v.all('acta')}"
    ),
}


def power_of_two(value: str, lanes: int) -> tuple[list[str], str]:
    """Return the lines that compute 2 to the power of a vector of float32, and its result.

    The error is 2.4e-7 relatively. The vector must not exceed 127; below -126 counts as -126.
    """
    vector = _Vector(lanes)
    x = vector.let(f"T.max({value}, {vector.all(-126.0)})")
    n = vector.let(f"T.nearbyint({x})")
    power = vector.polynomial(vector.let(f"{x} - {n}"), _POWER_OF_TWO)
    exponent = f"T.shift_left(T.Cast('int32x{lanes}', {n}), T.broadcast(23, {lanes}))"
    bits = f"T.reinterpret('int32x{lanes}', {power}) + {exponent}"
    return vector.lines, vector.let(f"T.reinterpret('float32x{lanes}', {bits})")


def activate(name: str, value: str, lanes: int) -> tuple[list[str], str]:
    """Return the lines that compute an activation of a vector of float32, and its result.

    Args:
        name: Activation; an empty string leaves the value as it is.
        value: Expression of the vector.
        lanes: Its length.
    """
    if not name:
        return [], value
    vector = _Vector(lanes)
    result = _WAYS[name](vector, vector.let(value))
    return vector.lines, result
