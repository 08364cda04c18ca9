from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.task import Data, Task
from paredown.evaluators.tvm.packing import ConvGeometry, proved_runs, segment
from paredown.hw_profiles.profile import HardwareProfile
from paredown.search.compression.accumulation import bound_sums, bound_weight
from paredown.search.compression.compressor import CompressionSettings, Compressor
from paredown.search.compression.quantizer import quantize_weight, weight_scales
from paredown.search.space import SearchSpace


def proved(values: torch.Tensor, data_max: int) -> int:
    weights = values.numpy()
    oc, ic, kh, kw = weights.shape
    geometry = ConvGeometry(ic=ic, icp=ic, oc=oc, kernel=(kh, kw))
    return int(proved_runs(segment(weights, geometry, 8).values, data_max).min())


def weights(bits: int, ic: int = 16, kernel: int = 3) -> torch.Tensor:
    top = 2 ** (bits - 1) - 1
    rng = torch.Generator().manual_seed(bits)
    return torch.randint(-top, top + 1, (8, ic, kernel, kernel), generator=rng).to(torch.int8)


@pytest.mark.parametrize("data_max", [127, 255])
@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("run", [1, 2, 4, 8])
def test_the_wanted_run_is_proved(bits: int, run: int, data_max: int) -> None:
    values = weights(bits)
    bounded = bound_sums(values, run, data_max)
    assert proved(bounded, data_max) >= run
    assert (bounded.abs() <= values.abs()).all()
    assert (bounded.sign() * values.sign() >= 0).all()


@pytest.mark.parametrize("run", [1, 2, 8])
def test_channels_take_the_scale_that_the_bound_asks_for(run: int) -> None:
    weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0] *= 0.01
    weight[0, 0, 0, 0] = 3.0  # one large weight alone: no sum of the channel is near the bound
    rounded = quantize_weight(weight, weight_scales(weight, 8, 0, search=False), 8, 0)
    bounded = bound_weight(rounded, weight, run, 255)
    assert proved(bounded.values, 255) >= run
    assert torch.equal(bounded.values[0], rounded.values[0])
    assert bounded.scale[0] == rounded.scale[0]
    assert (bounded.scale[1:] > rounded.scale[1:]).sum() >= 3
    cut = replace(rounded, values=bound_sums(rounded.values, run, 255))
    errors = [(q.dequantize() - weight)[1:].square().sum() for q in (bounded, cut)]
    assert errors[0] < 0.5 * errors[1]


def test_weights_that_keep_the_bound_stay() -> None:
    values = weights(4)
    assert proved(values, 255) >= 4
    assert torch.equal(bound_sums(values, 4, 255), values)


def test_hand_computed_case() -> None:
    # One lane has the first two of each four: 100 + 60 may be 128 at most, so both lose 16.
    values = torch.tensor([[100, 60, 5, -7]], dtype=torch.int8)
    assert bound_sums(values, 1, 255).tolist() == [[84, 44, 5, -7]]


@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99)
)
def test_any_shape_keeps_its_form(oc: int, ic: int, kernel: int, run: int, seed: int) -> None:
    values = torch.from_numpy(
        np.random.default_rng(seed).integers(-127, 128, (oc, ic, kernel, kernel)).astype(np.int8)
    )
    bounded = bound_sums(values, run, 255)
    assert bounded.shape == values.shape
    assert bounded.dtype == torch.int8
    assert (bounded.abs() <= values.abs()).all()


@pytest.mark.slow  # the model is exported
def test_depthwise_layers_are_spared(
    build: Callable[[str], tuple[torch.nn.Module, torch.Tensor]], profile: HardwareProfile
) -> None:
    model, example = build("separable")
    inputs = torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    task = Task("test", model, example, inputs, Data.from_model(model, inputs))
    space = SearchSpace.from_model(model, example, profile)
    plain, bounded = (
        Compressor(task, space, CompressionSettings(accumulation_run=run)).compress(
            space.uniform(8)
        )
        for run in (None, 8)
    )
    graphs = [
        {t.name: onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer}
        for found in (plain, bounded)
    ]
    changed = set()
    for node in plain.model.graph.node:
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            name = f"{node.name}.weight.quantized"
            changed.add((groups > 1, not np.array_equal(graphs[0][name], graphs[1][name])))
    assert changed == {(False, True), (True, False)}
