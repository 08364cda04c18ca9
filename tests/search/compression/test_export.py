import warnings

import onnx
import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.onnx_module import OnnxModule
from paredown.search.compression.export import BaseGraph, ExportError

pytestmark = pytest.mark.slow  # torch's exporter takes a second or more


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_same(module: nn.Module, model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(OnnxModule(model)(inputs), module(inputs), rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.head = nn.Linear(width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        x = nn.functional.adaptive_avg_pool2d(self.depthwise(x), 2)
        out: Tensor = self.head(x.flatten(1))
        return out


def test_the_graph_computes_what_the_model_does() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    exported = BaseGraph.export(model, torch.randn(1, 3, 8, 8)).instantiate(model.state_dict())
    onnx.checker.check_model(exported, full_check=True)
    assert_same(model, exported, (3, 8, 8))


def test_a_narrower_model_goes_into_the_graph_of_a_wider_one() -> None:
    torch.manual_seed(0)
    base = BaseGraph.export(Small(16).eval(), torch.randn(1, 3, 8, 8))
    narrow = Small(5).eval()
    exported = base.instantiate(narrow.state_dict())
    onnx.checker.check_model(exported, full_check=True)
    assert_same(narrow, exported, (3, 8, 8))


@pytest.mark.parametrize(("size", "pooled"), [(10, 7), (4, 7), (9, 2)])
def test_pools_to_sizes_that_do_not_divide_are_exported(size: int, pooled: int) -> None:
    def network(width: int) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(pooled)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * pooled**2, 5)).eval()

    base = BaseGraph.export(network(16), torch.randn(1, 3, size, size))
    for width in (16, 6):
        model = network(width)
        exported = base.instantiate(model.state_dict())
        onnx.checker.check_model(exported, full_check=True)
        assert "GatherND" not in ops(exported)
        assert_same(model, exported, (3, size, size))


class Sloped(nn.Module):
    """The exporter gives the slopes of a PReLU axes of size 1."""

    def __init__(self, width: int, n_slopes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.act = nn.PReLU(n_slopes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x))
        return out


@pytest.mark.parametrize("n_slopes", [1, 7])
def test_parameters_with_more_axes_in_the_graph_are_found(n_slopes: int) -> None:
    torch.manual_seed(0)
    model, narrow = Sloped(7, n_slopes).eval(), Sloped(3, min(n_slopes, 3)).eval()
    for m in (model, narrow):
        nn.init.uniform_(m.act.weight)
    base = BaseGraph.export(model, torch.randn(1, 3, 8, 8))
    assert_same(model, base.instantiate(model.state_dict()), (3, 8, 8))
    assert_same(narrow, base.instantiate(narrow.state_dict()), (3, 8, 8))


def test_layers_are_nodes_with_the_names_of_modules_and_weights_those_of_parameters() -> None:
    model = Small().eval()
    exported = BaseGraph.export(model, torch.randn(1, 3, 8, 8)).instantiate(model.state_dict())
    assert {n.name for n in exported.graph.node} >= {"first", "depthwise", "head"}
    assert {i.name for i in exported.graph.initializer} >= set(model.state_dict())


def test_the_file_tells_nothing_of_where_it_was_made() -> None:
    model = Small().eval()
    exported = BaseGraph.export(model, torch.randn(1, 3, 8, 8)).instantiate(model.state_dict())
    assert __file__.encode() not in exported.SerializeToString()
    assert b"Traceback" not in exported.SerializeToString()
    assert not any(node.metadata_props for node in exported.graph.node)


def test_exporting_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BaseGraph.export(Small().eval(), torch.randn(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")


def test_the_model_stays_as_it_is() -> None:
    model = Small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    BaseGraph.export(model, torch.randn(1, 3, 8, 8))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Equal(nn.Module):
    """Parameters that an exporter could merge or drop: equal ones, ones of zeros and ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norms = nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(6))
        for layer in (self.a, self.b):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norms(self.b(self.a(x).relu()))
        return out


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_equal_parameters_stay_apart(shape: tuple[int, ...]) -> None:
    """Beyond two dimensions the exporter transposes weights; they are found all the same."""
    model = Equal().eval()
    base = BaseGraph.export(model, torch.randn(1, *shape))
    assert_same(model, base.instantiate(model.state_dict()), shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    exported = base.instantiate(model.state_dict())
    assert {i.name for i in exported.graph.initializer} >= set(model.state_dict())
    assert_same(model, exported, shape)


class Buffered(nn.Module):
    """A buffer that is not in the state dict keeps its values."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x) + self.offset
        return out


def test_buffers_outside_the_state_are_constants() -> None:
    model = Buffered().eval()
    base = BaseGraph.export(model, torch.randn(1, 4))
    assert_same(model, base.instantiate(model.state_dict()), (4,))


def test_encoders_are_exported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 16),
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        nn.Linear(16, 3),
    ).eval()
    exported = BaseGraph.export(model, torch.randn(1, 7, 12)).instantiate(model.state_dict())
    assert_same(model, exported, (7, 12))


class Shapes(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        match self.kind:
            case "mean":
                return x.mean((2, 3))
            case "mean_keep":
                return x.mean((-1, -2), keepdim=True)
            case "flatten":
                return x.reshape(len(x), -1)
            case "shuffle":
                n, c, h, w = x.shape
                return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", ["Conv", "GlobalAveragePool", "Flatten"]),
        ("mean_keep", ["Conv", "GlobalAveragePool"]),
        ("flatten", ["Conv", "Flatten"]),
        ("shuffle", ["Conv", "Reshape", "Transpose", "Reshape"]),
        ("tokens", ["Conv", "Reshape", "Transpose"]),
    ],
)
def test_shapes_come_in_forms_that_any_number_of_channels_fits(
    kind: str, expected: list[str]
) -> None:
    torch.manual_seed(0)
    model = Shapes(kind).eval()
    base = BaseGraph.export(model, torch.randn(1, 4, 3, 5))
    exported = base.instantiate(model.state_dict())
    assert ops(exported) == expected
    assert_same(model, exported, (4, 3, 5))
    narrow = Shapes(kind).eval()
    narrow.head = nn.Conv2d(4, 2, 1)
    assert_same(narrow, base.instantiate(narrow.state_dict()), (4, 3, 5))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.first(x))
        return out


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.linalg.inv(x)
        return out


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.fft.fft(x).real
        return out


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (Inverse(), r"operator 'aten\.linalg_inv_ex' has no ONNX form"),
        (Fourier(), r"'DFT' \(module 'inner'\)"),
        (Branch(), r"'return x \* 2 if x\.sum\(\) > 0 else x'.*depends on the values"),
    ],
)
def test_what_cannot_be_exported_is_named(inner: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        BaseGraph.export(Wrapped(inner).eval(), torch.randn(1, 4, 4))


def test_a_state_that_lacks_parameters_is_refused() -> None:
    model = Small().eval()
    base = BaseGraph.export(model, torch.randn(1, 3, 8, 8))
    state = model.state_dict()
    del state["head.bias"]
    with pytest.raises(ExportError, match=r"lacks \['head\.bias'\]"):
        base.instantiate(state)
