from typing import Any, cast

from paredown.evaluators.device_server.facts import DeviceState
from paredown.evaluators.devices.state import hindrances

CALM: dict[str, Any] = {
    "arch": "aarch64", "emulated": False, "flags": [], "load": 0.0, "running": 1,
    "governors": ["performance"], "frequency_share": 1.0, "temperature_c": 45.0,
    "throttled": False, "wait_s": 1.0, "peak_bytes": None,
}  # fmt: skip
UNKNOWN: dict[str, object] = {
    **dict.fromkeys(CALM),
    "governors": [],
    "flags": [],
    "emulated": False,
}


def state(**changes: object) -> DeviceState:
    return cast(DeviceState, {**CALM, **changes})


def test_a_calm_device_has_no_hindrances() -> None:
    assert hindrances(state()) == ()
    assert hindrances(state(), state(), 1.0) == ()


def test_what_a_device_does_not_tell_is_no_hindrance() -> None:
    unknown = cast(DeviceState, UNKNOWN)
    assert hindrances(unknown) == ()
    assert hindrances(unknown, unknown, 1.0) == ()


def test_each_hindrance_is_named_with_its_remedy() -> None:
    (governor,) = hindrances(state(governors=["ondemand", "performance"]))
    assert "governor is 'ondemand'" in governor
    assert "cpupower" in governor
    (throttled,) = hindrances(state(throttled=True))
    assert "throttles" in throttled
    (hot,) = hindrances(state(), state(temperature_c=85.0), 1.0)
    assert "85 degrees" in hot
    (slow,) = hindrances(state(), state(frequency_share=0.5), 1.0)
    assert "50% of its highest" in slow
    (load,) = hindrances(state(running=3))
    assert "2 other process(es)" in load


def test_waiting_counts_in_proportion_to_the_time() -> None:
    assert hindrances(state(), state(wait_s=1.01), 1.0) == ()
    (waited,) = hindrances(state(), state(wait_s=1.1), 1.0)
    assert "waited 10% of the time" in waited
