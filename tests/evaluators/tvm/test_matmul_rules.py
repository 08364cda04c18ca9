"""Attention and products of activations: the library means what the file says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paredown.evaluators.layer_times import LayerSession
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm import lowering
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile

STEP = 0.03
Network = Callable[[Any], Any]
CASES: list[Network] = []


def case(network: Network) -> Network:
    CASES.append(network)
    return network


def linear(b: Any, x: str, ic: int, oc: int) -> str:
    name: str = b.op("Add", b.op("MatMul", x, b.floats(ic, oc)), b.floats(oc))
    return name


def heads(b: Any, x: str, tokens: int, count: int, size: int, perm: list[int]) -> str:
    """Split the last dimension, and move the heads to the front."""
    name: str = b.op(
        "Transpose", b.op("Reshape", x, b.integers(-1, tokens, count, size)), perm=perm
    )
    return name


def attention(b: Any, x: str, scores: Callable[[str], str] = lambda s: s) -> str:
    """Attention of 3 heads of size 8 over 9 tokens of 24 numbers."""
    q, k, v = (linear(b, x, 24, 24) for _ in range(3))
    product = b.op(
        "MatMul", heads(b, q, 9, 3, 8, [0, 2, 1, 3]), heads(b, k, 9, 3, 8, [0, 2, 3, 1])
    )
    weights = b.op("Softmax", scores(b.op("Div", product, b.number(8**0.5))), axis=-1)
    mixed = b.op("MatMul", weights, heads(b, v, 9, 3, 8, [0, 2, 1, 3]))
    mixed = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    name: str = b.op("Reshape", mixed, b.integers(-1, 9, 24))
    return name


def quantized_attention(
    b: Any, x: str, grid: tuple[float, int], *, is_everywhere: bool, is_narrow: bool = False
) -> str:
    """Attention with steps before its products; or with a Q and DQ pair behind every node.

    Keys are quantized after they are moved alone. The steps of the result are of 8 bits, or of 5
    where it is narrow, which a Clip before each pair says.
    """

    def q(name: str, step: float = grid[0], zero_point: int = grid[1]) -> str:
        found: str = b.quantized(name, step, zero_point)
        return found

    def split(x: str, perm: list[int]) -> str:
        is_key = perm[-1] == 1 and not is_everywhere
        x = b.op("Reshape", x if is_key else q(x), b.integers(-1, 9, 3, 8))
        return q(b.op("Transpose", q(x) if is_everywhere else x, perm=perm))

    queries, keys, values = (linear(b, x, 24, 24) for _ in range(3))
    x = b.op("MatMul", split(queries, [0, 2, 1, 3]), split(keys, [0, 2, 3, 1]))
    x = q(x, 0.02, 120) if is_everywhere else x
    x = b.op("Mul", x, b.number(0.35))
    x = b.op("Softmax", q(x, 0.01, 120) if is_everywhere else x, axis=-1)
    x = b.op("MatMul", q(x, 1 / 255, 0), split(values, [0, 2, 1, 3]))

    def result(name: str) -> str:
        if is_narrow:
            name = b.op("Clip", name, b.number(-0.16), b.number(0.15))
        return q(name, 0.01, 16 if is_narrow else 130)

    x = b.op("Transpose", result(x), perm=[0, 2, 1, 3])
    return result(b.op("Reshape", result(x), b.integers(-1, 9, 24)))


@case
def float_attention(b: Any) -> Any:
    return b.model((2, 9, 24), linear(b, attention(b, linear(b, "input", 24, 24)), 24, 8))


@case
def attention_of_input(b: Any) -> Any:
    return b.model((1, 9, 24), attention(b, "input"))


@case
def masked_attention(b: Any) -> Any:
    mask = b.constant(np.where(b.rng.random((2, 1, 1, 9)) < 0.3, -1e4, 0.1).astype(np.float32))
    causal = b.constant(np.triu(np.full((9, 9), -1e9, np.float32), 1))
    x = attention(b, "input", lambda s: b.op("Add", s, mask))
    return b.model((2, 9, 24), attention(b, x, lambda s: b.op("Add", causal, s)))


@case
def computed_mask(b: Any) -> Any:
    mask = b.op("Reshape", b.op("ReduceSum", "input", b.integers(2)), b.integers(2, 1, 1, 9))
    return b.model((2, 9, 24), attention(b, "input", lambda s: b.op("Add", s, mask)))


@case
def mask_of_every_score(b: Any) -> Any:
    return b.model(
        (1, 9, 24), attention(b, "input", lambda s: b.op("Add", s, b.floats(1, 3, 9, 9)))
    )


@case
def scores_are_outputs(b: Any) -> Any:
    kept: list[str] = []

    def keep(scores: str) -> str:
        kept.append(scores)
        return scores

    x = attention(b, "input", keep)
    return b.model((1, 9, 24), x, *kept, b.op("Relu", kept[0]))


@case
def products_of_three_dimensions(b: Any) -> Any:
    x = b.op("MatMul", "input", b.op("Transpose", "input", perm=[0, 2, 1]))
    y = b.op("Relu", b.op("MatMul", b.op("Softmax", x, axis=2), "input"))
    return b.model(
        (3, 5, 11), b.op("MatMul", linear(b, y, 11, 6), b.op("Transpose", b.floats(7, 6)))
    )


@case
def products_of_two_dimensions(b: Any) -> Any:
    x = b.op("MatMul", b.op("Transpose", "input"), "input")
    return b.model((5, 3), x, b.op("Gelu", b.op("MatMul", x, x)), b.op("Softmax", x, axis=0))


@case
def broadcast_products(b: Any) -> Any:
    x = b.op("Reshape", "input", b.integers(2, 1, 3, 4, 5))
    y = b.op("Reshape", "input", b.integers(1, 2, 3, 5, 4))
    z = b.op(
        "Reshape",
        b.op("Slice", "input", b.integers(0), b.integers(1), b.integers(0)),
        b.integers(3, 5, 4),
    )
    return b.model((2, 3, 20), b.op("MatMul", x, y), b.op("MatMul", x, z))


@case
def left_operand_in_columns(b: Any) -> Any:
    x = linear(b, "input", 12, 12)
    y = b.op("MatMul", b.op("Transpose", x, perm=[0, 2, 1]), x)
    z = b.op("MatMul", b.op("Transpose", b.quantized(x, STEP, 100), perm=[0, 2, 1]), x)
    return b.model((2, 7, 12), y, z)


@case
def softmaxes(b: Any) -> Any:
    x = b.float_conv("input", (8, 3, 3, 3))
    y = b.op("Softmax", x, axis=-1)
    z = b.op("MatMul", b.op("Mul", b.op("Softmax", y, axis=1), b.number(-2)), x)
    return b.model((2, 3, 7, 7), y, z, b.op("Softmax", b.op("Mul", z, b.number(-2)), axis=3))


@case
def convolution_after_product(b: Any) -> Any:
    x = b.op("MatMul", "input", b.op("Transpose", "input", perm=[0, 1, 3, 2]))
    x = b.op("Softmax", b.op("Add", x, x), axis=-1)
    return b.model((2, 3, 7, 5), b.float_conv(b.op("Relu", x), (8, 3, 3, 3), pads=[1] * 4))


QUANTIZED = [(shift, everywhere) for shift in (128, 90) for everywhere in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_network(make: Network, builder: Any, same_as_reference: Any) -> None:
    same_as_reference(make(builder))


@pytest.mark.slow
@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize(("zero_point", "is_everywhere"), QUANTIZED)
def test_quantized_attention(
    builder: Any,
    run_tvm: Any,
    run_reference: Any,
    zero_point: int,
    is_everywhere: bool,
    is_narrow: bool,
) -> None:
    x = quantized_attention(
        builder, "input", (0.02, zero_point), is_everywhere=is_everywhere, is_narrow=is_narrow
    )
    model = builder.model((2, 9, 24), x)
    data = np.random.default_rng(3).standard_normal((2, 9, 24)).astype(np.float32) * 0.5
    (got,), (expected,) = run_tvm(model, data), run_reference(model, data)
    assert np.abs(expected).max() > (0.159 if is_narrow else 10 * 0.01)
    steps = np.abs(np.rint((got - expected) / 0.01))
    assert steps.max() <= 1  # a softmax next to a tie may round to the other side
    assert (steps > 0).mean() < 0.01


@pytest.mark.slow
def test_attention_is_left_to_no_other_compiler(
    builder: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError(f"{arguments[2].op} has no kernel of ours.")

    monkeypatch.setattr(lowering, "import_node", refuse)
    x = attention(builder, builder.quantized("input", STEP, 128))
    x = quantized_attention(builder, linear(builder, x, 24, 24), (0.02, 128), is_everywhere=False)
    model = builder.model((1, 9, 24), linear(builder, x, 24, 8))
    compile_onnx(model, load_profile("local"), tmp_path / "model.so")


@pytest.mark.slow
def test_narrow_steps_take_no_further_calls(builder: Any, tmp_path: Any) -> None:
    calls = []
    for is_narrow in (False, True):
        x = quantized_attention(
            builder, "input", (0.02, 128), is_everywhere=False, is_narrow=is_narrow
        )
        compile_onnx(builder.model((1, 9, 24), x), load_profile("local"), tmp_path / "model.so")
        session = get_runtime("tvm").load(tmp_path / "model.so", 1)
        assert isinstance(session, LayerSession)
        calls.append(len(session.call_timer(np.zeros((1, 9, 24), np.float32))()))
    assert calls[0] == calls[1]
