"""ONNX operators in torch that move values without changing them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_ops import Operation, OpNode, operator
from .onnx_resize import Sampling, axis_scales


def _view(function: Callable[..., Tensor]) -> Operation:
    return Operation(function, is_view=True, keeps_grid=True)


@operator("Identity", "Dropout")
def _identity(node: OpNode) -> Operation:
    return _view(lambda x, *_: x)


@operator("Flatten")
def _flatten(node: OpNode) -> Operation:
    axis = node.get("axis", 1)
    if axis != 1:
        raise node.unsupported(f"it flattens around axis {axis}, so the batch is no longer first")
    return _view(lambda x: x.flatten(1))


@operator("Reshape", static=(1,))
def _reshape(node: OpNode) -> Operation:
    shape = node.integers(1) or []
    keeps_zero = bool(node.get("allowzero", 0))
    free_batch = node.is_batch_free and shape[:1] == [1]

    def reshape(x: Tensor) -> Tensor:
        target = [
            x.shape[i] if size == 0 and not keeps_zero else size for i, size in enumerate(shape)
        ]
        # The file is written for a batch of 1; here the batch is free.
        if free_batch:
            target[0] = x.shape[0]
        return x.reshape(target)

    return _view(reshape)


@operator("Transpose")
def _transpose(node: OpNode) -> Operation:
    perm = node.get("perm")
    return _view(lambda x: x.permute(perm if perm is not None else tuple(range(x.ndim))[::-1]))


@operator("Squeeze", static=(1,))
def _squeeze(node: OpNode) -> Operation:
    axes = node.integers(1, "axes")
    if axes is None:
        raise node.unsupported("it names no axes, so the batch may be among them")
    return _view(lambda x: x.squeeze(tuple(axes)))


@operator("Unsqueeze", static=(1,))
def _unsqueeze(node: OpNode) -> Operation:
    axes = node.integers(1, "axes") or []

    def unsqueeze(x: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return x

    return _view(unsqueeze)


@operator("Concat")
def _concat(node: OpNode) -> Operation:
    axis = node.get("axis")

    if not node.is_batch_free:
        return Operation(lambda *parts: torch.cat(parts, dim=axis))

    def concat(*parts: Tensor) -> Tensor:
        batch = max(len(part) for part in parts)
        # A constant part (a class token) has the file's batch of 1.
        whole = [p if len(p) == batch else p.expand(batch, *p.shape[1:]) for p in parts]
        return torch.cat(whole, dim=axis)

    return Operation(concat)


@operator("Slice", static=(1, 2, 3, 4))
def _slice(node: OpNode) -> Operation:
    starts = node.integers(1, "starts") or []
    ends = node.integers(2, "ends") or []
    axes = node.integers(3, "axes") or list(range(len(starts)))
    steps = node.integers(4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        raise node.unsupported("it runs backwards")

    def cut(x: Tensor) -> Tensor:
        index = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index[axis] = slice(start, end, step)
        return x[tuple(index)]

    return _view(cut)


@operator("Split", static=(1,))
def _split(node: OpNode) -> Operation:
    axis = node.get("axis", 0)
    sizes = node.integers(1, "split")
    parts = node.get("num_outputs", len(node.proto.output))

    def split(x: Tensor) -> tuple[Tensor, ...]:
        # Without sizes all parts but the last are equally large, rounded up.
        return torch.split(x, sizes or -(-x.shape[axis] // parts), dim=axis)

    return Operation(split, is_view=True, keeps_grid=True)


@operator("Gather", static=(1,))
def _gather(node: OpNode) -> Operation:
    axis, indices = node.get("axis", 0), node.static[1]
    flat = indices.reshape(-1)

    def gather(x: Tensor) -> Tensor:
        index = torch.where(flat < 0, flat + x.shape[axis], flat)
        before, after = x.shape[: axis % x.ndim], x.shape[axis % x.ndim + 1 :]
        return x.index_select(axis, index).reshape(*before, *indices.shape, *after)

    return Operation(gather, keeps_grid=True)


@operator("Expand", static=(1,))
def _expand(node: OpNode) -> Operation:
    shape = node.integers(1) or []

    def expand(x: Tensor) -> Tensor:
        # As `x * ones(shape)`: an axis of 1 in the shape leaves the input's axis.
        ones = torch.ones((), dtype=x.dtype).expand(shape)
        return x.expand(torch.broadcast_shapes(x.shape, ones.shape))

    return _view(expand)


@operator("Pad", static=(1, 2, 3))
def _pad(node: OpNode) -> Operation:
    pads = node.integers(1, "pads") or []
    axes = node.integers(3)
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = modes[node.get("mode", "constant")]
    value = node.number(2) or 0.0

    def pad(x: Tensor) -> Tensor:
        half = len(pads) // 2
        begins, ends = [0] * x.ndim, [0] * x.ndim
        for i, axis in enumerate(axes if axes is not None else range(half)):
            begins[axis], ends[axis] = pads[i], pads[half + i]
        pairs = [p for i in reversed(range(x.ndim)) for p in (begins[i], ends[i])]
        if mode == "constant":
            return F.pad(x, pairs, value=value)
        # These modes of torch take the padded axes alone.
        while len(pairs) > 2 and pairs[-2:] == [0, 0]:
            pairs = pairs[:-2]
        return F.pad(x, pairs, mode=mode)

    return Operation(pad)


@operator("DepthToSpace")
def _depth_to_space(node: OpNode) -> Operation:
    block = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return Operation(lambda x: F.pixel_shuffle(x, block), keeps_grid=True)

    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)

    return Operation(shuffle, keeps_grid=True)


@operator("Resize", "Upsample", static=(1, 2, 3))
def _resize(node: OpNode) -> Operation:
    """Resize all axes but the batch, one after the other."""
    is_old = node.proto.op_type == "Upsample" or len(node.proto.input) == 2
    sizes, scales = node.integers(3), node.static.get(1 if is_old else 2)
    given = scales.tolist() if sizes is None and scales is not None else node.get("scales")
    sampling = Sampling.of(node.attributes, is_old=is_old)
    if sampling.coordinates == "tf_crop_and_resize":
        raise node.unsupported("it resizes a region")
    first = (sizes or given or [0])[0]
    if 0 in node.get("axes", [0]) and first != 1:
        raise node.unsupported("it resizes the batch")

    def resize(x: Tensor) -> Tensor:
        shape = (1, *x.shape[1:])
        for axis, scale in (axis_scales(node.attributes, shape, given, sizes) or {}).items():
            out = math.floor(shape[axis] * scale + (0.0 if sizes is None else 0.5))
            if (out, scale) != (shape[axis], 1):
                x = _resampled(x, axis, sampling, scale, out)
        return x

    return Operation(resize, keeps_grid=sampling.method == "nearest")


def _resampled(x: Tensor, axis: int, sampling: Sampling, scale: float, out: int) -> Tensor:
    places, weights = _taps(sampling, scale, x.shape[axis], out)
    spread = [-1 if k == axis else 1 for k in range(x.ndim)]
    parts = [x.index_select(axis, place.to(x.device)) for place in places]
    if len(parts) == 1:
        return parts[0]
    factors = weights.to(x)
    total = parts[0] * factors[0].reshape(spread)
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total = total + part * factor.reshape(spread)
    return total


@functools.lru_cache(maxsize=256)
def _taps(sampling: Sampling, scale: float, size: int, out: int) -> tuple[Tensor, Tensor]:
    """Return places and weights, each of shape `(taps, out)`."""
    taps = sampling.taps(scale, size, out)
    with torch.inference_mode(False):  # later runs may want gradients
        return torch.from_numpy(taps.places.T.copy()), torch.from_numpy(taps.weights.T.copy())
