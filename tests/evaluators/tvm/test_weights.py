"""Weights lie in a library as plain data: read there, or unpacked and never held twice."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.memory import MemoryGrowth
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile

pytestmark = pytest.mark.slow
reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SIZE = 1024
MB = 1 << 20


def sizes_kib(pattern: str, text: str) -> Iterator[int]:
    return (int(size) for size in re.findall(pattern, text, re.MULTILINE))


def resident_bytes() -> int:
    """Resident memory of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(sizes_kib(r"^VmRSS:\s+(\d+) kB", text))


def mapped_bytes(library: Path) -> int:
    """Memory of this process that is mapped from a file."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = [*sizes_kib(rf"{re.escape(str(library))}\n(?:.*\n)*?Rss:\s+(\d+) kB", text)]
    assert found, "the library must be mapped"
    return 1024 * sum(found)


def warm_up(builder: Any, folder: Path) -> None:
    """Bring the runtime's own code into memory."""
    model = builder.model((1, 8), builder.op("MatMul", "input", builder.floats(8, 8)))
    compile_onnx(model, load_profile("local"), folder / "first.so")
    get_runtime("tvm").load(folder / "first.so", 1).run(np.zeros((1, 8), np.float32))
    gc.collect()


def floats_of(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@reads_proc
def test_floats_are_in_memory_once(make_builder: Any, run_reference: Any, tmp_path: Path) -> None:
    builder, x = make_builder(), "input"
    for _ in range(3):
        x = builder.op("Relu", builder.op("MatMul", x, builder.floats(SIZE, SIZE)))
    model, library = builder.model((1, SIZE), x), tmp_path / "model.so"
    compile_onnx(model, load_profile("local"), library)
    warm_up(make_builder(), tmp_path)
    weights = 3 * 4 * SIZE**2
    growth = MemoryGrowth()
    session = get_runtime("tvm").load(library, 1)
    (got,) = session.run(floats_of((1, SIZE)))
    peak = growth.peak_bytes()  # before other things take memory
    assert peak is not None
    assert peak < weights + 2 * MB
    assert weights <= mapped_bytes(library) < weights + MB
    (expected,) = run_reference(model, floats_of((1, SIZE)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@reads_proc
def test_unpacked_weights_are_in_memory_once(make_builder: Any, tmp_path: Path) -> None:
    builder = make_builder()
    x = builder.quantized("input", 0.02, 128)
    for _ in range(8):
        layer = builder.layer("Gemm", x, (SIZE, SIZE), 4, 0.02, transB=1)
        x = builder.quantized(layer, 0.02, 128)
    library = tmp_path / "model.so"
    compile_onnx(builder.model((1, SIZE), x), load_profile("local"), library)
    stored = 8 * SIZE**2 // 2
    assert library.stat().st_size > stored
    warm_up(make_builder(), tmp_path)
    growth, before = MemoryGrowth(), resident_bytes()
    session = get_runtime("tvm").load(library, 1)
    (first,) = session.run(floats_of((1, SIZE)))
    peak, kept = growth.peak_bytes(), resident_bytes() - before
    assert peak is not None
    assert mapped_bytes(library) < MB
    assert peak < kept + 3 * MB  # the layer unpacked last; Linux may map 2 MB at once
    assert kept > 8 * SIZE**2
    again = get_runtime("tvm").load(library, 1)  # reads from the file what was given back
    np.testing.assert_array_equal(again.run(floats_of((1, SIZE)))[0], first)


def test_tvm_reads_a_table_in_place(tmp_path: Path) -> None:
    table = floats_of((500, 33))
    make, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [make("Gather", ["table", "input"], ["output"])],
        "embedding",
        [value("input", TensorProto.INT64, [1, 7])],
        [value("output", TensorProto.FLOAT, [1, 7, 33])],
        [numpy_helper.from_array(table, "table")],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    ids = np.array([[0, 499, 3, 3, 250, 1, 77]])
    np.testing.assert_array_equal(run_alone(model, tmp_path, ids)[0], table[ids])


def test_a_constant_output_outlives_its_library(builder: Any, tmp_path: Path) -> None:
    constant = builder.op("Identity", builder.floats(64, 64))
    model = builder.model((1, 4), builder.op("Relu", "input"), constant)
    expected = numpy_helper.to_array(model.graph.initializer[0])
    found = run_alone(model, tmp_path, np.ones((1, 4), np.float32))
    gc.collect()
    np.testing.assert_array_equal(found[1], expected)


def run_alone(model: onnx.ModelProto, folder: Path, data: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the outputs of a library that is closed by then."""
    compile_onnx(model, load_profile("local"), folder / "model.so")
    return list(get_runtime("tvm").load(folder / "model.so", 1).run(data))
