"""What processes cost and what compression saves; on a GPU, how near the limit training comes.

Run: python benchmarks/scale.py [--steps 60] [--parts weak network gpu here] [--presets base 12b]
weak: each process has the same work, so the ideal is 1.00 where there are as many cores.
network: four processes as two nodes of two; bytes that cross nodes, and the loss at equal updates.
gpu: one GPU, real updates and drawings of each preset beside their limits; see one_device.py.
here: the same of the 12b preset on this machine, with as many layers as its memory holds; see
this_machine.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import one_device
import this_machine
import torch
import torch.distributed as dist

from minidalle.config import Config, get_config
from minidalle.dalle import DALLE
from minidalle.scale import arithmetic, launch, powersgd, sharding
from minidalle.training.optim import learning_rate, make_optimizer


def config_for(width: int) -> Config:
    """A small prior of this width, on which processes have something to do."""
    sizes = (f"dalle.n_heads={width // 32}", "dalle.n_layers=4", "train_dalle.lr=2e-3")
    return get_config("toy", sizes)


def pairs(config: Config, step: int, size: int, rank: int = 0, world: int = 1) -> dict:
    """A batch whose pictures follow from their captions, so that the loss can fall."""
    c, g = config.dalle, torch.Generator().manual_seed(step)
    word = torch.randint(0, 16, (size, 1), generator=g)
    text = (word + torch.arange(c.text_len - 1)) % 16
    noise = torch.randint(0, 2, (size, c.grid**2), generator=g)
    tokens = (word * 7 + torch.arange(c.grid**2) + noise) % min(c.image_vocab, 128)
    return {"text": text[rank::world], "tokens": tokens[rank::world]}


def train(model: DALLE, team: launch.Team, config: Config, size: int, steps: int) -> list[float]:
    """The core of fit, without its bookkeeping; returns the losses."""
    optimizer, losses = make_optimizer(model, config.train_dalle), []
    rank, world = dist.get_rank(), dist.get_world_size()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.train_dalle)
        loss, _ = team.loss(model, pairs(config, step, size, rank, world), step)
        loss.backward()
        team.clip(list(model.parameters()), config.train_dalle.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def build(config: Config, mesh) -> tuple[DALLE, launch.Team]:
    with torch.device("meta"):
        model = DALLE(config.dalle)
    sharding.shard(model, mesh)
    sharding.fill(model, "cpu")
    return model, launch.Team(model, config.train_dalle)


def weak(steps: int) -> dict:
    """Seconds per update with 8 pairs per process."""
    config = config_for(256)
    model, team = build(config, sharding.make_mesh("cpu")["shard"])
    size = 8 * dist.get_world_size()
    train(model, team, config, size, 2)  # warm up
    began, cpu = time.perf_counter(), time.process_time()
    train(model, team, config, size, steps)
    spent = time.perf_counter() - began, time.process_time() - cpu
    return {"wall": spent[0] / steps, "cpu": spent[1] / steps}


def network(steps: int) -> dict:
    """By rank of PowerSGD: bytes between nodes per process and update, and the last losses."""
    config, found = config_for(128), {}
    mesh = sharding.make_mesh("cpu", nodes=2)
    for rank in (0, 64, 32, 16):
        model, team = build(config, mesh["shard"])
        blocks = powersgd.compress(model, mesh, rank, whole=5).blocks
        train(model, team, config, 16, 5)
        with powersgd.counted_bytes(mesh["replicate"].get_group()) as seen:
            losses = train(model, team, config, 16, steps)
        found[rank] = {"bytes": seen.total / steps, "loss": sum(losses[-10:]) / 10}
        found[rank]["slice rank"] = blocks[0].rank if blocks else 0
    return found


def on_processes(n: int, part: str, steps: int) -> dict:
    """Run one part of this file under torchrun and return what the first process found."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}",
        __file__, "--worker", part, "--steps", str(steps),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def show_weak(steps: int, rounds: int) -> None:
    best: dict[int, dict] = {}
    for _ in range(rounds):  # interleaved, so that a busy machine slows all alike
        for n in (1, 2, 4):
            found = on_processes(n, "weak", steps)
            best[n] = min(best.get(n, found), found, key=lambda f: f["wall"])
    cores = len(os.sched_getaffinity(0))
    print(f"weak scaling, 8 pairs per process, {cores} cores (best of {rounds})")
    for n, found in best.items():
        ideal = best[1]["wall"] * max(1, n / cores)
        wall, cpu = found["wall"] * 1e3, found["cpu"] * 1e3
        share = f"efficiency {ideal / found['wall']:.2f} of what the cores allow"
        print(f"  {n} processes: {wall:7.1f} ms an update, {cpu:7.1f} ms CPU each; {share}")


def show_network(steps: int) -> None:
    found = on_processes(4, "network", steps)
    whole = found["0"]
    print(f"between two nodes of two processes, width 128, after {steps} + 5 updates")
    for rank, row in found.items():
        print(
            f"  rank {rank:>3} (slice {row['slice rank']:>2}): {row['bytes']:>9,.0f} bytes, "
            f"{1 - row['bytes'] / whole['bytes']:6.1%} saved; loss {row['loss']:.4f}, "
            f"gap {row['loss'] - whole['loss']:+.4f}"
        )
    d = 3968
    paper = 1 - arithmetic.network_bytes(get_config("12b").dalle, 8, 896) / (
        arithmetic.network_bytes(get_config("12b").dalle, 8)
    )
    print(
        f"  12b, 8 per node, rank 896: {paper:.1%} of all bytes, "
        f"{powersgd.saving(896, d):.1%} of the blocks' (the paper's count)"
    )


def show_here() -> None:
    """In a process of its own, whose C library gives freed tensors back to the system at once."""
    command = [sys.executable, __file__, "--worker", "here", *sys.argv[1:]]
    subprocess.run(command, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"})


def work(args: argparse.Namespace) -> None:
    """One process of a part; ends the process."""
    if args.worker == "here":
        config = get_config(args.presets[-1])
        this_machine.show_here(config, args.layers, args.updates, args.candidates)
    else:
        torch.set_num_threads(1)
        sharding.start("cpu")
        found = {"weak": weak, "network": network}[args.worker](args.steps)
        if launch.is_main():
            print(json.dumps(found), flush=True)
    sharding.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["weak", "network", "gpu"])
    parser.add_argument("--presets", nargs="+", default=["small", "base", "12b"])
    parser.add_argument("--steps", type=int, default=60, help="of weak and network")
    parser.add_argument("--rounds", type=int, default=2, help="of weak")
    parser.add_argument("--layers", type=int, help="of here (default: as many as fit)")
    parser.add_argument("--updates", type=int, default=3, help="of here")
    parser.add_argument("--candidates", type=int, default=16, help="of here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
    if "weak" in args.parts:
        show_weak(max(3, args.steps // 10), args.rounds)
    if "network" in args.parts:
        show_network(args.steps)
    if "gpu" in args.parts:
        one_device.show_gpu(args.presets)
    if "here" in args.parts:
        show_here()


if __name__ == "__main__":
    main()
