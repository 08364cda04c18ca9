"""The `Runtime` protocol: what builds a model into an artifact, loads it and runs it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..measurement import EvaluationError

if TYPE_CHECKING:
    from ...hw_profiles.profile import HardwareProfile

Array = NDArray[Any]

ENTRY_POINT_GROUP = "paredown.runtimes"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and numpy dtype of an input or output; `None` is a size the file leaves open."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def with_batch_of_one(self) -> TensorSpec:
        """Return the spec with an open first dimension, the batch, set to 1."""
        if self.shape and self.shape[0] is None:
            return TensorSpec(self.name, (1, *self.shape[1:]), self.dtype)
        return self

    def random(self, rng: np.random.Generator) -> Array:
        """Return data to time a model with: normal floats, and zeros of any other type.

        Integers are often indices, and 0 is the one index that is always in range.

        Raises:
            EvaluationError: If a dimension other than the batch is open, or numpy lacks the type.
        """
        shape = self.with_batch_of_one().shape
        if None in shape:
            raise EvaluationError(
                f"Every size but the batch must be fixed, but input '{self.name}' has the shape "
                f"{_shape_text(shape)}. Export the model with fixed sizes.",
                "model",
            )
        sizes = tuple(size for size in shape if size is not None)
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise EvaluationError(
                f"Inputs must be of a type that numpy has, but input '{self.name}' is "
                f"'{self.dtype}'.",
                "model",
            ) from error
        if dtype.kind == "f":
            return rng.standard_normal(sizes).astype(dtype)
        return np.zeros(sizes, dtype)


class Session(Protocol):
    """A loaded artifact."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, *inputs: Array) -> list[Array]:
        """Run once on `inputs`, in the order of `self.inputs`; the outputs are the caller's."""
        ...

    def bind(self, *inputs: Array) -> Callable[[], object]:
        """Put `inputs` on the device and return a call that runs once and waits: for timing."""
        ...


class Runtime(Protocol):
    """Builds ONNX models for a profile and runs them. Cheap to create; imports its library late.

    Errors of the library are let through: the worker reports them as an `EvaluationError` that
    says in which step they came up.
    """

    name: str
    suffix: str  # of the artifact file, such as ".so"

    def version(self) -> str | None:
        """Return the version of the installed library without importing it, or `None`."""
        ...

    def missing(self) -> str | None:
        """Return what it lacks to run here and how to get it, as a sentence, or `None`."""
        ...

    def prepare(self) -> None:
        """Import what is slow to import, so that a worker can do it before its first job."""
        ...

    def build(self, model: Path, artifact: Path, profile: HardwareProfile) -> None:
        """Build the ONNX file `model` into the one file `artifact`."""
        ...

    def load(self, artifact: Path, threads: int) -> Session:
        """Load a built artifact, to run on `threads` threads."""
        ...


class PackagedRuntime:
    """What a runtime that comes as a Python package says of itself.

    Attributes:
        packages: Names under which it may be installed, the preferred one first.
        install: Command that installs it.
    """

    packages: ClassVar[tuple[str, ...]]
    install: ClassVar[str]

    def version(self) -> str | None:
        """Return the installed version."""
        return installed_version(*self.packages)

    def missing(self) -> str | None:
        """Return how to install it where it is not."""
        if self.version() is not None:
            return None
        return f"its library was not found. Run `{self.install}`."


def copy_model(runtime: Runtime, model: Path, artifact: Path) -> None:
    """Write the artifact of a runtime that compiles ONNX files at each load.

    It is the file, checked, with quantized weights of fewer than 8 bits in int8 or uint8.

    Raises:
        EvaluationError: If the runtime is not installed, or the file is no sound model.
    """
    from ..onnx_file import widen_integers  # here, as that module needs this package

    require_installed(runtime)
    widen_integers(model, artifact)


R = TypeVar("R", bound=Runtime)

RUNTIMES: dict[str, type[Runtime]] = {}


def register(name: str) -> Callable[[type[R]], type[R]]:
    """Make a runtime available under `name`; a second use of a name is an error."""

    def add(cls: type[R]) -> type[R]:
        if name in RUNTIMES:
            raise ValueError(
                f"Runtime '{name}' must be unique, but {RUNTIMES[name].__qualname__} has it. "
                "Register under another name."
            )
        RUNTIMES[name] = cls
        return cls

    return add


def get_runtime(name: str) -> Runtime:
    """Return the runtime registered under `name`, here or by another package's entry point.

    Raises:
        EvaluationError: If there is no such runtime.
    """
    if name not in RUNTIMES:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            entry.load()  # the import registers it
    if name not in RUNTIMES:
        close = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise EvaluationError(
            f"A runtime must be one of {', '.join(sorted(RUNTIMES))}, but got '{name}'.{hint}",
            "unavailable",
        )
    return RUNTIMES[name]()


def installed_runtimes() -> tuple[str, ...]:
    """Return the names of all runtimes that can be used here, those of other packages as well.

    TVM comes first, then ONNX Runtime, as comparisons are made with them; then by name.
    """
    names = {*RUNTIMES, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))}
    present = [name for name in names if get_runtime(name).missing() is None]
    return tuple(sorted(present, key=lambda name: (name != "tvm", name != "onnxruntime", name)))


def require_installed(runtime: Runtime) -> None:
    """Check that `runtime` has all it needs on this machine.

    Raises:
        EvaluationError: If it has not, with what helps.
    """
    lack = runtime.missing()
    if lack is not None:
        raise EvaluationError(
            f"Runtime '{runtime.name}' must be installed, but {lack}", "unavailable"
        )


def installed_version(*packages: str) -> str | None:
    """Return the version of the first of these packages that is installed, or `None`."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
