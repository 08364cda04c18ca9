import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paredown.evaluators.device_server.energy import EnergyMeter, Sampler


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the GPU of the machine that runs the tests."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, object], None]:
    def write(name: str, value: object) -> None:
        path = tmp_path / "sys/class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    return write


def test_counters_of_whole_packages_are_added(
    tmp_path: Path, write: Callable[[str, object], None]
) -> None:
    for zone, span in (("intel-rapl:0", 10_000_000), ("intel-rapl:1", 4_000_000)):
        write(f"powercap/{zone}/max_energy_range_uj", span)
        write(f"powercap/{zone}/energy_uj", 3_000_000)
    write("powercap/intel-rapl:0:0/max_energy_range_uj", 10_000_000)
    write("powercap/intel-rapl:0:0/energy_uj", 0)
    write("powercap/intel-rapl/enabled", 1)
    meter = EnergyMeter(tmp_path)
    assert meter.is_there
    meter.start()
    write("powercap/intel-rapl:0/energy_uj", 3_500_000)
    write("powercap/intel-rapl:1/energy_uj", 1_000_000)  # it has run over
    write("powercap/intel-rapl:0:0/energy_uj", 999_999)
    assert meter.stop() == pytest.approx(500 + 2000)


def test_a_counter_that_may_not_be_read_is_left_out(
    tmp_path: Path, write: Callable[[str, object], None]
) -> None:
    write("powercap/intel-rapl:0/max_energy_range_uj", 10_000_000)
    meter = EnergyMeter(tmp_path)
    assert not meter.is_there
    meter.start()
    assert meter.stop() is None


def write_sensor(
    write: Callable[[str, object], None], chip: int, channel: int, label: str, mv: int, ma: int
) -> None:
    write(f"hwmon/hwmon{chip}/name", "ina3221")
    write(f"hwmon/hwmon{chip}/in{channel}_label", label)
    write(f"hwmon/hwmon{chip}/in{channel}_input", mv)
    write(f"hwmon/hwmon{chip}/curr{channel}_input", ma)


def energy_mj(root: Path, seconds: float = 0.1) -> float:
    """Measure for a time; return the energy that the meter told in that of a second."""
    meter = EnergyMeter(root)
    start = time.monotonic()
    meter.start()
    time.sleep(seconds)
    used = meter.stop()
    assert used is not None
    return used / (time.monotonic() - start)


def test_a_jetson_is_measured_where_its_power_comes_in(
    tmp_path: Path, write: Callable[[str, object], None]
) -> None:
    write_sensor(write, 1, 1, "VDD_IN", 5000, 2000)
    write_sensor(write, 1, 2, "VDD_CPU_GPU_CV", 5000, 400)
    write("hwmon/hwmon0/name", "thermal-fan")
    assert energy_mj(tmp_path) == pytest.approx(10_000, rel=0.2)


def test_without_such_a_rail_all_rails_are_added(
    tmp_path: Path, write: Callable[[str, object], None]
) -> None:
    write_sensor(write, 1, 1, "VDD_GPU_SOC", 20_000, 100)
    write_sensor(write, 1, 2, "VDD_CPU_CV", 20_000, 50)
    write_sensor(write, 2, 3, "VIN_SYS_5V0", 5_000, 200)
    write_sensor(write, 2, 2, "NC", 5_000, 999)
    assert energy_mj(tmp_path) == pytest.approx(4000, rel=0.2)


def test_power_that_changes_is_added_up() -> None:
    start = time.monotonic()
    sampler = Sampler(lambda: 1000.0 * (time.monotonic() - start))  # grows by 1 W in a second
    sampler.start()
    time.sleep(0.2)
    used = sampler.stop()
    elapsed = time.monotonic() - start
    assert used == pytest.approx(1000.0 * elapsed**2 / 2, rel=0.2)
    assert sampler.stop() is None


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert not meter.is_there
    assert meter.stop() is None
