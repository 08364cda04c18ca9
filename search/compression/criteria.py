"""What makes a channel important: criteria behind one interface, chosen by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...evaluators.task import Data
from ..errors import PruningError
from ..layers import LAYER_TYPES
from ..training import default_loss
from .surgery import channel_dim

_BATCH_SIZE = 64
_MAX_SAMPLES = 1024
_PROBES = 4  # random vectors of Hutchinson's estimate, for each batch


class Criterion(Protocol):
    """Scores the channels of one module."""

    def scores(self, name: str, module: nn.Module, side: str) -> Tensor | None:
        """Return how much each channel is worth.

        Args:
            name: Name of the module.
            module: A layer or a normalisation.
            side: "in" or "out".

        Returns:
            Not negative, shape `(channels,)`; None where the module says nothing about them.
        """
        ...


Factory = Callable[[nn.Module, Data | None], Criterion]
F = TypeVar("F", bound=Factory)

CRITERIA: dict[str, Factory] = {}


def register(name: str) -> Callable[[F], F]:
    """Make a criterion available under a name; a second use of a name is an error."""

    def add(factory: F) -> F:
        if name in CRITERIA:
            raise ValueError(f"Criterion '{name}' must be unique. Register under another name.")
        CRITERIA[name] = factory
        return factory

    return add


def make_criterion(name: str, model: nn.Module, data: Data | None = None) -> Criterion:
    """Return a criterion by name.

    Args:
        name: One of `CRITERIA`.
        model: The model that is to be pruned.
        data: Samples with targets, for criteria that look at the loss.

    Raises:
        ValueError: If the name is unknown.
        PruningError: If the criterion needs data and there are none.
    """
    if name not in CRITERIA:
        raise ValueError(f"`criterion` must be one of {', '.join(CRITERIA)}, but got '{name}'.")
    return CRITERIA[name](model, data)


class ElementCriterion:
    """A channel is worth the sum of what its weights are worth, and nothing if that is negative.

    Args:
        weights: Worth of each element, by the names of parameters; a parameter that is not named
            is worth nothing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def scores(self, name: str, module: nn.Module, side: str) -> Tensor | None:
        """Return the sum of each channel's elements."""
        worth = self._weights.get(f"{name}.weight")
        dim = _channel_axis(module, side)
        if worth is None or dim is None:
            return None
        worth = worth.cpu().double()
        worth = worth.movedim(dim, 0).flatten(1).sum(1) if worth.dim() > 1 else worth
        return worth.clamp_min(0.0)


def _channel_axis(module: nn.Module, side: str) -> int | None:
    """Return the axis of the module's weight along which its channels lie."""
    if isinstance(module, LAYER_TYPES):
        axis = channel_dim(module, side)
        # Weights of a block of channels count on the other side.
        return None if isinstance(module, _ConvNd) and module.groups > 1 and axis == 1 else axis
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    return 0


def _map_parameters(model: nn.Module, function: Callable[[Tensor], Tensor]) -> ElementCriterion:
    return ElementCriterion({n: function(p.detach()) for n, p in model.named_parameters()})


@register("l1")
def _l1(model: nn.Module, data: Data | None) -> Criterion:
    """Score by the sum of magnitudes (Li et al. Pruning filters for efficient ConvNets. 2017)."""
    return _map_parameters(model, torch.abs)


@register("l2")
def _l2(model: nn.Module, data: Data | None) -> Criterion:
    """Score by the sum of squares."""
    return _map_parameters(model, torch.square)


@register("bn-scale")
def _bn_scale(model: nn.Module, data: Data | None) -> Criterion:
    """Score by the factor that follows a channel's normalisation.

    References:
        Liu et al. Learning efficient convolutional networks through network slimming. ICCV 2017.
    """
    return ElementCriterion(
        {
            f"{name}.weight": module.weight.detach().abs()
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.weight is not None
        }
    )


@register("taylor")
def _taylor(model: nn.Module, data: Data | None) -> Criterion:
    """Score by the change of the loss, to first order, when a weight becomes zero.

    References:
        Molchanov et al. Importance estimation for neural network pruning. CVPR 2019, eq. 8.
    """
    probe, batches = _for_gradients("taylor", model, data)
    totals = {name: torch.zeros_like(p) for name, p in probe.named_parameters()}
    for inputs, targets in batches:
        probe.zero_grad()
        default_loss(probe(inputs), targets).backward()
        for name, parameter in probe.named_parameters():
            if parameter.grad is not None:
                totals[name] += (parameter.detach() * parameter.grad).square()
    return ElementCriterion(totals)


@register("hessian")
def _hessian(model: nn.Module, data: Data | None) -> Criterion:
    """Score by the change of the loss, to second order with the diagonal of its Hessian.

    The diagonal is estimated with random signs (Hutchinson).

    References:
        Yu et al. Hessian-aware pruning and optimal neural implant. WACV 2022.
    """
    probe, batches = _for_gradients("hessian", model, data)
    named = [(n, p) for n, p in probe.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    diagonals = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for inputs, targets in batches:
        loss = default_loss(probe(inputs), targets)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        used = [
            (p, g, d)
            for p, g, d in zip(parameters, gradients, diagonals, strict=True)
            if g is not None  # type: ignore[redundant-expr]  # torch's types know no unused one
        ]
        for probe_number in range(_PROBES):
            signs = [
                torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1.0 for p, _, _ in used
            ]
            products = torch.autograd.grad(
                [g for _, g, _ in used],
                [p for p, _, _ in used],
                signs,
                retain_graph=probe_number + 1 < _PROBES,
                allow_unused=True,
            )
            for (_, _, diagonal), sign, product in zip(used, signs, products, strict=True):
                if product is not None:
                    diagonal += sign * product
    pairs = zip(named, diagonals, strict=True)
    return ElementCriterion({name: d * p.detach().square() for (name, p), d in pairs})


@register("geometric-median")
class GeometricMedian:
    """Scores a channel by its distance from the others: what lies amid them can be replaced.

    References:
        He et al. Filter pruning via geometric median for deep CNN acceleration. CVPR 2019.
    """

    def __init__(self, model: nn.Module, data: Data | None) -> None:
        """Prepare nothing: the weights say it all."""

    def scores(self, name: str, module: nn.Module, side: str) -> Tensor | None:
        """Return the sum of distances to all other channels, of layers' outputs alone."""
        axis = _channel_axis(module, side)
        if side != "out" or axis is None or not isinstance(module, LAYER_TYPES):
            return None
        rows = module.weight.detach().cpu().double().movedim(axis, 0).flatten(1)
        return torch.cdist(rows, rows).sum(1)


def _for_gradients(
    name: str, model: nn.Module, data: Data | None
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a copy of the model that gradients can be asked of, and batches of data."""
    if data is None:
        raise PruningError(
            f"`criterion` '{name}' needs training data, but the task has none. Set `Task.train`, "
            "or use 'l2'."
        )
    probe = copy.deepcopy(model).eval().requires_grad_(True)
    n_samples = min(len(data), _MAX_SAMPLES)
    rows = torch.arange(n_samples) * (len(data) // n_samples)
    batches = rows.split(_BATCH_SIZE)
    return probe, [(data.inputs[batch], data.targets[batch]) for batch in batches]
