"""An ONNX model as a torch module: what the file means, run fast and differentiable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from onnx import ModelProto
from torch import Tensor, nn

from . import onnx_ops_layers, onnx_ops_shapes
from ._onnx_program import NO_SLOT, build_program
from .onnx_ops import OPERATORS, UnsupportedOperatorError

__all__ = ["OnnxModule", "UnsupportedOperatorError", "supported_ops"]

# Imported for the operators that they register.
_OPERATOR_MODULES = (onnx_ops_layers, onnx_ops_shapes)

Observer = Callable[[str, Tensor], Tensor | None]


def supported_ops() -> frozenset[str]:
    """Return the ONNX operators that an `OnnxModule` runs."""
    return frozenset(OPERATORS) | {"Constant", "QuantizeLinear", "DequantizeLinear"}


class OnnxModule(nn.Module):
    """Runs an ONNX graph, node by node.

    A QuantizeLinear with its DequantizeLinear rounds exactly as the file says (it divides by the
    scale, rounds half to even and saturates), and gradients pass straight through it. Integer
    weights are dequantized once. All float weights are parameters, named as in the file with
    `__` for each dot; the batch dimension is free although the file has a batch of 1.
    """

    def __init__(self, model: ModelProto) -> None:
        """Translate a model.

        Args:
            model: Has one float input and one output; it is not kept.

        Raises:
            UnsupportedOperatorError: If an operator, or the form of it a node has, cannot be run.
            ValueError: If the graph has more than one input or output.
        """
        super().__init__()
        program = build_program(model.graph)
        self._program = program
        self._attributes: dict[str, str] = {}
        for name, tensor in program.weights.items():
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            attribute = self._attributes[name] = name.replace(".", "__")
            self.register_parameter(attribute, nn.Parameter(tensor))
        self._constants = dict(program.constants)
        self.eval()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The float weights by their names in the file; integer ones as they are dequantized."""
        return {name: getattr(self, a) for name, a in self._attributes.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Map a batch of inputs to the graph's output."""
        return self.run(inputs)

    def run(self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map a batch of inputs to the graph's output with other weights.

        Args:
            inputs: Shape `(n, ...)`.
            weights: Replace the module's own, by their names in the file.

        Returns:
            The output of each sample, shape `(n, ...)`.
        """
        if self._program.is_batch_free:
            inputs = _channels_last(inputs)
            return self._run(inputs, weights, not torch.is_grad_enabled(), None, ())
        # The graph moves the batch axis about, so each sample goes through as the file has it.

        def run_one(sample: Tensor) -> Tensor:
            return self._run(sample[None], weights, False, None, ())[0]

        result: Tensor = torch.vmap(run_one)(inputs)
        return result

    def observe(self, inputs: Tensor, names: Collection[str], observer: Observer) -> Tensor:
        """Run without gradients and hand named tensors of the graph out as they appear.

        Args:
            inputs: Shape `(n, ...)`; run in one batch, or one by one where the graph needs it.
            names: Tensors of the graph; the input's name is one of them.
            observer: Called with a name and its values, which it must not change. What it
                returns takes the place of the values for the rest of the run; None leaves them.

        Returns:
            The output of each sample, shape `(n, ...)`.
        """
        missing = sorted(set(names) - set(self._program.slots))
        if missing:
            raise ValueError(f"`names` must be tensors of the graph, but {missing} are not.")
        batches = (inputs,) if self._program.is_batch_free else inputs.split(1)
        with torch.inference_mode():
            outputs = [
                self._run(_channels_last(batch), None, True, observer, names) for batch in batches
            ]
            return torch.cat(outputs)

    def _run(
        self,
        inputs: Tensor,
        weights: Mapping[str, Tensor] | None,
        may_reuse: bool,
        observer: Observer | None,
        observed: Collection[str],
    ) -> Tensor:
        program = self._program
        values = self._initial_values(weights)
        values[program.input_slot] = inputs
        names: dict[int, list[str]] = {}
        for name in observed:
            names.setdefault(program.slots[name], []).append(name)
        if observer is not None:
            _show(values, names, (program.input_slot,), observer)
        for step in program.steps:
            operation = step.operation
            function = operation.apply
            is_free = step.may_reuse and step.inputs[0] not in names  # the observer may keep it
            if may_reuse and is_free and operation.reuse is not None:
                function = operation.reuse
            result = function(*[values[slot] for slot in step.inputs])
            if isinstance(result, tuple):
                for slot, part in zip(step.outputs, result, strict=True):
                    values[slot] = part
            else:
                values[step.outputs[0]] = result
            if observer is not None:
                _show(values, names, step.outputs, observer)
            for slot in step.frees:
                values[slot] = None
        output = values[program.output_slot]
        assert output is not None
        return output

    def _initial_values(self, weights: Mapping[str, Tensor] | None) -> list[Tensor | None]:
        """Return the slots of a run with all that is there before its first step."""
        program = self._program
        values: list[Tensor | None] = [None] * (program.n_slots + 1)
        assert NO_SLOT == -1  # so an absent input is the last slot, which stays None
        for slot, constant in self._constants.items():
            values[slot] = constant
        for name, attribute in self._attributes.items():
            values[program.slots[name]] = self._parameters[attribute]
        for name, tensor in (weights or {}).items():
            values[program.slots[name]] = tensor
        return values


def _channels_last(inputs: Tensor) -> Tensor:
    if inputs.ndim != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)


def _show(
    values: list[Tensor | None],
    names: Mapping[int, Sequence[str]],
    slots: Sequence[int],
    observer: Observer,
) -> None:
    for slot in slots:
        for name in names.get(slot, ()):
            value = values[slot]
            assert value is not None  # the step before has just made it
            replacement = observer(name, value)
            if replacement is not None:
                values[slot] = replacement
