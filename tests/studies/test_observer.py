import pytest

from paredown.studies.observer import StopSignal


def test_interrupt_outside_a_trial_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        StopSignal().interrupt()


def test_first_interrupt_waits_for_the_trial_and_the_second_does_not() -> None:
    said: list[str] = []
    stop = StopSignal(lambda: said.append("waiting"))
    with stop.in_trials():
        stop.interrupt()
        assert stop.is_requested
        assert said == ["waiting"]
        with pytest.raises(KeyboardInterrupt):
            stop.interrupt()


def test_interrupt_at_once_does_not_wait() -> None:
    stop = StopSignal()
    with stop.in_trials(), pytest.raises(KeyboardInterrupt):
        stop.interrupt(at_once=True)


def test_shield_holds_interrupts_back_until_its_end() -> None:
    stop = StopSignal()
    written: list[str] = []

    def write() -> None:
        with stop.shield():
            stop.interrupt()
            stop.interrupt()
            written.append("all")

    with stop.in_trials(), pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["all"]
    assert stop.is_requested
