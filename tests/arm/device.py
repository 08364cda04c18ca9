"""The device's end of `Emulator`: loads and runs libraries that pickled requests name.

Runs under the device's Python with what a device has: numpy and TVM's runtime.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any, BinaryIO

import tvm
from tvm.runtime.vm import VirtualMachine


def run(library: str, symbol: str, arrays: list[Any]) -> list[Any]:
    """Return what a network gives for inputs, or the last argument of a kernel after its call."""
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    module = tvm.runtime.load_module(library)
    if symbol:
        module[symbol](*tensors)
        return [tensors[-1].numpy()]
    machine = VirtualMachine(module, tvm.cpu())
    result = machine["main"](*machine["paredown_weights"](), *tensors)  # unpacked from their bits
    results = [result] if hasattr(result, "numpy") else list(result)
    return [tensor.numpy() for tensor in results]


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: object = run(*request)
        except Exception as error:  # whatever it is, the other end shows it
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)  # what libraries print is no answer
        serve(sys.stdin.buffer, channel)
