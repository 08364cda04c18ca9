"""Compiled kernels on disk, shared by all networks, studies and processes of a user."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...hw_profiles import this_machine
from ...hw_profiles.isa import generated_flags
from ..measurement import EvaluationError
from .files import SharedFolder
from .kernels.script import Kernel
from .permission import write_permission_object

_VERSION = 4  # of what lies in the folder; kernels themselves are named after their text
KNOBS_FILE = "knobs.json"


def default_cache_folder() -> Path:
    """Return the folder for compiled kernels.

    That is `kernels` in the folder `PAREDOWN_CACHE`, else in `paredown` in the user's cache folder
    (`XDG_CACHE_HOME` or `~/.cache`).
    """
    if own := os.environ.get("PAREDOWN_CACHE"):
        return Path(own) / "kernels"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "paredown" / "kernels"


_parsing = threading.Lock()  # while one thread parses, another may compile, but not parse as well


class KernelCache:
    """Compiles kernels for one target, once: one object file per kernel.

    Args:
        target: JSON form of the TVM target, without a thread count.
        folder: Where object files are kept; the default is `default_cache_folder()`.

    Raises:
        EvaluationError: If the folder cannot be made.
    """

    def __init__(self, target: Mapping[str, object], folder: Path | None = None) -> None:
        import tvm

        self.target = tvm.target.Target(dict(target))
        # LLVM 22 turns a few plain loops into invalid code at its highest level (seen with a
        # `conv1d` of TVM's own for AVX2); the level below is then tried.
        self._cautious = self.target
        if target["kind"] == "llvm":
            self._cautious = tvm.target.Target({**target, "opt-level": 1})
        text = json.dumps([_VERSION, dict(target), tvm.__version__], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{target.get('mcpu', 'generic')}-{digest}"
        self._files = SharedFolder((folder or default_cache_folder()) / name)
        self._functions: dict[str, Callable[..., None]] = {}

    @property
    def folder(self) -> Path:
        """Where the files of this target are."""
        return self._files.path

    @property
    def triple(self) -> str:
        """LLVM's name of the target's CPU and system, "" for this machine's."""
        return str((self.target.host or self.target).attrs.get("mtriple", ""))

    @property
    def arch(self) -> str:
        """The target's CPU architecture, such as `x86_64`."""
        return self.triple.split("-")[0] or this_machine().arch

    @property
    def linker(self) -> str:
        """What links for the target: the system's compiler driver, or a cross linker."""
        return "cc" if self.arch == this_machine().arch else f"{self.triple}-ld"

    def cpu_flags(self) -> frozenset[str]:
        """Return the CPU flags, as Linux names them, that LLVM may use for the target."""
        from tvm.target import codegen

        host = self.target.host or self.target
        return generated_flags(map(str, codegen.llvm_get_cpu_features(host)))

    def compile(self, module: Any) -> Any:
        """Compile a TVM module for the target."""
        import tvm

        try:
            return tvm.compile(module, self.target)
        except Exception as error:  # TVM's own InternalError is no public type
            if "LLVM module verification failed" not in str(error):
                raise
            return tvm.compile(module, self._cautious)

    def object_file(self, kernel: Kernel) -> Path:
        """Return the kernel's object file, compiling it if this target has none yet.

        Raises:
            EvaluationError: If TVM cannot compile the kernel; the message names it.
        """
        return self._files.get(kernel.symbol, ".o", lambda path: self._compile(kernel, path))

    def _compile(self, kernel: Kernel, path: Path) -> None:
        import tvm

        from .kernels.parsing import parse

        symbol = kernel.symbol
        try:
            with _parsing:
                function = parse(kernel.text(symbol), aligns_stack=self.arch == "x86_64")
            # The pass that joins buffers forgets what `local_buffer` says of them.
            with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
                module = self.compile(tvm.IRModule({symbol: function})).mod
            module.write_to_file(str(path), "o")
        except Exception as error:  # TVM raises plain exceptions of many types
            raise EvaluationError(
                f"TVM could not compile kernel '{symbol}': {error}", "build"
            ) from error

    def function(self, kernel: Kernel) -> Callable[..., None]:
        """Return the kernel as a function of TVM tensors that runs on this machine, to time it.

        Raises:
            EvaluationError: If it cannot be compiled or linked.
        """
        symbol = kernel.symbol
        if symbol not in self._functions:
            import tvm

            library = self._files.get(symbol, ".so", lambda path: self._link(path, kernel))
            self._functions[symbol] = tvm.runtime.load_module(str(library))[symbol]
        return self._functions[symbol]

    def _link(self, path: Path, kernel: Kernel) -> None:
        link(path, [self.object_file(kernel), *self.start_objects()], self.linker)

    def start_objects(self) -> list[Path]:
        """Return object files that belong in every library, for what they do when it is loaded."""
        if "+amx-tile" not in self.target.attrs.get("mattr", ()):
            return []
        triple = self.triple
        write = partial(write_permission_object, triple=triple)
        return [self._files.get("ask_for_tiles", ".o", write)]

    def with_kernels(self, module: Any, kernels: Iterable[Kernel]) -> Any:
        """Return a Relax module with compiled kernels, to be linked into its library.

        Raises:
            EvaluationError: If TVM cannot compile one.
        """
        import tvm

        libraries = [
            tvm.runtime.load_static_library(str(self.object_file(kernel)), [kernel.symbol])
            for kernel in kernels
        ]
        return module.with_attr("external_mods", libraries) if libraries else module

    # ---- tuned settings

    def read_knobs(self) -> dict[str, Any]:
        """Return the settings that were found best so far, by workload."""
        return self._files.read_table(KNOBS_FILE)

    def write_knobs(self, entries: Mapping[str, Any]) -> None:
        """Add settings to the table."""
        self._files.update_table(KNOBS_FILE, entries)


def link(library: Path, objects: Sequence[str | Path], linker: str) -> None:
    """Link object files into a shared library, with a compiler driver or a bare linker.

    A bare linker needs no libraries of the device: what the code calls (`memcpy`, `expf`) is in
    every process that runs TVM.

    Raises:
        EvaluationError: If the linker is not there, or it fails.
    """
    strip = "--strip-debug"  # TVM's notes for debuggers are a third of a small library
    options = ["-fPIC", f"-Wl,{strip}"] if linker == "cc" else ["-z", "noexecstack", strip]
    command = [linker, "-shared", *options, "-o", str(library), *map(str, objects)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        package = "binutils-" + linker.removesuffix("-ld").replace("_", "-")
        raise EvaluationError(
            f"Linking needs `{linker}`, which is not on the path. Install it, for instance with "
            f"`apt-get install {'gcc' if linker == 'cc' else package}`.",
            "unavailable",
        ) from error
    except subprocess.CalledProcessError as error:
        raise EvaluationError(
            f"Linking '{library.name}' failed: {error.stderr.strip()}", "build"
        ) from error
