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
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minidalle import attention, models
from minidalle.config import CLIPConfig, Config, DALLEConfig, DVAEConfig, get_config
from minidalle.dalle import DALLE
from minidalle.scale import sharding

LAYERS = 3  # enough for the prefetch of a block before and one after


def measure(what: str, question: dict) -> dict:
    """Ask a process of its own: what='tracked' (see `_tracked`) or 'activations'.

    Raises RuntimeError where torch can not answer.
    """
    command = [sys.executable, "-m", "minidalle.scale.footprint", what, json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer(what: str, question: dict) -> dict:
    attention.dense = _fused
    if what == "tracked":
        config = get_config(question["preset"], question["overrides"])
        return _tracked(config.dalle, question["batch"], question["slices"])
    configs = {name: get_config(name, sizes) for name, sizes in question.items()}
    return {
        name: {stage: _activations(config, stage) for stage in ("dvae", "clip")}
        for name, config in configs.items()
    }


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """In this process: attention as a GPU's fused kernel has it, which keeps no scores."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


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


def _activations(config: Config, stage: str) -> dict[str, int]:
    """Of dvae or clip: the parameters, and the bytes that one more example keeps (bfloat16)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    c = getattr(config, stage)
    with FakeTensorMode():
        model = models.CLASSES[type(c)](c)
        two, three = (_saved(model, _forward(model, c, n)) for n in (2, 3))
        count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "example": three - two}


def _forward(model: nn.Module, c: DVAEConfig | CLIPConfig, n: int) -> Callable[[], object]:
    images = torch.zeros(n, 3, c.image_size, c.image_size)
    if isinstance(c, DVAEConfig):
        return lambda: model.loss({"images": images}, 0)
    text = torch.zeros(n, c.context_length, c.text_width, requires_grad=True)
    return lambda: (model.visual(images), model.transformer(text))


def _saved(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of the distinct tensors that autograd keeps, parameters aside."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t
        return t

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        forward()
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
    print(json.dumps(_answer(sys.argv[1], json.loads(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)  # the fake process group needs no farewell
