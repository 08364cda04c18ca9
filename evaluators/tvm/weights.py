"""Where the weights of a network are: in its library as plain data, not in TVM's executable.

While TVM loads an executable, it holds the constants in it up to four times. So large constants
become parameters of the network, and a function of the library returns their values: those that
kernels read as they are stored stay in the pages of the file, others are unpacked one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import GenericConst

from .data_section import DataSection
from .kernels.place import place_kernel, release_kernel
from .kernels.script import Kernel
from .layers import parameter_arrays
from .signature import WEIGHTS_FUNCTION
from .stored import StoredWeights

_LARGE_BYTES = 4096  # of a constant that is worth a call when the library is loaded
_DPS, _TIR = "relax.call_dps_packed", "relax.call_tir"


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A network without weights.

    Attributes:
        module: The network, and the function that returns what it takes before its inputs.
        data: The weights.
        kernels: What that function calls, by symbol.
    """

    module: Any
    data: DataSection
    kernels: Mapping[str, Kernel]


def place_weights(
    module: Any, packed: Mapping[relax.Var, StoredWeights], device: str = "cpu"
) -> Placed:
    """Move the large constants of a network out of it.

    Args:
        module: Its function `main` consists of calls of kernels; no operator is to be fused or
            folded any more.
        packed: The first parameters of `main`, and how their values are stored.
        device: What the network runs on. From another than the CPU constants stay in it: they
            are copied to the device.
    """
    constants = _Constants()
    if device == "cpu":
        main, name = module["main"], module.get_global_var("main")
        module = module.clone()
        module.update_func(name, constants.move_out(main))
    writer = _Writer(relax.BlockBuilder(module))
    writer.add_function(packed, [c.value.numpy() for c, _ in constants.found.values()])
    return Placed(writer.builder.get(), writer.data, writer.kernels)


class _Constants:
    """Replaces large constants that kernels read by parameters."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, bool], tuple[Any, relax.Var]] = {}

    def move_out(self, function: Any) -> Any:
        """Return a function with the constants as its first parameters."""
        blocks = [
            type(block)([self._binding(b) for b in block.bindings])
            for block in function.body.blocks
        ]
        body = relax.SeqExpr(blocks, function.body.body)
        params = [*(var for _, var in self.found.values()), *function.params]
        return relax.Function(params, body, function.ret_ty, function.is_pure, function.attrs)

    def _binding(self, binding: Any) -> Any:
        call = binding.value
        # What these read is never what they return: that may outlive the library.
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") not in (_DPS, _TIR):
            return binding
        callee, arguments = call.args[0], call.args[1]
        is_typed = call.op.name == _TIR
        fields = [self._argument(a, is_typed=is_typed) for a in arguments.fields]
        args = [callee, relax.Tuple(fields), *call.args[2:]]
        value = relax.Call(call.op, args, call.attrs, call.ty_args, call.span, call.ty)
        return relax.VarBinding(binding.var, value)

    def _argument(self, value: Any, *, is_typed: bool) -> Any:
        if not isinstance(value, GenericConst) or not _is_large(value.value):
            return value
        key = hash(value.value), is_typed
        if key not in self.found:
            # Every run checks the shape of a parameter that is known as a tensor, which TVM's own
            # kernels must know. `found` holds the constant, so that its hash stays its own.
            kind = value.ty if is_typed else relax.AnyType()
            self.found[key] = value, relax.Var(f"constant{len(self.found)}", kind)
        return self.found[key][1]


def _is_large(tensor: Any) -> bool:
    size = int(np.prod(tensor.shape)) * np.dtype(str(tensor.dtype)).itemsize
    return len(tensor.shape) > 0 and size >= _LARGE_BYTES


class _Writer:
    """Writes the function that returns weights.

    Args:
        builder: Builds the module.
    """

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder
        self.data = DataSection()
        self.kernels: dict[str, Kernel] = {}

    def add_function(
        self, packed: Mapping[relax.Var, StoredWeights], arrays: list[NDArray[Any]]
    ) -> None:
        """Add it; it returns `arrays`, then what is `packed`."""
        with self.builder.function(WEIGHTS_FUNCTION, [], pure=False):
            # What is unpacked comes first, so that its pages are neighbours and all given back.
            unpacked = [self._unpacked(weights) for weights in packed.values()]
            placed = [self._placed(array) for array in arrays]
            self.builder.emit_func_output(relax.Tuple([*placed, *unpacked]))

    def _placed(self, array: NDArray[Any]) -> Any:
        """Return a tensor that is read where the library has it."""
        kernel = place_kernel()
        values = {"offset": self.data.add(array), "length": array.shape[0]}
        kind = relax.TensorType((0, *array.shape[1:]), str(array.dtype))
        return self._call(kernel, parameter_arrays(kernel, values), kind)

    def _unpacked(self, weights: StoredWeights) -> Any:
        """Return a tensor that is unpacked from the library, whose pages are then given back."""
        offset = self.data.size
        stored = self._placed(weights.data)
        kind = relax.TensorType((weights.size,), weights.dtype)
        arguments = [stored, weights.ints, np.zeros(1, np.float32)]
        result = self._call(weights.kernel, arguments, kind)
        self._release(stored, offset, weights.data.nbytes)
        return result

    def _release(self, stored: Any, offset: int, size: int) -> None:
        kernel = release_kernel()
        self.kernels[kernel.symbol] = kernel
        parameters = parameter_arrays(kernel, {"offset": offset, "size": size})
        arguments = [*map(relax.const, parameters), stored]
        call = relax.Call(relax.ExternFunc(kernel.symbol), arguments, ty_args=[relax.AnyType()])
        self.builder.emit(call)

    def _call(self, kernel: Kernel, arguments: list[Any], kind: relax.TensorType) -> Any:
        """Emit a call of a kernel; arrays become constants."""
        self.kernels[kernel.symbol] = kernel
        values = [relax.const(a) if isinstance(a, np.ndarray) else a for a in arguments]
        return self.builder.emit(relax.call_dps_packed(kernel.symbol, values, kind))
