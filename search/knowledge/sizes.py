"""What candidates keep of each layer, and the bytes of that, for many candidates at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..candidate import FLOAT_BITS, FLOAT_WIDTHS, Candidate
from ..space import SearchSpace

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Candidates as arrays, a row for each.

    Attributes:
        kept: Channels kept of each group, shape `(n, n_groups)`.
        weight_bits: Of each layer, shape `(n, n_layers)`; 16 and 32 are float.
        activation_bits: Of each layer.
    """

    kept: Ints
    weight_bits: Ints
    activation_bits: Ints

    def __len__(self) -> int:
        return len(self.weight_bits)

    @classmethod
    def of(cls, space: SearchSpace, candidates: Iterable[Candidate]) -> Choices:
        """Read candidates of a space."""
        listed = list(candidates)

        def table(rows: Sequence[Sequence[int]], width: int) -> Ints:
            return np.array(rows, np.int64).reshape(len(listed), width)

        kept = [
            [g.kept(ratio) for g, (_, ratio) in zip(space.groups, c.pruning, strict=True)]
            for c in listed
        ]
        return cls(
            table(kept, len(space.groups)),
            table([[x.weight_bits for _, x in c.layers] for c in listed], len(space.layers)),
            table([[x.activation_bits for _, x in c.layers] for c in listed], len(space.layers)),
        )

    @classmethod
    def from_params(cls, space: SearchSpace, names: Sequence[str], values: Ints) -> Choices:
        """Read candidates as a sampler gives them.

        Args:
            space: The space.
            names: Parameters of the columns, among those of `space.options()`.
            values: Values of the parameters, shape `(n, n_parameters)`.
        """
        columns = {name: values[:, place] for place, name in enumerate(names)}

        def kept(place: int) -> Ints:
            group, first = space.groups[place], space.groups[space.group_choices[place]]
            own = np.minimum(columns[f"keep/{first.name}"], first.channels)
            if group is first:
                return own
            tied = {k: space.follow(place, k) for k in first.kept_options}
            return np.array([tied[k] for k in own.tolist()], np.int64)

        def bits(kind: str, place: int) -> Ints:
            leader = space.layers[space.layer_choices[place]]
            options = np.array(getattr(space.layers[place], kind), np.int64)
            column = columns.get(f"{kind}/{leader.name}")
            return np.full(len(values), options[0]) if column is None else options[column]

        def table(columns: Sequence[Ints]) -> Ints:
            return np.stack(columns, axis=1) if columns else np.empty((len(values), 0), np.int64)

        weight_bits = table([bits("weight_bits", at) for at in range(len(space.layers))])
        activations = table([bits("activation_bits", at) for at in range(len(space.layers))])
        return cls(
            table([kept(at) for at in range(len(space.groups))]),
            weight_bits,
            np.where(np.isin(weight_bits, FLOAT_WIDTHS), FLOAT_BITS, activations),
        )


class LayerSizes:
    """Channels and parameters of the layers of a space.

    Args:
        space: The space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        layers = space.layers
        is_transposed = np.array([layer.kind == "conv_transpose" for layer in layers])
        self._n_groups = np.array([layer.n_groups for layer in layers])
        first = np.array([layer.weight_shape[0] for layer in layers])
        second = np.array([layer.weight_shape[1] for layer in layers])
        self.n_in = np.where(is_transposed, first, second * self._n_groups)
        self.n_out = np.where(is_transposed, second * self._n_groups, first)
        self.kernel = np.array([prod(layer.weight_shape[2:]) for layer in layers])
        # Channels of each layer that go with one channel of each group.
        self._ins = np.zeros((len(space.groups), len(layers)))
        self._outs = np.zeros_like(self._ins)
        places = {layer.name: at for at, layer in enumerate(layers)}
        for row, plan in enumerate(space.channel_groups):
            for (name, side), indices in plan.units[0].items():
                if name in places:
                    table = self._ins if side == "in" else self._outs
                    table[row, places[name]] = len(indices) / plan.unit_size

    def channels(self, kept: Ints) -> tuple[Ints, Ints]:
        """Return the input and output channels of each layer.

        Args:
            kept: Channels kept of each group, shape `(n, n_groups)`.

        Returns:
            Two arrays of shape `(n, n_layers)`.
        """
        removed = np.array([group.channels for group in self._space.groups]) - kept
        ins = self.n_in - np.rint(removed @ self._ins).astype(np.int64)
        outs = self.n_out - np.rint(removed @ self._outs).astype(np.int64)
        return ins, outs

    def work(self, kept: Ints) -> NDArray[np.float64]:
        """Return the share of each layer's operations that is left, shape `(n, n_layers)`."""
        ins, outs = self.channels(kept)
        # A grouped convolution loses whole groups, so what it computes falls in proportion.
        grouped = outs / self.n_out
        return np.where(self._n_groups > 1, grouped, (ins / self.n_in) * grouped)

    def weights(self, kept: Ints) -> Ints:
        """Return the number of weights of each layer, shape `(n, n_layers)`."""
        total = np.array([prod(layer.weight_shape) for layer in self._space.layers])
        return np.rint(total * self.work(kept)).astype(np.int64)

    def size_bytes(self, choices: Choices) -> NDArray[np.float64]:
        """Return the bytes of weights, scales and biases of each layer, shape `(n, n_layers)`.

        Every layer is taken to have a bias, as those have whose normalization was folded. What
        belongs to no layer, such as the scales of activations, is not in it.
        """
        _, outs = self.channels(choices.kept)
        is_float = np.isin(choices.weight_bits, FLOAT_WIDTHS)
        packed = np.ceil(self.weights(choices.kept) * choices.weight_bits / 8)
        scales = np.where(is_float, 0, 4 * outs)
        return np.asarray(packed + scales + 4 * outs, np.float64)
