"""What a GPU adds: blocks that torch.compile fuses, and a step of sampling recorded as one graph.

None of it changes a result beyond rounding, and nothing here is needed on a CPU.
Source: https://pytorch.org/docs/stable/torch.compiler.html, and CUDA graphs as torch has them.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from minidalle.attention.dense import masks_are_constants

MOST_KERNELS = 128  # that one process compiles


def allow_kernels() -> None:
    """Let torch compile a kernel for each mask, shape, precision, with gradients and without.

    After 8 of them it would go on without compiling, every score in memory. torch 2.13 keeps the
    limit by thread, and checkpointed layers run again in a thread of the backward pass.
    """
    if torch._dynamo.config.recompile_limit < MOST_KERNELS:
        torch._dynamo.config.recompile_limit = MOST_KERNELS


def fuse(model: nn.Module, kinds: tuple[type, ...]) -> None:
    """Let torch.compile fuse each block of a model into few kernels, in place; names stay.

    kinds: the classes of such blocks. Those alike are compiled once. Call it before a model is
    sharded.
    """
    allow_kernels()
    masks_are_constants()
    for part in model.modules():
        if isinstance(part, kinds):
            part.compile(dynamic=False)
    if hasattr(model, "decode_vectors"):  # a dVAE's decoder is entered behind its first convolution
        model.decode_vectors = torch.compile(model.decode_vectors, dynamic=False)


@lru_cache(maxsize=8)
def compile_step(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a step of sampling, once for all cells and calls."""
    # The last option lets a product with a single query become one fused sum: on a GPU such a
    # matrix product wastes most of the memory's speed.
    allow_kernels()
    return torch.compile(step, dynamic=False, options={"coordinate_descent_tuning": True})


class Graph:
    """A step of sampling as one CUDA graph: the GPU repeats its kernels without Python."""

    def __init__(self, step: Callable[[Tensor], Tensor], token: Tensor):
        self.token = token.clone()
        here, aside = torch.cuda.current_stream(token.device), torch.cuda.Stream(token.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            step(self.token)  # kernels are loaded and compiled before the recording
        here.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Threads that save checkpoints or talk to other GPUs may go on meanwhile.
        with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
            self.logits = step(self.token)

    def __call__(self, token: Tensor) -> Tensor:
        """Run the step on another token; the same memory takes every result."""
        self.token.copy_(token)
        self.graph.replay()
        return self.logits.clone()
