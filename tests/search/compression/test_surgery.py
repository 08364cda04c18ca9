from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paredown.search.compression.surgery import channel_dim, is_exact, remove_channels
from paredown.search.errors import PruningError


def test_a_layer_loses_rows_and_columns() -> None:
    layer = nn.Linear(4, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    remove_channels(
        nn.Sequential(layer), {("0", "in"): frozenset({1}), ("0", "out"): frozenset({0, 2})}
    )
    assert torch.equal(layer.weight, weight[[1]][:, [0, 2, 3]])
    assert torch.equal(layer.bias, bias[[1]])
    assert (layer.in_features, layer.out_features) == (3, 1)


def test_a_transposed_convolution_has_its_inputs_first() -> None:
    layer = nn.ConvTranspose2d(4, 6, 2)
    assert (channel_dim(layer, "in"), channel_dim(layer, "out")) == (0, 1)
    assert (channel_dim(nn.Conv2d(1, 1, 1), "in"), channel_dim(nn.Linear(1, 1), "out")) == (1, 0)
    remove_channels(
        nn.Sequential(layer), {("0", "in"): frozenset({1}), ("0", "out"): frozenset({5})}
    )
    assert layer.weight.shape == (3, 5, 2, 2)
    assert layer(torch.zeros(1, 3, 4, 4)).shape == (1, 5, 5, 5)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_grouped_convolution_loses_blocks(
    kind: type[nn.Conv1d] | type[nn.ConvTranspose1d],
) -> None:
    layer = kind(6, 9, 1, groups=3)
    data = torch.randn(1, 6, 5)
    want = layer(data)[:, [0, 1, 2, 6, 7, 8]]
    remove_channels(
        nn.Sequential(layer),
        {("0", "in"): frozenset({2, 3}), ("0", "out"): frozenset({3, 4, 5})},
    )
    assert (layer.groups, layer.in_channels, layer.out_channels) == (2, 4, 6)
    torch.testing.assert_close(layer(data[:, [0, 1, 4, 5]]), want)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, affine=False),
        nn.InstanceNorm1d(6, affine=True),
        nn.InstanceNorm1d(6, track_running_stats=True),
        nn.GroupNorm(3, 6),
        nn.PReLU(6),
        nn.PReLU(),
    ],
)
def test_normalisation_of_the_channels_that_stay_is_the_same(norm: nn.Module) -> None:
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    norm.eval()
    data = torch.randn(2, 6, 5)
    want = norm(data)[:, [0, 1, 4, 5]]
    remove_channels(nn.Sequential(norm), {("0", "out"): frozenset({2, 3})})
    torch.testing.assert_close(norm(data[:, [0, 1, 4, 5]]), want)


def test_frozen_parameters_stay_frozen() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    remove_channels(nn.Sequential(layer), {("0", "out"): frozenset({0})})
    assert not layer.weight.requires_grad


def test_other_modules_are_refused() -> None:
    with pytest.raises(PruningError, match="but '0' is a LayerNorm"):
        remove_channels(nn.Sequential(nn.LayerNorm(4)), {("0", "out"): frozenset({0})})


def test_exactness_is_seen_whatever_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    right = {("0", "out"): frozenset({1}), ("2", "in"): frozenset({1})}
    wrong = {("0", "out"): frozenset({1}), ("2", "in"): frozenset({2})}
    unfit = {("0", "out"): frozenset({1})}
    data = torch.zeros(1, 4)
    assert is_exact(model, data, right)
    assert not is_exact(model, data, wrong)
    assert not is_exact(model, data, unfit)
    assert not any(parameter.any() for parameter in model.parameters())


def test_integer_inputs_are_kept() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    right = {("1", "out"): frozenset({1}), ("3", "in"): frozenset({1})}
    assert is_exact(model, torch.tensor([[7]]), right)


def test_a_model_with_more_than_one_output_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(PruningError, match="must return one tensor, but it returned tuple"):
        is_exact(Pair(), torch.zeros(1, 4), {})
