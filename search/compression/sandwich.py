"""Training of the shared network: the smallest candidate and random ones in each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
        epochs: Passes over the data; None takes 3, and more of few data.
        lr: Largest learning rate of shifts and step sizes.
        batch_size: Samples of one step.
        n_random: Random candidates of each step, beside the smallest one.
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


_EPOCHS = 3
_LEAST_STEPS = 400


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
        self._steps_per_epoch = len(inputs) // self._batch_size
        epochs = self._settings.epochs
        if epochs is None:
            epochs = max(_EPOCHS, math.ceil(_LEAST_STEPS / self._steps_per_epoch))
        self.n_steps = epochs * self._steps_per_epoch
        self.n_done = 0
        self._optimizer = torch.optim.AdamW(
            shared.parameters_to_train(), lr=self._settings.lr, weight_decay=0.0
        )

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
            group["lr"] = self._settings.lr * learning_rate(self.n_done, self.n_steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + self.n_done)
            inputs = self._batch()
            with torch.no_grad():
                targets = self._teacher(inputs)
            total = 0.0
            self._optimizer.zero_grad()
            rng = np.random.default_rng([self._seed, self.n_done])
            candidates = list(sandwich(self.shared.space, rng, self._settings.n_random))
            for candidate in candidates:
                loss = distillation_loss(self.shared(inputs, candidate), targets)
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

    The largest is not among them: it has the weights of the trained model by construction. Widths
    and ratios of a random candidate are drawn apart for each layer and group, or, in every second
    one, alike for all: drawn apart, all layers would hardly ever have few bits together.
    """
    yield space.uniform(0, 0, 1.0)
    widths = sorted({bits for layer in space.layers for bits in layer.weight_bits})
    for number in range(n_random):
        if number % 2:
            yield space.random(rng)
        else:
            bits = widths[int(rng.integers(len(widths)))]
            yield space.uniform(bits, pruning_ratio=rng.uniform() * rng.integers(2))


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
