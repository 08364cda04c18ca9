"""Facts about this machine: what it is, and whether code for a profile can run on it."""

import ctypes
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from archspec import cpu
from archspec.cpu.detect import detected_info

from .errors import ProfileError
from .isa import ISAS, generated_features, llvm_cpu, target_features
from .profile import HardwareProfile

_ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu")  # of PCIe cards, of Jetson modules
# Linux's question which registers a process may use, and the bit of those of AMX.
_ARCH_PRCTL, _ARCH_GET_XCOMP_SUPP, _TILE_DATA = 158, 0x1021, 18
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts about a machine that a profile is made from and checked against.

    Attributes:
        arch: "x86_64", "aarch64" or another name of the operating system's.
        brand: The maker's name of the CPU, or of its microarchitecture.
        llvm_cpu: LLVM's name of the newest microarchitecture whose code runs here.
        flags: All CPU flags.
        generated: Those of them that code tuned for `llvm_cpu` may use.
        cores: Cores that this process may use.
        system: "linux-gnu", or the part of LLVM's triple that belongs to another system.
        memory_bytes: Main memory; 0 where unknown.
        cache_bytes: Data caches of the first core, from the first level up.
    """

    arch: str
    brand: str
    llvm_cpu: str
    flags: frozenset[str]
    generated: frozenset[str]
    cores: int
    system: str = "linux-gnu"
    memory_bytes: int = 0
    cache_bytes: tuple[int, ...] = ()


@cache
def this_machine() -> Machine:
    """Read the facts about the machine and the process that run this code."""
    arch = platform.machine().lower()
    host = cpu.host()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        arch=_ARCH_NAMES.get(arch, arch),
        brand=_brand(host.name),
        llvm_cpu=llvm_cpu(host),
        # macOS does not list the flags of Arm CPUs, but archspec knows them.
        flags=frozenset(detected_info().features | host.features) - _withheld(),
        generated=generated_features(host),
        cores=cores or 1,
        system="apple-darwin" if platform.system() == "Darwin" else "linux-gnu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cache_bytes=read_caches(_CACHES),
    )


def _withheld() -> frozenset[str]:
    """Return CPU flags that the CPU shows, but the system does not let a process use."""
    tiles = frozenset({"amx_bf16", "amx_fp16", "amx_int8", "amx_tile"})
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return tiles
    supported = ctypes.c_uint64()
    failed = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_GET_XCOMP_SUPP, ctypes.byref(supported))
    return frozenset() if not failed and supported.value >> _TILE_DATA & 1 else tiles


def detect_profile(machine: Machine | None = None) -> HardwareProfile:
    """Describe this machine as the profile 'local'.

    Args:
        machine: The machine to describe; this one by default.

    Raises:
        ProfileError: If there is no code generation for its architecture.
    """
    machine = machine or this_machine()
    if machine.arch not in ("x86_64", "aarch64"):
        raise ProfileError(
            f"This machine must be x86_64 or aarch64, but it is '{machine.arch}'. "
            "Name a profile of the catalog to compile for another device."
        )
    isa = next(
        isa
        for isa in ISAS.values()
        if machine.arch in isa.archs and machine.flags.issuperset(isa.features)
    )
    target: dict[str, object] = {
        "kind": "llvm",
        "mtriple": f"{machine.arch}-{machine.system}",
        "mcpu": machine.llvm_cpu,
    }
    attributes = ["+neon"] * (machine.arch == "aarch64") + list(isa.attributes)
    if attributes:
        target["mattr"] = attributes
    features = machine.generated | target_features(target) | set(isa.features)
    return HardwareProfile(
        name="local",
        description=f"This machine: {machine.brand}, {machine.cores} cores",
        device="cpu",
        arch=machine.arch,
        target=target,
        isa=isa.name,
        features=tuple(sorted(features)),
        cores=machine.cores,
        vector_bits=isa.vector_bits,
        runtimes=("tvm", "onnxruntime", "openvino", "litert"),
        memory_bytes=machine.memory_bytes,
        cache_bytes=machine.cache_bytes,
        sources=("detected",),
    )


def check_runs_here(profile: HardwareProfile, machine: Machine | None = None) -> None:
    """Check that code for a profile runs on this machine.

    An instruction that the CPU lacks ends the process without a message, so every command that
    runs code asks here first.

    Args:
        profile: The profile that code is compiled for.
        machine: The machine to run on; this one by default.

    Raises:
        ProfileError: If the profile is compile-only, of another architecture, needs CPU features
            that the machine lacks, a GPU where there is none, or more threads than the process
            may use.
    """
    machine = machine or this_machine()
    here = "Choose another with `paredown profiles list`, or 'local' for this machine."
    if profile.is_remote:
        raise ProfileError(
            f"Profile '{profile.name}' must be one of this machine, but its device is reached "
            f"through {profile.connection}. {here}"
        )
    if profile.connection != "local":
        raise ProfileError(
            f"Profile '{profile.name}' must be one that runs here, but its connection is "
            f"'{profile.connection}': it is there to compile for. {here}"
        )
    if profile.device == "cuda":
        _check_gpu(profile, machine)
    elif profile.arch != machine.arch:
        raise ProfileError(
            f"Profile '{profile.name}' must fit this machine to run here, but it is for "
            f"{profile.arch} and this machine is {machine.arch}. {here}"
        )
    code = profile.target if profile.device == "cpu" else profile.target.get("host", {})
    assert isinstance(code, Mapping)  # the profile has checked itself
    needed = {*profile.features, *ISAS[profile.isa].features, *target_features(code)}
    missing = sorted(needed - machine.flags)
    if missing:
        raise ProfileError(
            f"Profile '{profile.name}' must use only what this CPU has, but "
            f"{machine.brand} lacks {', '.join(missing)}. {here}"
        )
    if profile.threads > machine.cores:
        raise ProfileError(
            f"`threads` must not exceed the cores that this process may use, but profile "
            f"'{profile.name}' asks for {profile.threads} of {machine.cores}."
        )


def _check_gpu(profile: HardwareProfile, machine: Machine) -> None:
    """Check that there is a GPU, and that the host's code is for this machine."""
    host = profile.target.get("host", {})
    triple = str(host.get("mtriple", machine.arch)) if isinstance(host, Mapping) else ""
    if triple.partition("-")[0] != machine.arch:
        raise ProfileError(
            f"Profile '{profile.name}' must fit this machine to run here, but its host is "
            f"{triple} and this machine is {machine.arch}."
        )
    if not any(Path(path).exists() for path in _GPU_DEVICES):
        raise ProfileError(
            f"Profile '{profile.name}' needs an NVIDIA GPU with its driver, but there is none on "
            f"this machine. Without one, '{profile.name}@compile-only' measures accuracy and size."
        )


def read_caches(folder: Path) -> tuple[int, ...]:
    """Return the sizes of a core's data caches in bytes, by level.

    Args:
        folder: Linux's description of them, such as `/sys/devices/system/cpu/cpu0/cache`.
    """
    sizes: dict[int, int] = {}
    for index in folder.glob("index[0-9]*"):
        try:
            kind, level, size = (
                (index / name).read_text("ascii").strip() for name in ("type", "level", "size")
            )
        except OSError:  # a virtual machine may leave some of it out
            continue
        if kind != "Instruction" and size[-1:] in _UNITS:
            sizes[int(level)] = int(size[:-1]) * _UNITS[size[-1]]
    return tuple(sizes[level] for level in sorted(sizes))


def _brand(fallback: str) -> str:
    """Return the maker's name of the CPU; Arm's Linux does not give one."""
    if not _CPUINFO.exists():
        return cpu.brand_string() or fallback
    match = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text("utf-8"), re.MULTILINE)
    return match[1] if match else fallback
