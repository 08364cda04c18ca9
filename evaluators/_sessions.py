"""What the worker's child holds: loaded artifacts, and how its errors are put into words."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .measurement import EvaluationError, Reason
from .memory import MemoryGrowth
from .runtimes import Runtime, Session, get_runtime
from .timing import Block, Call, LatencyProtocol

if TYPE_CHECKING:
    from .devices.session import DeviceSession

_MAX_DETAIL = 800
_MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "memoryerror",
    "out of memory",
    "allocate memory",
    "failed to allocate",
)


@dataclass(slots=True)
class Loaded:
    """An artifact that is loaded, and what became known of it."""

    key: tuple[object, ...]
    session: Session
    growth: MemoryGrowth
    block: Block | None = None  # calibrated for `TimeBlock`
    has_run: bool = False
    peak_memory_bytes: int | None = None

    def warm_block(self, protocol: LatencyProtocol) -> Block:
        """Return a block of calls on random data, warmed up when it is first asked for."""
        if self.block is None:
            self.block = Block(self.bind(), protocol)
        return self.block

    def bind(self) -> Call:
        """Return a call on random data; the memory that it takes is noted at the first time."""
        rng = np.random.default_rng(0)
        call = self.session.bind(*(spec.random(rng) for spec in self.session.inputs))
        if not self.has_run:
            call()
            self.has_run = True
            self.peak_memory_bytes = self.growth.peak_bytes()
        return call


class Sessions:
    """The artifacts that the child holds: the newest candidate and the newest baseline.

    A study times hundreds of candidates against one baseline, so the baseline stays loaded and
    a candidate is dropped as soon as the next one comes.
    """

    def __init__(self) -> None:
        self.device: DeviceSession | None = None  # the remote device that this child holds
        self._loaded: dict[str, Loaded] = {}
        self._prepared: dict[str, Runtime] = {}
        self._warm: set[str] = set()

    def prepare(self, runtime: str) -> Runtime:
        """Import what the runtime needs, once."""
        if runtime not in self._prepared:
            with step(f"Preparing {runtime}", "unavailable"):
                prepared = get_runtime(runtime)
                prepared.prepare()
            self._prepared[runtime] = prepared
            # A compiler brings millions of objects that stay: without this, each collection
            # before a measurement would look at all of them, for a good part of a second.
            gc.collect()
            gc.freeze()
        return self._prepared[runtime]

    def get(self, role: str, runtime: str, artifact: Path, threads: int) -> Loaded:
        """Return the artifact, loaded now or before; it is loaded again if the file changed."""
        with step(f"Loading '{artifact.name}' in {runtime}", "load"):
            builder = self.prepare(runtime)
            status = artifact.stat()
            key = (runtime, artifact, threads, status.st_mtime_ns, status.st_size, status.st_ino)
            for loaded in self._loaded.values():
                if loaded.key == key:
                    return loaded
            if self._loaded.pop(role, None) is not None:
                gc.collect()
            self._warm_up(runtime, artifact, threads)
            growth = MemoryGrowth()
            loaded = Loaded(key, builder.load(artifact, threads), growth)
            self._loaded[role] = loaded
            return loaded

    def _warm_up(self, runtime: str, artifact: Path, threads: int) -> None:
        """Run a model once: what a library allocates for all models is no model's memory."""
        if runtime not in self._warm:
            self._warm.add(runtime)
            with contextlib.suppress(Exception):  # the model that is asked for reports it
                session = self._prepared[runtime].load(artifact, threads)
                Loaded((), session, MemoryGrowth()).bind()
            gc.collect()


@contextlib.contextmanager
def step(title: str, reason: Reason) -> Iterator[None]:
    """Turn any error of a library into an `EvaluationError` with a title and a reason."""
    try:
        yield
    except EvaluationError as error:
        if speaks_of_memory(str(error)):  # of the compiler's, for instance
            error.reason = "memory"
        raise
    except (Exception, SystemExit) as error:
        detail = shorten(f"{type(error).__name__}: {error}")
        is_memory = speaks_of_memory(detail)
        failure = EvaluationError(f"{title} failed: {detail}", "memory" if is_memory else reason)
        failure.add_note("In the worker:\n" + traceback.format_exc())
        raise failure from None


def speaks_of_memory(text: str) -> bool:
    """Say whether an error message is about memory that could not be had."""
    return any(word in text.lower() for word in _MEMORY_WORDS)


def shorten(text: str) -> str:
    """Cut the middle out of a long message: its beginning and its end say the most."""
    text = text.strip()
    if len(text) <= _MAX_DETAIL:
        return text
    return f"{text[: _MAX_DETAIL // 2]} [...] {text[-_MAX_DETAIL // 2 :]}"
