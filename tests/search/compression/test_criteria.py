import pytest
import torch
from torch import Tensor, nn

from paredown.evaluators.task import Data
from paredown.hw_profiles.catalog import load_profile
from paredown.search.compression.criteria import CRITERIA, make_criterion, register
from paredown.search.compression.importance import rank_units
from paredown.search.errors import PruningError
from paredown.search.space import SearchSpace, SpaceSettings

NEED_DATA = ("taylor", "hessian")


class Net(nn.Module):
    """Four channels: the first two reach the output, of them the first more; the others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [3.5]]).expand(4, 3))
            self.norm.weight.copy_(torch.tensor([4.0, 1.0, 2.0, 3.0]))
            self.last.weight.copy_(torch.tensor([[2.0, 1.0, 0.0, 0.0], [-2.0, -1.0, 0.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.norm(self.first(x)))
        return output


def data() -> Data:
    rng = torch.Generator().manual_seed(0)
    return Data(torch.randn(64, 3, generator=rng), torch.randint(0, 2, (64,), generator=rng))


@pytest.mark.parametrize("name", list(CRITERIA))
def test_every_criterion_scores_channels(name: str) -> None:
    model = Net().eval()
    criterion = make_criterion(name, model, data())
    found = [
        criterion.scores(module, model.get_submodule(module), side)
        for module, side in (("first", "out"), ("norm", "out"), ("last", "in"))
    ]
    scores = [s for s in found if s is not None]
    assert scores
    for values in scores:
        assert values.shape == (4,)
        assert (values >= 0).all()
    assert sorted(
        rank_units(
            model, [{("first", "out"): (i,), ("last", "in"): (i,)} for i in range(4)], criterion
        )
    ) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("l1", (3, 2, 1, 0)),
        ("l2", (3, 2, 1, 0)),
        ("bn-scale", (0, 3, 2, 1)),
        ("geometric-median", (0, 3, 1, 2)),
    ],
)
def test_order_by_weights(name: str, order: tuple[int, ...]) -> None:
    model = Net()
    places = {"bn-scale": ("norm", "out")}.get(name, ("first", "out"))
    units = [{places: (i,)} for i in range(4)]
    assert rank_units(model, units, make_criterion(name, model)) == order


@pytest.mark.parametrize("name", NEED_DATA)
def test_channels_that_do_not_matter_are_worth_least(name: str) -> None:
    model = Net().eval()
    criterion = make_criterion(name, model, data())
    scores = criterion.scores("first", model.first, "out")
    assert scores is not None
    # Nobody reads the last two, for all their large weights.
    assert scores[2:].max() < 1e-6 * scores[:2].sum()  # rounding, in the Hessian's products
    assert scores[:2].sum() > 0.0


def test_hessian_of_a_square_is_found() -> None:
    model = nn.Linear(3, 1, bias=False)
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    criterion = make_criterion("hessian", model, Data(inputs, torch.zeros(3, 1)))
    # The loss is the mean of (x w)^2 over three samples: second derivatives 2 x^2 / 3.
    scores = criterion.scores("", model, "in")
    assert scores is None  # a module without a name has no parameters by that name
    named = nn.Sequential(model)
    found = make_criterion("hessian", named, Data(inputs, torch.zeros(3, 1))).scores(
        "0", model, "in"
    )
    assert found is not None
    weights = model.weight.detach().double().square()[0]
    expected = torch.tensor([2.0, 8.0, 18.0]).double() / 3 * weights * 4  # four probes are summed
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", NEED_DATA)
def test_a_criterion_of_the_loss_needs_data(name: str) -> None:
    with pytest.raises(PruningError, match=f"'{name}' needs training data"):
        make_criterion(name, Net())


def test_unknown_names_and_double_names_are_refused() -> None:
    with pytest.raises(ValueError, match="one of l1, l2"):
        make_criterion("magnitude", Net())
    with pytest.raises(ValueError, match="'l2' must be unique"):
        register("l2")(lambda model, data: make_criterion("l1", model))


def test_where_a_criterion_says_nothing_the_weights_decide() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    units = [{("0", "out"): (i,), ("1", "in"): (i,)} for i in range(4)]
    assert rank_units(model, units, make_criterion("bn-scale", model)) == rank_units(model, units)


def test_space_orders_channels_by_its_criterion() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
    nn.init.uniform_(model[1].get_parameter("weight"), 0.1, 2.0)
    profile = load_profile("x86-64-v3")
    space = SearchSpace.from_model(
        model, torch.randn(1, 6), profile, SpaceSettings(criterion="bn-scale")
    )
    scales = model[1].get_parameter("weight").detach()
    (plan,) = space.channel_groups
    assert plan.order == tuple(scales.argsort(descending=True).tolist())
