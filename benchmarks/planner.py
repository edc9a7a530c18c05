"""Is the planner's arithmetic right? The real model, run on fake tensors, beside it.

Run: python benchmarks/planner.py [--presets base 12b] [--slices 8] [--batch 16]
Memory: torch's tracker watches the sharded forward and backward pass of a few layers; the moments
of the optimiser are left out on both sides. Operations: torch counts them with dense attention.
No GPU, no memory, some seconds. Each run is a process of its own, for fake tensors and a pretended
process group must not stay behind.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minidalle import attention
from minidalle.config import DALLEConfig, get_config
from minidalle.dalle import DALLE
from minidalle.scale import arithmetic, sharding
from minidalle.scale.plan import GIB

LAYERS = 3  # enough for the prefetch of a block before and one after


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention as a GPU's fused kernel has it, which keeps no scores."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def pairs(c: DALLEConfig, batch: int) -> dict[str, Tensor]:
    return {
        "text": torch.zeros(batch, c.text_len - 1, dtype=torch.long),
        "tokens": torch.zeros(batch, c.grid**2, dtype=torch.long),
    }


def tracked(c: DALLEConfig, batch: int, slices: int) -> int:
    """Bytes of the worst moment of a forward and backward pass. Leaves fake tensors behind."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore

    attention.dense = fused
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=slices)
    mesh = sharding.make_mesh("cpu")["shard"]
    with FakeTensorMode():
        with torch.device("meta"):
            model = DALLE(replace(c, attention="dense"))
        sharding.shard(model, mesh, "bfloat16")
        model.to_empty(device="cpu")
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(())
        with tracker, torch.autocast("cpu", torch.bfloat16):
            model.loss(pairs(c, batch))[0].backward()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return next(n for name, n in found.items() if str(name).rpartition(".")[2].lower() == "total")


def counted(c: DALLEConfig) -> int:
    """Operations of one pair's forward and backward pass, every query meeting every key."""
    c = replace(c, attention="dense", checkpointing=False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DALLE(c).loss(pairs(c, 1))[0].backward()
    return counter.get_total_flops()


def compare(preset: str, checkpointing: bool, batch: int, slices: int) -> dict:
    """Both answers for a few layers of a preset."""
    c = get_config(preset).dalle
    c = replace(c, n_layers=LAYERS, checkpointing=checkpointing)
    scheme = arithmetic.Scheme("", moments=0, average=0)
    flops = arithmetic.forward_flops(c)
    flops["attention"] = 4 * c.width * arithmetic.states(c) ** 2 * LAYERS  # dense
    return {
        "preset": preset,
        "checkpointing": checkpointing,
        "bytes": sum(arithmetic.training_bytes(c, batch, slices, scheme).values()),
        "tracked": tracked(c, batch, slices),
        "operations": 3 * sum(flops.values()),
        "counted": counted(c),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["base", "12b"])
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16, help="pairs that a GPU holds at once")
    parser.add_argument("--worker", nargs=2, metavar=("PRESET", "0|1"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        preset, checkpointing = args.worker
        print(json.dumps(compare(preset, checkpointing == "1", args.batch, args.slices)))
        sys.stdout.flush()
        os._exit(0)  # the fake process group needs no farewell
    print(f"{LAYERS} layers, {args.slices} slices, {args.batch} pairs at once, no optimiser")
    print("preset  checkpointing  GiB tracked  arithmetic  ratio   operations counted  ratio")
    for preset in args.presets:
        for on in "01":
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", preset, on]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{preset:<8}{bool(int(on))!s:<15}{row['tracked'] / GIB:>11.2f}"
                f"{row['bytes'] / GIB:>12.2f}{row['bytes'] / row['tracked']:>7.3f}"
                f"{row['counted']:>21.4e}{row['operations'] / row['counted']:>7.4f}"
            )


if __name__ == "__main__":
    main()
