"""One device: a real update and a real drawing of a preset, beside what the device could do.

Run through benchmarks/scale.py, part `gpu`; see this_machine.py for part `here`.
Utilisation counts the model's operations: attention only where a mask allows it, and nothing that
checkpointing computes twice. The drawing's limit is the larger of two times: bytes that must be
read (weights, and keys and values in reach) over the rate of a copy, operations over the rate of a
plain product; both rates are measured first.
"""

import gc
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from minidalle.attention.compiled import allow_kernels, fuse
from minidalle.config import Config, DALLEConfig, get_config
from minidalle.dalle import DALLE
from minidalle.generate import sample
from minidalle.models import BLOCKS
from minidalle.scale import arithmetic, launch, memory, sharding
from minidalle.scale.plan import GIB, GPUS
from minidalle.tokenizer import PAD
from minidalle.training.optim import learning_rate, make_optimizer
from minidalle.transformer import layer_kinds

BATCH = {"small": 128, "base": 32, "12b": 16}  # pairs in an update on one GPU
AT_ONCE = 256  # images drawn at once
CANDIDATES = {"12b": 512}  # the paper's number, in batches that fit


@dataclass(frozen=True)
class Rates:
    """What the device reaches at its best: operations and bytes (read and written) a second."""

    flops: float
    bytes: float


def seconds(run: Callable[[], object], rounds: int, device: str) -> float:
    """Return the least seconds of `rounds` runs; on a CPU a processor's, for neighbours' sake."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = float("inf")
    for _ in range(rounds):
        wait(device)
        began = clock()
        run()
        wait(device)
        best = min(best, clock() - began)
    return best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_rates(device: str) -> Rates:
    """Time a bfloat16 product of random matrices and a copy."""
    side, size = (8192, 2**32) if device == "cuda" else (2048, 2**28)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    product = seconds(lambda: a @ b, 10, device)
    copy = seconds(lambda: target.copy_(source), 5, device)
    return Rates(2 * side**3 / product, 2 * size / copy)


def alone(device: str) -> None:
    """Be the only process of a group, as `torchrun --nproc-per-node 1` would have it."""
    if dist.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sharding.start(device)


def pairs(config: Config, size: int, device: str) -> dict[str, Tensor]:
    """Return a random batch, the last tenth of each caption empty."""
    c, g = config.dalle, torch.Generator().manual_seed(0)
    text = torch.randint(0, c.text_vocab, (size, c.text_len - 1), generator=g)
    text[:, -(c.text_len // 10) :] = PAD
    tokens = torch.randint(0, c.image_vocab, (size, c.grid**2), generator=g)
    return {"text": text.to(device), "tokens": tokens.to(device)}


@torch.no_grad()
def draw_weights(model: DALLE, device: str) -> None:
    """Weights for timing, drawn on the device; 12b takes `sharding.fill` a minute on a CPU."""
    model.to_empty(device=device)
    for name, p in model.named_parameters():
        p = p.to_local() if isinstance(p, DTensor) else p
        module = name.rpartition(".")[0]
        p.fill_(1.0) if module.endswith("norm") and p.ndim == 1 else p.normal_(0, 0.02)


class Training:
    """A sharded model on a mesh of one, with the parts that minidalle.scale.launch puts together.

    own_draws: the weights that launch would draw, the same on every machine. fused: with each
    block, and the optimiser's arithmetic, compiled.
    """

    def __init__(
        self,
        config: Config,
        device: str,
        in_backward: bool,
        own_draws: bool = True,
        fused: bool = False,
    ):
        with torch.device("meta"):
            self.model = DALLE(config.dalle)
        if fused:
            fuse(self.model, BLOCKS)
        sharding.shard(self.model, sharding.make_mesh(device)["shard"], "bfloat16")
        (sharding.fill if own_draws else draw_weights)(self.model, device)
        self.config, self.device = replace(config.train_dalle, compile=fused), device
        self.team = launch.Team(self.model, self.config)
        make = memory.backward_adamw if in_backward else make_optimizer
        self.optimizer, self.step = make(self.model, self.config), 0
        self.clip = self.optimizer.end_update if in_backward else self.team.clip

    def update(self, batch: dict[str, Tensor]) -> Tensor:
        """What `fit` does with a batch; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        with torch.autocast(self.device, torch.bfloat16):
            loss, _ = self.team.loss(self.model, batch, self.step)
        loss.backward()
        self.clip(list(self.model.parameters()), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def attend_by(self, method: str) -> None:
        """Execute the masks of all layers by another method."""
        for block in self.model.transformer.blocks:
            block.attention.config = replace(block.attention.config, attention=method)


def plain_model(config: Config, device: str) -> DALLE:
    """An untrained bfloat16 model for drawing."""
    with torch.device("meta"):
        model = DALLE(config.dalle).bfloat16()
    draw_weights(model, device)
    return model.eval()


def show_gpu(presets: list[str]) -> None:
    """On a GPU, each preset as it is: updates with our masks and with dense ones, and drawing."""
    parts = {"training": gpu_training, "compiled training": gpu_compiled, "drawing": gpu_drawing}
    if not torch.cuda.is_available():
        print("gpu: no GPU here")
        return
    alone("cuda")
    allow_kernels()
    rates = measure_rates("cuda")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a plain product reached "
        f"{rates.flops / 1e12:.0f} TFLOP/s, a copy {rates.bytes / 1e12:.2f} TB/s"
    )
    for preset in presets:
        config = get_config(preset)
        for name, part in parts.items():
            try:
                part(config, rates)
            except RuntimeError as error:  # out of memory, most likely
                print(f"  {preset}, {name}: {str(error).splitlines()[0]}", flush=True)
            gc.collect()  # hooks tie a sharded model into knots
            torch.cuda.empty_cache()
    dist.destroy_process_group()


def gpu_compiled(config: Config, rates: Rates, device: str = "cuda", rounds: int = 5) -> None:
    gpu_training(config, rates, device, rounds, fused=True)


def gpu_training(
    config: Config, rates: Rates, device: str = "cuda", rounds: int = 5, fused: bool = False
) -> None:
    in_backward = config.preset == "12b"
    size = BATCH.get(config.preset, 16)
    training = Training(config, device, in_backward, own_draws=False, fused=fused)
    batch = pairs(config, size, device)
    scheme = arithmetic.SCHEMES[1] if in_backward else arithmetic.SCHEMES[0]
    need = arithmetic.training_bytes(config.dalle, size, 1, replace(scheme, average=0))
    for method in ("auto",) if fused else ("auto", "dense"):
        training.attend_by(method)
        for _ in range(2):  # kernels are compiled, moments made
            training.update(batch)
        forget_peak(device)
        took = seconds(lambda: training.update(batch), rounds, device)
        print(
            f"  {config.preset}, batch {size}, {method}{', compiled' if fused else ''}: "
            f"{took:.3f} s an update; peak {peak(device) / GIB:.1f} GiB "
            f"(arithmetic {sum(need.values()) / GIB:.1f})"
        )
        _say_speed(config, size, took, rates)


def _say_speed(config: Config, size: int, took: float, rates: Rates) -> None:
    c, sheet = config.dalle, GPUS["h200"].tflops * 1e12
    speed = arithmetic.training_flops(c) * size / took
    print(
        f"    {size * arithmetic.states(c) / took:,.0f} tokens/s; model FLOPs utilisation "
        f"{speed / sheet:.1%} of an H200's data sheet ({sheet / 1e12:g} TFLOP/s), "
        f"{speed / rates.flops:.1%} of the plain product",
        flush=True,
    )


def gpu_drawing(
    config: Config,
    rates: Rates,
    device: str = "cuda",
    at_once: int = AT_ONCE,
    ways: tuple[bool, ...] = (False, True),
) -> None:
    """Draw; the second way lets torch.compile fuse each layer's small steps."""
    c, model = config.dalle, plain_model(config, device)
    text = torch.arange(1, c.text_len // 2)
    batches = -(-CANDIDATES.get(config.preset, at_once) // at_once)
    need, limits = arithmetic.sampling_bytes(c, at_once), drawing_limits(config, at_once, rates)
    for compiled in ways:
        draw = partial(sample, model, text, at_once, compile=compiled)
        draw(prompt=torch.zeros(c.grid**2 - 2, dtype=torch.int64))  # loads and compiles kernels
        forget_peak(device)
        took = seconds(draw, batches, device)
        print(
            f"  {config.preset}, drawing {batches} x {at_once} of one caption"
            f"{', compiled' if compiled else ''}: {at_once / took:.2f} pictures/s, "
            f"{took:.1f} s a batch, x{took / max(limits.values()):.2f} of the limit "
            f"({', '.join(f'{k} {v:.1f} s' for k, v in limits.items())}); "
            f"peak {peak(device) / GIB:.1f} GiB (arithmetic {sum(need.values()) / GIB:.1f})",
            flush=True,
        )


def drawing_limits(config: Config, n: int, rates: Rates) -> dict[str, float]:
    """The least seconds in which n images of one caption can be drawn at once."""
    c = config.dalle
    return {
        "bytes": c.grid**2 * drawing_bytes(c, n) / rates.bytes,
        "operations": n * drawing_flops(c) / rates.flops,
    }


def keys_in_reach(c: DALLEConfig) -> float:
    """Image states that a cell sees, itself included, on average, summed over layers.

    Besides them it sees the caption's text_len states in every layer.
    """
    cells, text = c.grid**2, c.text_len
    seen = sum(arithmetic.pairs(c, kind) for kind in layer_kinds(c.n_layers))
    return (seen - c.n_layers * text * (text + 1) // 2) / cells - c.n_layers * text


def drawing_bytes(c: DALLEConfig, candidates: int, width: int = 2) -> float:
    """Bytes to read, on average, for one token of every candidate of one caption.

    Writing the new keys and values, and embeddings, are nothing beside weights, the caption's keys
    and values and those of the images.
    """
    weights = arithmetic.parameters(c)["blocks"] + c.image_vocab * c.width
    states = c.n_layers * c.text_len + candidates * keys_in_reach(c)
    return (weights + states * 2 * c.width) * width


def drawing_flops(c: DALLEConfig) -> int:
    """Floating-point operations of drawing one image, its caption read already."""
    d, seen = c.width, c.n_layers * c.text_len + keys_in_reach(c)
    return int(c.grid**2 * (2 * (12 * d * d * c.n_layers + d * c.image_vocab) + 4 * d * seen))


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Linux: forget the peak


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")


def status(field: str, path: str = "/proc/self/status") -> int:
    """Return a number of bytes that Linux tells."""
    with open(path) as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
