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
from paredown.evaluators.runtimes import get_runtime
from paredown.evaluators.tvm.compiler import compile_onnx
from paredown.evaluators.tvm.operators import SUPPORTED, operator_table
from paredown.hw_profiles import load_profile

README = Path(__file__).parents[3] / "evaluators" / "README.md"
NAMED = re.compile(r"Operator (\S+) \(node '.+'\) ")
# No case of these operators keeps within their limits, or there is none.
UNTESTED = frozenset(("Constant", "Scatter"))

Arrays = list[NDArray[Any]]


def all_cases() -> dict[str, list[Any]]:
    """Return the cases by operator; those of several operators by the first that is special."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference implementation, on division by zero
        cases = collect_testcases(None)
    found = defaultdict(list)
    for case in cases:
        operators = {node.op_type for node in case.model.graph.node}
        name = operators.pop() if len(operators) == 1 else "several"
        found[name].append(case)
    return dict(found)


CASES = all_cases()


def inference_form(
    model: onnx.ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[onnx.ModelProto, Arrays, Arrays]:
    """Make constants of what must be constant, and drop outputs that inference does not need.

    The cases take axes, shapes and the like as inputs of the model.
    """
    form = onnx.ModelProto()
    form.CopyFrom(model)
    graph = form.graph
    inputs, outputs = map(_decoded, inputs), map(_decoded, outputs)
    values = dict(zip([v.name for v in graph.input], inputs, strict=False))
    expected = dict(zip([v.name for v in graph.output], outputs, strict=False))
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
    """Return an array; the cases hold protos of the types that numpy lacks."""
    is_proto = isinstance(value, onnx.TensorProto)
    return numpy_helper.to_array(value) if is_proto else np.asarray(value)


def run_case(case: Any, folder: Path) -> str:
    """Run a case; return why it was refused, or nothing if its results are right."""
    for inputs, outputs in case.data_sets:
        model, values, expected = inference_form(case.model, inputs, outputs)
        library = folder / "model.so"
        try:
            compile_onnx(model, load_profile("local"), library)
        except EvaluationError as error:
            if error.reason != "model":
                raise
            return str(error)
        found = get_runtime("tvm").load(library, 1).run(*values)
        Runner.assert_similar_outputs(expected, found, case.rtol, case.atol)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(CASES))
def test_cases(operator: str, tmp_path: Path) -> None:
    """Each gives the right result, or is refused with the name of an operator of its model."""
    n_passed = 0
    for case in CASES[operator]:
        try:
            refusal = run_case(case, tmp_path)
        except Exception as error:
            raise AssertionError(f"{case.name}: {type(error).__name__}: {error}") from error
        if not refusal:
            n_passed += 1
            continue
        match = NAMED.match(refusal)
        assert match, f"{case.name}: {refusal}"
        assert match[1] in {node.op_type for node in case.model.graph.node} or ":" in match[1]
    if operator in SUPPORTED:
        assert n_passed or operator in UNTESTED
    else:
        assert not n_passed or operator == "several"


def test_readme_lists_the_operators() -> None:
    assert operator_table() in README.read_text(encoding="utf-8")
