"""What a library says of itself, and that it is not run where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.runtimes import TensorSpec, get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile


@pytest.fixture
def model(builder: Any) -> onnx.ModelProto:
    x = builder.op("Relu", "input")
    found: onnx.ModelProto = builder.model((2, 3), x, builder.op("Flatten", x, axis=0))
    return found


@pytest.mark.slow
def test_interface(model: onnx.ModelProto, tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    compile_onnx(model, load_profile("local"), library)
    session = get_runtime("tvm").load(library, 1)
    assert session.inputs == (TensorSpec("input", (2, 3), "float32"),)
    names = [value.name for value in model.graph.output]
    assert session.outputs == (
        TensorSpec(names[0], (2, 3), "float32"),
        TensorSpec(names[1], (1, 6), "float32"),
    )
    data = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    first, second = session.run(data)
    np.testing.assert_array_equal(first, np.maximum(data, 0))
    np.testing.assert_array_equal(second, np.maximum(data, 0).reshape(1, 6))
    session.bind(data)()
    first[:] = 9  # the caller's own
    np.testing.assert_array_equal(session.run(data)[0], np.maximum(data, 0))


@pytest.mark.slow
def test_library_for_another_cpu_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    profile = load_profile("local")
    library = tmp_path / "model.so"
    features = (*profile.features, "flux_capacitor")
    compile_onnx(model, replace(profile, features=features), library)
    with pytest.raises(
        EvaluationError, match=r"'model\.so' was built for, .* lacks flux_capacitor"
    ):
        get_runtime("tvm").load(library, 1)
