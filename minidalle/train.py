"""One training loop for every stage.

All randomness of update s comes from (seed, s), so weights, optimiser, averaged weights and s are
the whole state of a run, and a run that was stopped goes on as if it had not been.

Source: Ramesh et al. 2021, arXiv:2102.12092, appendices A.2 and B.2.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from minidalle.config import Config, TrainConfig
from minidalle.tokenizer import PAD
from minidalle.training.identity import identity
from minidalle.training.log import Log
from minidalle.training.optim import learning_rate
from minidalle.training.run import (
    Alone,
    Run,
    Stopped,
    StopSignals,
    TrainingError,
    autocast,
    check_start,
    global_generators,
    memory_advice,
    no_denormals,
)

__all__ = ["Stopped", "TrainingError", "fit", "split_batch"]


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
    tensorboard: bool = False,
    made_from: dict[str, str] | None = None,
    team: Alone | None = None,
) -> dict[str, float]:
    """Train `model` for config.steps updates, logging and saving in `folder`.

    batches(s) yields the batches of updates s, s + 1, ... for ever. evaluate(model, updates done)
    returns metrics, of which the first decides which checkpoint is best (lower is better);
    sheet(model, path) draws samples into path, a .png. Both see the averaged weights.
    In the end `model` holds the averaged weights; with run_config they are also written to
    `folder`/model.safetensors. resume=False sets earlier checkpoints of the folder aside.
    made_from: digests of what earlier stages made; a run goes on only with the same.
    team: the processes of the run, by default one.
    Returns the last metrics; those of `evaluate` begin with "test_".
    Raises TrainingError, Stopped, or ValueError where the folder holds a run of another
    configuration.
    """
    # What the run consists of: weights, optimiser, averaged weights, checkpoints, a log.
    folder, team = check_start(folder, model, seed, device), team or Alone()
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, average = team.optimizer(model, config), team.average(model, config)
    checkpoints = team.checkpoints(folder / "checkpoints", config)
    unchanged = identity(config, run_config, seed) | {"made_from": made_from or {}}
    run = Run(folder, (model, optimizer, average), checkpoints, config, unchanged)
    generator = torch.Generator(device)

    log = Log(folder, is_main=team.is_main, tensorboard=tensorboard)
    with (
        log, StopSignals() as signals, memory_advice(config), no_denormals(),
        global_generators(device) as others,
    ):  # fmt: skip
        run.start(log, resume)
        for step, batch in zip(range(run.step, config.steps), batches(run.step), strict=False):
            # The rate of this update.
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config) * group.get("rate", 1.0)

            # Loss and gradients, part by part; every part has random numbers of its own.
            metrics = Counter()
            for part, examples in enumerate(split_batch(batch, config.accumulate, device)):
                for source in (generator, *others):
                    source.manual_seed(_mix(seed, step, part))
                with autocast(config.precision, device):
                    loss, found = team.loss(model, examples, step, generator)
                (loss / config.accumulate).backward()
                for name, value in {**found, "loss": loss}.items():
                    metrics[name] += torch.as_tensor(value).detach() / config.accumulate

            # One step of the optimiser, unless something is not finite.
            norm = team.clip(parameters, config.clip_norm)
            bad = not math.isfinite(float(norm + metrics["loss"]))
            bad, stop = team.agree(bad, signals.caught)
            if not bad:
                optimizer.step()
                if hasattr(model, "after_update"):
                    model.after_update()
                average.update(step)
            optimizer.zero_grad(set_to_none=True)

            # What is told and kept.
            run.record({**metrics, "grad_norm": norm}, bad, team.max_bad)
            if run.due(config.eval_every):
                run.evaluate(evaluate, sheet)
            run.save_if_due(stop)
            if stop:
                raise Stopped(run.farewell())
        return run.finish(run_config)


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
