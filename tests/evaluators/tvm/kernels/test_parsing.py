"""The text of a kernel becomes what TVM's own parser makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from tvm.script import from_source

from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.gpu import emitter
from paredown.evaluators.tvm.kernels import parsing
from paredown.hw_profiles import load_profile

STEP = 0.03
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def network(b: Any) -> Any:
    """Layers of each kind, in integers and in floats."""
    x = b.quantized("input", 0.02, 128)
    x = b.quantized(b.conv(x, (16, 3, 3, 3), 7, 0.02, pads=[1] * 4), STEP, 120)
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = b.quantized(b.conv(x, (16, 1, 3, 3), 8, STEP, group=16, pads=[1] * 4), STEP, 100)
    x = b.quantized(b.op("Add", b.conv(x, (16, 16, 1, 1), 4, STEP), x), STEP, 90)
    x = b.op("Sigmoid", b.float_conv(x, (16, 16, 3, 3)))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.model((1, 3, 12, 10), b.op("Softmax", x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "x86-64-v3",
        "x86-64-v4",
        "raspberry-pi-4",
        "graviton3",
        pytest.param("a100", marks=needs_nvcc),
    ],
)
def test_the_function_is_that_of_tvms_parser(
    name: str,
    builder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    profile = load_profile(f"{name}@compile-only")
    if profile.isa.startswith("neon"):
        request.getfixturevalue("arm_sysroot")  # has the linker
    found: list[tuple[str, Any]] = []

    def noted(text: str, *, aligns_stack: bool = False) -> Any:
        found.append((text, parsing_of(text)))
        return parsing_of(text, aligns_stack=aligns_stack)

    parsing_of = parsing.parse
    monkeypatch.setattr(parsing, "parse", noted)
    monkeypatch.setattr(emitter, "parse", noted)
    compile_onnx(network(builder), profile, tmp_path / "model.so", tmp_path / "cache")
    assert len(found) > 5
    for text, function in found:
        expected = from_source(f"@T.prim_func(s_tir=True)\n{text}")
        assert tvm_ffi.structural_equal(function, expected), text


def kernel(*lines: str) -> str:
    return "\n  ".join(
        [
            "def main(h_D: T.handle):",
            "n_D = T.int32()",
            "D = T.match_buffer(h_D, (n_D,), 'int32')",
            *lines,
        ]
    )


def test_comparisons_keep_their_order() -> None:
    text = kernel(
        "for i in range(n_D):",
        "  if 0 <= i and i != 3 or 7 == i:",
        "    D[i] = T.if_then_else(i > 2, 1, 2)",
        "  elif i * 2 < n_D:",
        "    D[i] = 3",
        "  else:",
        "    D[i] = 4",
    )
    expected = from_source(f"@T.prim_func(s_tir=True)\n{text}")
    assert tvm_ffi.structural_equal(parsing.parse(text), expected)


@pytest.mark.parametrize(
    "lines",
    [
        ("D[0] += 1",),
        ("i: T.let[T.int32] = 1 if D[0] > 0 else 2",),
        ("i: T.let[T.int32]",),
        ("while D[0] < 3:", "  D[0] = D[0] + 1"),
        ("if not D[0] < 3:", "  D[0] = 1"),
        ("if 0 < D[0] < 3:", "  D[0] = 1"),
        ("for i, j in T.grid(2, 3):", "  D[i] = j"),
        ("D[0], D[1] = 1, 2",),
        ("D[0] = D[1] = 2",),
    ],
    ids=" ".join,
)
def test_what_is_not_known_is_refused(lines: tuple[str, ...]) -> None:
    with pytest.raises(SyntaxError, match="A kernel must not have"):
        parsing.parse(kernel(*lines))


def test_a_name_ends_with_its_loop() -> None:
    with pytest.raises(Exception, match="i"):  # TVM's own kinds of errors
        parsing.parse(kernel("for i in range(4):", "  D[i] = i", "D[0] = i"))
