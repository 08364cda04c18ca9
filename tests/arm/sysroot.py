"""Build a root file system of 64-bit Arm: Python, TVM's runtime, an emulator, a linker.

    python tests/arm/sysroot.py [FOLDER]

Needs a Debian 12 host (for its apt sources), but no privileges, and changes nothing outside the
folder: packages are downloaded with a private state of apt and only unpacked. Takes half a minute,
downloads 190 MB and leaves 180 MB. The folder may be moved or kept in a cache; the tests find it
under `PAREDOWN_ARM_SYSROOT`, or in the user's cache folder.

What is in it:

- `python`: the device's Python, run by the emulator as the CPU that `ARM_CPU` names (`max`)
- `bin/aarch64-linux-gnu-ld`: links shared libraries for the device, on this machine
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_FORMAT = "1"  # of the folder; another one is built anew

# The device's packages. Python's other dependencies are not needed to run TVM.
_DEVICE = (
    *("libc6", "libexpat1", "libffi8", "libgcc-s1", "libstdc++6", "zlib1g"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
_EMULATOR = ("qemu-user-static", "./usr/bin/qemu-aarch64-static", "bin/qemu-aarch64-static")
# Of the linkers, gold alone needs no private library of binutils.
_LINKER = (
    "binutils-aarch64-linux-gnu",
    "./usr/bin/aarch64-linux-gnu-ld.gold",
    "bin/aarch64-linux-gnu-ld",
)
# In the versions of this machine, so that a library means the same on both sides.
_SHARED = ("apache-tvm", "apache-tvm-ffi", "ml-dtypes", "numpy", "typing-extensions")
# What TVM's RPC server imports besides, and this machine may lack.
_SERVER = ("cloudpickle==3.1.2", "psutil==7.2.2")
# What a device does not need, by the start of its path.
_LEFT_OUT = (
    *("tvm/lib/libtvm_compiler.so", "tvm/lib/libtvm_runtime_cuda.so"),
    *("tvm/include/", "tvm/3rdparty/", "tvm/src/"),
)

# There is no binfmt_misc in a container: what starts `sys.executable` must find a file that this
# machine can run, so the script stands for the interpreter. The paths that Python gets are whole
# ones, since the emulator falls back to this machine's files where the root has none.
_PYTHON = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
unset LD_LIBRARY_PATH LD_PRELOAD
export TVM_USE_RUNTIME_LIB=1 PYTHONNOUSERSITE=1 PYTHONHOME="$here/system/usr"
export PYTHONPATH="$here/system/site${ARM_PYTHONPATH:+:$ARM_PYTHONPATH}"
export ARM_PYTHON="$here/python" ARM_ROOT="$here/system"
exec "$here/bin/qemu-aarch64-static" -cpu "${ARM_CPU:-max}" -L "$here/system" -0 "$here/python" \\
  "$here/system/usr/bin/python3.11" "$@"
"""
_SITE = """import os
import sys

if os.environ.get("ARM_PYTHON"):
    sys.executable = sys._base_executable = os.environ["ARM_PYTHON"]
    root = os.environ["ARM_ROOT"]
    sys.path[:] = [p for p in sys.path if p.startswith(root) or not p.startswith("/usr")]
"""


class SysrootError(Exception):
    """The root file system could not be built."""


def default_folder() -> Path:
    """Return where the tests look: `PAREDOWN_ARM_SYSROOT`, or in the user's cache folder."""
    if own := os.environ.get("PAREDOWN_ARM_SYSROOT"):
        return Path(own)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "paredown" / "arm-sysroot"


def stamp() -> str:
    """Return what a folder must be made of to be usable with this machine's packages."""
    return "\n".join([_FORMAT, *_wheels(), ""])


def _wheels() -> list[str]:
    """Return the device's Python packages with their versions."""
    return [*(f"{name}=={version(name)}" for name in _SHARED), *_SERVER]


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a root file system that this module has built, and no older one."""
    try:
        return (folder / "stamp").read_text() == stamp()
    except OSError:
        return False


def build(folder: Path) -> None:
    """Build the root file system, unless it is there already.

    Raises:
        SysrootError: If this machine is no Debian 12 on x86-64, or a download fails.
    """
    if is_complete(folder):
        return
    _check_host()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: an interrupted build leaves nothing that looks complete.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".arm-") as work:
        made = Path(work) / "made"
        downloads = Path(work) / "downloads"
        (made / "bin").mkdir(parents=True)
        downloads.mkdir()
        _unpack_packages(made, _download_packages(downloads))
        _unpack_wheels(made / "system" / "site", _download_wheels(downloads))
        _write_script(made / "python", _PYTHON)
        (made / "system" / "site" / "sitecustomize.py").write_text(_SITE)
        _byte_compile(made)
        (made / "stamp").write_text(stamp())
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def _check_host() -> None:
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        raise SysrootError(
            "The root file system is put together on x86-64 Debian or its like, but this machine "
            f"is {platform.system()} on {platform.machine()}. Build it there and copy the folder."
        )


def _run(command: Sequence[str | Path], cwd: Path | None = None, tries: int = 1) -> None:
    """Run a command, several times if it fails: networks do."""
    for attempt in range(1, tries + 1):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        if attempt < tries:
            time.sleep(5 * attempt)
    words = " ".join(map(str, command))
    raise SysrootError(f"`{words}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def _download_packages(folder: Path) -> dict[str, Path]:
    """Download Debian packages; return their files by name."""
    state = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "Dir::State::Lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
        "APT::Architecture": "amd64",
        "APT::Architectures::": "arm64",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",
    }
    apt: list[str | Path] = ["apt-get", "-qq", "-o", "APT::Architectures::=amd64"]
    apt += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _run([*apt, "update"], tries=3)
    names = [*(f"{n}:arm64" for n in _DEVICE), *(f"{n}:amd64" for n in (_EMULATOR[0], _LINKER[0]))]
    _run([*apt, "download", *names], cwd=folder, tries=3)
    return {file.name.partition("_")[0]: file for file in folder.glob("*.deb")}


def _unpack_packages(made: Path, packages: dict[str, Path]) -> None:
    root = made / "system"
    for name in _DEVICE:
        _run(["dpkg", "-x", packages[name], root])
    for part in ("doc", "man", "lintian"):
        shutil.rmtree(root / "usr" / "share" / part, ignore_errors=True)
    for package, member, target in (_EMULATOR, _LINKER):
        # The one file that is needed out of some 280 MB.
        with subprocess.Popen(
            ["dpkg", "--fsys-tarfile", packages[package]], stdout=subprocess.PIPE
        ) as archive:
            _run_tar(archive, member, made / target)


def _run_tar(archive: subprocess.Popen[bytes], member: str, target: Path) -> None:
    with target.open("wb") as file:
        done = subprocess.run(
            ["tar", "-xO", member], stdin=archive.stdout, stdout=file, check=False
        )
    if done.returncode or not target.stat().st_size:
        raise SysrootError(f"Package of '{target.name}' must hold '{member}', but does not.")
    target.chmod(0o755)


def _download_wheels(folder: Path) -> list[Path]:
    """Download the device's Python packages."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 24, 17)]
    platforms.append("manylinux2014_aarch64")
    command: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", folder, "--implementation", "cp", "--python-version", "3.11"]
    command += [word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)]
    command += [word for name in platforms for word in ("--platform", name)]
    _run([*command, *_wheels()], tries=3)
    return list(folder.glob("*.whl"))


def _unpack_wheels(site: Path, wheels: Sequence[Path]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                name
                for name in archive.namelist()
                if not name.startswith(_LEFT_OUT) and "/tests/" not in name
            ]
            archive.extractall(site, members)


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _byte_compile(made: Path) -> None:
    """Compile Python's files ahead: emulated, that takes longer than any test."""
    is_same = sys.version_info[:2] == (3, 11)
    python: str | Path = sys.executable if is_same else made / "python"
    # Hashes instead of times, and unchecked: the folder is renamed, and nobody edits it.
    folders = (made / "system" / "usr" / "lib" / "python3.11", made / "system" / "site")
    subprocess.run(
        [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *folders],
        capture_output=True,
        check=False,  # a few files of TVM are templates and no Python
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    try:
        build(target.absolute())
    except SysrootError as error:
        sys.exit(str(error))
    print(target)
