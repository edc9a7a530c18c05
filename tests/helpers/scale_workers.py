"""What the processes of the scale tests run: torchrun … scale_workers.py NAME OUT [arguments].

Each function is one experiment; the first process writes its result to the file OUT.
"""

import json
import math
import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minidalle.config import DALLEConfig, TrainConfig, get_config
from minidalle.dalle import DALLE
from minidalle.generate import sample
from minidalle.scale import launch, memory, powersgd, precision, sharding
from minidalle.scale.checkpoints import ShardedCheckpoints
from minidalle.train import fit

STEPS = 6


def tiny(**changes) -> object:
    """A configuration of a DALLE so small that processes spend their time on each other."""
    prior = DALLEConfig(
        text_vocab=512, text_len=8, image_vocab=256, grid=8, n_layers=3, n_heads=4, head_dim=8,
        kernel=3,
    )  # fmt: skip
    vocabularies = ("tokenizer.vocab_size=512", "dalle.text_vocab=512")
    codes = ("dvae.vocab_size=256", "dalle.image_vocab=256")
    config = replace(get_config("toy", [*vocabularies, *codes]), dalle=prior)
    training = TrainConfig(
        steps=STEPS, batch_size=8, lr=1e-3, warmup=2, betas=(0.9, 0.96), weight_decay=0.05,
        clip_norm=1.0, clip_variance=5.0, log_every=1, eval_every=100, save_every=3,
    )  # fmt: skip
    return replace(config, train_dalle=replace(training, **changes))


def examples(step: int, rank: int = 0, world: int = 1, size: int = 8) -> dict[str, Tensor]:
    """The batch of an update: token i of an image follows from the caption's first word."""
    g = torch.Generator().manual_seed(step)
    word = torch.randint(0, 16, (size, 1), generator=g)
    text = (word + torch.arange(7)) % 16
    length = torch.randint(2, 8, (size, 1), generator=g)
    text = torch.where(torch.arange(7) < length, text, -1)
    noise = torch.randint(0, 2, (size, 64), generator=g)
    tokens = word * 7 + torch.arange(64) + noise  # below 256
    return {"text": text[rank::world], "tokens": tokens[rank::world]}


def build(mesh, config=None, precision_name="float32", fuse=False) -> DALLE:
    """A sharded DALLE with its first weights."""
    with torch.device("meta"):
        model = DALLE((config or tiny()).dalle)
    for block in model.transformer.blocks if fuse else ():
        block.compile(backend="aot_eager", dynamic=False)  # as `fuse`, without a C++ compiler
    sharding.shard(model, mesh, precision_name)
    sharding.fill(model, "cpu", 0)
    return model


def train(model, folder, config=None, team=None, checkpoints=None, **options) -> list[dict]:
    """Run fit over all processes; return the lines of its log."""
    config = config or tiny()
    team = team or launch.Team(model, config.train_dalle)
    team.files = checkpoints or NoCheckpoints()
    fit(model, options.pop("batches", shares), config.train_dalle, folder, team=team, **options)
    dist.barrier()
    return log(folder)


def log(folder) -> list[dict]:
    """The rows of a run's log without its times."""
    rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def shares(start: int):
    """This process's part of every batch from update `start` on."""
    return (examples(s, dist.get_rank(), dist.get_world_size()) for s in count(start))


class NoCheckpoints:
    """A run that is not kept."""

    def load_latest(self, *state):
        return None

    def save(self, *state):
        pass

    def finish(self, *state):
        pass


def sharded(out: Path) -> dict:
    """Two processes: plain sharding, accumulation, float16, updates in the backward pass."""
    mesh = sharding.make_mesh("cpu")["shard"]
    found = {"plain": train(build(mesh), out / "plain")}
    found["fused"] = train(build(mesh, fuse=True), out / "fused")
    launched = launch._sharded_dalle(tiny(), sharding.make_mesh("cpu"), 0)
    found["mesh"] = [str(p) for p in next(launched.parameters()).placements]

    config = tiny(accumulate=2)
    found["accumulate"] = train(build(mesh), out / "accumulate", config)

    found["bfloat16"] = train(
        build(mesh, precision_name="bfloat16"), out / "bfloat16", tiny(precision="bfloat16")
    )

    model, config = build(mesh), tiny()
    team = launch.Team(model, config.train_dalle)
    team.scales, team.max_bad = precision.ResblockScales(model), 1000
    found["float16"] = train(model, out / "float16", config, team=team)

    config = tiny(muon_lr=0.02)
    found["muon"] = train(build(mesh), out / "muon", config)

    config = tiny(clip_norm=0.0)
    found["unclipped"] = train(build(mesh), out / "unclipped", config)
    model = build(mesh)
    optimizer = memory.BackwardAdamW(
        memory.parameter_groups(model, 0.05), config.train_dalle, moments=torch.float32
    )
    team = launch.Team(model, config.train_dalle)
    team.updater = optimizer
    found["in_backward"] = train(model, out / "in_backward", config, team=team)
    model = launch._sharded_dalle(config, sharding.make_mesh("cpu"), 0, short=True)
    found["dtypes"] = sorted({str(p.dtype) for p in model.parameters()})
    team = launch.Team(model, config.train_dalle)
    team.updater = memory.backward_adamw(model, config.train_dalle)
    found["short"] = train(model, out / "short", config, team=team)
    found["gather"] = gathered_gradient()
    found["sheets"] = sheets(mesh, out)
    return found


def evaluate(model: DALLE, step: int) -> dict:
    """What fit calls every eval_every updates."""
    loss, metrics = model.loss(examples(99), step)
    return {"loss": loss, **metrics}


def sheet(model: DALLE, path: Path) -> None:
    """Samples in place of an image of samples."""
    text, generator = examples(99)["text"][:2], torch.Generator().manual_seed(0)
    torch.save(sample(model, text, 2, generator=generator), path)


def sheets(mesh, out: Path) -> list[dict]:
    """A run that stops to evaluate and to draw; then one without room for the whole model."""
    config = tiny(eval_every=3)
    for name, room in (("roomy", 10**9), ("cramped", 1000)):
        model = build(mesh)
        team = launch.Team(model, config.train_dalle)
        sharding.spare_bytes = lambda device, room=room: room
        seen, draw = team.callbacks(evaluate, sheet)
        rows = train(model, out / name, config, team=team, evaluate=seen, sheet=draw)
    return rows


def gathered_gradient() -> float:
    """The largest difference of CLIP's gradient from that of one big batch, as a share of it."""
    from minidalle import models

    config = get_config("toy")
    g = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.rand(8, 3, 32, 32, generator=g),
        "text": torch.randint(0, 256, (8, config.dalle.text_len - 1), generator=g),
    }
    alone, shared = models.build(config, "clip"), launch._copied(config, "clip", "cpu")
    alone.loss(batch, 0)[0].backward()
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {k: v.chunk(world)[rank] for k, v in batch.items()}
    shared.loss(mine, 0)[0].backward()
    sharding.average_gradients(shared)
    pairs = list(zip(alone.parameters(), shared.parameters(), strict=True))
    largest = max(a.grad.abs().max().item() for a, _ in pairs)
    return max((a.grad - b.grad).abs().max().item() for a, b in pairs) / largest


def compressed(out: Path) -> dict:
    """Four processes as two nodes of two: native hybrid sharding against PowerSGD."""
    mesh = sharding.make_mesh("cpu", nodes=2)
    found = {"native": train(build(mesh), out / "native")}
    model = build(mesh["shard"])
    powersgd.compress(model, mesh, 0)
    found["whole"] = train(model, out / "whole")

    model = build(mesh["shard"])
    powersgd.compress(model, mesh, 10_000, whole=2)
    found["full rank"] = train(model, out / "full")
    found["thin rank"] = counted(mesh, out)
    found["held"] = held(mesh, out)
    found["float16"] = half(mesh, out)
    return found


def counted(mesh, out: Path) -> dict:
    """Bytes between nodes with and without compression, and whether replicas stay equal."""
    bytes_sent, config = {}, tiny()
    group = mesh["replicate"].get_group()
    for rank in (0, 8):
        model = build(mesh["shard"])
        powersgd.compress(model, mesh, rank, whole=0)
        with powersgd.counted_bytes(group) as seen:
            train(model, out / f"rank-{rank}", config)
        bytes_sent[rank] = seen.total / STEPS
    sums = torch.stack([p.to_local().double().sum() for p in model.parameters()])
    other = sums.clone()
    dist.all_reduce(other, op=dist.ReduceOp.MAX, group=group)
    return {"bytes": bytes_sent, "equal": torch.equal(sums, other)}


def held(mesh, out: Path) -> dict:
    """An accumulated batch sends its gradients once."""
    found = {}
    for parts in (1, 2):
        model, config = build(mesh["shard"]), tiny(accumulate=parts)
        team = launch.Team(model, config.train_dalle)
        powersgd.compress(model, mesh, 0, team.is_last_part)
        with powersgd.counted_bytes(mesh["replicate"].get_group()) as seen:
            rows = train(model, out / f"held-{parts}", config, team=team)
        found[parts] = {"bytes": seen.total, "rows": rows}
    return found


def half(mesh, out: Path) -> dict:
    """Two nodes of two: float16 scales with PowerSGD at full and low rank; then an overflow."""
    found = {}
    for name, rank in (("plain", 0), ("full rank", 10_000), ("thin", 8), ("thin float32", 8)):
        model, team, _ = half_team(mesh, rank, tiny(), scaled="float32" not in name)
        found[name] = train(model, out / "half" / name, team=team)
    found["overflow"] = overflow(mesh, out)
    return found


def half_team(mesh, rank: int, config, scaled: bool = True):
    """A model with gradient scales, and its gradients compressed if rank."""
    model = build(mesh["shard"] if rank else mesh)
    team, compression = launch.Team(model, config.train_dalle), None
    if scaled:
        team.scales, team.max_bad = precision.ResblockScales(model), 1000
    if rank:
        compression = powersgd.compress(
            model, mesh, rank, team.is_last_part, whole=2, scales=team.scales
        )
    return model, team, compression


def overflow(mesh, out: Path) -> list[dict]:
    """What each process kept before and after updates 4 and 5, in whose first parts it overflows.

    Both times in block 1, and only on the last process. In update 4 every matrix of the MLP
    overflows; in update 5 one row of the queries, which the first process of each node holds.
    """
    config = tiny(accumulate=2)
    model, team, compression = half_team(mesh, 8, config)
    block, now, kept = model.transformer.blocks[1], {"step": -1}, []

    def poison(module, inputs, output):
        if now["step"] == module.at and team.part == 1 and dist.get_rank() == 3:
            output.register_hook(lambda g: g.index_fill(-1, torch.tensor([0]), math.inf))

    for module, at in ((block.mlp.down, 3), (block.attention.qkv, 4)):
        module.at = at
        module.register_forward_hook(poison)

    def batches(start):
        for step, batch in zip(count(start), shares(start), strict=False):
            now["step"] = step
            kept.append(snapshot(model, team, compression))
            yield batch

    rows = train(model, out / "half" / "overflow", config, team=team, batches=batches)
    kept.append(snapshot(model, team, compression))
    before, after, last = kept[3:6]
    mine = {"rows": rows, "scales": [k["scales"] for k in kept]}
    for name, (a, b) in {"mlp": (before, after), "queries": (after, last)}.items():
        mine[name] = {key: torch.equal(a[key], b[key]) for key in a if key != "scales"}
        mine[name]["finite"] = all(t.isfinite().all().item() for k, t in b.items() if "/" in k)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def snapshot(model: DALLE, team: launch.Team, compression) -> dict:
    """A copy of this process's weights, in one piece, of its scales and of what PowerSGD keeps."""
    kept = {k: v.clone() for k, v in compression.state_dict().items() if "updates" not in k}
    weights = torch.cat([p.detach().to_local().flatten() for p in model.parameters()])
    return kept | {"weights": weights, "scales": [s.item() for s in team.scales.scales]}


def resumed(out: Path, steps: str, compress: str = "0") -> dict:
    """Train on to update `steps` in the folder out / 'run', from what is there."""
    config = tiny(steps=int(steps), lr_steps=STEPS, save_every=2)
    rank = int(compress)
    mesh = sharding.make_mesh("cpu", nodes=2 if rank else 1)
    if rank:  # with float16, so that scales and error buffers are part of the state
        model, team, compression = half_team(mesh, rank, config)
        local = {"powersgd": compression, "scales": team.scales}
    else:
        model, team, local = build(mesh["shard"]), None, {}
    folder = out / "run"
    checkpoints = ShardedCheckpoints(folder / "checkpoints", 2, config, local)
    train(model, folder, config, team=team, checkpoints=checkpoints)
    checkpoints.finish(model, config, {})
    return {"rows": log(folder)}


def slow_run(out: Path) -> dict:
    """A run that saves after every update and says so, to be killed."""
    config = tiny(steps=24, lr_steps=24, save_every=1)
    model = build(sharding.make_mesh("cpu")["shard"])
    folder = out / "run"
    checkpoints = ShardedCheckpoints(folder / "checkpoints", 2, config)
    train(model, folder, config, checkpoints=checkpoints)
    checkpoints.finish(model, config, {})
    return {"rows": log(folder)}


def main() -> None:
    name, out, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    sharding.start("cpu", timeout=120)
    found = globals()[name](Path(out), *arguments)
    if dist.get_rank() == 0:
        (Path(out) / f"{name}.json").write_text(json.dumps(found))
    sharding.finish()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
