"""The bookkeeping of a training run: what is counted, evaluated, written and saved, and by whom."""

import math
import os
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.config import Config, TrainConfig
from minidalle.training.checkpoints import Checkpoints
from minidalle.training.log import Log
from minidalle.training.optim import Average, clip_gradients, make_optimizer


class TrainingError(RuntimeError):
    """The run cannot go on; the message says what to try."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run, after a save; the message says how to go on."""


def check_start(folder: str | Path, model: nn.Module, seed: int, device) -> Path:
    """Raise ValueError for what could only fail later; make the folder and return it."""
    if not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{device=} cannot be used: {str(error).splitlines()[0]}") from error
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"a run needs a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Alone:
    """What `fit` asks of the processes of a run: here there is one; minidalle.scale has several."""

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


class Run:
    """A run between two updates. `step` counts the updates done, skipped ones too."""

    def __init__(self, folder, live, checkpoints: Checkpoints, config: TrainConfig, identity):
        self.folder, self.checkpoints = folder, checkpoints
        self.live = self.model, self.optimizer, self.average = live
        self.config, self.identity = config, identity
        self.step = self.saved = self.skipped = self.bad_in_a_row = 0
        self.best, self.seconds, self.last = None, 0.0, {}
        self.is_new_best = self.save_failed = False

    def start(self, log: Log, resume: bool) -> None:
        """Load the newest checkpoint, if there is one."""
        self.log = log
        if not resume:
            self.checkpoints.set_aside()
        meta = self.checkpoints.load_latest(*self.live, self.identity)
        if meta is not None:
            for name in COUNTS:
                setattr(self, name, meta[name])
            self.saved = self.step
        log.begin(self.step, self.config.steps, self.folder.name, (meta or {}).get("log"))

    def due(self, every: int) -> bool:
        """Is this the moment of something done `every` so many updates, and at the end?"""
        return self.step % every == 0 or self.step == self.config.steps

    def record(self, metrics: dict, bad: bool, max_bad: int) -> None:
        """Count one update; a bad one leaves no trace in the means."""
        self.step += 1
        self.log.bar.update()
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        if bad:
            self.skipped += 1
            self.log.say(f"update {self.step} skipped: its loss or gradient is not finite")
            if self.bad_in_a_row >= max_bad:
                raise TrainingError(self._advice())
        else:
            self.log.add(metrics)
        if self.due(self.config.log_every):
            rate = self.optimizer.param_groups[0]["lr"]
            self._write(self.log.means() | {"lr": rate, "skipped": self.skipped})

    @torch.no_grad()
    def evaluate(self, evaluate: Callable | None, sheet: Callable | None) -> None:
        """Let the callbacks see the averaged weights, log what they find, remember the best."""
        if evaluate is None and sheet is None:
            return
        self.average.swap()
        self.model.eval()
        try:
            if sheet is not None and self.log.is_main:
                self._draw(sheet)
            found = evaluate(self.model, self.step) if evaluate is not None else {}
        finally:
            self.average.swap()
            self.model.train()
        if metrics := {f"test_{name}": float(value) for name, value in found.items()}:
            self._write(metrics)
            value = next(iter(metrics.values()))
            if math.isfinite(value) and (self.best is None or value < self.best["value"]):
                self.best, self.is_new_best = {"step": self.step, "value": value}, True

    def _draw(self, sheet: Callable) -> None:
        """Draw a sheet of samples, only for looking at: a failure does not end the run."""
        path = self.folder / "samples" / f"step-{self.step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            sheet(self.model, path)
        except Exception as error:
            self.log.say(f"no sheet of samples: {type(error).__name__}: {error}")

    def _write(self, metrics: dict[str, float]) -> None:
        self.seconds += self.log.lap()
        row = {"step": self.step} | metrics | {"seconds": round(self.seconds, 3)}
        self.log.write(row)
        self.last |= row

    def save_if_due(self, stop: bool) -> None:
        """Save every save_every, on a new best, before stopping; and again soon if that failed.

        A failure, such as a full disk, is told and does not end the run.
        """
        retry = self.save_failed and self.due(self.config.log_every)
        if not (stop or retry or self.is_new_best or self.due(self.config.save_every)):
            return
        meta = {name: getattr(self, name) for name in COUNTS}
        meta |= {"config": self.identity, "log": self.log.state()}
        self.is_new_best = False
        try:
            self.checkpoints.save(*self.live, meta)
            self.saved, self.save_failed = self.step, False
        except OSError as error:
            self.save_failed = True
            self.log.say(
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
        self.checkpoints.finish(self.model, run_config, self.identity.get("made_from", {}))
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


class StopSignals:
    """Notes Ctrl-C and SIGTERM, for the loop to stop between updates; a second Ctrl-C is not kept.

    One that came too late for the loop is raised again at the end.
    """

    def __enter__(self):
        self.number, self.old = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._note)
        return self

    @property
    def caught(self) -> bool:
        return self.number is not None

    def _note(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, kind, *error):
        for number, handler in self.old.items():
            signal.signal(number, handler)
        if self.caught and kind is None:
            os.kill(os.getpid(), self.number)


def autocast(name: str, device: str | torch.device):
    """Autocast to bfloat16, or not; 'auto' does where the device multiplies it fast."""
    kind = torch.device(device).type
    if name == "auto":
        name = "bfloat16" if _has_fast_bfloat16(kind) else "float32"
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32, bfloat16 or auto, got {name!r}")
    return nullcontext() if name == "float32" else torch.autocast(kind, torch.bfloat16)


def _has_fast_bfloat16(kind: str) -> bool:
    """CUDA devices do, and x86 processors with these instructions; unknown means no."""
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # torch 2.11 cannot say
        return kind == "cuda"
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@contextmanager
def global_generators(device: str | torch.device):
    """Yield torch's own generators, which nn.Dropout draws from, and restore them afterwards."""
    device = torch.device(device)
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [g.get_state() for g in generators]
    yield generators
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


@contextmanager
def memory_advice(config: TrainConfig):
    """Say in the error what to change where the GPU's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = config.batch_size // config.accumulate
        raise TrainingError(
            f"out of GPU memory with batch_size={config.batch_size}, accumulate={config.accumulate}"
            f" ({size} examples at once). Lower batch_size or (not for clip) raise accumulate; "
            f"`minidalle plan` shows what fits"
        ) from error


@contextmanager
def no_denormals():
    """Let numbers below 1e-38 be zero: processors take many times as long for them.

    The setting is the whole process's, and torch cannot say what it was: it is off afterwards.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
