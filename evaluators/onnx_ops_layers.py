"""ONNX layers in torch: convolutions, linear layers, pools and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_ops import Operation, OpNode, operator

_CONV: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    3: F.conv_transpose1d,
    4: F.conv_transpose2d,
    5: F.conv_transpose3d,
}
_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    3: F.avg_pool1d,
    4: F.avg_pool2d,
    5: F.avg_pool3d,
}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {
    3: F.max_pool1d,
    4: F.max_pool2d,
    5: F.max_pool3d,
}


def _same_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> list[int]:
    """Return the pads (begins, then ends) that make the output `ceil(size / stride)` large."""
    begins, ends = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins + ends


def _pads(
    node: OpNode,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    size: Sequence[int],
) -> list[int]:
    rank = len(kernel)
    mode = node.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(node.get("pads", [0] * 2 * rank))
    if mode == "VALID":
        return [0] * 2 * rank
    return _same_pads(size, kernel, strides, dilations, upper=mode == "SAME_UPPER")


def _is_symmetric(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def _pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    # torch counts from the last axis: (begin, end) pairs in reverse order.
    half = len(pads) // 2
    pairs = [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
    return F.pad(x, pairs, value=value)


@operator("Conv")
def _conv(node: OpNode) -> Operation:
    group = node.get("group", 1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel = weight.shape[2:]
        strides = node.get("strides", [1] * len(kernel))
        dilations = node.get("dilations", [1] * len(kernel))
        pads = _pads(node, kernel, strides, dilations, x.shape[2:])
        half = len(pads) // 2
        if not _is_symmetric(pads):
            x, pads = _pad(x, pads), [0] * len(pads)
        return _CONV[weight.ndim](x, weight, bias, strides, pads[:half], dilations, group)

    return Operation(conv)


@operator("ConvTranspose")
def _conv_transpose(node: OpNode) -> Operation:
    group = node.get("group", 1)
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.get("output_shape"):
        raise node.unsupported("its padding follows from the output's shape")

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        pads = node.get("pads", [0] * 2 * rank)
        symmetric = _is_symmetric(pads)
        y = _CONV_TRANSPOSE[weight.ndim](
            x,
            weight,
            bias,
            node.get("strides", [1] * rank),
            pads[:rank] if symmetric else 0,
            node.get("output_padding", [0] * rank),
            group,
            node.get("dilations", [1] * rank),
        )
        if not symmetric:  # a negative pad crops
            y = _pad(y, [-p for p in pads])
        return y

    return Operation(conv)


@operator("Gemm")
def _gemm(node: OpNode) -> Operation:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    trans_a, trans_b = node.get("transA", 0), node.get("transB", 0)
    if (alpha, beta, trans_a, trans_b) == (1.0, 1.0, 0, 1):
        return Operation(lambda x, weight, bias=None: F.linear(x, weight, bias))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = torch.matmul(a.T if trans_a else a, b.T if trans_b else b)
        y = y if alpha == 1.0 else alpha * y
        return y if c is None else y + (c if beta == 1.0 else beta * c)

    return Operation(gemm)


@operator("MatMul")
def _matmul(node: OpNode) -> Operation:
    return Operation(torch.matmul)


def _pool_form(node: OpNode) -> tuple[list[int], list[int], list[int]]:
    kernel = list(node.get("kernel_shape"))
    ones = [1] * len(kernel)
    return kernel, list(node.get("strides", ones)), list(node.get("dilations", ones))


@operator("MaxPool")
def _max_pool(node: OpNode) -> Operation:
    if len([name for name in node.proto.output if name]) > 1:
        raise node.unsupported("it also returns the indices of the maxima")
    kernel, strides, dilations = _pool_form(node)
    ceil_mode = bool(node.get("ceil_mode", 0))

    def pool(x: Tensor) -> Tensor:
        pads = _pads(node, kernel, strides, dilations, x.shape[2:])
        half = len(pads) // 2
        # torch allows padding of at most half the kernel.
        if not _is_symmetric(pads) or any(2 * p > k for p, k in zip(pads, kernel, strict=False)):
            x, pads = _pad(x, pads, value=-math.inf), [0] * len(pads)
        return _MAX_POOL[x.ndim](x, kernel, strides, pads[:half], dilations, ceil_mode)

    return Operation(pool, keeps_grid=True)


@operator("AveragePool")
def _average_pool(node: OpNode) -> Operation:
    kernel, strides, dilations = _pool_form(node)
    if any(d != 1 for d in dilations):
        raise node.unsupported("it is dilated")
    ceil_mode = bool(node.get("ceil_mode", 0))
    counts_pads = bool(node.get("count_include_pad", 0))

    def pool(x: Tensor) -> Tensor:
        pads = _pads(node, kernel, strides, dilations, x.shape[2:])
        half = len(pads) // 2
        average = _AVERAGE_POOL[x.ndim]
        if _is_symmetric(pads) and all(
            2 * p <= k for p, k in zip(pads[:half], kernel, strict=True)
        ):
            return average(x, kernel, strides, pads[:half], ceil_mode, counts_pads)
        y = average(_pad(x, pads), kernel, strides, 0, ceil_mode)
        if counts_pads:
            return y
        share = average(_pad(torch.ones_like(x[:1, :1]), pads), kernel, strides, 0, ceil_mode)
        return y / share

    return Operation(pool)


@operator("GlobalAveragePool")
def _global_average_pool(node: OpNode) -> Operation:
    return Operation(lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True))


@operator("GlobalMaxPool")
def _global_max_pool(node: OpNode) -> Operation:
    return Operation(lambda x: x.amax(dim=tuple(range(2, x.ndim)), keepdim=True), keeps_grid=True)


@operator("BatchNormalization", static=(3, 4))
def _batch_norm(node: OpNode) -> Operation:
    eps = node.get("epsilon", 1e-5)
    mean, var = node.static[3], node.static[4]
    if node.get("training_mode", 0):
        raise node.unsupported("it is in training mode")
    return Operation(lambda x, weight, bias: F.batch_norm(x, mean, var, weight, bias, eps=eps))


@operator("InstanceNormalization")
def _instance_norm(node: OpNode) -> Operation:
    eps = node.get("epsilon", 1e-5)
    return Operation(lambda x, weight, bias: F.instance_norm(x, weight=weight, bias=bias, eps=eps))


@operator("GroupNormalization")
def _group_norm(node: OpNode) -> Operation:
    groups, eps = node.get("num_groups"), node.get("epsilon", 1e-5)
    return Operation(lambda x, weight, bias: F.group_norm(x, groups, weight, bias, eps))


@operator("LayerNormalization")
def _layer_norm(node: OpNode) -> Operation:
    axis, eps = node.get("axis", -1), node.get("epsilon", 1e-5)

    def norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[axis:], weight, bias, eps)

    return Operation(norm)
