"""VQGAN: a codebook whose decoder learns to draw edges that a second network takes for real.

B batch, C channels, H W pixels, h w token grid, K codes, D width of a code.
Source: Esser et al. 2021, arXiv:2012.09841; the names of the layers are those of
github.com/CompVis/taming-transformers, so that the released weights load.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidalle.codebooks.discriminator import Adversary
from minidalle.codebooks.vqvae import Quantizer, check_images, look_up, measure, nearest
from minidalle.config import VQGANConfig
from minidalle.dvae import CHANNELS


def norm(n: int) -> nn.GroupNorm:
    """32 groups as published, fewer where a narrow model has less than 4 channels for each."""
    return nn.GroupNorm(math.gcd(n, min(32, n // 4)), n, eps=1e-6)


class ResnetBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), all 3x3."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.norm1 = norm(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out:
            self.nin_shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Every cell looks at every other: one head as wide as the channels, then a residual sum."""

    def __init__(self, n: int):
        super().__init__()
        self.norm = norm(n)
        self.q, self.k, self.v = (nn.Conv2d(n, n, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))  # (B, 1, hw, C)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].mT  # (B, C, hw)
        return x + self.proj_out(y.reshape(x.shape))


class Downsample(nn.Module):
    """Halve the sides; the zeros that fill up stand right and below only."""

    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides."""

    def __init__(self, n: int):
        super().__init__()
        self.conv = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks at one resolution, and a change of size; attention at the token grid."""

    def __init__(self, n_in: int, n_out: int, n_blocks: int, attention: bool, **resize: nn.Module):
        super().__init__()
        widths = [n_in] + [n_out] * n_blocks
        self.block = nn.ModuleList(map(ResnetBlock, widths[:-1], widths[1:]))
        self.attn = nn.ModuleList(AttnBlock(n_out) for _ in range(n_blocks * attention))
        for name, module in resize.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if self.attn else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, n: int):
        super().__init__()
        self.block_1 = ResnetBlock(n, n)
        self.attn_1 = AttnBlock(n)
        self.block_2 = ResnetBlock(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _widths(c: VQGANConfig) -> list[int]:
    """Channels of each level, from the full resolution down to the token grid."""
    widths = c.widths or tuple(2 ** (i // 2) for i in range(c.n_pools + 1))
    if len(widths) != c.n_pools + 1:
        raise ValueError(f"dvae.widths={widths} must have dvae.n_pools + 1 = {c.n_pools + 1} parts")
    return [c.n_hid * m for m in widths]


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> features (B, D, h, w)."""

    def __init__(self, c: VQGANConfig):
        super().__init__()
        widths = _widths(c)
        self.conv_in = nn.Conv2d(CHANNELS, c.n_hid, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(zip([c.n_hid, *widths], widths, strict=False)):
            resize = {"downsample": Downsample(n_out)} if i < c.n_pools else {}
            self.down.append(Level(n_in, n_out, c.n_blocks, i == c.n_pools, **resize))
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c.n_init, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Code vectors (B, D, h, w) -> images (B, 3, H, W), not clamped."""

    def __init__(self, c: VQGANConfig):
        super().__init__()
        widths = _widths(c)
        self.conv_in = nn.Conv2d(c.n_init, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # stored from the full resolution down, run the other way round
        for i, (n_out, n_in) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            resize = {"upsample": Upsample(n_out)} if i > 0 else {}
            self.up.append(Level(n_in, n_out, c.n_blocks + 1, i == c.n_pools, **resize))
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], CHANNELS, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class LikeliestCode(nn.Module):
    """The quantiser of the Gumbel variant: logits from a 1x1 convolution, as in a dVAE.

    For released weights; to train one, dvae.hard=true with codebook=dvae is the same idea.
    """

    def __init__(self, c: VQGANConfig):
        super().__init__()
        self.proj = nn.Conv2d(c.n_init, c.vocab_size, 1)
        self.embed = nn.Embedding(c.vocab_size, c.n_init)


class VQGAN(nn.Module):
    """Encoder, quantiser, decoder. As an image tokenizer it works like the dVAE."""

    perceptual = None  # how different images look, two batches -> a scalar; set by models.build

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.vocab_size, self.grid = config.vocab_size, config.grid
        self.image_size = config.image_size
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.n_init, config.n_init, 1)
        self.quantize = (LikeliestCode if config.gumbel else Quantizer)(config)
        self.post_quant_conv = nn.Conv2d(config.n_init, config.n_init, 1)
        self.decoder = Decoder(config)
        if config.disc_weight:
            self.adversary = Adversary(config)

    @property
    def codes(self) -> Tensor:
        """The code vectors, (K, D)."""
        return (self.quantize.embed if self.config.gumbel else self.quantize.embedding).weight

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> (B, D, h, w), before they become codes."""
        return self.quant_conv(self.encoder(self.pixels(images)))

    def pixels(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> the same as the networks see them."""
        images = check_images(images, self.config.n_pools)
        return 2 * images - 1 if self.config.signed else images

    def shown(self, pixels: Tensor) -> Tensor:
        """The other way round."""
        return (pixels + 1) / 2 if self.config.signed else pixels

    def tokens(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> codes (B, h, w) int64."""
        z = self.features(images)
        return self.quantize.proj(z).argmax(dim=1) if self.config.gumbel else nearest(z, self.codes)

    def latents(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) int64 -> code vectors (B, D, h, w)."""
        return look_up(tokens, self.codes)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors (B, D, h, w) -> images (B, 3, H, W), about [0, 1], not clamped."""
        return self.shown(self.decoder(self.post_quant_conv(z)))

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) int64 -> images (B, 3, H, W) in [0, 1]."""
        return self.decode_latents(self.latents(tokens)).float().clamp(0, 1)

    def loss(
        self, batch: dict[str, Tensor], step: int, generator: Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute error of the pixels, the quantiser's loss, and the discriminator's game.

        What LPIPS says, where it is there, is added to the error. Returns the sum and metrics.
        Raises ValueError for the Gumbel variant.
        """
        if self.config.gumbel:
            raise ValueError("dvae.gumbel=true is for released weights: it is not trained here")
        real, z = self.pixels(batch["images"]), self.features(batch["images"])
        vectors, quantising = self.quantize(z, step, generator)
        decoded = self.decoder(self.post_quant_conv(vectors)).float()
        error = F.l1_loss(decoded, real)
        metrics = {"error": error.detach(), "quantising": quantising.detach()}
        if self.perceptual:
            looks = self.perceptual(self.shown(decoded), batch["images"])
            error, metrics["looks"] = error + looks, looks.detach()
        loss = error + quantising
        if self.config.disc_weight:
            last = self.decoder.conv_out.weight
            game, found = self.adversary(error, decoded, real, last, step)
            loss, metrics = loss + game, metrics | found
        return loss, metrics

    def after_update(self) -> None:
        """Called by the training loop once the optimiser has moved the weights."""
        self.quantize.after_update()

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, step: int, generator: Generator | None = None
    ) -> dict[str, float]:
        """Returns error (mean absolute, of [0, 1]), psnr (dB), codes_used and perplexity."""
        tokens = self.tokens(images)
        error = F.l1_loss(self.decode(tokens), images)
        return {"error": error.item()} | measure(self, images, tokens)
