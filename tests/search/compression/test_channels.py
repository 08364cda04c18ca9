from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paredown.search.compression.channels import ChannelGroup, find_channel_groups
from paredown.search.errors import PruningError
from paredown.search.layers import trace_layers

Build = Callable[[str], tuple[nn.Module, Tensor]]


def find(model: nn.Module, data: Tensor) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
    names = [trace.name for trace in trace_layers(model, data)]
    groups, refused = find_channel_groups(model, data, names)
    return {group.name: group for group in groups}, refused


def sizes(groups: dict[str, ChannelGroup]) -> dict[str, tuple[int, int, tuple[str, ...]]]:
    return {name: (g.channels, g.unit_size, g.layers) for name, g in groups.items()}


def test_residual_additions_join_their_producers(build: Build) -> None:
    groups, refused = find(*build("residual"))
    assert sizes(groups) == {
        "stem.0": (16, 1, ("stem.0", "left.2.0")),
        "left.0.0": (24, 1, ("left.0.0",)),
        "skip": (32, 1, ("skip", "down.2.0")),
        "down.0.0": (32, 1, ("down.0.0",)),
    }
    assert refused == {"head": "its outputs are the model's output"}
    assert groups["stem.0"].units[3] == {
        ("stem.0", "out"): (3,),
        ("stem.1", "out"): (3,),
        ("left.0.0", "in"): (3,),
        ("left.2.0", "out"): (3,),
        ("left.2.1", "out"): (3,),
        ("skip", "in"): (3,),
        ("down.0.0", "in"): (3,),
    }


def test_concatenation_divides_the_channels_that_are_added_to_it(build: Build) -> None:
    groups, _ = find(*build("concat"))
    assert sizes(groups) == {"a": (16, 1, ("a", "mix")), "b": (24, 1, ("b", "mix"))}
    assert groups["b"].units[0][("mix", "out")] == (16,)


def test_depthwise_gates_and_flattening_follow_their_producer(build: Build) -> None:
    groups, _ = find(*build("separable"))
    assert sizes(groups) == {
        "expand.0": (32, 1, ("expand.0", "depthwise.0", "excite")),
        "squeeze": (16, 1, ("squeeze",)),
        "project.0": (16, 1, ("project.0",)),
    }
    assert groups["project.0"].units[2][("head", "in")] == tuple(range(32, 48))


def test_grouped_layers_follow_their_producer_in_blocks(build: Build) -> None:
    groups, _ = find(*build("grouped"))
    assert sizes(groups) == {
        "first": (32, 4, ("first", "grouped")),
        "up": (32, 8, ("up", "up_grouped")),
    }
    assert groups["first"].units[1][("grouped", "out")] == tuple(range(8, 16))


def test_a_wrongly_traced_shuffle_is_found_out(build: Build) -> None:
    groups, refused = find(*build("shuffle"))
    assert sorted(groups) == ["first", "last"]
    assert refused["shuffled"] == "removing its channels changes more than they do"


def test_a_linear_chain(build: Build) -> None:
    groups, _ = find(*build("mlp"))
    assert sizes(groups) == {"0": (32, 1, ("0",)), "3": (24, 1, ("3",))}


class Tangled(nn.Module):
    """Channels that must stay: met by the input, a bare parameter, a mean, a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.meets_input = nn.Linear(16, 16)
        self.meets_parameter = nn.Linear(16, 16)
        self.offset = nn.Parameter(torch.ones(16))
        self.meets_mean = nn.Linear(16, 16)
        self.meets_norm = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.free = nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.meets_input(x)
        x = torch.relu(self.meets_parameter(x) + self.offset)
        x = torch.relu(self.meets_mean(x))
        x = self.meets_norm(x - x.mean(1, keepdim=True))
        out: Tensor = self.last(torch.relu(self.free(torch.relu(self.norm(x)))))
        return out


def test_what_cannot_be_handled_stays_and_says_why() -> None:
    groups, refused = find(Tangled(), torch.randn(1, 16))
    assert list(groups) == ["free"]
    assert refused == {
        "meets_input": "removing its channels changes more than they do",
        "meets_parameter": "a parameter that belongs to no layer goes with its channels",
        "meets_mean": "removing its channels changes more than they do",
        "meets_norm": "'norm' (LayerNorm) cannot lose channels",
        "last": "its outputs are the model's output",
    }


class Halves(nn.Module):
    """Two layers that read different channels of a third."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 32, 1)
        self.a = nn.Conv2d(16, 8, 1)
        self.b = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.relu(self.both(x)).split((16, 16), 1)
        out: Tensor = self.a(first) + self.b(second)
        return out


def test_a_split_of_fixed_size_keeps_its_channels() -> None:
    groups, refused = find(Halves(), torch.randn(1, 3, 4, 4))
    assert groups == {}
    assert sorted(refused) == ["a", "both"]


def test_the_most_important_channels_stay(build: Build) -> None:
    model, data = build("mlp")
    loud = [5, 0, 17]
    with torch.no_grad():
        first = model.get_submodule("0")
        assert isinstance(first, nn.Linear)
        first.weight[loud] *= 100
    groups, _ = find(model, data)
    removed = {unit["0", "out"][0] for unit in groups["0"].removed(3)}
    assert removed == set(range(32)) - set(loud)


class Detached(nn.Module):
    """Leaves the graph that tracing follows."""

    def __init__(self, result: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.result = result

    def forward(self, x: Tensor) -> object:
        return self.result(self.layer(x).detach())


def test_layers_outside_the_graph_stay() -> None:
    groups, refused = find(Detached(torch.relu), torch.zeros(1, 4))
    assert groups == {}
    assert "its channels cannot be followed" in refused["layer"]


def test_a_model_that_cannot_be_traced_is_an_error() -> None:
    with pytest.raises(PruningError, match=r"tracing 'Detached' failed.*`max_pruning_ratio` to 0"):
        find(Detached(lambda x: object()), torch.zeros(1, 4))
