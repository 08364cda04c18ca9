from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paredown.search.errors import SpaceError
from paredown.search.layers import LayerTrace, eval_mode, trace_layers


class Twice(nn.Module):
    """Runs its layers out of the order of their names, one of them twice and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(self.b(input=self.b(x)))
        return out


def test_layers_come_in_the_order_they_run() -> None:
    assert trace_layers(Twice(), torch.zeros(2, 4)) == (
        LayerTrace("b", "linear", (4, 4), 2 * 16, (2, 4)),
        LayerTrace("a", "linear", (3, 4), 12, (2, 3)),
    )


@pytest.mark.parametrize(
    ("layer", "kind", "macs", "side"),
    [
        (nn.Conv2d(8, 16, 3), "conv", 16 * 6 * 6 * 8 * 9, 6),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), "conv", 16 * 4 * 4 * 2 * 9, 4),
        (nn.Conv2d(8, 8, 3, dilation=2, groups=8), "depthwise", 8 * 4 * 4 * 9, 4),
        (nn.Conv2d(8, 16, 3, groups=8), "depthwise", 16 * 6 * 6 * 9, 6),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), "conv_transpose", 8 * 8 * 8 * 4 * 4, 16),
    ],
)
def test_kind_and_operations_of_a_convolution(
    layer: nn.Conv2d | nn.ConvTranspose2d, kind: str, macs: int, side: int
) -> None:
    (trace,) = trace_layers(layer, torch.zeros(2, 8, 8, 8))
    assert (trace.kind, trace.macs) == (kind, macs)
    assert trace.output_shape == (2, layer.out_channels, side, side)


def test_failure_names_the_module_and_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 1)))
    with pytest.raises(SpaceError, match=r"module '1.1' \(Linear\) failed"):
        trace_layers(model, torch.zeros(1, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_eval_mode_restores_each_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[1].eval()
    with eval_mode(model):
        assert not model[0].training
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
