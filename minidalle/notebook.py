"""What every notebook starts with: calm threads and the shipped models of the toy world."""

import torch
from torch import nn

from minidalle.models import load
from minidalle.stages import SHIPPED as ALL_SHIPPED
from minidalle.stages import use_half_the_cores
from minidalle.tokenizer import BPETokenizer

SHIPPED = ALL_SHIPPED / "toy"


def start(seed: int = 0) -> None:
    """Seed torch and use half the cores."""
    torch.manual_seed(seed)
    use_half_the_cores()


def shipped(stage: str) -> BPETokenizer | nn.Module:
    """Load what this repository trained on the toy world, on the CPU, ready to use.

    stage: 'tokenizer', 'dvae', 'dalle' or 'clip'. Raises ValueError where the file is missing.
    """
    return load(SHIPPED, stage)
