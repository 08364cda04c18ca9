"""Convert an ONNX file to a LiteRT file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..measurement import EvaluationError
from ..onnx_graph.graph import Graph, load_model


def convert_onnx(model: Path, artifact: Path) -> None:
    """Convert a float or QDQ model with static shapes.

    The interface stays that of the ONNX file: float32, images with their channels first. A layer
    works on integers where the file quantizes its inputs and its result, else in float32.

    Args:
        model: ONNX file.
        artifact: The `.tflite` file to write.

    Raises:
        EvaluationError: If the model is invalid, an operator has no form in LiteRT (it is
            named), or the file cannot be written.
    """
    from . import elementwise, layers, resizing, shapes, windows  # noqa: F401  # they register
    from .network import Network

    data = Network(Graph(load_model(model))).convert()
    try:
        # In a folder of its own first: an interrupted build leaves no half file.
        with tempfile.TemporaryDirectory(dir=artifact.parent, prefix=".build-") as folder:
            temporary = Path(folder) / "model.tflite"
            temporary.write_bytes(data)
            temporary.replace(artifact)
    except OSError as error:
        raise EvaluationError(
            f"File '{artifact}' could not be written: {error.strerror}.", "build"
        ) from error
