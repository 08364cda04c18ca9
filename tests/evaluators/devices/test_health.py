from hypothesis import given
from hypothesis import strategies as st

from paredown.evaluators.devices.health import FIRST_REST_S, LONGEST_REST_S, HealthTable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lost_device_rests_and_is_taken_back() -> None:
    clock = Clock()
    table = HealthTable(clock)
    table.was_lost("a:1", "it froze")
    assert table.resting() == {"a:1"}
    assert table.is_lost("a:1")
    clock.now += FIRST_REST_S
    assert table.resting() == frozenset()
    assert table.is_lost("a:1")
    table.has_worked("a:1")
    assert not table.is_lost("a:1")
    (device,) = table.all()
    assert (device.n_jobs, device.n_failures, device.lost_because) == (1, 1, None)


def test_one_device_resting_leaves_the_others() -> None:
    table = HealthTable(Clock())
    table.was_lost("a:1", "x")
    table.has_worked("b:2")
    assert table.resting() == {"a:1"}
    assert [device.address for device in table.all()] == ["a:1", "b:2"]


@given(st.integers(1, 12))
def test_rests_double_up_to_a_limit(n_failures: int) -> None:
    clock = Clock()
    table = HealthTable(clock)
    for _ in range(n_failures):
        table.was_lost("a:1", "x")
    (device,) = table.all()
    rest_s = device.rests_until - clock.now
    assert rest_s == min(FIRST_REST_S * 2 ** (n_failures - 1), LONGEST_REST_S)
    table.has_worked("a:1")
    table.was_lost("a:1", "x")
    assert table.all()[0].rests_until - clock.now == FIRST_REST_S
