"""Writes a LiteRT model: tensors and operators to the bytes of a `.tflite` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_ALIGNMENT = 16  # of constants, as the schema asks; its Python code does not see to it


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the integers of a tensor map to reals: `scale * (k - zero_point)`.

    Attributes:
        scale: One number, or one per place along `axis`.
        zero_point: The same for all places.
        axis: Where the scale has several numbers.
    """

    scale: NDArray[np.float32]
    zero_point: int = 0
    axis: int = 0


class ModelWriter:
    """Collects the tensors and operators of a network of one subgraph, in the order of running.

    Names of operators and options are those of the schema, such as "CONV_2D" and
    "Conv2DOptions".

    References:
        https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
    """

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema: Any = schema
        self._buffer_type = _aligned_buffer(schema)
        self._buffers = [self._buffer_type()]  # number 0 stands for "no data"
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        quantization: Quantization | None = None,
        buffer: int = 0,
    ) -> int:
        """Add a tensor and return its number."""
        tensor = self._schema.TensorT(
            name=name,
            shape=list(shape),
            type=self.type_of(dtype),
            buffer=buffer,
            hasRank=True,
        )
        if quantization is not None:
            tensor.quantization = self._schema.QuantizationParametersT(
                scale=quantization.scale.reshape(-1).astype(np.float32),
                zeroPoint=np.full(quantization.scale.size, quantization.zero_point, np.int64),
                quantizedDimension=quantization.axis,
            )
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(
        self, name: str, values: NDArray[Any], quantization: Quantization | None = None
    ) -> int:
        """Add a tensor with values, in their type, and return its number."""
        data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self._buffers.append(self._buffer_type(data=data))
        buffer = len(self._buffers) - 1
        return self.tensor(name, values.shape, str(values.dtype), quantization, buffer)

    def operator(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator, with options of the given type if it has any."""
        operator = self._schema.OperatorT(
            opcodeIndex=self._codes.setdefault(code, len(self._codes)),
            inputs=list(inputs),
            outputs=list(outputs),
        )
        if options:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")(**(values or {}))
        self._operators.append(operator)

    def tensor_like(self, tensor: int, shape: Sequence[int]) -> int:
        """Add a tensor of the type and quantization of another one and return its number."""
        other = self._tensors[tensor]
        self._tensors.append(
            self._schema.TensorT(
                name=other.name,
                shape=list(shape),
                type=other.type,
                quantization=other.quantization,
                hasRank=True,
            )
        )
        return len(self._tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._tensors[tensor].shape)

    def activation(self, name: str) -> int:
        """Return the number of a fused activation, such as "RELU"."""
        return int(getattr(self._schema.ActivationFunctionType, name))

    def type_of(self, dtype: str) -> int:
        """Return the number of an element type that numpy calls `dtype`."""
        return int(getattr(self._schema.TensorType, dtype.upper()))

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def to_bytes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Return the model with these tensors as its interface."""
        import flatbuffers

        graph = self._schema.SubGraphT(
            tensors=self._tensors,
            inputs=list(inputs),
            outputs=list(outputs),
            operators=self._operators,
            name="main",
        )
        model = self._schema.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=[self._code(name) for name in self._codes],
            subgraphs=[graph],
            description="Converted by Paredown.",
            buffers=self._buffers,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        number = getattr(self._schema.BuiltinOperator, name)
        # Readers older than the wide field look at the narrow one, which ends at 127.
        return self._schema.OperatorCodeT(
            builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=1
        )


def _aligned_buffer(schema: Any) -> Any:
    """Return the schema's buffer type with its data at a multiple of `_ALIGNMENT` bytes."""

    class AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the schema is untyped
        """A buffer whose data can be used in place."""

        def Pack(self, builder: Any) -> Any:
            """Write the buffer; the name is the schema's."""
            if self.data is not None:
                builder.Prep(_ALIGNMENT, len(self.data))
            return super().Pack(builder)

    return AlignedBuffer
