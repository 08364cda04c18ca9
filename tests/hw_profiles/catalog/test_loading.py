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
    with pytest.raises(ProfileError, match=r"Known: .*aarch64, .*local, .*x86-64"):
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


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_file_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine.toml",
        'base = "aarch64"\nname = "mine"\ncores = 2\n[target]\nmcpu = "cortex-a72"\n',
    )
    base = load_profile("aarch64")
    mine = load_profile(path)
    assert (mine.name, mine.cores) == ("mine", 2)
    assert mine.target == {**base.target, "mcpu": "cortex-a72"}
    assert (mine.features, mine.isa, mine.sources) == (base.features, base.isa, base.sources)


def test_a_base_may_be_a_file_beside_it_that_has_a_base(tmp_path: Path) -> None:
    write(tmp_path, "board.toml", 'base = "aarch64"\nname = "board"\ncores = 8\n')
    path = write(tmp_path, "mine.toml", 'base = "./board.toml"\nname = "mine"\nthreads = 3\n')
    mine = load_profile(path)
    assert (mine.name, mine.cores, mine.threads) == ("mine", 8, 3)


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "b.toml", 'base = "./a.toml"\nname = "b"\n')
    path = write(tmp_path, "a.toml", 'base = "./b.toml"\nname = "a"\n')
    with pytest.raises(ProfileError, match=r"a\.toml: `base` must not lead back"):
        load_profile(path)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('base = "aarch65"', r"mine\.toml: .*but got 'aarch65'.*Did you mean 'aarch64'"),
        ("base = 3", "`base` must be the name of a profile, but got 3"),
        ('base = "aarch64"\ncore = 2', r"mine\.toml: .*`core` \(Did you mean 'cores'"),
        ('base = "aarch64"\ntarget = 2', "`target` must be a table, but got 2"),
    ],
)
def test_faults_of_an_inheriting_file_are_named(tmp_path: Path, line: str, match: str) -> None:
    path = write(tmp_path, "mine.toml", f'name = "mine"\n{line}\n')
    with pytest.raises(ProfileError, match=match):
        load_profile(path)


def test_a_connection_may_follow_the_name(tmp_path: Path) -> None:
    assert load_profile("aarch64@rpc://pi:9090").connection == "rpc://pi:9090"
    assert load_profile("aarch64@compile-only").connection == "compile-only"
    path = write(tmp_path, "me@home.toml", load_profile("aarch64").to_toml())
    assert load_profile(path) == load_profile("aarch64")
    assert load_profile(f"{path}@tracker://lab:9190/pi").connection == "tracker://lab:9190/pi"
    with pytest.raises(ProfileError, match="`connection` must be"):
        load_profile("aarch64@ftp://pi:9090")
