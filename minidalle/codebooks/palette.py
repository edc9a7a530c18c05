"""A palette: a token is one of K colours, of a pixel or of a small square. No network at all.

The naive way from an image to tokens. With one token a pixel a prior sees 1,024 of them where the
dVAE gives it 64: this is what DALL-E's first stage saves.
Source: Chen et al. 2020, Generative Pretraining from Pixels; github.com/openai/image-gpt
(512 colours by k-means).
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidalle.codebooks.vqvae import check_images, look_up, measure, nearest
from minidalle.config import PaletteConfig


class Palette(nn.Module):
    """K colours. They start by k-means (training/spread.py); training goes on with it by gradient.

    n_pools = 0 makes a token of every pixel, n_pools = 1 of the mean of 2 x 2.
    """

    def __init__(self, config: PaletteConfig):
        super().__init__()
        self.config = config
        self.vocab_size, self.grid = config.vocab_size, config.grid
        self.image_size, self.side = config.image_size, 2**config.n_pools
        self.embedding = nn.Embedding(config.vocab_size, 3)
        nn.init.uniform_(self.embedding.weight)

    @property
    def codes(self) -> Tensor:
        """The colours, (K, 3) in [0, 1]."""
        return self.embedding.weight

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> mean colours (B, 3, h, w)."""
        return F.avg_pool2d(check_images(images, self.config.n_pools), self.side)

    def tokens(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> the nearest colours (B, h, w) int64."""
        return nearest(self.features(images), self.codes)

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) int64 -> images (B, 3, H, W) in [0, 1]: flat squares."""
        colours = look_up(tokens, self.codes.clamp(0, 1))
        return colours.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)

    def loss(
        self, batch: dict[str, Tensor], step: int, generator: Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What k-means lowers: the mean squared distance to the nearest colour."""
        colours = self.features(batch["images"])
        chosen = look_up(nearest(colours, self.codes), self.codes)
        return F.mse_loss(chosen, colours), {}

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, step: int, generator: Generator | None = None
    ) -> dict[str, float]:
        """Returns error, as trained, psnr (dB), codes_used and perplexity over these images."""
        error, _ = self.loss({"images": images}, step)
        return {"error": error.item()} | measure(self, images, self.tokens(images))
