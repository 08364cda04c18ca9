"""Training of torch modules on data in memory: base models and fine-tuning of candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..evaluators.task import Augment, Data
from ..hw_profiles.errors import ParedownError

Loss = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[str], None]
Log = Callable[[int, Mapping[str, float]], None]
Precision = Literal["float32", "bfloat16"]

_WARMUP_SHARE = 0.1  # of all steps


class TrainingError(ParedownError):
    """Training diverged."""


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for class indices, the mean squared error for anything else."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs, targets)


def distillation_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Distance to a teacher's outputs, which are given as targets.

    For scores of shape `(n, n_classes)` the Kullback-Leibler divergence, for others the mean
    squared error.

    References:
        Hinton, Vinyals, Dean. Distilling the knowledge in a neural network. 2015.
    """
    return distance_to(targets)(outputs)


def distance_to(targets: Tensor, weights: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return `distillation_loss` for targets that many outputs are compared with.

    Args:
        targets: A teacher's outputs, shape `(n, ...)`.
        weights: How much each sample counts, shape `(n,)`; None lets all count the same.
    """
    if targets.ndim != 2 or targets.shape[1] < 2:

        def distances(outputs: Tensor) -> Tensor:
            return (outputs - targets).square().reshape(len(targets), -1).mean(dim=1)
    else:
        wanted = F.log_softmax(targets, dim=1)

        def distances(outputs: Tensor) -> Tensor:
            scores = F.log_softmax(outputs, dim=1)
            return F.kl_div(scores, wanted, log_target=True, reduction="none").sum(dim=1)

    if weights is None:
        return lambda outputs: distances(outputs).mean()
    return lambda outputs: (weights * distances(outputs)).mean()


def train(
    module: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 128,
    seed: int = 0,
    weight_decay: float = 5e-4,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    loss: Loss = default_loss,
    augment: Augment | None = None,
    precision: Precision = "float32",
    report: Report | None = None,
    log: Log | None = None,
) -> None:
    """Train all parameters of a module in place and leave it in evaluation mode.

    The learning rate rises linearly over the first tenth of the steps and falls along a cosine to
    zero. Vectors (biases, norms, scales) are not decayed. The result depends on the arguments
    and the number of threads alone, not on the global random state.

    In a process group of `torch.distributed` each process takes its part of every batch, and the
    gradients are averaged.

    Args:
        module: Maps a batch of inputs to outputs.
        data: Samples and what the loss compares outputs with.
        epochs: Passes over the data.
        lr: Largest learning rate.
        batch_size: Samples of one step; an incomplete last batch is dropped if there are others.
        seed: Fixes the order of samples, the augmentation and dropout.
        weight_decay: Decay of matrices and kernels.
        optimizer: SGD with Nesterov momentum of 0.9, or AdamW.
        loss: Function of outputs and targets.
        augment: Changes a batch of inputs; it draws from the generator that it is given.
        precision: What layers compute in; weights and their updates are float32 either way.
        report: Called after each epoch with a line of text.
        log: Called after each epoch with its number and its figures by name.

    Raises:
        ValueError: If an argument is out of its range.
        TrainingError: If the loss becomes NaN or infinite.
    """
    if epochs < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(
            "`epochs` must be >= 0, `batch_size` >= 1 and `lr` > 0, but got "
            f"{epochs}, {batch_size} and {lr}."
        )
    batch_size = min(batch_size, len(data))
    n_steps = epochs * (len(data) // batch_size)
    if not n_steps:
        return
    update = _make_optimizer(module, optimizer, lr, weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(update, lambda step: learning_rate(step, n_steps))
    generator = torch.Generator().manual_seed(seed)

    run = _shared_by_processes(module)

    def run_epoch() -> float:
        losses = []
        for inputs, targets in _batches(data, batch_size, generator):
            inputs = _part(augment(inputs, generator) if augment else inputs)
            with torch.autocast(
                inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"
            ):
                outputs = run(inputs)
            value = loss(outputs.float(), _part(targets))
            update.zero_grad()
            value.backward()
            update.step()
            schedule.step()
            losses.append(value.detach())
        return torch.stack(losses).mean().item()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.train()
        for epoch in range(1, epochs + 1):
            start = time.monotonic()
            mean = run_epoch()
            check_loss(mean, epoch, lr)
            seconds = time.monotonic() - start
            if report is not None:
                report(f"epoch {epoch} of {epochs}: loss {mean:.4f}, {seconds:.1f} s")
            if log is not None:
                log(epoch, {"loss": mean, "seconds": seconds})
    module.eval()


def _shared_by_processes(module: nn.Module) -> nn.Module:
    """Return the module as it is run: with gradients averaged over a process group, if any."""
    if distributed.is_available() and distributed.is_initialized():
        return DistributedDataParallel(module)
    return module


def _part(batch: Tensor) -> Tensor:
    """Return what this process takes of a batch."""
    if distributed.is_available() and distributed.is_initialized():
        return batch[distributed.get_rank() :: distributed.get_world_size()]
    return batch


def check_loss(loss: float, epoch: int, lr: float) -> None:
    """Raise a `TrainingError` unless the loss is finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss must stay finite, but is {loss} in epoch {epoch} with a learning rate of "
            f"{lr}. Lower the learning rate."
        )


def learning_rate(step: int, n_steps: int) -> float:
    """Return the share of the largest learning rate that a step has: a rise, then a cosine."""
    warmup = max(1, int(_WARMUP_SHARE * n_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def _make_optimizer(
    module: nn.Module, name: str, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    raise ValueError(f"`optimizer` must be 'sgd' or 'adamw', but got '{name}'.")


def _batches(
    data: Data, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data), generator=generator)
    for rows in order.split(batch_size):
        if len(rows) == batch_size:
            yield data.inputs[rows], data.targets[rows]
