"""What a compiled library holds beside its code: how it is called, what it needs, weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ..runtimes.base import TensorSpec

WEIGHTS_FUNCTION = "paredown_weights"
_FUNCTION = "paredown_signature"


@dataclass(frozen=True, slots=True)
class Signature:
    """Interface of a library, stored in it as a function that returns JSON as bytes.

    Attributes:
        inputs, outputs: Tensors of the network, in order.
        features: CPU flags, as Linux names them, that the code executes.
        layers: Kernel and name of each layer, in the order in which they run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[str, ...]
    layers: tuple[tuple[str, str], ...] = ()


def add_signature(builder: Any, signature: Signature) -> None:
    """Add the function that returns the signature to a module under construction."""
    from tvm import relax

    text = json.dumps({"version": 1, **asdict(signature)})
    with builder.function(_FUNCTION, []):
        builder.emit_func_output(relax.const(np.frombuffer(text.encode(), np.uint8)))


def read_signature(machine: Any) -> Signature:
    """Return the signature of a library that was loaded into a `relax.VirtualMachine`."""
    values = json.loads(machine[_FUNCTION]().numpy().tobytes())
    return Signature(
        _specs(values["inputs"]),
        _specs(values["outputs"]),
        tuple(values["features"]),
        tuple((kernel, name) for kernel, name in values.get("layers", ())),
    )


def read_network(machine: Any) -> Callable[..., Any]:
    """Return the network of a library that was loaded into a `relax.VirtualMachine`.

    Integer weights are stored in as few bits as they need; they are unpacked here, once.

    Args:
        machine: Holds the library.

    Returns:
        A function of the network's inputs.
    """
    return partial(machine["main"], *machine[WEIGHTS_FUNCTION]())


def _specs(values: Sequence[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v["name"], tuple(v["shape"]), v["dtype"]) for v in values)
