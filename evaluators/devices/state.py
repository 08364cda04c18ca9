"""What the state of a device says about measurements on it."""

from __future__ import annotations

from ..device_server.facts import DeviceState

_HOT_C = 80.0  # boards and laptops begin to throttle between 80 and 100 degrees
_SLOW_SHARE = 0.9
_STEADY = frozenset({"performance"})
_WAITING = 0.02


def hindrances(
    state: DeviceState, after: DeviceState | None = None, elapsed_s: float = 0.0
) -> tuple[str, ...]:
    """Return what may spoil a measurement, each in a few words with its remedy.

    Args:
        state: The state before the measurement.
        after: The state after it; without it, what only shows in time is left out.
        elapsed_s: Time between the two.
    """
    worst = state if after is None else after
    notes = []
    unsteady = sorted(set(state["governors"]) - _STEADY)
    if unsteady:
        notes.append(
            f"the frequency governor is '{', '.join(unsteady)}' (set 'performance': "
            "`sudo cpupower frequency-set -g performance`)"
        )
    share = worst["frequency_share"]
    if after is not None and share is not None and share < _SLOW_SHARE:
        notes.append(f"a core ran at {share:.0%} of its highest frequency after the measurement")
    if worst["throttled"]:
        notes.append("the firmware throttles (cooling, or the power supply)")
    temperature = worst["temperature_c"]
    if temperature is not None and temperature >= _HOT_C:
        notes.append(f"it is {temperature:.0f} degrees Celsius hot (cool it)")
    if after is not None:
        before_s, after_s = state["wait_s"], after["wait_s"]
        if before_s is not None and after_s is not None and elapsed_s > 0:
            waited = (after_s - before_s) / elapsed_s
            if waited > _WAITING:
                notes.append(
                    f"the model waited {waited:.0%} of the time for a core (end other work)"
                )
    elif state["running"] is not None and state["running"] > 1:
        notes.append(f"{state['running'] - 1} other process(es) run (end other work)")
    return tuple(notes)
