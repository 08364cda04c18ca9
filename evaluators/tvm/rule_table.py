"""The rules that lower ONNX operators to own kernels, by the operators' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..onnx_graph.graph import Node
from .image import Image
from .sink import Sink

if TYPE_CHECKING:
    from .lowering import Lowering

Rule = Callable[["Lowering", Node, Sink], Image | None]
RULES: dict[str, list[Rule]] = {}
ROW_RULES: dict[str, list[Rule]] = {}
IsWorth = Callable[["Lowering", Node], bool]
WORTH: dict[str, list[IsWorth]] = {}


def rule(*operators: str, worth: IsWorth | None = None) -> Callable[[Rule], Rule]:
    """Register a rule that lowers ONNX operators to own kernels; the first that fits is taken.

    Args:
        operators: Their names.
        worth: Whether a float node is worth an own kernel, beside what other rules say of it; by
            default, if an input comes from one.
    """
    if worth is not None:
        for operator in operators:
            WORTH.setdefault(operator, []).append(worth)
    return _registered(RULES, operators)


def row_rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule whose image has the last dimension as channels, whatever the rank."""
    return _registered(ROW_RULES, operators)


def _registered(
    rules: dict[str, list[Rule]], operators: tuple[str, ...]
) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        for operator in operators:
            rules.setdefault(operator, []).append(function)
        return function

    return add
