"""Files of a small CLIP with random weights, in the form of the released ones."""

import gzip

import torch

from minidalle.clip import CLIP
from minidalle.config import CLIPConfig

MERGES = "i n\nt h\nth e</w>\na t</w>"
VOCAB = 512 + 4 + 2  # two kinds of bytes, the merges, start and end of text
SMALL = CLIPConfig(
    image_size=64, patch_size=16, vision_width=128, vision_layers=2, vision_heads=2,
    vocab_size=VOCAB, text_width=64, text_layers=2, text_heads=1, embed_dim=32,
)  # fmt: skip


def write_merges(folder):
    text = '"small#version: 0.2\n' + MERGES + "\n"
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(text.encode()))


def random_clip(config=SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: torch.randn_like(v) * 0.1 for k, v in CLIP(config).state_dict().items()}
