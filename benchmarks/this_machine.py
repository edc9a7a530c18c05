"""The 12b preset on this machine: as many layers as its memory holds, and arithmetic for the rest.

Run: python benchmarks/scale.py --parts here [--presets 12b --layers 6 --updates 3 --candidates 16]
Width, heads and lengths are the preset's; the code is that of the GPU (a mesh of one, FSDP2,
updates in the backward pass, bfloat16 products, the windowed cache). Times of a processor do not
count what neighbours use.
"""

import time
from dataclasses import replace

import torch
from one_device import (
    AT_ONCE,
    BATCH,
    Rates,
    Training,
    alone,
    drawing_limits,
    forget_peak,
    measure_rates,
    pairs,
    peak,
    plain_model,
    status,
)

from minidalle.config import Config
from minidalle.scale import arithmetic
from minidalle.scale.plan import GIB, GPUS
from minidalle.tokenizer import PAD

H200 = Rates(790e12, 4.3e12)  # what one reached: bfloat16 operations, bytes copied, a second


def show_here(config: Config, layers: int | None, updates: int, candidates: int) -> None:
    """On this machine's CPU: the same code on as many layers as fit, and arithmetic for all."""
    alone("cpu")
    room = status("MemAvailable", "/proc/meminfo") - 4 * GIB  # others work here too
    layers = layers or most_layers(config, room)
    whole, rates = config, measure_rates("cpu")
    config = replace(config, dalle=replace(config.dalle, n_layers=layers))
    # One batch is learned by heart, at a rate that a short run can use.
    training = replace(config.train_dalle, lr=1e-4, warmup=0, halve_at=(), precision="bfloat16")
    config = replace(config, train_dalle=training)
    print(
        f"{config.preset}: {layers} of {whole.dalle.n_layers} layers, width {config.dalle.width}, "
        f"{config.dalle.n_heads} heads, {arithmetic.states(config.dalle)} states, batch 1; "
        f"{room / GIB:.1f} GiB to use; {torch.get_num_threads()} thread(s) reach "
        f"{rates.flops / 1e9:.0f} GFLOP/s and {rates.bytes / 1e9:.1f} GB/s",
        flush=True,
    )
    here_training(config, updates, rates)
    here_drawing(config, candidates, rates)
    show_whole(whole)


def most_layers(config: Config, room: float) -> int:
    """The most layers that train on `room` bytes. Raises ValueError where not even one does."""
    for layers in range(config.dalle.n_layers, 0, -1):
        c = replace(config.dalle, n_layers=layers)
        if sum(arithmetic.training_bytes(c, 1, scheme=arithmetic.SCHEMES[1]).values()) <= room:
            return layers
    raise ValueError(f"one layer of {config.preset} does not fit {room / GIB:.1f} GiB")


def here_training(config: Config, updates: int, rates: Rates) -> None:
    c, before = config.dalle, status("VmRSS")
    training, batch = Training(config, "cpu", in_backward=True), pairs(config, 1, "cpu")
    need = arithmetic.training_bytes(c, 1, scheme=arithmetic.SCHEMES[1])
    print(f"  weights: {(status('VmRSS') - before) / GIB:.2f} GiB, {need['weights'] / GIB:.2f}")
    work = arithmetic.training_flops(c, recompute=True)
    for _ in range(updates):
        forget_peak("cpu")
        began, cpu = time.perf_counter(), time.process_time()
        loss = training.update(batch).item()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"  update {training.step}: loss {loss:.4f}, {took:.1f} s ({cpu:.1f} s of a "
            f"processor, {work / cpu / 1e9:.0f} GFLOP/s, "
            f"{work / cpu / rates.flops:.0%} of the product); peak "
            f"{(peak('cpu') - before) / GIB:.2f} GiB, held "
            f"{(status('VmRSS') - before) / GIB:.2f} GiB",
            flush=True,
        )
    print(f"  arithmetic: {_parts(need)}")


def _parts(need: dict[str, int]) -> str:
    parts = ", ".join(f"{name} {n / GIB:.2f}" for name, n in need.items() if n > GIB / 200)
    return f"{sum(need.values()) / GIB:.2f} GiB ({parts})"


@torch.no_grad()
def here_drawing(config: Config, n: int, rates: Rates, tokens: int = 33) -> None:
    c, before = config.dalle, status("VmRSS")
    model = plain_model(config, "cpu")
    text = torch.full((1, c.text_len - 1), PAD)
    text[0, : c.text_len // 2] = torch.arange(c.text_len // 2)
    began = time.perf_counter()
    decoder = model.decoder(text, n, torch.zeros(1, 1, 0, dtype=torch.int64))
    ready, token = time.perf_counter() - began, None
    forget_peak("cpu")
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(tokens):
        token = decoder.step(token).argmax(-1)
    took, cpu = (time.perf_counter() - began) / tokens, (time.process_time() - cpu) / tokens
    limits = drawing_limits(config, n, rates)
    caches = sum(t.nbytes for a in decoder.caches for t in (a.k, a.v, a.text_k, a.text_v))
    need = arithmetic.sampling_bytes(c, n)
    planned = need["caption's keys, values"] + need["images' keys, values"]
    print(
        f"  drawing {n} of one caption, bfloat16: the caption in {ready:.1f} s, then {tokens} "
        f"tokens of {took:.2f} s ({cpu:.2f} s of a processor); a step's limit "
        f"{', '.join(f'{k} {v / c.grid**2:.2f} s' for k, v in limits.items())}; caches "
        f"{caches / GIB:.3f} GiB, arithmetic {planned / GIB:.3f}; peak "
        f"{(peak('cpu') - before) / GIB:.2f} GiB, arithmetic {sum(need.values()) / GIB:.2f}",
        flush=True,
    )


def show_whole(config: Config) -> None:
    """Arithmetic for the preset as it is, on one H200."""
    c, rates = config.dalle, H200
    print(f"{config.preset} with all {c.n_layers} layers on one H200, by arithmetic")
    for size in (1, BATCH.get(config.preset, 16)):
        need = arithmetic.training_bytes(c, size, scheme=arithmetic.SCHEMES[1])
        work = arithmetic.training_flops(c, recompute=True) * size
        print(
            f"  an update of {size}: {_parts(need)}; {work:.2e} operations, "
            f"{work / rates.flops:.2f} s at {rates.flops / 1e12:.0f} TFLOP/s"
        )
    room = GPUS["h200"].memory * GIB
    for n in (AT_ONCE, 512):
        need, limits = arithmetic.sampling_bytes(c, n), drawing_limits(config, n, rates)
        verdict = "fits" if sum(need.values()) <= room else "DOES NOT FIT"
        times = ", ".join(f"{name} {t:.1f} s" for name, t in limits.items())
        print(f"  drawing {n} at once: {verdict}, {_parts(need)}; limits {times}")
