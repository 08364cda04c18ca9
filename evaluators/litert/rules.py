"""What a rule is: the conversion of one ONNX operator, under its name in a registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from ..measurement import EvaluationError
from ..onnx_graph.graph import Node
from .grids import Grid

if TYPE_CHECKING:
    from .network import Network


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the model; an image has its channels last."""

    index: int
    is_image: bool


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """An operator to convert.

    Attributes:
        node: The ONNX node.
        inputs: Its inputs; where it works on integers, the quantized tensors behind them.
        shape: Of its result, in ONNX's order.
        bias: What is added to the last dimension, or None.
        activation: What LiteRT's operator has to fuse.
        grids: Of the quantized inputs; empty where it works on floats.
        grid: Of the result, or None if it is float.
    """

    node: Node
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    bias: NDArray[Any] | None = None
    activation: str = "NONE"
    grids: tuple[Grid, ...] = ()
    grid: Grid | None = None


FLOATS = frozenset(("float32",))
Kind = Literal["float", "sum", "move"]
Convert = Callable[["Network", Call], Value | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator is converted.

    Attributes:
        convert: Emits the operator; None if it cannot in integers.
        kind: "sum" computes in integers where inputs and result are quantized, "move" passes
            quantized values on as they are, "float" works on floats alone.
        fuses: Whether it can fuse an activation.
        n_data: How many of the inputs hold data, the rest being constants; None for all.
        takes: Element types of its data and its results.
    """

    convert: Convert
    kind: Kind
    fuses: bool
    n_data: int | None
    takes: frozenset[str] = FLOATS


RULES: dict[str, Rule] = {}


def rule(
    *ops: str,
    kind: Kind = "float",
    fuses: bool = False,
    n_data: int | None = 1,
    takes: frozenset[str] = FLOATS,
) -> Callable[[Convert], Convert]:
    """Make a function the rule of ONNX operators; see `Rule` for the arguments."""

    def add(convert: Convert) -> Convert:
        for op in ops:
            RULES[op] = Rule(convert, kind, fuses, n_data, takes)
        return convert

    return add


def title(node: Node) -> str:
    """Return what an error message calls a node."""
    return f"operator {node.op} (node '{node.proto.name or node.output}')"


def unsupported(node: Node, why: str) -> EvaluationError:
    """Return the error for a node that LiteRT cannot run."""
    return EvaluationError(
        f"Every operator must have a form in LiteRT, but {title(node)} has none: {why}. "
        "Use another runtime for this model.",
        "build",
    )
