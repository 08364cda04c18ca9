import subprocess
import sys
from pathlib import Path

import pytest

from paredown.hw_profiles import (
    HardwareProfile,
    ProfileError,
    detect_profile,
    list_profiles,
    load_profile,
    target_features,
)

NAMES = [profile.name for profile in list_profiles()]


def test_catalog_holds_the_generic_devices() -> None:
    assert {"aarch64", "raspberry-pi-4", "x86-64", "x86-64-v3"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("profile", list_profiles(), ids=NAMES)
def test_catalog_profiles_list_every_flag_their_target_uses(profile: HardwareProfile) -> None:
    assert target_features(profile.target) <= set(profile.features)
    assert profile.sources


def test_load_by_name() -> None:
    assert load_profile("x86-64-v3").isa == "avx2"


def test_local_is_this_machine() -> None:
    assert load_profile("local") == detect_profile()


def test_load_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(load_profile("aarch64").to_toml(), "utf-8")
    assert load_profile(path) == load_profile(str(path)) == load_profile("aarch64")


def test_an_unknown_name_brings_the_close_ones() -> None:
    with pytest.raises(ProfileError, match=r"but got 'x86-64-v2'.*'x86-64-v3' or 'x86-64'"):
        load_profile("x86-64-v2")


def test_a_name_like_no_other_brings_them_all() -> None:
    with pytest.raises(ProfileError, match=r"Known: aarch64, .*local, .*x86-64"):
        load_profile("qqq")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.toml: cannot be read .*No such file"):
        load_profile(tmp_path / "nowhere.toml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match=r"broken\.toml: cannot be read"):
        load_profile(path)


def test_the_room_imports_quickly_and_no_framework() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import paredown.hw_profiles; "
        "print(time.perf_counter() - start, *({'torch', 'tvm', 'numpy'} & set(sys.modules)))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, *frameworks = min((run.stdout.split() for run in runs), key=lambda r: float(r[0]))
    assert not frameworks
    assert float(seconds) < 0.3  # 0.04 on a quiet machine
