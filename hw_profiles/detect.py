"""Facts about this machine: what it is, and whether code for a profile can run on it."""

import os
import platform
import re
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
    """

    arch: str
    brand: str
    llvm_cpu: str
    flags: frozenset[str]
    generated: frozenset[str]
    cores: int
    system: str = "linux-gnu"


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
        flags=frozenset(detected_info().features | host.features),
        generated=generated_features(host),
        cores=cores or 1,
        system="apple-darwin" if platform.system() == "Darwin" else "linux-gnu",
    )


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
            that the machine lacks, or more threads than the process may use.
    """
    machine = machine or this_machine()
    here = "Choose another with `paredown profiles list`, or 'local' for this machine."
    if profile.connection != "local":
        raise ProfileError(
            f"Profile '{profile.name}' must be one that runs here, but its connection is "
            f"'{profile.connection}': it is there to compile for. {here}"
        )
    if profile.device != "cpu" or profile.arch != machine.arch:
        raise ProfileError(
            f"Profile '{profile.name}' must fit this machine to run here, but it is for "
            f"{profile.arch} and this machine is {machine.arch}. {here}"
        )
    needed = {*profile.features, *ISAS[profile.isa].features, *target_features(profile.target)}
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


def _brand(fallback: str) -> str:
    """Return the maker's name of the CPU; Arm's Linux does not give one."""
    if not _CPUINFO.exists():
        return cpu.brand_string() or fallback
    match = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text("utf-8"), re.MULTILINE)
    return match[1] if match else fallback
