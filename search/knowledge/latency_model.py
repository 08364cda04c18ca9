"""Latency of candidates, learnt from layers that were timed in place.

A network's time is the sum over its layers, each of which depends on its channels and widths
alone, plus what all candidates share. Every timed network shows one choice of each layer, so a
few of them tell about very many candidates. What the sum leaves out (the clock between the calls,
the caches) is an affine correction that is fitted to whole networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ...evaluators.layer_times import LayerTimes
from ..candidate import FLOAT_BITS, FLOAT_WIDTHS, HALF_BITS, Candidate
from ..space import SearchSpace
from .sizes import Choices, LayerSizes

Floats = NDArray[np.float64]

# Standard deviations of the logarithm of a layer's time: of its level, by width, by channels, of
# what both do together, and from one count of channels to the next (whole tiles). Then the noise.
_LEVEL, _BY_WIDTH, _BY_CHANNELS, _BY_BOTH, _BY_TILE, _NOISE = 3.0, 0.5, 0.4, 0.1, 0.06, 0.02
_WIDTH_SCALE = 1.5  # bits over which times are alike
_HALF_PLACE = FLOAT_BITS - 0.5  # most layers take the same time with weights in float16
_CHANNEL_SCALE, _TILE_SCALE = 1.0, 0.15  # in logarithms of the share of channels
_FIXED_SHARE = 0.05  # of a layer's time that does not go with its operations
_INTEGER_SHARE = 0.6  # of a float layer's time, before any was timed
_LOOSE_DEVIATIONS = (1.0, 0.5)  # the same, where no layer was timed
_PRIOR_DEVIATIONS = (0.1, 0.1)  # of the correction: factor less one, and offset over the baseline


@dataclass(frozen=True, slots=True)
class LatencySample:
    """One network that was timed.

    Attributes:
        candidate: What it is.
        times: Its layers, in proportion to the baseline's latency; None if they were not timed.
        latency_us: The whole network; None if only its layers were timed.
    """

    candidate: Candidate
    times: LayerTimes | None
    latency_us: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        times = None if self.times is None else self.times.to_json()
        return {
            "candidate": self.candidate.to_json(), "times": times, "latency_us": self.latency_us
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencySample:
        """Read what `to_json` wrote."""
        times = data["times"]
        return cls(
            Candidate.from_json(data["candidate"]),
            None if times is None else LayerTimes.from_json(times),
            data["latency_us"],
        )


class LatencyModel:
    """Predicts latency from timed networks of the same space.

    Without the times of any layer, each is taken to go with its operations.

    Args:
        space: The space.
        baseline_us: Latency of the uncompressed model: the unit of the correction.
    """

    def __init__(self, space: SearchSpace, baseline_us: float) -> None:
        self.space, self.baseline_us = space, baseline_us
        self._sizes = LayerSizes(space)
        self._samples: list[LatencySample] = []
        self._layers: list[_LayerModel | None] = []
        self._other = np.zeros(2)
        self._correction = np.array([1.0, 0.0])
        self._deviation = 0.0
        self._is_fresh = True

    @property
    def n_timed(self) -> int:
        """Networks whose layers are known."""
        return sum(sample.times is not None for sample in self._samples)

    def add(self, sample: LatencySample) -> None:
        """Learn from one network; the next prediction uses it."""
        self._samples.append(sample)
        self._is_fresh = False

    def predict(self, choices: Choices) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the latency of candidates, in microseconds."""
        layers = self.predict_layers(choices)
        factor, offset = self._correction
        mean = factor * (layers.sum(axis=1) + self._predict_other(choices)) + offset
        mean = np.maximum(mean, 1e-3 * self.baseline_us)
        return mean, self._deviation * mean

    def predict_layers(self, choices: Choices) -> Floats:
        """Return the time of each layer in microseconds, shape `(n, n_layers)`."""
        self._fit()
        work = self._sizes.work(choices.kept)
        ins, outs = self._sizes.channels(choices.kept)
        columns = []
        for place, layer in enumerate(self._layers):
            keys = np.stack(
                [ins[:, place], outs[:, place], choices.weight_bits[:, place],
                 choices.activation_bits[:, place]], axis=1,
            )  # fmt: skip
            left = work[:, place]
            columns.append(self._guess(place, keys, left) if layer is None else layer(keys, left))
        return np.stack(columns, axis=1)

    def _predict_other(self, choices: Choices) -> Floats:
        share = self._sizes.work(choices.kept).mean(axis=1)
        return np.asarray(self._other[0] + self._other[1] * np.sqrt(share))

    def _guess(self, place: int, keys: NDArray[np.int64], work: Floats) -> Floats:
        """Return the time of a layer that was never timed, by its share of the operations."""
        if self.n_timed:  # it has no kernel of its own
            return np.zeros(len(keys))
        share = self.space.layers[place].macs / sum(layer.macs for layer in self.space.layers)
        by_width = np.where(np.isin(keys[:, 2], FLOAT_WIDTHS), 1.0, _INTEGER_SHARE)
        return np.asarray(self.baseline_us * share * (work + _FIXED_SHARE) * by_width)

    def _fit(self) -> None:
        if self._is_fresh and self._layers:
            return
        self._is_fresh = True
        timed = [s for s in self._samples if s.times is not None]
        if not timed:
            self._layers = [None] * len(self.space.layers)
            self._correct()
            return
        choices = Choices.of(self.space, [s.candidate for s in timed])
        work = self._sizes.work(choices.kept)
        ins, outs = self._sizes.channels(choices.kept)
        self._layers = []
        for place, layer in enumerate(self.space.layers):
            times = np.array([s.times.layers_us.get(layer.name, 0.0) for s in timed if s.times])
            keys = np.stack(
                [ins[:, place], outs[:, place], choices.weight_bits[:, place],
                 choices.activation_bits[:, place]], axis=1,
            )  # fmt: skip
            is_seen = times > 0
            full = (int(self._sizes.n_in[place]), int(self._sizes.n_out[place]))
            self._layers.append(
                _LayerModel(full, keys[is_seen], work[is_seen, place], times[is_seen])
                if is_seen.any()
                else None
            )
        other = np.array([s.times.other_us for s in timed if s.times])
        self._other = _ridge(
            np.stack([np.ones(len(other)), np.sqrt(work.mean(axis=1))], axis=1),
            other,
            np.array([other.mean(), 0.0]),
            np.array([other.mean(), other.mean()]) + 1e-9,
            0.1 * other.mean() + 1e-9,
        )
        self._correct()

    def _correct(self) -> None:
        """Fit the correction, and the deviation that is left, to whole networks."""
        whole = [s for s in self._samples if s.latency_us is not None]
        self._correction, self._deviation = np.array([1.0, 0.0]), 0.1
        if not whole:
            return
        choices = Choices.of(self.space, [s.candidate for s in whole])
        raw = self.predict_layers(choices).sum(axis=1) + self._predict_other(choices)
        measured = np.array([s.latency_us for s in whole], np.float64)
        factor, offset = _PRIOR_DEVIATIONS if self.n_timed else _LOOSE_DEVIATIONS
        # Errors are relative: each row is divided by what was measured.
        self._correction = _ridge(
            np.stack([raw, np.ones(len(raw))], axis=1) / measured[:, None],
            np.ones(len(raw)),
            np.array([1.0, 0.0]),
            np.array([factor, offset * self.baseline_us]),
            0.03,
        )
        fitted = self._correction[0] * raw + self._correction[1]
        errors = fitted / measured - 1.0
        # As if two networks more had been off by 5 %.
        total = float(np.sum(errors**2)) + 2 * 0.05**2
        self._deviation = float(np.sqrt(total / (len(errors) + 2)))


class _LayerModel:
    """The logarithm of one layer's time as a Gaussian process over channels and widths.

    Times over operations are what is modelled. Widths and channels act as factors, so their
    covariances are added.

    Args:
        full: Input and output channels before pruning.
        keys: Input channels, output channels and both widths of what was timed, shape `(n, 4)`.
        work: Share of the operations left.
        times_us: The times.
    """

    def __init__(
        self, full: tuple[int, int], keys: NDArray[np.int64], work: Floats, times_us: Floats
    ) -> None:
        self._full = np.array(full, np.float64)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        counts = np.bincount(inverse.reshape(-1))
        logs = np.log(times_us) - np.log(work + _FIXED_SHARE)
        self._mean = float(np.median(logs))
        values = np.bincount(inverse.reshape(-1), logs - self._mean) / counts
        self._known = unique
        covariance = self._covariance(unique, unique) + np.diag(_NOISE**2 / counts)
        self._weights = cho_solve(cho_factor(covariance), values)
        self._cache: dict[int, float] = {}

    def __call__(self, keys: NDArray[np.int64], work: Floats) -> Floats:
        """Return the times of choices in microseconds."""
        # One number for each row is sorted faster than rows.
        codes = keys @ np.array([1 << 40, 1 << 16, 1 << 8, 1])
        unique, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        new = [at for at, code in enumerate(unique.tolist()) if code not in self._cache]
        if new:
            logs = self._covariance(keys[first[new]], self._known) @ self._weights
            self._cache.update(zip(unique[new].tolist(), logs.tolist(), strict=True))
        logs = np.array([self._cache[code] for code in unique.tolist()])[inverse]
        return np.asarray(np.exp(logs + self._mean) * (work + _FIXED_SHARE))

    def _covariance(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> Floats:
        places = [np.log(keys[:, :2] / self._full) for keys in (one, other)]
        gaps = np.abs(places[0][:, None] - places[1][None])
        widths = _alike(one, other)
        channels = np.exp(-0.5 * ((gaps / _CHANNEL_SCALE) ** 2).sum(axis=2))
        tiles = np.exp(-gaps.sum(axis=2) / _TILE_SCALE)
        return np.asarray(
            _LEVEL**2
            + _BY_WIDTH**2 * widths
            + _BY_CHANNELS**2 * channels
            + _BY_BOTH**2 * widths * channels
            + _BY_TILE**2 * widths * tiles
        )


def _alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> Floats:
    """Return how alike widths are: float is like float16 alone, bits like their neighbours."""
    places = [np.where(k[:, 2] == HALF_BITS, _HALF_PLACE, k[:, 2]) for k in (one, other)]
    weights = (places[0][:, None] - places[1][None]) / _WIDTH_SCALE
    activations = (one[:, None, 3] - other[None, :, 3]) / (4 * _WIDTH_SCALE)
    is_float = [np.isin(k[:, 2], FLOAT_WIDTHS) for k in (one, other)]
    return np.where(
        is_float[0][:, None] != is_float[1], 0.0, np.exp(-0.5 * (weights**2 + activations**2))
    )


def _ridge(
    design: Floats, target: Floats, prior: Floats, deviations: Floats, noise: float
) -> Floats:
    """Return the most likely coefficients under a normal prior."""
    precision = design.T @ design / noise**2 + np.diag(deviations**-2.0)
    right = design.T @ (target - design @ prior) / noise**2
    return np.asarray(prior + np.linalg.solve(precision, right))


def probe_candidates(space: SearchSpace, n_probes: int, seed: int) -> Sequence[Candidate]:
    """Return candidates whose layers together show most choices: what to time first.

    Each parameter runs through its values from end to end over the probes, in an order of its
    own (a Latin hypercube).

    Args:
        space: The space.
        n_probes: How many.
        seed: Of the orders.
    """
    rng = np.random.default_rng(seed)
    columns = {}
    for name, values in space.options().items():
        places = np.linspace(0, len(values) - 1, n_probes).round().astype(int)
        columns[name] = [values[place] for place in rng.permutation(places)]
    return [
        space.from_params({name: column[row] for name, column in columns.items()})
        for row in range(n_probes)
    ]
