"""One command on many processes: the `fit` of a laptop, with the parts that know of processes.

P processes, N nodes. torchrun starts P copies of `minidalle dalle …`; each takes every
P-th example of a batch. DALLE is sharded (sharding.py); the dVAE and CLIP, which fit everywhere,
are copied and their gradients averaged.

Source: Ramesh et al. 2021, arXiv:2102.12092, sections 2.4 and 2.5.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from minidalle.training.optim import Average, clip_gradients
from minidalle.training.run import Alone, autocast

__all__ = ["finish", "is_main", "train_stage"]

MAX_BAD_HALF = 1000  # float16 scales may need some 125 updates for each halving of their start


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return int(os.environ.get("RANK", 0)) == 0


@dataclass(frozen=True)
class Options:
    """What the command line offers under torchrun only, by the names of its options.

    nodes: machines, among which slices are repeated; None asks torchrun. compress: rank of PowerSGD
    between them (-1: the paper's for this width; 0: none). fixed_q: compress as the paper does, see
    powersgd.compress. update_in_backward: the optimiser of memory.py. bfloat16_weights: of the
    blocks, rounded stochastically by it. float16: with a gradient scale per resblock, not bfloat16.
    """

    nodes: int | None = None
    compress: int = 0
    fixed_q: bool = False
    update_in_backward: bool = False
    bfloat16_weights: bool = False
    float16: bool = False

    def check(self, stage: str, training: TrainConfig) -> None:
        """Raise ValueError where one needs or excludes another, or the stage."""
        if self.fixed_q and not self.compress:
            raise ValueError("fixed_q says how to compress: set compress (--compress -1), too")
        if self.bfloat16_weights and not self.update_in_backward:
            raise ValueError("bfloat16_weights are rounded by update_in_backward: set that, too")
        if stage != "dalle" and (self.compress or self.update_in_backward or self.float16):
            raise ValueError(f"compress, update_in_backward and float16 are for dalle, not {stage}")
        if self.float16 and self.update_in_backward:
            raise ValueError(
                "float16 skips an update when any gradient overflows, but update_in_backward has "
                "moved later blocks by then, and nothing is left to undo it: use bfloat16"
            )
        if self.update_in_backward and training.muon_lr:
            raise ValueError("update_in_backward is AdamW for all: set train_dalle.muon_lr=0")
        if self.float16 and training.compile:
            raise ValueError("float16 works by hooks in the blocks: set train_dalle.compile=false")


class Team(Alone):
    """The processes of a run, for `fit`: one loss, one norm, one decision.

    Its `loss` also tells the gradient hooks which part of an accumulated batch is the last, the
    only one after which gradients cross between machines.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.rank, self.world, self.is_main = dist.get_rank(), dist.get_world_size(), is_main()
        self.model, self.parts, self.part = model, config.accumulate, 0
        self.sharded, self.precision = isinstance(model, DALLE), config.precision
        self.scales: precision.ResblockScales | None = None
        self.updater: memory.BackwardAdamW | None = None  # moves weights in the backward pass
        self.host_average = False
        self.files: ShardedCheckpoints | None = None

    def loss(self, model: nn.Module, batch: dict, step: int, generator=None) -> tuple[Tensor, dict]:
        """The model's loss, with gradients of this process's examples and values of all."""
        if model.training:
            self.part = self.part % self.parts + 1
            if self.sharded:
                model.set_requires_all_reduce(self.is_last_part())
        if "text" in batch and self.sharded:
            count = batch.get("text_count", (batch["text"] != PAD).sum())
            batch = batch | {"text_count": _mean(count.float())}
        if generator is not None and self.rank:  # other examples, other noise
            generator.manual_seed(generator.initial_seed() ^ self.rank << 40)
        loss, metrics = model.loss(batch, step, generator)
        found = [loss.detach(), *metrics.values()]
        values = _mean(torch.stack([torch.as_tensor(v, device=loss.device).float() for v in found]))
        loss = loss + (values[0] - loss).detach()
        return loss, dict(zip(metrics, values[1:], strict=True))

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """The optimiser that works in the backward pass, if there is one."""
        return self.updater or super().optimizer(model, config)

    def average(self, model: nn.Module, config: TrainConfig) -> Average:
        """The averaged weights, in the CPU's memory where the GPU's is full of one model."""
        return Average(model, config.ema_decay, config.ema_every, self.host_average)

    def checkpoints(self, folder: Path, config: TrainConfig) -> ShardedCheckpoints:
        """Checkpoints that every process writes its part of."""
        return self.files

    def is_last_part(self) -> bool:
        """Is the backward pass that runs now the last of its update?"""
        return self.part == self.parts

    def clip(self, parameters: list[Tensor], max_norm: float) -> Tensor:
        """Make the gradients those of the whole batch, then clip them."""
        if self.updater is not None:
            return self.updater.end_update(parameters, max_norm)
        if not self.sharded:
            sharding.average_gradients(self.model)
        if self.scales is not None:
            self.scales.unscale()  # an overflow leaves a non-finite norm: fit skips the update
        return sharding.whole(clip_gradients(parameters, max_norm))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Say of each flag whether it holds in any process."""
        device = next(self.model.parameters()).device
        votes = torch.tensor([bool(f) for f in flags], dtype=torch.int32, device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(v) for v in votes.cpu())

    def callbacks(self, evaluate: Callable, sheet: Callable | None) -> stages.Callbacks:
        """Only the first process draws; all help it to gather a sharded model."""
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
        """The whole model, on the first process and only if it fits. A collective."""
        device = next(model.parameters()).device
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
        (fits,) = self.agree(is_main() and needed <= sharding.spare_bytes(device))
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


def _sharded_dalle(config: Config, mesh: DeviceMesh, rank: int, short: bool = False) -> DALLE:
    """DALLE sharded over all processes, built on the meta device, with its first weights.

    short: keep the blocks' weights in bfloat16; embeddings and heads stay float32 (appendix D).
    """
    with torch.device("meta"):
        model = models.build(config, "dalle")
    if short:
        model.transformer.blocks.bfloat16()
    # Between nodes FSDP2 keeps every block's gradient until the backward pass ends: not for one.
    one_node = mesh["replicate"].size() == 1
    mesh = mesh["shard"] if rank or one_node else mesh
    sharding.shard(model, mesh, config.train_dalle.precision)
    sharding.fill(model, mesh.device_type, config.seed)
    return model


def _copied(config: Config, stage: str, device: torch.device) -> nn.Module:
    """The dVAE or CLIP as every process has it: drawn from the same seed."""
    if stage == "dvae" and config.codebook != "dvae":  # each would average its own part only
        raise ValueError(f"codebook={config.codebook} is trained by one process, without torchrun")
    model = models.build(config, stage).to(device)
    if stage == "clip":
        model.gather = lambda f: sharding.gather_features(f) if model.training else keep_local(f)
    return model


def train_stage(
    config: Config,
    stage: str,
    run: str | Path,
    device: str | None,
    fresh: bool,
    tensorboard: bool,
    options: Options,
) -> dict[str, float]:
    """Train 'dvae', 'dalle' or 'clip' into run/<stage> on all processes; see stages.train_stage.

    An update sees the batch that one process would see. Returns the last metrics, on every
    process. Raises ValueError where the batch does not divide, or something needs DALLE.
    """
    if stage == "dalle" and config.prior != "dalle":
        raise ValueError(f"several processes train prior=dalle only, got prior={config.prior}")
    training, compress = getattr(config, f"train_{stage}"), options.compress
    options.check(stage, training)
    if options.float16:
        training = replace(training, precision="float32")  # beside the blocks
        config = replace(config, train_dalle=training)
    # The model of this process: a slice of DALLE, or a copy of another.
    here = sharding.start(device)
    size, world, accumulate = training.batch_size, dist.get_world_size(), training.accumulate
    if size % (world * accumulate):
        raise ValueError(
            f"batch_size={size} does not divide among {world} processes in "
            f"accumulate={accumulate} parts; use a multiple of {world * accumulate}"
        )
    nodes = options.nodes or world // int(os.environ["LOCAL_WORLD_SIZE"])
    mesh = sharding.make_mesh(here.type, nodes)
    rank = powersgd.paper_rank(config.dalle.width) if compress < 0 else compress
    if stage == "dalle":
        model = _sharded_dalle(config, mesh, rank, options.bfloat16_weights)
    else:
        model = _copied(config, stage, here)
    # What knows of the other processes, with a state of its own in checkpoints.
    team, local = Team(model, training), {}
    if options.float16:
        local["scales"] = team.scales = precision.ResblockScales(model)
        team.max_bad = MAX_BAD_HALF
    if rank:
        how = {"q": "fixed", "short_errors": True} if options.fixed_q else {}
        local["powersgd"] = powersgd.compress(
            model, mesh, rank, team.is_last_part, scales=team.scales, **how
        )
    if options.update_in_backward:
        team.updater = memory.backward_adamw(model, training, config.seed)
        team.host_average = mesh["shard"].size() == 1  # one GPU has no memory to spare
    folder = Path(run) / stage / "checkpoints"
    team.files = ShardedCheckpoints(folder, training.keep, config, local)
    try:
        return stages.train_stage(config, stage, Path(run), here, fresh, tensorboard, team)
    finally:
        team.files.wait()
