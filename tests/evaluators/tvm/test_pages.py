"""Memory behind a loaded library: what was read once is given back, and can be read again."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile

SIZE = 1024  # 4 MiB of weights


def resident_kib(library: Path) -> int:
    """Memory of this process that is mapped from a file."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    entries = re.findall(rf"{re.escape(str(library))}\n(?:.*\n)*?Rss:\s+(\d+) kB", text)
    assert entries, "the library must be mapped"
    return sum(map(int, entries))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_in_memory_once(builder: Any, run_reference: Any, tmp_path: Path) -> None:
    model = builder.model((1, SIZE), builder.op("MatMul", "input", builder.floats(SIZE, SIZE)))
    library = tmp_path / "model.so"
    compile_onnx(model, load_profile("local"), library)
    assert library.stat().st_size > 4 * SIZE**2
    data = np.random.default_rng(0).standard_normal((1, SIZE)).astype(np.float32)
    for _ in range(2):  # the second session reads the content again
        session = get_runtime("tvm").load(library, 1)
        (got,) = session.run(data)
        assert resident_kib(library) < 1024
    (expected,) = run_reference(model, data)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
