import os
from pathlib import Path

import pytest

from paredown.evaluators.device_server.facts import device_state, is_emulated

X86 = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 sse2\n"
ARM = "BogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "emulated"),
    [
        ("x86_64", X86, False),
        ("aarch64", ARM, False),
        ("aarch64", X86, True),
        ("x86_64", ARM, True),
        ("aarch64", "", False),
        ("riscv64", X86, False),
    ],
)
def test_an_emulator_shows_the_cpu_of_its_host(machine: str, cpuinfo: str, emulated: bool) -> None:
    assert is_emulated(machine, cpuinfo) is emulated


def test_this_machine_tells_its_state() -> None:
    state = device_state()
    assert state["arch"] == os.uname().machine
    assert not state["emulated"]
    assert state["flags"]
    assert state["load"] is not None
    assert state["running"] is not None
    assert state["running"] >= 1
    assert state["peak_bytes"] is not None
    assert state["peak_bytes"] > 1 << 20


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_a_board_that_is_hot_and_slow(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", ARM)
    for core, (now, governor) in enumerate([("1500000", "ondemand"), ("600000", "performance")]):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        write(tmp_path, f"{folder}/scaling_cur_freq", now)
        write(tmp_path, f"{folder}/cpuinfo_max_freq", "1500000")
        write(tmp_path, f"{folder}/scaling_governor", governor)
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "81500")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "40000")
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005")
    state = device_state(tmp_path)
    assert state["flags"] == ["asimd", "asimddp", "fp"]
    assert state["governors"] == ["ondemand", "performance"]
    assert state["frequency_share"] == pytest.approx(0.4)
    assert state["temperature_c"] == 81.5
    assert state["throttled"] is True
    assert state["load"] is None


def test_throttling_of_the_past_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50000")
    assert device_state(tmp_path)["throttled"] is False
