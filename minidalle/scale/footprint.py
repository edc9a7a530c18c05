"""How much memory does the real model take? Run it on tensors that have a shape but no data.

torch's memory tracker watches a sharded forward and backward pass of fake tensors: no GPU, no
memory, a few seconds for a few layers of the twelve billion. It runs in a process of its own,
because fake tensors must not stay behind in caches.

Source: torch.distributed._tools (FSDPMemTracker); torch.utils.flop_counter.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import attention, clip, stages
from ..config import Config, DALLEConfig, get_config
from ..dalle import DALLE
from . import sharding

LAYERS = 4  # enough for every kind of layer and for the prefetch


def measure(preset: str, overrides: list[str], **question) -> dict:
    """Ask a process of its own; question: what='tracked' or 'activations', see `_answer`."""
    text = json.dumps({"preset": preset, "overrides": overrides, **question})
    command = [sys.executable, "-m", "minidalle.scale.footprint", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer(question: dict) -> dict:
    config = get_config(question["preset"], question["overrides"])
    _replace_data_dependent()
    if question["what"] == "tracked":
        return _tracked(config.dalle, question["batch"], question["slices"])
    return {stage: _activations(config, stage) for stage in question["stages"]}


def _replace_data_dependent() -> None:
    """In this process only: attention as a GPU's fused kernel has it, which keeps no scores, and
    captions whose values nobody looks at."""

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    attention.dense = fused
    clip.pack_text = lambda text, c: text.new_zeros(len(text), c.context_length)


def _tracked(c: DALLEConfig, batch: int, slices: int) -> dict[str, int]:
    """The peak of LAYERS layers' forward and backward pass, bytes by torch's own names."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore

    c = replace(c, n_layers=LAYERS, attention="dense")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=slices)
    mesh = sharding.make_mesh("cpu")["shard"]
    with FakeTensorMode():
        with torch.device("meta"):
            model = DALLE(c)
        sharding.shard(model, mesh, "bfloat16")
        model.to_empty(device="cpu")
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(())
        with tracker, torch.autocast("cpu", torch.bfloat16):
            model.loss(_pairs(c, batch))[0].backward()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return {str(name).rpartition(".")[2].lower(): int(n) for name, n in found.items() if n}


def _pairs(c: DALLEConfig, batch: int) -> dict[str, Tensor]:
    return {
        "text": torch.zeros(batch, c.text_len - 1, dtype=torch.long),
        "tokens": torch.zeros(batch, c.grid**2, dtype=torch.long),
    }


def _activations(config: Config, stage: str) -> int:
    """Bytes that one more example keeps for the backward pass of a stage, in bfloat16."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = stages.MODELS[stage](getattr(config, stage))
        two, three = (_saved(model, _batch(config, stage, n)) for n in (2, 3))
    return three - two


def _batch(config: Config, stage: str, n: int) -> dict[str, Tensor]:
    size = getattr(config, stage).image_size
    text = torch.zeros(n, config.dalle.text_len - 1, dtype=torch.long)
    return {"images": torch.zeros(n, 3, size, size), "text": text}


def _saved(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes of the distinct tensors that autograd keeps, parameters aside."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t
        return t

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model.loss(batch, 0)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def count_flops(c: DALLEConfig) -> int:
    """Return the operations of one pair's forward and backward pass as torch counts them.

    On the meta device, with dense attention: every query meets every key.
    """
    c = replace(c, attention="dense", checkpointing=False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DALLE(c).loss(_pairs(c, 1))[0].backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # the fake process group needs no farewell
