"""What the processes of the scale tests run: torchrun … tests/scale_workers.py NAME OUT [arguments].

Each function is one experiment; the first process writes its result to the file OUT.
"""

import json
import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minidalle.config import TrainConfig, get_config
from minidalle.dalle import DALLE
from minidalle.scale import launch, memory, powersgd, precision, sharding
from minidalle.scale.checkpoints import ShardedCheckpoints
from minidalle.train import fit

STEPS = 6


def tiny(**changes) -> object:
    """A configuration of a DALLE so small that processes spend their time on each other."""
    sizes = ("n_layers=3", "n_heads=4", "head_dim=8", "text_vocab=512", "text_len=8", "grid=8")
    config = get_config("toy", [f"dalle.{s}" for s in sizes])
    training = TrainConfig(
        steps=STEPS, batch_size=8, lr=1e-3, warmup=2, betas=(0.9, 0.96), weight_decay=0.05,
        clip_norm=1.0, clip_variance=5.0, log_every=1, eval_every=100, save_every=3,
    )  # fmt: skip
    return replace(config, train_dalle=replace(training, **changes))


def examples(step: int, rank: int = 0, world: int = 1, size: int = 8) -> dict[str, Tensor]:
    """The batch of an update: token i of a picture follows from the caption's first word."""
    g = torch.Generator().manual_seed(step)
    word = torch.randint(0, 16, (size, 1), generator=g)
    text = (word + torch.arange(7)) % 16
    length = torch.randint(2, 8, (size, 1), generator=g)
    text = torch.where(torch.arange(7) < length, text, -1)
    noise = torch.randint(0, 2, (size, 64), generator=g)
    tokens = (word * 7 + torch.arange(64) + noise) % 256
    return {"text": text[rank::world], "tokens": tokens[rank::world]}
