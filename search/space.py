"""The search space: which channels may go, and which bit widths each layer may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna
from torch import Tensor, nn

from ..evaluators.task import Data
from ..hw_profiles.profile import HardwareProfile
from .candidate import FLOAT_LAYER, Candidate, LayerChoice, digest_of
from .compression.channels import ChannelGroup, find_channel_groups
from .compression.criteria import make_criterion
from .errors import SpaceError
from .layers import trace_layers
from .membership import check_choice, check_groups, check_names, check_tied_layers, check_ties
from .options import (
    LayerInfo,
    PruningGroup,
    SpaceSettings,
    group_options,
    layer_options,
)
from .rules import LayerRule
from .ties import group_leaders, layer_leaders, share_options

__all__ = [
    "LayerInfo",
    "LayerRule",
    "PruningGroup",
    "SearchSpace",
    "SpaceError",
    "SpaceSettings",
]


@dataclass(frozen=True)
class SearchSpace:
    """Everything a study may choose from, for one model on one device.

    Make one with `SearchSpace.from_model`.

    Attributes:
        groups: Prunable groups of channels, in the order of execution.
        layers: Quantizable layers, in the order of execution.
        channel_groups: For each group, where its channels lie and which are worth most.
        unprunable: Layer name and why its outputs are left alone.
        group_leaders: For each group, the position of the one that it follows; empty if each
            follows itself.
        layer_leaders: The same for layers.
    """

    groups: tuple[PruningGroup, ...]
    layers: tuple[LayerInfo, ...]
    channel_groups: tuple[ChannelGroup, ...] = field(default=(), repr=False)
    unprunable: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    group_leaders: tuple[int, ...] = ()
    layer_leaders: tuple[int, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        example_input: Tensor,
        profile: HardwareProfile,
        settings: SpaceSettings | None = None,
        data: Data | None = None,
    ) -> SearchSpace:
        """Find what can be pruned and quantized in a model.

        Args:
            model: The trained model; it is left as it is.
            example_input: One input, batch dimension first.
            profile: The device: it sets the channel multiple and the widths with kernels.
            settings: Limits of the search.
            data: Samples with targets, for criteria of pruning that look at the loss.

        Returns:
            The space. It holds names and indices, not the model.

        Raises:
            SpaceError: If the model does not run, or a width has no kernel on the device.
            PruningError: If the channels of the model cannot be followed, or the criterion needs
                data and there are none.
            ValueError: If the criterion is unknown.
        """
        settings = settings or SpaceSettings()
        traces = trace_layers(model, example_input)
        if not traces:
            raise SpaceError(
                "A model must have at least one convolution or linear layer, but "
                f"'{type(model).__name__}' runs none on the example input."
            )
        names = [trace.name for trace in traces]
        settings.check_patterns(names)
        offered = [layer_options(t, profile, settings.for_layer(t.name)) for t in traces]
        leaders = layer_leaders(offered, settings)
        layers = share_options(offered, leaders)
        ratios = {name: settings.for_layer(name).max_pruning_ratio for name in names}
        if not any(ratios.values()):
            return cls((), layers, layer_leaders=leaders)
        criterion = make_criterion(settings.criterion, model, data)
        found, unprunable = find_channel_groups(model, example_input, names, criterion)
        groups: list[PruningGroup] = []
        plans: list[ChannelGroup] = []
        for plan in found:
            max_ratio = min(ratios[layer] for layer in plan.layers)
            if max_ratio == 0.0:
                unprunable[plan.name] = "the settings keep its channels"
                continue
            group = group_options(plan, profile.channel_multiple, max_ratio)
            if group is None:
                unprunable[plan.name] = (
                    f"its {plan.channels} channels cannot shrink in steps of "
                    f"{profile.channel_multiple} (blocks of {plan.unit_size}) within the limit"
                )
                continue
            groups.append(group)
            plans.append(plan)
        return cls(
            tuple(groups),
            layers,
            tuple(plans),
            tuple(unprunable.items()),
            group_leaders(groups, layers, settings),
            leaders,
        )

    @property
    def group_choices(self) -> tuple[int, ...]:
        """For each group, the position of the group whose choice it follows: mostly its own."""
        return self.group_leaders or tuple(range(len(self.groups)))

    @property
    def layer_choices(self) -> tuple[int, ...]:
        """For each layer, the position of the layer whose choice it shares: mostly its own."""
        return self.layer_leaders or tuple(range(len(self.layers)))

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the space: what may be chosen, under which names."""
        leaders = [self.group_choices, self.layer_choices]
        is_tied = any(list(at) != list(range(len(at))) for at in leaders)
        return digest_of(
            {
                **({"ties": leaders} if is_tied else {}),
                "groups": [[g.name, g.channels, g.kept_options, g.layers] for g in self.groups],
                "layers": [
                    [x.name, x.kind, x.weight_shape, x.weight_bits, x.activation_bits]
                    for x in self.layers
                ],
            }
        )

    def baseline(self) -> Candidate:
        """Return the model as it came: nothing pruned, all in float.

        It is a candidate of every space, also of one that does not offer float.
        """
        return Candidate(
            tuple((group.name, 0.0) for group in self.groups),
            tuple((layer.name, FLOAT_LAYER) for layer in self.layers),
        )

    def uniform(
        self, weight_bits: int, activation_bits: int = 8, pruning_ratio: float = 0.0
    ) -> Candidate:
        """Return the candidate that treats all alike, each at its nearest option.

        Args:
            weight_bits: Width of all weights, 16 or 32 for float.
            activation_bits: Width of all activations.
            pruning_ratio: Share of channels removed from every group.

        Returns:
            A candidate of the space. Between two equally near options the larger one is taken.
        """
        return self._candidate(
            [_nearest(g.kept_options, g.channels * (1.0 - pruning_ratio)) for g in self.groups],
            [
                (
                    _nearest(layer.weight_bits, weight_bits),
                    _nearest(layer.activation_bits, activation_bits),
                )
                for layer in self.layers
            ],
        )

    def random(self, rng: np.random.Generator) -> Candidate:
        """Return a candidate drawn uniformly over the options."""
        return self._candidate(
            [_draw(rng, group.kept_options) for group in self.groups],
            [
                (_draw(rng, layer.weight_bits), _draw(rng, layer.activation_bits))
                for layer in self.layers
            ],
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> Candidate:
        """Let a sampler choose.

        All parameters are integers in steps, since categories would lose their order: kept
        channels as such, widths as the position in the layer's list. What has one option is no
        parameter. The parameters are the same in every trial, which all samplers can use; the
        activation width of a float layer is asked for and then has no effect.

        Args:
            trial: The trial that asks.

        Returns:
            The candidate.
        """
        names = self._parameters()
        return self.from_params(
            {
                name: trial.suggest_int(name, low, high, step=step)
                for name, (low, high, step) in names.items()
            }
        )

    def from_params(self, values: Mapping[str, int]) -> Candidate:
        """Return the candidate of a parameter's values, which are as `options` lists them.

        Args:
            values: Value by name of the parameter.
        """

        def bits(prefix: str, name: str, options: tuple[int, ...]) -> int:
            return options[values.get(f"{prefix}/{name}", 0)]

        return self._candidate(
            [
                min(values.get(f"keep/{group.name}", group.channels), group.channels)
                for group in self.groups
            ],
            [
                (
                    bits("weight_bits", layer.name, layer.weight_bits),
                    bits("activation_bits", layer.name, layer.activation_bits),
                )
                for layer in self.layers
            ],
        )

    def params(self, candidate: Candidate) -> dict[str, int]:
        """Return the parameters that make `suggest` give this candidate, to enqueue a trial.

        Args:
            candidate: A candidate of the space.

        Returns:
            Value by parameter name.

        Raises:
            SpaceError: If the candidate does not belong to the space.
        """
        self.check(candidate)
        values: dict[str, int] = {}
        for group, (_, ratio) in zip(self.groups, candidate.pruning, strict=True):
            place = group.kept_options.index(group.kept(ratio))
            values[f"keep/{group.name}"] = group.kept_options[0] + place * group.step
        for layer, (_, choice) in zip(self.layers, candidate.layers, strict=True):
            check_choice(layer, choice)
            if layer.name != self._leading(layer).name:
                continue
            values[f"weight_bits/{layer.name}"] = layer.weight_bits.index(choice.weight_bits)
            values[f"activation_bits/{layer.name}"] = (
                len(layer.activation_bits) - 1
                if choice.is_float
                else layer.activation_bits.index(choice.activation_bits)
            )
        return {name: values[name] for name in self._parameters()}

    def options(self) -> dict[str, tuple[int, ...]]:
        """Return the values of each parameter of `suggest`, ascending, by name."""
        return {
            name: tuple(range(low, high + 1, step))
            for name, (low, high, step) in self._parameters().items()
        }

    def check(self, candidate: Candidate) -> None:
        """Raise unless the candidate belongs to the space.

        Args:
            candidate: Any candidate.

        Raises:
            SpaceError: Names the first group or layer that does not fit.
        """
        if candidate != self.baseline():
            check_names("group", [g.name for g in self.groups], [n for n, _ in candidate.pruning])
            check_names("layer", [x.name for x in self.layers], [n for n, _ in candidate.layers])
            kept = check_groups(self.groups, candidate)
            for layer, (_, choice) in zip(self.layers, candidate.layers, strict=True):
                check_choice(layer, choice)
            check_ties(self.groups, kept, self._follow(kept))
            check_tied_layers(candidate, self.layer_choices)

    def follow(self, group: int, kept: int) -> int:
        """Return what a group keeps where the group that it follows keeps `kept` channels.

        Args:
            group: Position in `groups`.
            kept: Channels kept of the group at `group_choices[group]`.
        """
        leader = self.group_choices[group]
        if leader == group:
            return kept
        share = kept / self.groups[leader].channels
        return _nearest(self.groups[group].kept_options, self.groups[group].channels * share)

    def _follow(self, kept: Sequence[int]) -> list[int]:
        return [self.follow(at, kept[leader]) for at, leader in enumerate(self.group_choices)]

    def _leading(self, layer: LayerInfo) -> LayerInfo:
        return self.layers[self.layer_choices[self.layers.index(layer)]]

    def _parameters(self) -> dict[str, tuple[int, int, int]]:
        """Return (low, high, step) by parameter name, in a fixed order."""
        limits: dict[str, tuple[int, int, int]] = {}
        for place, group in enumerate(self.groups):
            if self.group_choices[place] != place:
                continue
            low, step = group.kept_options[0], group.step
            high = low + step * (len(group.kept_options) - 1)
            limits[f"keep/{group.name}"] = (low, high, step)
        for place, layer in enumerate(self.layers):
            if self.layer_choices[place] != place:
                continue
            for prefix, options in (
                ("weight_bits", layer.weight_bits),
                ("activation_bits", layer.activation_bits),
            ):
                has_effect = prefix == "weight_bits" or layer.has_integer_widths
                if len(options) > 1 and has_effect:
                    limits[f"{prefix}/{layer.name}"] = (0, len(options) - 1, 1)
        return limits

    def _candidate(self, kept: Sequence[int], bits: Sequence[tuple[int, int]]) -> Candidate:
        """Make a candidate of what the leaders of ties choose; what others choose is ignored."""
        kept = self._follow(kept)
        bits = [bits[leader] for leader in self.layer_choices]
        return Candidate(
            tuple(
                (group.name, group.ratio(k)) for group, k in zip(self.groups, kept, strict=True)
            ),
            tuple(
                (layer.name, LayerChoice.of(w, a))
                for layer, (w, a) in zip(self.layers, bits, strict=True)
            ),
        )


def _nearest(options: Sequence[int], value: float) -> int:
    return min(options, key=lambda option: (abs(option - value), -option))


def _draw(rng: np.random.Generator, options: Sequence[int]) -> int:
    return options[int(rng.integers(len(options)))]
