from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paredown.search.compression.units import ChannelForest, merge_units

IDXS = st.integers(0, 9)


def test_units_with_the_same_places_are_one_group() -> None:
    forest = ChannelForest()
    for idx in (2, 0, 1):
        forest.join(("conv1", "out", idx), ("conv2", "in", idx))
    forest.join(("conv1", "out", 3), ("conv3", "in", 0))
    forest.find(("conv2", "in", 7))  # nothing produces it
    assert forest.groups(["conv1", "conv2"]) == [
        [{("conv1", "out"): (idx,), ("conv2", "in"): (idx,)} for idx in range(3)],
        [{("conv1", "out"): (3,), ("conv3", "in"): (0,)}],
    ]


def test_a_block_is_one_unit() -> None:
    forest = ChannelForest()
    forest.join(("conv", "out", 1), ("conv", "out", 0))
    forest.join(("conv", "out", 0), ("fc", "in", 5))
    assert forest.groups(["conv"]) == [[{("conv", "out"): (0, 1), ("fc", "in"): (5,)}]]


@given(st.lists(st.tuples(IDXS, IDXS)))
def test_joining_is_an_equivalence(pairs: list[tuple[int, int]]) -> None:
    forest = ChannelForest()
    sets = {idx: {idx} for idx in range(10)}
    for one, other in pairs:
        forest.join(("m", "out", one), ("m", "out", other))
        for member in sets[one] | sets[other]:
            sets[member] = sets[one] | sets[other] | sets[member]
    for one in range(10):
        for other in range(10):
            together = forest.find(("m", "out", one)) == forest.find(("m", "out", other))
            assert together == (other in sets[one])


def test_membership() -> None:
    forest = ChannelForest()
    assert ("m", "out", 0) not in forest
    forest.find(("m", "out", 0))
    assert ("m", "out", 0) in forest


def test_merging_units() -> None:
    one = {("a", "out"): (0, 1), ("b", "in"): (0,)}
    other = {("a", "out"): (1, 3)}
    assert merge_units([one, other]) == {
        ("a", "out"): frozenset({0, 1, 3}),
        ("b", "in"): frozenset({0}),
    }
