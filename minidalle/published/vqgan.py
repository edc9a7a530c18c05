"""Read the released VQGANs as image tokenizers: 16 x 16 tokens of 1024 or 16384, 32 x 32 of 8192.

Source: Esser et al. 2021, arXiv:2012.09841; github.com/CompVis/taming-transformers.
"""

from pathlib import Path

import torch

from minidalle.codebooks.vqgan import VQGAN
from minidalle.config import VQGANConfig
from minidalle.published.weights import Parts, fill, pick, read_state

F16_1024 = VQGANConfig(n_pools=4, vocab_size=1024)
F16_16384 = VQGANConfig(n_pools=4, vocab_size=16_384)
GUMBEL_F8 = VQGANConfig(n_pools=3, widths=(1, 1, 2, 4), vocab_size=8192, gumbel=True)
FILES = ("last.ckpt", "ckpts/last.ckpt", "model.ckpt")


def make(config: VQGANConfig) -> Parts:
    """Make the model without weights."""
    return Parts(codebook=VQGAN(config))


def read_vqgan(path: Path, config: VQGANConfig) -> VQGAN:
    """Read one checkpoint; what the discriminator left in it is passed over. Errors as `fill`."""
    with torch.device("meta"):
        model = VQGAN(config)
    return fill(model, read_state(path, ignore=["loss."]), path)


def load(folder: str | Path, dtype: torch.dtype, config: VQGANConfig) -> Parts:
    """Load the model from a folder that holds one of FILES, always in float32."""
    return Parts(codebook=read_vqgan(pick(folder, FILES), config))
