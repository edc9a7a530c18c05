"""A prior of two small layers, and a batch for it."""

import torch

from minidalle.config import DALLEConfig

TINY = DALLEConfig(
    text_vocab=512, text_len=32, image_vocab=256, grid=8, n_layers=2, n_heads=2, head_dim=16,
    kernel=3,
)  # fmt: skip


def batch(n: int = 4, c: DALLEConfig = TINY) -> dict[str, torch.Tensor]:
    """Random captions without pads and image tokens."""
    g = torch.Generator().manual_seed(1)
    return {
        "text": torch.randint(0, c.text_vocab, (n, c.text_len - 1), generator=g),
        "tokens": torch.randint(0, c.image_vocab, (n, c.grid**2), generator=g),
    }
