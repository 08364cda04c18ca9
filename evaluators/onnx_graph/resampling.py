"""The axes that a Resize or Upsample node of the graph changes."""

from __future__ import annotations

from ..onnx_resize import Sampling, Taps, axis_scales
from .graph import Graph, Node


def resampled_axes(graph: Graph, node: Node) -> dict[int, Taps] | None:
    """Return the taps of every axis that a Resize or Upsample node changes.

    None if it takes its output from a region, or its scales are not constant.
    """
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    scales = _scales(graph, node)
    if scales is None or node.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return None
    # Upsample and the Resize of opset 10 have scales alone.
    is_old = node.op == "Upsample" or len(node.inputs) == 2
    sampling = Sampling.of(node.attributes, is_old=is_old)
    return {
        axis: sampling.taps(scale, before[axis], after[axis])
        for axis, scale in scales.items()
        if after[axis] != before[axis] or scale != 1
    }


def _scales(graph: Graph, node: Node) -> dict[int, float] | None:
    """Return the factor of each axis that the node names."""
    before = graph.shape(node.inputs[0])
    if "scales" in node.attributes:
        return axis_scales(node.attributes, before, list(node.attributes["scales"]), None)
    has_sizes = len(node.inputs) > 3 and node.inputs[3] != ""
    values = graph.constant(node.inputs[3 if has_sizes else min(2, len(node.inputs) - 1)])
    if values is None:
        return None
    if has_sizes:
        return axis_scales(node.attributes, before, None, values.tolist())
    return axis_scales(node.attributes, before, values.astype(float).tolist(), None)
