"""Keep ONNX Runtime and OpenVINO from instructions that a profile lacks but this machine has.

Both ask the `cpuid` instruction, at many places, what the CPU has, and ONNX Runtime knows no
switch; few CPUs let the kernel answer in its place. So the peers run from copies of their packages
in which every `cpuid` is marked by an invalid instruction, and a preloaded library answers the
SIGILL that follows, less the bits of what is hidden (`limited_isa.c`). They then choose their
kernels as they do on a CPU that has no more: nothing else in them changes.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from paredown.hw_profiles import HardwareProfile, load_profile

# Libraries that choose kernels; the others ask for the sizes of caches at most.
_LIBRARIES = MappingProxyType(
    {
        "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
        "openvino": ("libs/libopenvino.so*", "libs/libopenvino_intel_cpu_plugin.so"),
    }
)
_CPUID, _MARK = b"\x0f\xa2", b"\x37\xa2"
_AVX2_EBX = 0x208CFFFF  # of leaf 7: all but AVX-512, its instructions for integers among them
_AVX512_EBX = _AVX2_EBX | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31  # F DQ CD BW VL
# What the peers see of leaf 7: EBX and ECX of its part 0 (EDX is nothing), EAX of its part 1.
_KEPT = MappingProxyType(
    {
        "avx2": (_AVX2_EBX, 0, 0),
        "avxvnni": (_AVX2_EBX, 0, 1 << 4),
        "avx512": (_AVX512_EBX, 0, 0),
        "avx512vnni": (_AVX512_EBX, 1 << 11, 0),
    }
)


def limit_peers(profile: HardwareProfile, folder: Path) -> str | None:
    """Let processes that start from now on run peers without what the profile lacks.

    Args:
        profile: The device whose instruction set they get.
        folder: Where the copies go; it must last as long as the processes.

    Returns:
        The instruction set that the peers are limited to, or `None` if that is this machine's.

    Raises:
        ValueError: If peers cannot be limited to the profile's.
    """
    if profile.isa == load_profile("local").isa:
        return None
    if profile.isa not in _KEPT:
        raise ValueError(
            f"The instruction set of a profile that is not this machine's must be one of "
            f"{', '.join(_KEPT)}, but '{profile.name}' has '{profile.isa}'. Use `--profile local`."
        )
    library = folder / "limited_isa.so"
    _compile(library, *_KEPT[profile.isa])
    for package, patterns in _LIBRARIES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            _copy(Path(spec.origin).parent, patterns, folder / package)
    _prepend("PYTHONPATH", folder)
    _prepend("LD_PRELOAD", library)
    return profile.isa


def _compile(library: Path, ebx: int, ecx: int, eax: int) -> None:
    source = Path(__file__).with_suffix(".c")
    values = {"7_0_EBX": ebx, "7_0_ECX": ecx, "7_1_EAX": eax}
    kept = [f"-DKEPT_{name}={value:#x}u" for name, value in values.items()]
    command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", *kept, "-o", str(library), str(source)]
    subprocess.run(command, check=True)


def _copy(package: Path, patterns: Sequence[str], copy: Path) -> None:
    """Link all files of a package, except for the libraries that ask: they are copied, marked."""
    shutil.copytree(package, copy, copy_function=os.symlink)
    for link in (file for pattern in patterns for file in copy.glob(pattern)):
        code = bytearray(link.read_bytes())
        offsets = list(_cpuid_offsets(link))
        for offset in offsets:
            assert code[offset : offset + 2] == _CPUID  # it is what objdump read there
            code[offset : offset + 2] = _MARK
        if offsets:
            link.unlink()
            link.write_bytes(code)


def _cpuid_offsets(library: Path) -> Iterator[int]:
    """Find the `cpuid` instructions of a library: their places in the file."""
    for start, end, shift in _sections(library):
        command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide"]
        command += [f"--start-address={start}", f"--stop-address={end}", str(library)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None  # it is piped
            for line in process.stdout:
                if "\tcpuid" in line:
                    yield int(line.partition(":")[0], 16) - shift


def _sections(library: Path) -> Iterator[tuple[int, int, int]]:
    """Yield where each section of code starts and ends, and how far that is from its place."""
    command = ["objdump", "--section-headers", "--wide", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = r"^ *\d+ \S+ +(\w{8}) +(\w{16}) +\w{16} +(\w{8}) .*\bCODE\b"
    for size, start, place in re.findall(row, text, re.MULTILINE):
        first = int(start, 16)
        yield first, first + int(size, 16), first - int(place, 16)


def _prepend(variable: str, path: Path) -> None:
    os.environ[variable] = f"{path}:{os.environ.get(variable, '')}".rstrip(":")
