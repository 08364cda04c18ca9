import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.search.compression.calibration import Histogram


def histogram(*batches: Tensor) -> Histogram:
    result = Histogram()
    for batch in batches:
        result.add(batch)
    return result


def normal(n: int = 100_000, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def squared_error(values: Tensor, grid_of: Histogram, method: str, bits: int) -> float:
    grid = grid_of.grid(bits, method)  # type: ignore[arg-type]  # a parameter of the test
    steps = (values / grid.scale).round() + grid.zero_point
    rounded = (steps.clamp(0, 2**bits - 1) - grid.zero_point) * grid.scale
    return (rounded - values).square().mean().item()


def test_minmax_covers_everything() -> None:
    grid = histogram(torch.tensor([-1.0, 0.5]), torch.tensor([1.55])).grid(8, "minmax")
    assert grid.scale == pytest.approx(0.01)
    assert grid.zero_point == 100


def test_percentile_leaves_one_value_in_ten_thousand_out() -> None:
    values = torch.cat([torch.linspace(0, 1, 100_000), torch.full((5,), 50.0)])
    grid = histogram(values).grid(8, "percentile")
    assert grid.high == pytest.approx(1.0, abs=0.05)
    both = histogram(torch.cat([values, -values])).grid(8, "percentile")
    assert both.high == pytest.approx(1.0, abs=0.05)
    assert both.low == pytest.approx(-1.0, abs=0.05)


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_mse_errs_least(bits: int) -> None:
    values = torch.cat([normal(), torch.tensor([40.0])])
    counted = histogram(values)
    errors = {m: squared_error(values, counted, m, bits) for m in ("mse", "minmax", "percentile")}
    assert errors["mse"] <= min(errors.values()) * 1.02
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_mse_is_near_the_optimum_of_a_full_search() -> None:
    values = normal().relu()
    counted = histogram(values)
    found = squared_error(values, counted, "mse", 4)
    best = min(
        squared_error(values.clamp_max(c), histogram(values.clamp_max(c)), "minmax", 4)
        + (values - values.clamp_max(c)).square().mean().item()
        for c in torch.linspace(1.0, 4.0, 60).tolist()
    )
    assert found < 1.1 * best


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 50.0), min_size=1, max_size=5))
def test_batches_may_come_in_any_size_of_values(sizes: list[float]) -> None:
    """Widening the bins loses no count and never narrows the range."""
    batches = [normal(1000, seed=i) * size for i, size in enumerate(sizes)]
    whole, parts = histogram(torch.cat(batches)), histogram(*batches)
    assert (parts.low, parts.high) == (whole.low, whole.high)
    for method in ("minmax", "percentile", "mse"):
        a, b = whole.grid(8, method), parts.grid(8, method)
        assert a.scale == pytest.approx(b.scale, rel=0.1)


def test_a_dead_tensor_has_a_grid() -> None:
    dead = histogram(torch.zeros(10))
    for method in ("minmax", "percentile", "mse"):
        grid = dead.grid(8, method)
        assert grid.scale > 0
        assert grid.zero_point == 0


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="`method` must be one of"):
        histogram(torch.ones(3)).grid(8, "guess")  # type: ignore[arg-type]  # what is tested
