"""One training loop for every stage.

All randomness of update s comes from (seed, s), so weights, optimiser, averaged weights and s are
the whole state of a run, and a run that was stopped goes on as if it had not been.

Source: Ramesh et al. 2021, arXiv:2102.12092, appendices A.2 and B.2.
"""

import dataclasses
import hashlib
import json
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.checkpoint import Checkpoints
from minidalle.config import Config, TrainConfig
from minidalle.journal import Journal
from minidalle.optim import Average, clip_gradients, learning_rate, make_optimizer
from minidalle.run import Run, TrainingError
from minidalle.tokenizer import PAD

# The sections of a configuration on which the result of a stage depends.
SECTIONS = {
    "train_dvae": ("data", "dvae"),
    "train_dalle": ("data", "tokenizer", "dvae", "dalle"),
    "train_clip": ("data", "tokenizer", "clip"),
}

# What may change between the parts of a run: how long it is, what is told, how memory is used.
FREE = {
    "steps", "log_every", "eval_every", "save_every", "keep", "accumulate", "attention",
    "checkpointing", "compile",
}  # fmt: skip


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run, after a save; the message says how to go on."""


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterator[dict[str, Tensor]]],
    config: TrainConfig,
    folder: str | Path,
    *,
    run_config: Config | None = None,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    sheet: Callable[[nn.Module, Path], None] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = True,
    max_bad: int = 10,
    tensorboard: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    average: Average | None = None,
    clip: Callable[[list[Tensor], float], Tensor] = clip_gradients,
    checkpoints: Checkpoints | None = None,
    agree: Callable[[tuple[bool, bool]], tuple[bool, bool]] = tuple,
    is_main: bool = True,
) -> dict[str, float]:
    """Train `model` for config.steps updates, logging and saving in `folder`.

    batches(s) yields the batches of updates s, s + 1, ... for ever. evaluate(model, updates done)
    returns metrics, of which the first decides which checkpoint is best (lower is better);
    sheet(model, path) draws samples into path, a .png. Both see the averaged weights.
    In the end `model` holds the averaged weights; with run_config they are also written to
    `folder`/model.safetensors.
    resume=False sets earlier checkpoints of the folder aside. max_bad non-finite updates in a row
    end the run. The last six arguments are for minidalle.scale, which knows about processes:
    agree((bad, stop)) says whether each holds in any of them.
    Returns the last metrics; those of `evaluate` begin with "test_".
    Raises TrainingError, Stopped, or ValueError where the folder holds a run of another
    configuration.
    """
    folder = _check(folder, model, seed, device)
    model.to(device).train()
    optimizer = optimizer or make_optimizer(model, config)
    average = average or Average(model, config.ema_decay, config.ema_every)
    checkpoints = checkpoints or Checkpoints(folder / "checkpoints", config.keep)
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator(device)
    live, known = (model, optimizer, average), _identity(config, run_config, seed)
    run = Run(folder, live, checkpoints, config, known)

    journal = Journal(folder, is_main=is_main, tensorboard=tensorboard)
    with (
        journal, _stop_signals() as signals, _memory_advice(config), _globals(device) as others,
        _no_denormals(),
    ):  # fmt: skip
        run.start(journal, resume)
        for step, batch in zip(range(run.step, config.steps), batches(run.step), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config) * group.get("rate", 1.0)

            metrics = Counter()
            for part, examples in enumerate(split_batch(batch, config.accumulate, device)):
                for source in (generator, *others):
                    source.manual_seed(_mix(seed, step, part))
                with autocast(config.precision, device):
                    loss, found = model.loss(examples, step, generator)
                (loss / config.accumulate).backward()
                for name, value in {**found, "loss": loss}.items():
                    metrics[name] += torch.as_tensor(value).detach() / config.accumulate

            norm = clip(parameters, config.clip_norm)
            bad = not math.isfinite(float(norm + metrics["loss"]))
            bad, stop = agree((bad, signals.caught))
            if not bad:
                optimizer.step()
                if hasattr(model, "after_update"):
                    model.after_update()
                average.update(step)
            optimizer.zero_grad(set_to_none=True)

            run.record({**metrics, "grad_norm": norm}, bad, max_bad)
            if run.due(config.eval_every):
                run.evaluate(evaluate, sheet)
            run.save_if_due(stop)
            if stop:
                raise Stopped(run.farewell())
        return run.finish(run_config)


def _check(folder: str | Path, model: nn.Module, seed: int, device) -> Path:
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


def _identity(config: TrainConfig, run_config: Config | None, seed: int) -> dict:
    """Return what must not change when a run is resumed, as plain JSON values."""
    stages = [s for s in SECTIONS if run_config and getattr(run_config, s) == config]
    stage = stages[0] if len(stages) == 1 else "train"
    sections = {name: getattr(run_config, name) for name in SECTIONS.get(stage, ())}
    parts = {name: dataclasses.asdict(part) for name, part in sections.items()}
    parts[stage] = dataclasses.asdict(config)
    parts[stage]["lr_steps"] = 0 if config.halve_at else config.lr_steps or config.steps
    kept = {
        name: {key: value for key, value in part.items() if key not in FREE}
        for name, part in parts.items()
    }
    return json.loads(json.dumps({"seed": seed, **kept}))


def split_batch(batch: dict[str, Tensor], parts: int, device) -> list[dict[str, Tensor]]:
    """Cut a batch into `parts` equal ones along its first dimension, and move them to `device`.

    Parts of a batch with captions also get "text_count", see DALLE.loss: captions differ in
    length, and a mean of means would not be the mean over the batch.
    """
    if not isinstance(batch, dict) or not batch:
        raise ValueError(f"a batch must be a dict of tensors, got {batch!r:.80}")
    size = len(next(iter(batch.values())))
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be split into accumulate={parts} equal parts")
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    cut = [
        {name: value.narrow(0, start, size // parts) for name, value in batch.items()}
        for start in range(0, size, size // parts)
    ]
    if parts > 1 and "text" in batch:
        count = (batch["text"] != PAD).sum().clamp(min=1) / parts
        cut = [part | {"text_count": count} for part in cut]
    return cut


def _mix(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on every one of the numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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


class _stop_signals:
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


@contextmanager
def _globals(device: str | torch.device):
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
def _no_denormals():
    """Let numbers below 1e-38 be zero: processors take many times as long for them.

    The setting is the whole process's, and torch cannot say what it was: it is off afterwards.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _memory_advice(config: TrainConfig):
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = config.batch_size // config.accumulate
        raise TrainingError(
            f"out of GPU memory with batch_size={config.batch_size}, accumulate={config.accumulate}"
            f" ({size} examples at once). Lower batch_size or raise accumulate; "
            f"`python -m minidalle plan` shows what fits"
        ) from error
