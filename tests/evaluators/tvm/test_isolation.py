"""Real failures of compiler and kernels: each costs its own job alone, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paredown.evaluators.measurement import EvaluationError
from paredown.evaluators.timing import LatencyProtocol
from paredown.evaluators.worker import Worker
from paredown.hw_profiles import HardwareProfile, load_profile, this_machine
from paredown.hw_profiles.isa import ISAS


@pytest.fixture
def local() -> HardwareProfile:
    return load_profile("local")


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(memory_limit_bytes=3 << 30) as worker:
        yield worker


class Bench:
    """Builds models in a worker, and shows that it still works."""

    def __init__(self, worker: Worker, folder: Path, profile: HardwareProfile) -> None:
        self.worker, self.folder, self.profile = worker, folder, profile

    def build(self, model: onnx.ModelProto, profile: HardwareProfile | None = None) -> Path:
        file, library = self.folder / "model.onnx", self.folder / "model.so"
        onnx.save(model, file)
        self.worker.build("tvm", file, library, profile or self.profile)
        return library

    def works(self, make_builder: Any) -> bool:
        b = make_builder()
        library = self.build(b.model((1, 4), b.op("Relu", "input")))
        data = np.array([[1, -2, 3, -4]], np.float32)
        found = self.worker.predict("tvm", library, data)
        return bool((found == np.maximum(data, 0)).all())


@pytest.fixture
def bench(worker: Worker, tmp_path: Path, local: HardwareProfile) -> Bench:
    return Bench(worker, tmp_path, local)


@pytest.mark.slow
@pytest.mark.skipif(this_machine().arch != "x86_64", reason="the instruction is one of x86")
def test_instruction_that_the_target_lacks_aborts_the_compiler(
    bench: Bench, builder: Any, make_builder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LLVM ends the process when it cannot select an instruction."""
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    x = builder.quantized("input", 0.02, 128)
    model = builder.model((1, 16, 9, 9), builder.conv(x, (16, 16, 3, 3), 7, 0.02))
    plain, isa = load_profile("x86-64"), "avx512vnni"
    features = tuple(dict.fromkeys((*plain.features, *ISAS[isa].features)))
    wrong = replace(plain, isa=isa, features=features, vector_bits=512)
    with pytest.raises(EvaluationError, match=r"ended the worker process .*LLVM") as info:
        bench.build(model, wrong)
    assert info.value.reason == "crash"
    assert bench.works(make_builder)


@pytest.mark.slow
def test_kernel_that_takes_for_ever_is_stopped(
    bench: Bench, builder: Any, make_builder: Any
) -> None:
    x = builder.float_conv("input", (8, 8, 1, 1))
    x = builder.op("AveragePool", x, kernel_shape=[401, 401], pads=[200] * 4)
    library = bench.build(builder.model((1, 8, 1000, 1000), x))
    data = np.zeros((1, 8, 1000, 1000), np.float32)
    with pytest.raises(EvaluationError, match=r"must end within 1 s, but did not") as info:
        bench.worker.predict("tvm", library, data, timeout_s=1)
    assert info.value.reason == "timeout"
    assert bench.works(make_builder)


@pytest.mark.slow
def test_kernel_that_wants_too_much_memory_fails(
    bench: Bench, builder: Any, make_builder: Any
) -> None:
    x = builder.op("Expand", "input", builder.integers(1, 40_000, 40_000))
    library = bench.build(
        builder.model((1, 40_000), builder.op("ReduceSum", builder.op("Exp", x)))
    )
    quick = LatencyProtocol(warm_up_s=0, budget_s=0.05, limit_s=0.1, min_rounds=2)
    with pytest.raises(EvaluationError) as info:
        bench.worker.time("tvm", library, baseline=None, protocol=quick)
    assert info.value.reason == "memory"
    assert bench.works(make_builder)
