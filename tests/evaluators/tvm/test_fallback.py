"""Operators through TVM's frontend: what it makes must have the shape that ONNX gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_graph.graph import Graph
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile


def test_another_shape_is_refused_with_the_names(
    builder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = builder.op("Elu", "input")
    model, shape = builder.model((2, 5), name), Graph.shape
    monkeypatch.setattr(Graph, "shape", lambda graph, t: (2, 6) if t == name else shape(graph, t))
    message = rf"Elu \(node '{name}'\) must make '{name}' .* \(2, 6\), but TVM .* \(2, 5\)"
    with pytest.raises(EvaluationError, match=message):
        compile_onnx(model, load_profile("local"), tmp_path / "model.so")
