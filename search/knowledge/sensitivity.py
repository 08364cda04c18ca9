"""How much each choice alone changes a model's outputs: no labels are needed, only inputs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...evaluators.accuracy import predict
from ..candidate import Candidate
from ..compression.compressor import Compressor
from ..space import SearchSpace
from ..training import distillation_loss

Floats = NDArray[np.float64]
Report = Callable[[str], None]
Losses = Mapping[str, Mapping[int, float]]
"""Loss by parameter and value."""

_FLOOR = 1e-9  # of a loss whose logarithm is taken
_CHANNEL_POWER = 2.0


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Loss of each option of each parameter, all others at their largest value.

    The loss is the divergence of the outputs from those of the uncompressed model, in nats for
    class scores and relative to the outputs' variance for others. That of many choices is about
    the sum of theirs, as long as it is small.

    Attributes:
        losses: Loss by parameter and value.
        measured: Values of each parameter that were measured; others lie between them.
    """

    losses: Mapping[str, Mapping[int, float]]
    measured: Mapping[str, tuple[int, ...]]

    def total(self, names: Sequence[str], values: NDArray[np.int64]) -> Floats:
        """Return the summed loss of candidates.

        Args:
            names: Parameters of the columns.
            values: Their values, shape `(n, n_parameters)`.
        """
        total = np.zeros(len(values))
        for column, name in enumerate(names):
            table = self.losses.get(name)
            if table:
                keys = np.array(sorted(table))
                amounts = np.array([table[key] for key in keys.tolist()])
                total += amounts[np.searchsorted(keys, values[:, column])]
        return total

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": 1,
            "losses": {n: {str(v): x for v, x in t.items()} for n, t in self.losses.items()},
            "measured": {name: list(values) for name, values in self.measured.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivities:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the version is unknown.
        """
        if data.get("version") != 1:
            raise ValueError(f"Version of sensitivities must be 1, but got {data.get('version')}.")
        losses = {n: {int(v): float(x) for v, x in t.items()} for n, t in data["losses"].items()}
        return cls(losses, {n: tuple(v) for n, v in data["measured"].items()})


def measure_sensitivities(
    compressor: Compressor,
    inputs: Tensor,
    *,
    budget_s: float = 30.0,
    report: Report = lambda text: None,
    known: Losses | None = None,
    keep: Callable[[Losses], None] = lambda losses: None,
) -> Sensitivities:
    """Change one parameter at a time, and see how far the outputs move.

    The extremes of all parameters come first, then what halves the largest gap between measured
    values, until everything is known or the time is used up. Values between measured ones are
    interpolated on a logarithmic scale.

    Args:
        compressor: Makes the models; one that trains them would take very long.
        inputs: Samples, such as those for calibration.
        budget_s: Seconds after which no further value is begun; each parameter has one or more.
        report: Told which parameter is measured.
        known: What an earlier call had handed to `keep` when it was cut off.
        keep: Given all losses so far after each one.
    """
    space = compressor.space
    options = space.options()
    top = {name: values[-1] for name, values in options.items()}
    expected = predict(compressor.compress(space.baseline()).module, inputs)
    base = _loss(compressor, space.from_params(top), inputs, expected)
    found = {name: {top[name]: 0.0, **(known or {}).get(name, {})} for name in options}
    start = time.monotonic()
    while (wanted := _next_value(options, found)) is not None:
        name, value = wanted
        is_short = time.monotonic() - start > budget_s
        if is_short and (name.startswith("activation_bits/") or len(found[name]) > 1):
            break
        report(f"sensitivity of {name}")
        candidate = space.from_params({**top, **_with_width(space, name), name: value})
        reference = _reference(found, name, base, compressor, inputs, expected, top)
        loss = _loss(compressor, candidate, inputs, expected) - reference
        found[name][value] = max(0.0, loss)
        keep(found)
    losses = {name: _interpolated(name, values, found[name]) for name, values in options.items()}
    return Sensitivities(losses, {name: tuple(sorted(v)) for name, v in found.items()})


def _with_width(space: SearchSpace, name: str) -> dict[str, int]:
    """Return what makes a layer integer: the width of a float layer's input has no effect."""
    kind, _, layer = name.partition("/")
    other = f"weight_bits/{layer}"
    options = space.options().get(other, ())
    if kind != "activation_bits" or not options:
        return {}
    widths = next(x.weight_bits for x in space.layers if x.name == layer)
    return {other: max(place for place, bits in enumerate(widths) if bits <= 8 or place == 0)}


def _reference(
    known: dict[str, dict[int, float]],
    name: str,
    base: float,
    compressor: Compressor,
    inputs: Tensor,
    expected: Tensor,
    top: Mapping[str, int],
) -> float:
    """Return the loss that the other parameters of the changed model cause by themselves."""
    widths = _with_width(compressor.space, name)
    if not widths:
        return base
    ((other, value),) = widths.items()
    if value not in known[other]:
        candidate = compressor.space.from_params({**top, other: value})
        loss = _loss(compressor, candidate, inputs, expected)
        known[other][value] = max(0.0, loss - base)
    return base + known[other][value]


def _next_value(
    options: Mapping[str, tuple[int, ...]], known: Mapping[str, Mapping[int, float]]
) -> tuple[str, int] | None:
    """Return the value in the middle of the widest gap; ends count as the widest."""
    best: tuple[float, str, int] | None = None
    for name, values in options.items():
        places = sorted(values.index(value) for value in known[name])
        if places[0] > 0:
            # The widths of inputs matter least.
            found = (1e3 if name.startswith("activation_bits/") else 1e6, name, values[0])
        else:
            gap, low = max((b - a, a) for a, b in itertools.pairwise(places))
            if gap < 2:
                continue
            found = (gap / len(values), name, values[low + gap // 2])
        if best is None or found[0] > best[0]:
            best = found
    return None if best is None else best[1:]


def _loss(compressor: Compressor, candidate: Candidate, inputs: Tensor, expected: Tensor) -> float:
    outputs = predict(compressor.compress(candidate).module, inputs)
    loss = float(distillation_loss(outputs, expected))
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return loss
    return loss / max(float(expected.var()), 1e-12)


def _interpolated(
    name: str, values: Sequence[int], known: Mapping[int, float]
) -> dict[int, float]:
    """Fill the gaps; no value may be better than a larger one.

    The loss of a width falls by about the same factor with each bit; that of channels goes with a
    power of how many are removed.
    """
    places = [place for place, value in enumerate(values) if value in known]
    logs = [math.log(max(known[values[place]], _FLOOR)) for place in places]
    if name.startswith("keep/"):
        removed = np.log(len(values) - np.array(places[:-1], np.float64))[::-1]
        missing = np.log(len(values) - np.arange(len(values) - 1.0))
        filled = np.interp(missing, removed, logs[-2::-1])
        filled += _CHANNEL_POWER * np.minimum(0.0, missing - removed[0])
        guesses = [*np.exp(filled).tolist(), 0.0]
    else:
        guesses = np.exp(np.interp(np.arange(len(values)), places, logs)).tolist()
    exact = [known.get(value, guess) for value, guess in zip(values, guesses, strict=True)]
    # The whole is not worse than a part of it: what says so is noise.
    monotone = np.maximum.accumulate(np.array(exact)[::-1])[::-1]
    return dict(zip(values, monotone.tolist(), strict=True))
