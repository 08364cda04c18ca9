"""What can be said of an ONNX file without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .measurement import EvaluationError
from .runtimes.base import TensorSpec

if TYPE_CHECKING:
    import onnx


def read_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """Check an ONNX file and return its inputs, with `None` for the sizes it leaves open.

    Raises:
        EvaluationError: If the file cannot be read, is cut off, or is no valid model.
    """
    return tuple(_spec(value) for value in _inputs(_load_checked(path)))


def fix_batch(path: Path, folder: Path) -> Path:
    """Return an ONNX file whose open batch size is 1: `path` itself, or a new one in `folder`.

    Raises:
        EvaluationError: If the file cannot be read, is cut off, or is no valid model.
    """
    import onnx

    specs = read_inputs(path)
    if all(spec.with_batch_of_one() == spec for spec in specs):
        return path
    model = onnx.load(path)
    for value in _inputs(model):
        if value.type.tensor_type.shape.dim:
            dimension = value.type.tensor_type.shape.dim[0]
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    # Shapes that were inferred for the open size would contradict the fixed one.
    del model.graph.value_info[:]
    fixed = folder / f"batch-of-one-{path.name}"
    onnx.save(model, fixed)
    return fixed


def widen_integers(path: Path, target: Path) -> None:
    """Copy an ONNX file with quantized weights of fewer than 8 bits in int8 or uint8.

    They mean the same, but runtimes have integer kernels for 8 bits alone: ONNX Runtime and
    OpenVINO dequantize what is narrower and compute in float32. Weights in blocks, for which both
    have kernels of 4 bits, stay.

    Raises:
        EvaluationError: If the file cannot be read, is cut off, or is no valid model.
    """
    import numpy as np
    import onnx

    read_inputs(path)
    model = onnx.load(path)
    wide = {onnx.TensorProto.INT4: np.int8, onnx.TensorProto.UINT4: np.uint8}
    narrow = {t.name: t for t in model.graph.initializer if t.data_type in wide}
    kept: set[str] = set()
    for node in model.graph.node:
        # The zero point has the type of the weights: both become wide, or none.
        quantized = {name for name in (*node.input[:1], *node.input[2:3]) if name}
        is_blocked = any(attribute.name == "block_size" for attribute in node.attribute)
        if node.op_type != "DequantizeLinear" or is_blocked or not quantized <= set(narrow):
            kept.update(node.input)
    for name in set(narrow) - kept:
        values = onnx.numpy_helper.to_array(narrow[name]).astype(wide[narrow[name].data_type])
        narrow[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, target)


def reads_quantized_in_float(path: Path) -> bool:
    """Tell whether a layer of a valid ONNX file in float reads a quantized tensor."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    quantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return any(
        node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and node.input[0] in quantized
        and node.input[1] not in quantized
        for node in graph.node
    )


def _load_checked(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise EvaluationError(
                f"Model file '{path}' must hold a graph, but has no node: "
                "it is empty, cut off, or no ONNX file.",
                "model",
            )
        onnx.checker.check_model(str(path))  # by path, as this also finds external data
    except OSError as error:
        raise EvaluationError(
            f"Model file '{path}' could not be read: {error.strerror or error}.", "model"
        ) from error
    except DecodeError as error:
        raise EvaluationError(
            f"Model file '{path}' must be an ONNX model, but cannot be decoded: "
            "it is cut off or no ONNX file.",
            "model",
        ) from error
    except onnx.checker.ValidationError as error:
        raise EvaluationError(
            f"Model file '{path}' is no valid ONNX model: {str(error).strip()}", "model"
        ) from error
    return model


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the true inputs: files before IR version 4 list their weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    if not value.type.HasField("tensor_type"):
        raise EvaluationError(
            f"Inputs must be tensors, but input '{value.name}' is none.", "model"
        )
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorSpec(value.name, shape, str(dtype))
