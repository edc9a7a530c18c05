"""What `fit` asks of the processes of a run: here there is one; minidalle.scale has several.

Source: this project.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.config import TrainConfig
from minidalle.training.checkpoints import Checkpoints
from minidalle.training.optim import Average, clip_gradients, make_optimizer


class Alone:
    """The only process of a run."""

    rank, world, is_main = 0, 1, True  # this process takes rows rank::world of every batch
    max_bad = 10  # updates in a row that are not finite end the run
    model: nn.Module | None = None  # built already, or to be built

    def loss(self, model: nn.Module, batch: dict, step: int, generator=None) -> tuple[Tensor, dict]:
        """Return the model's loss and metrics."""
        return model.loss(batch, step, generator)

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return the optimiser of `config`."""
        return make_optimizer(model, config)

    def average(self, model: nn.Module, config: TrainConfig) -> Average:
        """Return the averaged weights of `config`."""
        return Average(model, config.ema_decay, config.ema_every)

    def checkpoints(self, folder: Path, config: TrainConfig) -> Checkpoints:
        """Return the checkpoints of a run in `folder`."""
        return Checkpoints(folder, config.keep)

    def clip(self, parameters: list[Tensor], max_norm: float) -> Tensor:
        """Scale the gradients down to max_norm (0 only measures). Returns the norm before."""
        return clip_gradients(parameters, max_norm)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Say of each flag whether it holds in any process."""
        return flags

    def callbacks(self, evaluate: Callable, sheet: Callable | None) -> tuple:
        """Return what this process does to evaluate, and to draw a sheet of samples."""
        return evaluate, sheet
