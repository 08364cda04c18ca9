"""ONNX's own test cases of single operators, in the form that they have in an inference model."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.runner import Runner

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.onnx_graph.operators import SUPPORTED, operator_table
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.hw_profiles import load_profile

README = Path(__file__).parents[3] / "evaluators" / "README.md"
NAMED = re.compile(r"Operator (\S+) \(node '.+'\) ")
# No case of these operators keeps within their limits, or there is none.
UNTESTED = frozenset(("Constant", "Scatter"))

Arrays = list[NDArray[Any]]


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Any]]:
    """The cases by operator; those of several operators under `several`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference implementation, on division by zero
        collected: list[Any] = collect_testcases(None)
    found = defaultdict(list)
    for case in collected:
        operators = {node.op_type for node in case.model.graph.node}
        found[operators.pop() if len(operators) == 1 else "several"].append(case)
    return dict(found)


def inference_form(
    model: onnx.ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[onnx.ModelProto, Arrays, Arrays]:
    """Make constants of what must be constant, and drop outputs that inference does not need.

    The cases take axes, shapes and the like as inputs of the model.
    """
    form = onnx.ModelProto()
    form.CopyFrom(model)
    graph = form.graph
    values = dict(zip([v.name for v in graph.input], map(_decoded, inputs), strict=False))
    expected = dict(zip([v.name for v in graph.output], map(_decoded, outputs), strict=False))
    for node in graph.node:
        limits = SUPPORTED.get(node.op_type)
        if limits is None:
            continue
        for position in limits.constants:
            name = node.input[position] if position < len(node.input) else ""
            if name in values:
                graph.initializer.append(numpy_helper.from_array(values.pop(name), name))
        if len(graph.node) == 1:
            for name in node.output[limits.outputs :]:
                expected.pop(name, None)
    kept_inputs = [v for v in graph.input if v.name in values]
    kept_outputs = [v for v in graph.output if v.name in expected]
    del graph.input[:], graph.output[:]
    graph.input.extend(kept_inputs)
    graph.output.extend(kept_outputs)
    return form, list(values.values()), list(expected.values())


def _decoded(value: Any) -> Any:
    """Return an array; the cases hold protos of the types that numpy lacks, and sequences."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def run_case(case: Any, folder: Path) -> str:
    """Run a case; return why it was refused, or nothing if its results are right."""
    for inputs, outputs in case.data_sets:
        model, values, expected = inference_form(case.model, inputs, outputs)
        library = folder / "model.so"
        try:
            compile_onnx(model, load_profile("local@compile-only"), library)
        except EvaluationError as error:
            if error.reason != "model":
                raise
            return str(error)
        found = get_runtime("tvm").load(library, 1).run(*values)
        Runner.assert_similar_outputs(expected, found, case.rtol, case.atol)
    return ""


def run_cases(operator: str, cases: Sequence[Any], folder: Path) -> list[str]:
    """Run all cases of an operator; return what is wrong."""
    n_passed, wrong = 0, []
    for case in cases:
        try:
            refusal = run_case(case, folder)
        except Exception as error:  # collected, so that one run shows all
            wrong.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        n_passed += not refusal
        match = NAMED.match(refusal)
        operators = {node.op_type for node in case.model.graph.node}
        if refusal and not (match and match[1].rpartition(".")[2] in operators):
            wrong.append(f"{case.name}: {refusal}")
    if operator in SUPPORTED and not n_passed and operator not in UNTESTED:
        wrong.append(f"{operator}: none of {len(cases)} cases passes")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("letter", "ABCDEFGHIJKLMNOPQRSTUVWXYZs")
def test_cases(letter: str, cases: dict[str, list[Any]], tmp_path: Path) -> None:
    """Each gives the right result, or is refused with the name of an operator of its model."""
    names = {*cases, *SUPPORTED}
    chosen = [name for name in names if name.startswith(letter)]
    wrong = [line for name in chosen for line in run_cases(name, cases.get(name, []), tmp_path)]
    assert not wrong, "\n".join(wrong)


def test_readme_lists_the_operators() -> None:
    assert operator_table() in README.read_text(encoding="utf-8")
