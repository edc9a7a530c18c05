"""What every notebook starts with: calm threads and the shipped models of the toy world."""

import os
from pathlib import Path

import torch
from torch import nn

from minidalle.stages import load_stage
from minidalle.tokenizer import BPETokenizer

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints" / "toy"


def start(seed: int = 0) -> None:
    """Seed torch and use half the cores, at least one, unless OMP_NUM_THREADS says otherwise.

    On a busy machine two threads that wait for each other are slower than one.
    """
    torch.manual_seed(seed)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def shipped(stage: str) -> BPETokenizer | nn.Module:
    """Load what this repository trained on the toy world, on the CPU, ready to use.

    stage: 'tokenizer', 'dvae', 'dalle' or 'clip'. Raises ValueError where the file is missing.
    """
    return load_stage(SHIPPED, stage)
