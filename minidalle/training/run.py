"""The bookkeeping of a training run: what is counted, evaluated, written and saved.

Source: this project.
"""

import math
from collections.abc import Callable

import torch

from minidalle.config import Config, TrainConfig
from minidalle.training.checkpoints import Checkpoints
from minidalle.training.log import Journal


class TrainingError(RuntimeError):
    """The run cannot go on; the message says what to try."""


class Run:
    """A run between two updates. `step` counts the updates done, skipped ones too."""

    def __init__(self, folder, live, checkpoints: Checkpoints, config: TrainConfig, identity):
        self.folder, self.checkpoints = folder, checkpoints
        self.live = self.model, self.optimizer, self.average = live
        self.config, self.identity = config, identity
        self.step = self.saved = self.skipped = self.bad_in_a_row = 0
        self.best, self.seconds, self.last = None, 0.0, {}
        self.is_new_best = self.save_failed = False

    def start(self, journal: Journal, resume: bool) -> None:
        """Load the newest checkpoint, if there is one."""
        self.journal = journal
        if not resume:
            self.checkpoints.set_aside()
        meta = self.checkpoints.load_latest(*self.live, self.identity)
        if meta is not None:
            for name in COUNTS:
                setattr(self, name, meta[name])
            self.saved = self.step
        journal.begin(self.step, self.config.steps, self.folder.name)

    def due(self, every: int) -> bool:
        """Is this the moment of something done `every` so many updates, and at the end?"""
        return self.step % every == 0 or self.step == self.config.steps

    def record(self, metrics: dict, bad: bool, max_bad: int) -> None:
        """Count one update; a bad one leaves no trace in the means."""
        self.step += 1
        self.journal.bar.update()
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        if bad:
            self.skipped += 1
            self.journal.say(f"update {self.step} skipped: its loss or gradient is not finite")
            if self.bad_in_a_row >= max_bad:
                raise TrainingError(self._advice())
        else:
            self.journal.add(metrics)
        if self.due(self.config.log_every):
            rate = self.optimizer.param_groups[0]["lr"]
            self._write(self.journal.means() | {"lr": rate, "skipped": self.skipped})

    def evaluate(self, evaluate: Callable | None, sheet: Callable | None) -> None:
        """Let the callbacks see the averaged weights, log what they find, remember the best."""
        if evaluate is None and sheet is None:
            return
        metrics = self._with_averaged_weights(evaluate, sheet)
        if not metrics:
            return
        metrics = {f"test_{name}": float(value) for name, value in metrics.items()}
        self._write(metrics)
        value = next(iter(metrics.values()))
        if math.isfinite(value) and (self.best is None or value < self.best["value"]):
            self.best, self.is_new_best = {"step": self.step, "value": value}, True

    @torch.no_grad()
    def _with_averaged_weights(self, evaluate: Callable | None, sheet: Callable | None) -> dict:
        self.average.swap()
        self.model.eval()
        try:
            if sheet is not None and self.journal.is_main:
                path = self.folder / "samples" / f"step-{self.step:08d}.png"
                path.parent.mkdir(exist_ok=True)
                sheet(self.model, path)
            return evaluate(self.model, self.step) if evaluate is not None else {}
        finally:
            self.average.swap()
            self.model.train()

    def _write(self, metrics: dict[str, float]) -> None:
        self.seconds += self.journal.lap()
        row = {"step": self.step} | metrics | {"seconds": round(self.seconds, 3)}
        self.journal.write(row)
        self.last |= row

    def save_if_due(self, stop: bool) -> None:
        """Save every save_every, on a new best, before stopping; and again soon if that failed."""
        retry = self.save_failed and self.due(self.config.log_every)
        if stop or retry or self.is_new_best or self.due(self.config.save_every):
            self.save()

    def save(self) -> None:
        """Save a checkpoint; a failure, such as a full disk, is told and does not end the run."""
        meta = {name: getattr(self, name) for name in COUNTS} | {"config": self.identity}
        self.is_new_best = False
        try:
            self.checkpoints.save(*self.live, meta)
            self.saved, self.save_failed = self.step, False
        except OSError as error:
            self.save_failed = True
            self.journal.say(
                f"{error}. Training goes on, the checkpoint of update {self.saved} stays, and "
                f"saving is tried again every {self.config.log_every} updates"
            )

    def farewell(self) -> str:
        """Say how far the run came and how to go on."""
        return (
            f"stopped after {self.step} of {self.config.steps} updates, saved at {self.saved} in "
            f"{self.folder}; run the same command again to go on from there"
        )

    def finish(self, run_config: Config | None) -> dict[str, float]:
        """Leave the averaged weights in the model, and write them. Returns the last metrics."""
        if self.step < self.config.steps:
            raise ValueError(f"the batches ended after update {self.step} of {self.config.steps}")
        if self.saved < self.step:
            raise OSError(f"the run is done but could not be saved in {self.folder}")
        self.average.swap()
        self.model.eval()
        self.checkpoints.finish(self.model, run_config)
        return self.last

    def _advice(self) -> str:
        c = self.config
        return (
            f"{self.bad_in_a_row} updates in a row had a loss or gradient that is not finite. Try "
            f"a lower lr (it is {c.lr:g}), a longer warmup ({c.warmup}), a smaller clip_norm "
            f"({c.clip_norm:g}, 0 is off), precision=float32 ({c.precision}), and look for NaN in "
            f"the data"
        )


COUNTS = ("step", "skipped", "bad_in_a_row", "best", "seconds", "last")  # stored in checkpoints
