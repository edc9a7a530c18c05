"""Attention under each mask, forwards and backwards: time and memory beside dense SDPA.

Run: python benchmarks/attention.py [--lengths toy] [--dtype bfloat16] [--memory]
"keys" is the number of keys all queries could see over those they do see, the limit of any
sparse method; dense SDPA multiplies all of them, with the mask or in plain attention as peers do.
Of the peak memory, the result and the three gradients are what every method must hand over;
"work" is what it takes beyond them.
Targets at 256+1024 tokens: 1.8x dense SDPA on a CPU, 2x on a GPU, half of its peak memory.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers import alternate
from torch import Tensor

from minidalle.attention import KINDS, attend, layer_mask

LENGTHS = {"paper": (256, 32, 11), "toy": (32, 8, 3)}  # text states, grid, kernel
HEAD_DIM = {"paper": 64, "toy": 32}
SHARE = {"row": 47 / 64, "column": 16 / 64, "conv": 1 / 64}  # of the paper's layers


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend as a textbook does: all scores, the mask, a softmax."""
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def both_ways(attention: Callable, tensors: list[Tensor]) -> Callable[[], None]:
    """Return a function that runs forwards and backwards."""
    q, k, v, towards = tensors

    def run() -> None:
        torch.autograd.grad(attention(q, k, v), (q, k, v), towards)

    return run


def make_cases(a: argparse.Namespace, device: str) -> dict[str, Callable[[], None]]:
    size = LENGTHS[a.lengths]
    shape = (4, a.batch, a.heads, size[0] + size[1] ** 2, HEAD_DIM[a.lengths])
    tensors = list(torch.randn(shape, device=device, dtype=getattr(torch, a.dtype)).unbind(0))
    tensors = [x.requires_grad_() for x in tensors[:3]] + tensors[3:]
    mask = layer_mask("row", *size).to(device)
    attentions = {
        "dense SDPA": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "dense, plain": lambda q, k, v: plain(q, k, v, mask),
        "dense, causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    for kind in KINDS:
        for method in ("gathered", "flex") if device == "cuda" else ("gathered",):
            attentions[f"{kind} {method}"] = lambda q, k, v, kind=kind, method=method: attend(
                q, k, v, kind, *size, method
            )
    return {name: both_ways(run, tensors) for name, run in attentions.items()}


def peak_megabytes(run: Callable[[], None], device: str) -> float:
    """Return how far memory rises above what is held before and after, in 2**20 bytes."""
    run()  # masks are made and kept
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Linux: forget the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def print_memory(a: argparse.Namespace, device: str) -> None:
    cases = make_cases(a, device)
    peaks = {name: peak_megabytes(run, device) for name, run in cases.items()}
    size, width = LENGTHS[a.lengths], torch.finfo(getattr(torch, a.dtype)).bits // 8
    states = a.batch * a.heads * (size[0] + size[1] ** 2)
    handed = 4 * states * HEAD_DIM[a.lengths] * width / 2**20
    print(f"result and gradients {handed:.1f} MiB")
    dense = peaks["dense SDPA"]
    for name, peak in peaks.items():
        print(f"{name:18} peak {peak:8.1f} MiB   x{dense / peak:5.2f} dense SDPA"
              f"   x{peaks['dense, plain'] / peak:5.2f} plain   work {peak - handed:8.1f} MiB"
              f"   x{(dense - handed) / (peak - handed):5.2f} dense SDPA")  # fmt: skip


def print_times(a: argparse.Namespace, device: str) -> None:
    best = alternate(make_cases(a, device), a.rounds)
    dense = best["dense SDPA"]
    for name, seconds in best.items():
        print(f"{name:18} {1e3 * seconds:8.2f} ms   x{dense / seconds:5.2f}", end="")
        kind = name.split()[0]
        if kind in KINDS:
            mask = layer_mask(kind, *LENGTHS[a.lengths])
            print(f"   keys x{mask.numel() / mask.sum():5.2f}", end="")
        print()
    method = "flex" if device == "cuda" else "gathered"
    mean = sum(share * best[f"{kind} {method}"] for kind, share in SHARE.items())
    print(f"{'the schedule':18} {1e3 * mean:8.2f} ms   x{dense / mean:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", choices=LENGTHS, default="paper")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    for name, value in (("batch", 1), ("heads", 4), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if a.memory and device == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # So that freed tensors go back to the system at once, and the peak is the peak.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=env, check=False).returncode)
    text, grid, _ = LENGTHS[a.lengths]
    print(f"{text}+{grid**2} tokens, batch {a.batch}, {a.heads} heads, {a.dtype}, {device}, "
          f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")  # fmt: skip
    (print_memory if a.memory else print_times)(a, device)


if __name__ == "__main__":
    main()
