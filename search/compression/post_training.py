"""Candidates made from the task's model alone: pruned, rounded and corrected, without training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from ...evaluators.onnx_module import OnnxModule
from ...evaluators.task import Task
from ..candidate import Candidate
from ..space import SearchSpace
from ._float_model import FloatModel
from ._graph import layer_nodes, replace_floats
from ._writer import ModelWriter
from .correction import changes_spread, correct_layers
from .equalization import equalize
from .pruning import fold_batch_norm, prune, reestimate_batch_norm, removed_channels
from .quantization import LayerValues
from .reconstruction import layer_outputs, reconstruct
from .settings import CompressionSettings

Report = Callable[[str], None]
Weights = tuple[FloatModel, dict[str, LayerValues]]
"""A pruned model in float, and what replaces the weights of its layers."""

_KEPT_MODELS = 4  # pruned models that are kept for candidates that differ in widths alone


class PostTraining:
    """Rounds the weights of a task's model for any candidate.

    Args:
        task: The task.
        original: Its model.
        space: The space that candidates are from.
        settings: Which steps are taken.
        writer: Writes its models.
    """

    def __init__(
        self,
        task: Task,
        original: nn.Module,
        space: SearchSpace,
        settings: CompressionSettings,
        writer: ModelWriter,
    ) -> None:
        self._task, self._original, self._space = task, original, space
        self._settings, self._writer = settings, writer
        self._pruned: OrderedDict[tuple[tuple[str, float], ...], FloatModel] = OrderedDict()

    def rounded(self, candidate: Candidate, say: Report) -> Weights:
        """Return the weights of a candidate, rounded and corrected."""
        settings = self._settings
        base = self._float_model(candidate, say)
        values = base.layer_values(
            candidate,
            search=settings.search_scales,
            # A training begins better with the weights as they are.
            by_outputs=settings.round_by_outputs and not settings.finetune_epochs,
        )
        values |= self._corrections(base, values, candidate)
        return base, values

    def _float_model(self, candidate: Candidate, say: Report) -> FloatModel:
        key = candidate.pruning
        if key == self._space.baseline().pruning:
            return self._whole
        if key not in self._pruned:
            say("pruning")
            pruned = prune(self._original, candidate, self._space)
            reestimate_batch_norm(pruned, self._writer.inputs)
            base = self._writer.fill(fold_batch_norm(pruned, self._task.example_input))
            if self._settings.reconstruct:
                base = self._reconstructed(base, candidate)
            self._pruned[key] = self._equalized(base)
            if len(self._pruned) > _KEPT_MODELS:
                self._pruned.popitem(last=False)
        self._pruned.move_to_end(key)
        return self._pruned[key]

    @cached_property
    def _whole(self) -> FloatModel:
        return self._equalized(self._writer.unpruned)

    def _equalized(self, base: FloatModel) -> FloatModel:
        if not self._settings.equalize:
            return base
        batches = base.inputs.split(len(base.batch))
        found = equalize(base.model, base.module, batches)
        return self._writer.wrap(replace_floats(base.model, found)) if found else base

    def _reconstructed(self, base: FloatModel, candidate: Candidate) -> FloatModel:
        """Let the layers of a pruned model compute what those of the whole model do."""
        removal = removed_channels(candidate, self._space)
        wanted = {}
        for name, outputs in self._wanted_outputs.items():
            removed = removal.get((name.partition("#")[0], "out"), frozenset())
            kept = [idx for idx in range(outputs.shape[1]) if idx not in removed]
            wanted[name] = outputs[:, kept]
        found = reconstruct(base.model, base.module, base.batch, wanted)
        return self._writer.wrap(replace_floats(base.model, found))

    @cached_property
    def _wanted_outputs(self) -> dict[str, Tensor]:
        whole = self._writer.unpruned
        return layer_outputs(whole.model, whole.module, whole.batch)

    def _corrections(
        self, base: FloatModel, values: Mapping[str, LayerValues], candidate: Candidate
    ) -> dict[str, LayerValues]:
        outputs = {n: t for n, t in base.correctable.items() if n in values}
        if not self._settings.correction or not outputs:
            return {}
        module = OnnxModule(self._writer.write(base, values, candidate))
        nodes = layer_nodes(base.model.graph)
        rescaled = {
            node.name
            for name, choice in candidate.layers
            for node in nodes[name]
            if changes_spread(choice, self._settings.sparsity)
        }
        found = correct_layers(module, base.batch, outputs, base.calibration.moments, rescaled)
        return {n: replace(values[n], gain=c.gain, bias=c.bias) for n, c in found.items()}


def say_nothing(_: str) -> None:
    """Report to nobody."""
