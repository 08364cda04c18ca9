"""What a compiled library says of itself: its inputs and outputs, and the CPU features it uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtimes.base import TensorSpec

_FUNCTION = "paredown_signature"


@dataclass(frozen=True, slots=True)
class Signature:
    """Interface of a library, stored in it as a function that returns JSON as bytes.

    Attributes:
        inputs, outputs: Tensors of the network, in order.
        features: CPU flags, as Linux names them, that the code executes.
        device: "cpu" or "cuda": where its kernels run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[str, ...]
    device: str = "cpu"


def add_signature(builder: Any, signature: Signature) -> None:
    """Add the function that returns the signature to a module under construction."""
    from tvm import relax

    text = json.dumps({"version": 1, **asdict(signature)})
    with builder.function(_FUNCTION, []):
        builder.emit_func_output(relax.const(np.frombuffer(text.encode(), np.uint8)))


def read_signature(machine: Any) -> Signature:
    """Return the signature of a library in a `relax.VirtualMachine`, here or on a device."""
    # The form that also works over RPC, where the result of a plain call cannot be read.
    machine.set_input(_FUNCTION)
    machine.invoke_stateful(_FUNCTION)
    values = json.loads(machine.get_outputs(_FUNCTION).numpy().tobytes())
    return Signature(
        _specs(values["inputs"]),
        _specs(values["outputs"]),
        tuple(values["features"]),
        device=values.get("device", "cpu"),
    )


def _specs(values: Sequence[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v["name"], tuple(v["shape"]), v["dtype"]) for v in values)
