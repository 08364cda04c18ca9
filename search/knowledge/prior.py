"""What is expected of a candidate before it is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..candidate import FLOAT_WIDTHS
from ..space import SearchSpace
from .latency_model import LatencyModel
from .sensitivity import Sensitivities
from .sizes import Choices, LayerSizes

Floats = NDArray[np.float64]


class SpacePrior:
    """Expected costs of candidates: a loss that stands for accuracy, bytes, and microseconds.

    The loss is between 0 and 1: how likely, roughly, a small change of the outputs changes the
    answer. It ranks candidates; how it goes with accuracy is learnt from trials.

    Args:
        space: The space.
        sensitivities: Loss of each option.
        latencies: The latency model of each device; what it learns later is used at once.
        size_offset_bytes: What belongs to no layer; may be set when it becomes known.
    """

    def __init__(
        self,
        space: SearchSpace,
        sensitivities: Sensitivities,
        latencies: Sequence[LatencyModel],
        size_offset_bytes: float = 0.0,
    ) -> None:
        self.space, self.sensitivities, self.latencies = space, sensitivities, tuple(latencies)
        self._sizes = LayerSizes(space)
        self.size_offset_bytes = size_offset_bytes

    def __call__(self, names: Sequence[str], values: NDArray[np.int64]) -> Floats:
        """Return costs of shape `(n, 2 + n_devices)`, all to be minimised.

        Args:
            names: Parameters of the columns, as `SearchSpace.options` has them.
            values: Their values, shape `(n, n_parameters)`.
        """
        choices = Choices.from_params(self.space, names, values)
        loss = self._effective(names, values, choices)
        size = self._sizes.size_bytes(choices).sum(axis=1) + self.size_offset_bytes
        times = [latency.predict(choices)[0] for latency in self.latencies]
        return np.stack([1.0 - np.exp(-loss), size, *times], axis=1)

    def _effective(
        self, names: Sequence[str], values: NDArray[np.int64], choices: Choices
    ) -> Floats:
        """Leave out the width of a float layer's input, which has no effect."""
        shown = values.copy()
        columns = {name: place for place, name in enumerate(names)}
        for place, layer in enumerate(self.space.layers):
            column = columns.get(f"activation_bits/{layer.name}")
            if column is not None:
                is_float = np.isin(choices.weight_bits[:, place], FLOAT_WIDTHS)
                shown[is_float, column] = len(layer.activation_bits) - 1
        return self.sensitivities.total(names, shown)
