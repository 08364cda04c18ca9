"""How candidates are made: the steps of compression that are taken, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..training import Precision
from .calibration import CalibrationMethod
from .sparsity import Sparsity


@dataclass(frozen=True, slots=True)
class CompressionSettings:
    """How candidates are made.

    Attributes:
        calibration: How ranges of activations follow from what calibration sees.
        n_calibration: Samples of the task's calibration inputs that are used; None takes 256,
            fewer of large inputs (27 of 224 by 224 pixels), which show more values each.
        search_scales: Whether scales of weights minimise the squared error or cover all weights.
        round_by_outputs: Whether weights are rounded so that the outputs of their layer change
            least, not to the nearest step.
        equalize: Whether the channels of tensors that depthwise convolutions read are brought to
            one range.
        reconstruct: Whether layers of a pruned model get the weights with which their outputs come
            nearest to those of the whole model.
        shared_only: Whether candidates have the weights of the shared network, if there is one,
            also where the rounded weights of the task's model come nearer to its outputs.
        accumulation_run: Steps of products that weights allow to be summed in 16 bits; None leaves
            the weights as they are.
        sparsity: How many weights of integer layers are zero; None asks for none.
        correction: Whether biases and scales undo the change of mean and spread of each channel
            that rounding causes.
        finetune_epochs: Epochs of training of each candidate; 0 leaves it out.
        n_finetuning: Samples of the task's training data that are used for it; None takes all.
        finetune_lr: Largest learning rate of that training.
        finetune_batch_size: Samples of one step of it.
        distill: Whether it follows the outputs of the uncompressed model, not the targets.
        precision: What layers compute in during that training.
    """

    calibration: CalibrationMethod = "mse"
    n_calibration: int | None = None
    search_scales: bool = True
    round_by_outputs: bool = True
    equalize: bool = True
    reconstruct: bool = True
    shared_only: bool = False
    accumulation_run: int | None = None
    sparsity: Sparsity | None = None
    correction: bool = True
    finetune_epochs: int = 0
    n_finetuning: int | None = 12_000
    finetune_lr: float = 2e-3
    finetune_batch_size: int = 64
    distill: bool = True
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.calibration not in get_args(CalibrationMethod):
            raise ValueError(
                f"`calibration` must be one of {get_args(CalibrationMethod)}, "
                f"but got '{self.calibration}'."
            )
        for name in ("n_calibration", "n_finetuning", "finetune_batch_size", "accumulation_run"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, but got {value}.")
        if self.finetune_epochs < 0 or not self.finetune_lr > 0:
            raise ValueError(
                "`finetune_epochs` must be 0 or more and `finetune_lr` above 0, but got "
                f"{self.finetune_epochs} and {self.finetune_lr}."
            )
