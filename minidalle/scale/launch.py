"""One command on many processes: the `fit` of a laptop, with the parts that know of processes.

P processes, N nodes. torchrun starts P copies of `python -m minidalle dalle …`; each takes every
P-th example of a batch. DALLE is sharded (sharding.py); the dVAE and CLIP, which fit everywhere,
are copied and their gradients averaged.

Source: Ramesh et al. 2021, arXiv:2102.12092, sections 2.4 and 2.5.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from minidalle import models, stages
from minidalle.clip import keep_local
from minidalle.config import Config, TrainConfig
from minidalle.dalle import DALLE
from minidalle.scale import memory, powersgd, precision, sharding
from minidalle.scale.checkpoints import ShardedCheckpoints
from minidalle.scale.sharding import finish
from minidalle.tokenizer import PAD
from minidalle.train import autocast
from minidalle.training.optim import clip_gradients

__all__ = ["finish", "is_main", "train_stage"]

MAX_BAD_HALF = 1000  # float16 scales may need some 125 updates for each halving of their start


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return int(os.environ.get("RANK", 0)) == 0


def count_nodes() -> int:
    """Number of machines that torchrun was started on."""
    return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])


class Team:
    """Makes `fit` speak for all processes: one loss, one norm, one decision.

    Installed as `model.loss`, it also tells the gradient hooks which part of an accumulated batch
    is the last, the only one after which gradients cross between machines.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.model, self.parts, self.part = model, config.accumulate, 0
        self.sharded, self.precision = isinstance(model, DALLE), config.precision
        self.own_loss = model.loss
        self.scales: precision.ResblockScales | None = None
        model.loss = self.loss

    def loss(self, batch: dict[str, Tensor], step: int, generator=None) -> tuple[Tensor, dict]:
        """The model's loss, with gradients of this process's examples and values of all."""
        if self.model.training:
            self.part = self.part % self.parts + 1
            if self.sharded:
                self.model.set_requires_all_reduce(self.part == self.parts)
        if "text" in batch and self.sharded:
            count = batch.get("text_count", (batch["text"] != PAD).sum())
            batch = batch | {"text_count": _mean(count.float())}
        if generator is not None and dist.get_rank():  # other examples, other noise
            generator.manual_seed(generator.initial_seed() ^ dist.get_rank() << 40)
        loss, metrics = self.own_loss(batch, step, generator)
        found = [loss.detach(), *metrics.values()]
        values = _mean(torch.stack([torch.as_tensor(v, device=loss.device).float() for v in found]))
        loss = loss + (values[0] - loss).detach()
        return loss, dict(zip(metrics, values[1:], strict=True))

    def is_last_part(self) -> bool:
        """Is the backward pass that runs now the last of its update?"""
        return self.part == self.parts

    def clip(self, parameters: list[Tensor], max_norm: float) -> Tensor:
        """For fit's `clip`: first make the gradients those of the whole batch."""
        if not self.sharded:
            sharding.average_gradients(self.model)
        if self.scales is not None:
            self.scales.unscale()  # an overflow leaves a non-finite norm: fit skips the update
        return sharding.whole(clip_gradients(parameters, max_norm))

    def agree(self, flags: tuple) -> tuple:
        """For fit's `agree`: each flag is true where any process says so."""
        device = next(self.model.parameters()).device
        votes = torch.tensor([bool(f) for f in flags], dtype=torch.int32, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(v) for v in votes.cpu())

    def share(self, evaluate: Callable, sheet: Callable | None) -> stages.Callbacks:
        """For stages: only the first process draws; all help it to gather a sharded model."""
        if not self.sharded:
            return evaluate, sheet if is_main() else None

        def draw(model: DALLE, path: Path) -> None:
            plain = self.gather(model)
            if plain is not None:
                sheet(plain, path)

        def measure(model: DALLE, step: int) -> dict:
            if not is_main():
                self.gather(model)  # the first process draws before it evaluates
            with autocast(self.precision, next(model.parameters()).device):
                return evaluate(model, step)

        return measure, draw if is_main() else None

    def gather(self, model: DALLE) -> DALLE | None:
        """The whole model, on the first process and only if it has room. A collective."""
        device = next(model.parameters()).device
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
        (fits,) = self.agree((is_main() and needed <= sharding.room(device),))
        if is_main() and not fits:
            warnings.warn(f"no sheet of samples: the whole model takes {needed / 2**30:.1f} GiB")
        state = sharding.gathered(model, device) if fits else {}
        if not state:
            return None
        with torch.device("meta"):
            plain = DALLE(model.config)
        plain.load_state_dict(state, assign=True)
        return plain.eval()


def _mean(values: Tensor) -> Tensor:
    """Average over processes; each has as many examples as the others."""
    total = values.clone()  # all_reduce writes in place
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _check_options(
    stage: str, compress: int, update_in_backward: bool, float16: bool, compile: bool = False
) -> None:
    if stage != "dalle" and (compress or update_in_backward or float16):
        raise ValueError(f"compress, update_in_backward and float16 are for dalle, not {stage}")
    if float16 and update_in_backward:
        raise ValueError(
            "float16 skips an update when any gradient overflows, but update_in_backward has moved "
            "later blocks by then, and nothing is left to undo it: use bfloat16, the default"
        )
    if float16 and compile:
        raise ValueError("float16 works by hooks inside the blocks: set train_dalle.compile=false")


def _check_batch(batch_size: int, accumulate: int) -> None:
    world = dist.get_world_size()
    if batch_size % (world * accumulate):
        raise ValueError(
            f"batch_size={batch_size} does not divide among {world} processes in "
            f"accumulate={accumulate} parts; use a multiple of {world * accumulate}"
        )


def _sharded_dalle(config: Config, mesh: DeviceMesh, rank: int) -> DALLE:
    """DALLE sharded over all processes, built on the meta device, with its first weights."""
    with torch.device("meta"):
        model = models.build(config, "dalle")
    # Between nodes FSDP2 keeps every block's gradient until the backward pass ends: not for one.
    one_node = mesh["replicate"].size() == 1
    mesh = mesh["shard"] if rank or one_node else mesh
    sharding.shard(model, mesh, config.train_dalle.precision)
    sharding.fill(model, mesh.device_type, config.seed)
    return model


def _copied(config: Config, stage: str, device: torch.device) -> nn.Module:
    """The dVAE or CLIP as every process has it: drawn from the same seed."""
    model = models.build(config, stage).to(device)
    if stage == "clip":
        model.gather = lambda f: sharding.gather_features(f) if model.training else keep_local(f)
    return model


def train_stage(
    config: Config,
    stage: str,
    run: str | Path,
    device: str | None = None,
    fresh: bool = False,
    tensorboard: bool = False,
    *,
    nodes: int | None = None,
    compress: int = 0,
    update_in_backward: bool = False,
    float16: bool = False,
) -> dict[str, float]:
    """Train 'dvae', 'dalle' or 'clip' into run/<stage> on all processes; see stages.train_stage.

    nodes: machines, among which slices are repeated; None asks torchrun. compress: rank of
    PowerSGD between them (-1: the paper's for this width; 0: none). update_in_backward: the
    optimiser of memory.py. float16: with a gradient scale per resblock, not bfloat16.
    An update sees the batch that one process would see. Returns the last metrics, on every
    process. Raises ValueError where the batch does not divide, or an option needs DALLE.
    """
    training = getattr(config, f"train_{stage}")
    _check_options(stage, compress, update_in_backward, float16, training.compile)
    if float16:
        training = replace(training, precision="float32")  # beside the blocks
        config = replace(config, train_dalle=training)
    here = sharding.start(device)
    _check_batch(training.batch_size, training.accumulate)
    mesh = sharding.make_mesh(here.type, nodes or count_nodes())
    rank = powersgd.paper_rank(config.dalle.width) if compress < 0 else compress
    if stage == "dalle":
        model = _sharded_dalle(config, mesh, rank)
    else:
        model = _copied(config, stage, here)
    team = Team(model, training)
    options, local = {"clip": team.clip}, {}
    if float16:
        local["scales"] = team.scales = precision.ResblockScales(model)
        options["max_bad"] = MAX_BAD_HALF
    if rank:
        local["powersgd"] = powersgd.compress(
            model, mesh, rank, team.is_last_part, scales=team.scales
        )
    if update_in_backward:
        optimizer = memory.backward_adamw(model, training, config.seed)
        options |= {"optimizer": optimizer, "clip": optimizer.end_update}
        if mesh["shard"].size() == 1:  # on one GPU the averaged weights live in the CPU's memory
            average = memory.FloatAverage(model, training.ema_decay, training.ema_every, host=True)
            options["average"] = average
    checkpoints = ShardedCheckpoints(
        Path(run) / stage / "checkpoints", training.keep, config, local
    )
    try:
        return stages.train_stage(
            config,
            stage,
            Path(run),
            here,
            fresh,
            tensorboard,
            model=model,
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            checkpoints=checkpoints,
            agree=team.agree,
            share=team.share,
            is_main=is_main(),
            **options,
        )
    finally:
        checkpoints.wait()
