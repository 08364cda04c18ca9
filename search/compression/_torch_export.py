"""torch.onnx.export without its output on the screen, and with errors that name the cause."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence

import torch
from onnx import ModelProto
from torch import Tensor, nn

from ...hw_profiles.errors import ParedownError

OPSET = 21
INPUT_NAME = "input"
OUTPUT_NAME = "output"

_DISPATCH = re.compile(r"op='([\w.:]+)'")
_FAILED_LINE = re.compile(
    r"raised this error:\s*File \"([^\"]+)\", line (\d+), in (\w+)\n(?:[ \t]+(.+))?"
)


class ExportError(ParedownError):
    """A model cannot be written as an ONNX graph that Paredown can work on."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_torch(model: nn.Module, example_input: Tensor) -> ModelProto:
    """Trace a torch model and translate it to ONNX.

    Args:
        model: In evaluation mode.
        example_input: One input; the file is written for exactly its shape.

    Raises:
        ExportError: Naming the operator or the line that stands in the way.
    """
    try:
        with _quiet():
            found = _export(model, (example_input,))
            if any(node.op_type == "GatherND" for node in found.graph.node):
                # The exporter writes uneven adaptive pools with it, which few runtimes have.
                found = _export(_with_even_pools(model, example_input), ())
    except Exception as error:  # torch raises types of its private modules
        raise ExportError(_explain(error)) from error
    return found


def _export(
    model: nn.Module | torch.export.ExportedProgram, inputs: tuple[Tensor, ...]
) -> ModelProto:
    program = torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        verbose=False,
    )
    assert program is not None  # None is returned only when a file is written
    return program.model_proto


def _with_even_pools(model: nn.Module, example_input: Tensor) -> torch.export.ExportedProgram:
    """Return the traced model, its adaptive average pools as means over slices of the image."""
    program = torch.export.export(model, (example_input,), strict=False)
    pool = torch.ops.aten.adaptive_avg_pool2d.default
    even: torch.export.ExportedProgram = program.run_decompositions({pool: _adaptive_average})
    return even


def _adaptive_average(images: Tensor, sizes: Sequence[int]) -> Tensor:
    """Average each window of an adaptive pool, rows first, then columns."""
    for axis, size in zip((2, 3), sizes, strict=True):
        n = images.shape[axis]
        windows = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [
            images.narrow(axis, begin, end - begin).mean(axis, keepdim=True)
            for begin, end in windows
        ]
        images = torch.cat(means, axis)
    return images


def _explain(error: BaseException) -> str:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for text in map(str, reversed(causes)):
        if match := _DISPATCH.search(text):
            return (
                f"The model cannot be exported: operator '{match[1]}' has no ONNX form. "
                "Replace it in the model by operators that have one."
            )
    for text in map(str, reversed(causes)):
        if match := _FAILED_LINE.search(text):
            return (
                f"The model cannot be exported: '{match[4] or match[3]}' "
                f"({match[1]}, line {match[2]}) depends on the values of tensors. Rewrite it so "
                "that the same operators run for every input, for example with `torch.where`."
            )
    first = str(causes[-1]).strip().splitlines() or [""]
    return f"The model cannot be exported: {type(causes[-1]).__name__}: {first[0]}"
