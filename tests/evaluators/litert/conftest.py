"""Ways to convert a model and to run what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from paredown.evaluators.litert.converter import convert_onnx
from paredown.evaluators.runtimes import get_runtime

Run = Callable[[onnx.ModelProto, NDArray[np.float32]], list[NDArray[np.float32]]]


@dataclass
class Converted:
    """A converted model, ready to run."""

    path: Path

    def run(self, *inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return get_runtime("litert").load(self.path, 1).run(*inputs)

    def operators(self) -> Counter[str]:
        """Count the operators of the file."""
        graph, names = self._schema()
        return Counter(names[operator.opcodeIndex] for operator in graph.operators)

    def types(self, operator: str) -> list[str]:
        """Return the element types of the results of all operators of a kind."""
        from ai_edge_litert import schema_py_generated as schema

        names = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        graph, operators = self._schema()
        return [
            names[graph.tensors[op.outputs[0]].type]
            for op in graph.operators
            if operators[op.opcodeIndex] == operator
        ]

    def _schema(self) -> tuple[Any, list[str]]:
        from ai_edge_litert import schema_py_generated as schema

        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        model = schema.ModelT.InitFromPackedBuf(self.path.read_bytes())
        return model.subgraphs[0], [names[code.builtinCode] for code in model.operatorCodes]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[onnx.ModelProto], Converted]:
    """Convert a model."""

    def convert(model: onnx.ModelProto) -> Converted:
        source, artifact = tmp_path / "model.onnx", tmp_path / "model.tflite"
        onnx.save(model, source)
        convert_onnx(source, artifact)
        return Converted(artifact)

    return convert


@pytest.fixture
def agrees(
    convert: Callable[[onnx.ModelProto], Converted], run_reference: Run
) -> Callable[..., Converted]:
    """Check all outputs of a converted model on random inputs.

    The largest difference may be `step`, the step of a quantized output, at a small `share` of
    the values, where two ways of rounding meet a tie, and else a part in 10,000 of the values.
    """

    def check(model: onnx.ModelProto, step: float = 0.0, share: float = 0.01) -> Converted:
        converted = convert(model)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        for seed in range(3):
            data = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
            found, expected = converted.run(data), run_reference(model, data)
            for got, want in zip(found, expected, strict=True):
                assert got.shape == want.shape
                difference, allowed = np.abs(got - want), 1e-4 * max(1.0, np.abs(want).max())
                assert difference.max() <= step * 1.01 + allowed
                assert (difference > allowed).mean() <= share
        return converted

    return check
