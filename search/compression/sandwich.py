"""Training of the shared network: the smallest candidate and random ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...evaluators.task import Augment
from ..candidate import Candidate
from ..checkpoint import read_checkpoint, write_checkpoint
from ..space import SearchSpace
from ..training import check_loss, distillation_loss, learning_rate
from .shared import SharedNetwork

Report = Callable[[str], None]

_SAVE_S = 60.0  # between two checkpoints
_REPORTS = 20  # lines about the whole training


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """How the shared network is trained.

    Attributes:
        epochs: Passes over the data; None takes 5, and more of few data.
        lr: Largest learning rate of the shifts that pruning asks for; those of rounding and step
            sizes take a quarter.
        batch_size: Samples of one step.
        n_random: Random candidates of each step, beside the smallest one or another pruned one.
    """

    epochs: int | None = None
    lr: float = 5e-3
    batch_size: int = 128
    n_random: int = 3

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"`epochs` must be 1 or more, but got {self.epochs}.")
        if not self.lr > 0 or self.batch_size < 2 or self.n_random < 0:
            raise ValueError(
                "`lr` must be above 0, `batch_size` at least 2 and `n_random` 0 or more, but got "
                f"{self.lr}, {self.batch_size} and {self.n_random}."
            )


_EPOCHS = 5
_LEAST_STEPS = 400
# Weights of pruned candidates have far to go; those of unpruned ones are soon worse than before.
_ROUNDING_SHARE = 0.25
_FEWER_BITS = 0.4  # how often a width is drawn, to the next narrower one
_PARTS = 2
_LEAST_PART = 8  # samples


class SandwichTraining:
    """Trains a shared network towards the outputs of the uncompressed model.

    All that is random follows from the seed and the number of the step, so a run that was cut
    off and goes on from its checkpoint ends with the very weights of one that was not.
    """

    def __init__(
        self,
        shared: SharedNetwork,
        teacher: nn.Module,
        inputs: Tensor,
        settings: SharedSettings | None = None,
        *,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        """Prepare the training.

        Args:
            shared: The network, trained in place.
            teacher: The uncompressed model; taken over.
            inputs: Samples to train on, without labels.
            settings: How to train.
            seed: Fixes the order of samples, the augmentation and the candidates.
            augment: Changes a batch of inputs.
        """
        self.shared = shared
        # Convolutions of few channels run faster with the channels last.
        self._teacher = teacher.eval().to(  # type: ignore[call-overload]  # in torch
            memory_format=torch.channels_last
        )
        self._inputs = inputs
        self._settings = settings or SharedSettings()
        self._seed = seed
        self._augment = augment
        self._batch_size = min(self._settings.batch_size, len(inputs))
        # Each candidate sees a part of the batch: more steps of the same cost.
        self._n_parts = _PARTS if self._batch_size >= _LEAST_PART * _PARTS else 1
        self._steps_per_epoch = len(inputs) // self._batch_size
        epochs = self._settings.epochs
        if epochs is None:
            epochs = max(_EPOCHS, math.ceil(_LEAST_STEPS / self._steps_per_epoch))
        self.n_steps = epochs * self._steps_per_epoch
        self.n_done = 0
        # Each group says what its part of the learning rate is.
        groups = [
            {"params": [shared.pruning_shifts], "share": 1.0},
            {"params": [shared.rounding_shifts], "share": _ROUNDING_SHARE},
            {"params": list(shared.growth.parameters()), "share": _ROUNDING_SHARE},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=self._settings.lr, weight_decay=0.0)

    def run(self, checkpoint: Path | None = None, report: Report | None = None) -> None:
        """Train to the end, beginning where the checkpoint of an earlier run stands.

        Args:
            checkpoint: Written every minute, after an interrupt and at the end; removed by the
                caller.
            report: Told how far it is, with the time left.

        Raises:
            TrainingError: If the loss becomes NaN or infinite.
        """
        if checkpoint is not None:
            self._restore(read_checkpoint(checkpoint))
        progress = _Progress(report or (lambda _: None), self.n_done, self.n_steps)
        saved = time.monotonic()
        try:
            while self.n_done < self.n_steps:
                loss = self._step()
                self.n_done += 1
                progress.step(self.n_done, loss)
                if checkpoint is not None and time.monotonic() - saved > _SAVE_S:
                    write_checkpoint(checkpoint, self._state())
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if checkpoint is not None:
                write_checkpoint(checkpoint, self._state())
            raise

    def _step(self) -> float:
        for group in self._optimizer.param_groups:
            share = group["share"] * learning_rate(self.n_done, self.n_steps)
            group["lr"] = self._settings.lr * share
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + self.n_done)
            inputs = self._batch()
            with torch.no_grad():
                targets = self._teacher(inputs)
            self._optimizer.zero_grad()
            total = 0.0
            rng = np.random.default_rng([self._seed, self.n_done])
            candidates = list(sandwich(self.shared.space, rng, self._settings.n_random))
            parts = list(
                zip(inputs.chunk(self._n_parts), targets.chunk(self._n_parts), strict=True)
            )
            for number, candidate in enumerate(candidates):
                part, wanted = parts[number % len(parts)]
                loss = distillation_loss(self.shared(part, candidate), wanted)
                (loss / len(candidates)).backward()
                total += loss.item()
        check_loss(total, 1 + self.n_done // self._steps_per_epoch, self._settings.lr)
        self._optimizer.step()
        return total / len(candidates)

    def _batch(self) -> Tensor:
        epoch, place = divmod(self.n_done, self._steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch, 1]).permutation(len(self._inputs))
        rows = order[place * self._batch_size : (place + 1) * self._batch_size]
        inputs = self._inputs[torch.from_numpy(rows)]
        if self._augment is not None:
            generator = torch.Generator().manual_seed(self._seed + self.n_done)
            inputs = self._augment(inputs, generator)
        return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs

    def _state(self) -> dict[str, object]:
        return {
            "n_done": self.n_done,
            "network": self.shared.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.shared.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.n_done = state["n_done"]


def sandwich(space: SearchSpace, rng: np.random.Generator, n_random: int) -> Iterator[Candidate]:
    """Yield the candidates of one step.

    The largest is not among them: it has the weights of the trained model by construction. The
    smallest leads in every fourth step; in each, its loss would outweigh those of all others. Of
    three random ones one has widths and ratios drawn apart for each layer and group. Drawn apart,
    all layers would hardly ever have few bits together, so the others have the same width in all:
    one few bits, since with many there is little to learn, and one ratio, in every third step all
    channels; the other any width. There, and in the one that leads otherwise, half of the groups
    have one ratio and the others each its own: so candidates are as far apart from each other in
    how much is pruned as in where. With one ratio for all groups, random candidates of ResNet-8 on
    Fashion-MNIST lack 1.05 points of what they reach in a training of their own, so 0.77.
    """
    widths = sorted({bits for layer in space.layers for bits in layer.weight_bits})
    few = _FEWER_BITS ** np.arange(len(widths))
    largest = max((g.ratio(g.kept_options[0]) for g in space.groups), default=0.0)

    def pruned() -> Candidate:
        alike = space.uniform(int(rng.choice(widths)), pruning_ratio=rng.uniform() * largest)
        apart = space.random(rng)
        is_alike = rng.integers(2, size=len(space.groups)).tolist()
        leaders = space.group_leaders or range(len(space.groups))  # tied groups stay together
        pairs = zip(apart.pruning, alike.pruning, strict=True)
        chosen = (pair[is_alike[at]] for at, pair in zip(leaders, pairs, strict=True))
        return replace(alike, pruning=tuple(chosen))

    yield space.uniform(0, 0, 1.0) if rng.integers(4) == 0 else pruned()
    for number in range(n_random):
        if number % 3 == 0:
            ratio = rng.uniform() * largest if rng.integers(3) else 0.0
            yield space.uniform(int(rng.choice(widths, p=few / few.sum())), pruning_ratio=ratio)
        elif number % 3 == 1:
            yield space.random(rng)
        else:
            yield pruned()


class _Progress:
    """Tells how far the training is, with the time left."""

    def __init__(self, report: Report, n_done: int, n_steps: int) -> None:
        self._report = report
        self._start = time.monotonic()
        self._first = n_done
        self._n_steps = n_steps
        self._losses: list[float] = []
        report(f"training the shared network: {n_steps - n_done} of {n_steps} steps to do")

    def step(self, n_done: int, loss: float) -> None:
        self._losses.append(loss)
        if n_done * _REPORTS // self._n_steps == (n_done - 1) * _REPORTS // self._n_steps:
            return
        seconds = time.monotonic() - self._start
        left = seconds / (n_done - self._first) * (self._n_steps - n_done)
        minutes, seconds = divmod(round(left), 60)
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self._report(
            f"training the shared network: {n_done * 100 // self._n_steps} %, loss {mean:.4f}, "
            f"{minutes}:{seconds:02d} min left"
        )
