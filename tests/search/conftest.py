"""Small models that between them have every way channels hang together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paredown.hw_profiles.catalog import load_profile
from paredown.hw_profiles.profile import HardwareProfile


class Residual(nn.Module):
    """A stem, an identity block and a projected block, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.left = nn.Sequential(conv_norm(16, 24), nn.ReLU(), conv_norm(24, 16))
        self.down = nn.Sequential(conv_norm(16, 32, stride=2), nn.ReLU(), conv_norm(32, 32))
        self.skip = nn.Conv2d(16, 32, 1, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.left(x))
        x = torch.relu(self.skip(x) + self.down(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Concat(nn.Module):
    """Branches that are concatenated, then met by a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(3, 24, 1)
        self.mix = nn.Conv2d(40, 40, 3, padding=1)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.a(x)), torch.sigmoid(self.b(x))], 1)
        out: Tensor = self.head((both + self.mix(both)).amax((2, 3)))
        return out


class Separable(nn.Module):
    """A depthwise convolution, squeeze-and-excitation, and flattening before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = conv_norm(3, 32)
        self.depthwise = conv_norm(32, 32, groups=32)
        self.squeeze = nn.Conv2d(32, 16, 1)
        self.excite = nn.Conv2d(16, 32, 1)
        self.project = conv_norm(32, 16)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.depthwise(nn.functional.relu6(self.expand(x))))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.project(x * torch.sigmoid(gate))
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return out


class Grouped(nn.Module):
    """Convolutions and normalisation on blocks of channels, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 1)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(16, 64)
        self.slope = nn.PReLU(64)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.up_grouped = nn.ConvTranspose2d(32, 16, 2, 2, groups=4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.norm(self.grouped(torch.relu(self.first(x)))))
        out: Tensor = self.head(self.up_grouped(torch.relu(self.up(x))).mean((2, 3)))
        return out


class Shuffle(nn.Module):
    """A channel shuffle, which tracing takes for elementwise, between prunable layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.shuffled = nn.Conv2d(32, 32, 1)
        self.last = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shuffled(torch.relu(self.first(x))))
        x = nn.functional.channel_shuffle(x, 4)
        out: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return out


def conv_norm(n_in: int, n_out: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(),
        nn.Linear(24, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concat": Concat,
    "separable": Separable,
    "grouped": Grouped,
    "shuffle": Shuffle,
    "mlp": mlp,
}


@pytest.fixture
def profile() -> HardwareProfile:
    return load_profile("x86-64-v3")


@pytest.fixture
def build() -> Callable[[str], tuple[nn.Module, Tensor]]:
    """Build a model by name, with lively normalisation, and an example input."""

    def make(name: str) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = MODELS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
        shape = (1, 12) if name == "mlp" else (1, 3, 8, 8)
        return model.eval(), torch.randn(shape)

    return make
