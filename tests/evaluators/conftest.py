"""Models, a profile and an ill-behaved runtime for the tests of this room."""

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.evaluators.runtimes import RUNTIMES
from paredown.hw_profiles.detect import detect_profile
from paredown.hw_profiles.profile import HardwareProfile

ILL_BEHAVED = '''
import ctypes, os, subprocess, sys, time
from pathlib import Path
import numpy as np
from paredown.evaluators.runtimes import TensorSpec, register


def hang():
    ctypes.PyDLL(None).sleep(100)  # PyDLL: with the interpreter lock held


def noise():
    print("from Python")
    os.write(1, b"from a library, on stdout\\n" * 10_000)
    os.write(2, b"from a library, on stderr\\n")


def abort():
    os.write(2, b"LLVM ERROR: Cannot select intrinsic\\n")
    os.abort()


def linker():
    process = subprocess.Popen(["sleep", "100"])
    Path("linker.pid").write_text(str(process.pid))
    hang()


def fail():
    raise RuntimeError("first words " + "x" * 10_000 + " last words")


ACTIONS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": abort,
    "kill": lambda: os.kill(os.getpid(), 9),
    "exit": lambda: os._exit(3),
    "sysexit": lambda: sys.exit(3),
    "hang": hang,
    "linker": linker,
    "noise": noise,
    "memory": lambda: np.ones(4 << 30, np.uint8),
    "fail": fail,
    "fine": lambda: None,
}


class Session:
    inputs = (TensorSpec("input", (None, None), "float32"),)
    outputs = (TensorSpec("output", (None, None), "float32"),)

    def run(self, *inputs):
        return [2 * inputs[0]]

    def bind(self, *inputs):
        return lambda: time.sleep(0.002)


@register("ill-behaved")
class IllBehaved:
    """Does what the first line of its model file says."""

    name = "ill-behaved"
    suffix = ".txt"

    def version(self):
        return "1"

    def prepare(self):
        pass

    def build(self, model, artifact, profile):
        artifact.write_text("half")
        ACTIONS[model.read_text()]()
        artifact.write_text("whole")

    def load(self, artifact, threads):
        with open(artifact.parent / "loads.txt", "a") as file:
            print(artifact.name, file=file)
        session = Session()
        session.inputs = (TensorSpec("input", (None, 1), "float32"),)
        if artifact.name.startswith("wide"):
            session.inputs = (TensorSpec("input", (None, 5_000_000), "float32"),)
        return session
'''


@pytest.fixture
def ill_behaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Install a runtime through an entry point, as another package would; return its name."""
    folder = tmp_path / "site"
    info = folder / "ill_behaved-1.dist-info"
    info.mkdir(parents=True)
    (folder / "ill_behaved.py").write_text(textwrap.dedent(ILL_BEHAVED))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ill-behaved\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[paredown.runtimes]\nill-behaved = ill_behaved\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    yield "ill-behaved"
    RUNTIMES.pop("ill-behaved", None)
    sys.modules.pop("ill_behaved", None)


@pytest.fixture(scope="session")
def profile() -> HardwareProfile:
    """Return the profile of this machine."""
    return detect_profile()


def write_conv_net(path: Path, *, channels: int, batch: int | str = 1, seed: int = 0) -> Path:
    """Write conv, relu, pool, linear on 2 x 12 x 12 inputs; 5 outputs."""
    rng = np.random.default_rng(seed)
    weights = {
        "conv.weight": rng.standard_normal((channels, 2, 3, 3)),
        "fc.weight": rng.standard_normal((5, channels)),
        "fc.bias": rng.standard_normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 2, 12, 12])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def small_net(tmp_path: Path) -> Path:
    """Return a model file with 8 channels."""
    return write_conv_net(tmp_path / "small.onnx", channels=8)


@pytest.fixture
def large_net(tmp_path: Path) -> Path:
    """Return a model file that takes several times as long as `small_net`."""
    return write_conv_net(tmp_path / "large.onnx", channels=128, seed=1)


@pytest.fixture
def open_batch_net(tmp_path: Path) -> Path:
    """Return a model file whose batch size is open."""
    return write_conv_net(tmp_path / "open.onnx", channels=8, batch="N")
