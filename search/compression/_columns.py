"""What a layer's weights are multiplied with, as columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto
from torch import Tensor

_MAX_INPUTS = 2304  # weights of an output channel; its Gram matrix is the square of it
_COLUMNS = 8  # columns for each weight of a channel


@dataclass(frozen=True)
class Columns:
    """Some of the products of a layer.

    Attributes:
        inputs: What the `d` weights of an output channel meet, shape `(groups, d, n)`.
        n_samples: The samples that the columns are of.
        stride: Every so many of their places are taken.
    """

    inputs: Tensor
    n_samples: int
    stride: int

    def outputs(self, values: Tensor) -> Tensor:
        """Return the layer's outputs of the same columns, shape `(groups, channels, n)`."""
        groups = self.inputs.shape[0]
        if values.ndim == 4:
            values = values[: self.n_samples].flatten(2).unflatten(1, (groups, -1))
            return values.permute(1, 2, 0, 3).flatten(2)[:, :, :: self.stride].float()
        return values.reshape(-1, values.shape[-1]).T[None, :, :: self.stride].float()


def find_columns(node: NodeProto, values: Tensor, shape: torch.Size) -> Columns | None:
    """Return columns of a layer.

    Args:
        node: A Conv over two dimensions, Gemm or MatMul.
        values: What it reads, samples first.
        shape: Shape of its weight.

    Returns:
        The columns; None for other convolutions, and where an output channel has many weights.
    """
    if node.op_type != "Conv":
        columns = values.reshape(-1, values.shape[-1]).T[None]
        return _thinned(columns, len(values)) if columns.shape[1] <= _MAX_INPUTS else None
    if len(shape) != 4 or math.prod(shape[1:]) > _MAX_INPUTS:
        return None
    found: Mapping[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if found.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    groups = found.get("group", 1)
    top, left, bottom, right = found.get("pads", (0, 0, 0, 0))
    # Few samples suffice, and all places of all of them would take much memory.
    values = F.pad(values[: _enough(values, shape)], (left, right, top, bottom))
    patches = F.unfold(
        values,
        (shape[2], shape[3]),
        dilation=tuple(found.get("dilations", (1, 1))),
        stride=tuple(found.get("strides", (1, 1))),
    )
    patches = patches.unflatten(1, (groups, -1))  # (samples, groups, d, places)
    return _thinned(patches.permute(1, 2, 0, 3).flatten(2), len(values))


def _enough(values: Tensor, shape: torch.Size) -> int:
    places = max(1, values.shape[2] * values.shape[3] // 4)
    return max(8, 4 * _COLUMNS * math.prod(shape[1:]) // places)


def _thinned(columns: Tensor, n_samples: int) -> Columns:
    stride = max(1, columns.shape[2] // (_COLUMNS * max(64, columns.shape[1])))
    return Columns(columns[:, :, ::stride].float(), n_samples, stride)
