"""Candidates made from the shared network, or from the task's model where that is nearer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from onnx import ModelProto

from ...evaluators.task import Task
from ..candidate import Candidate
from ..space import SearchSpace
from ._graph import layer_nodes, replace_floats
from ._samples import TrainingSamples
from ._writer import ModelWriter
from .last_layer import answers, find_last_layer, fit_last_layer, last_answers
from .post_training import PostTraining, Report, Weights, say_nothing
from .pruning import fold_batch_norm, reestimate_batch_norm
from .quantization import LayerValues
from .shared import SharedNetwork

Show = Callable[[ModelProto, float], None]
"""Told of a draft of a model, and of its distance from the uncompressed one."""

_RATIOS = (0.25, 0.5, 0.75, 1.0)  # of pruning alike, to compare the ways on
_NO_DISTANCE = 1e-9


class Slices:
    """Cuts candidates out of a shared network.

    Args:
        shared: The network.
        task: The task.
        space: The space that candidates are from.
        samples: Training samples of the task.
        writer: Writes its models.
        rounding: Rounds the weights of the task's model, which may come nearer to it; None
            leaves that way out.
    """

    def __init__(
        self,
        shared: SharedNetwork,
        task: Task,
        space: SearchSpace,
        samples: TrainingSamples,
        writer: ModelWriter,
        rounding: PostTraining | None,
    ) -> None:
        self.shared, self._task, self._space = shared, task, space
        self._samples, self._writer, self._rounding = samples, writer, rounding

    def nearest(self, candidate: Candidate, say: Report, show: Show) -> ModelProto:
        """Make a candidate in the ways that may be best; return the nearest to the whole model.

        What was learned or rounded in the last layer had no regard to what this candidate's other
        layers compute; to fit it to that takes no training.
        """
        ways = [self.cut(candidate, say)]
        degree = self.shared.pruning_degree(candidate)
        if self._rounding is not None and (not degree or degree <= self._reach_of_rounding):
            ways.append(self._rounding.rounded(candidate, say))
        say("quantizing")
        models = [self._writer.write(*way, candidate) for way in ways]
        layer = find_last_layer(ways[0][0].model)
        name = None if layer is None else layer.name
        fitting, compared = self._samples.examples
        found = [answers(model, compared.inputs, name) for model in models]
        distance = compared.distance()
        distances = [distance(outputs).item() for outputs, _ in found]
        nearest = min(range(len(ways)), key=distances.__getitem__)
        model, (base, values), (_, held_out) = models[nearest], ways[nearest], found[nearest]
        show(model, distances[nearest])
        if layer is None or held_out is None:
            return model
        say("fitting the last layer")
        _, read = answers(model, fitting.inputs, layer.name)
        assert read is not None
        weight, bias = (base.module.weights[name] for name in layer.input[1:])
        choice = candidate.layer_choices.get(layer.name)
        bits = None if choice is None or choice.is_float else choice.weight_bits
        fitted = fit_last_layer(read, fitting.distance(), weight, bias, bits)
        if bits is None:
            named = dict(zip(layer.input[1:], (fitted.weight, fitted.bias), strict=True))
            nearer = self._writer.write(base, values, candidate, replace_floats(base.model, named))
        else:
            nearer = self._writer.write(base, {**values, layer.name: fitted}, candidate)
        fitted_distance = distance(last_answers(nearer, layer.name, held_out)).item()
        return nearer if fitted_distance < distances[nearest] else model

    def cut(self, candidate: Candidate, say: Report) -> Weights:
        """Return the weights of a candidate, and its scales, in the network."""
        say("cutting from the shared network")
        part = self.shared.cut(candidate)
        reestimate_batch_norm(part.module, self._samples.statistics)
        folded = fold_batch_norm(part.module, self._task.example_input)
        base = self._writer.fill(folded)
        nodes = layer_nodes(base.model.graph)
        values = {
            node.name: LayerValues(scale=scale)
            for name, scale in part.folded_scales(folded).items()
            for node in nodes[name]
        }
        return base, values

    @cached_property
    def _reach_of_rounding(self) -> float:
        """Degree of pruning beyond which no candidate is nearer without training.

        It is where both ways are equally near in float, with all groups pruned alike. Narrow
        weights speak for those that were trained (ResNet-8 on Fashion-MNIST, 49 candidates).
        """
        assert self._rounding is not None
        degree, gain = 0.0, 0.0
        for ratio in _RATIOS:
            candidate = self._space.uniform(32, 32, ratio)
            cut, rounded = (
                self._samples.distance(self._writer.write(*way(candidate, say_nothing), candidate))
                for way in (self.cut, self._rounding.rounded)
            )
            last = degree, gain
            degree = self.shared.pruning_degree(candidate)
            gain = math.log((rounded + _NO_DISTANCE) / (cut + _NO_DISTANCE))
            if gain > 0.0:
                return float(np.interp(0.0, (last[1], gain), (last[0], degree)))
        return 1.0
