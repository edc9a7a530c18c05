"""VQ-VAE: a token is the nearest of K learned vectors. B batch, D width of a code, h w token grid.

Source: van den Oord et al. 2017, arXiv:1711.00937, section 3 (losses) and appendix A.1 (averages);
github.com/google-deepmind/sonnet, nets/vqvae.py (beta, smoothing, zero-debias).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidalle.config import VQGANConfig, VQVAEConfig, replace
from minidalle.dvae import (
    CHANNELS,
    PIXEL_MARGIN,
    Decoder,
    Encoder,
    codebook_use,
    logit_laplace_nll,
    map_pixels,
    unmap_pixels,
)

SMOOTH = 1e-5  # added to every code's count before vectors are divided by it
PIXEL_VARIANCE = 1 / 16  # of photographs, about; squared errors are told in this unit


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """Features (B, D, h, w), codes (K, D) -> the nearest code of each cell, (B, h, w) int64."""
    with torch.autocast(z.device.type, enabled=False):  # 8 bits do not tell close codes apart
        z, codes = z.detach().float().movedim(1, -1), codes.detach().float()
        distance = codes.square().sum(1) - 2 * z @ codes.T  # (B, h, w, K); |z|^2 is left out
    return distance.argmin(dim=-1)


def check_images(images: Tensor, n_pools: int) -> Tensor:
    """Return images. Raises ValueError unless they are (B, 3, H, W) of multiples of 2**n_pools."""
    part, shape = 2**n_pools, tuple(images.shape)
    if len(shape) != 4 or shape[1] != CHANNELS or shape[2] % part or shape[3] % part:
        raise ValueError(f"images must be (B, 3, H, W) of multiples of {part}, got {shape}")
    return images


def look_up(tokens: Tensor, codes: Tensor) -> Tensor:
    """tokens (B, h, w) int64 -> their vectors (B, D, h, w). Raises ValueError for other tokens."""
    if tokens.ndim != 3 or tokens.is_floating_point():
        shape, kind = tuple(tokens.shape), tokens.dtype
        raise ValueError(f"tokens must be integers (B, h, w), got {kind} {shape}")
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < len(codes):
        found = f"{tokens.min()} to {tokens.max()}"
        raise ValueError(f"tokens must lie in [0, {len(codes)}), got {found}")
    return F.embedding(tokens, codes).movedim(-1, 1)


class Quantizer(nn.Module):
    """K code vectors. They learn by gradient or, with `averages`, as means of what they stand for.

    The averages of update t weigh update s by decay^(t - s); both are divided by the weight that
    they have so far, or else they would start near 0 (zero-debias).
    """

    def __init__(self, c: VQVAEConfig | VQGANConfig):
        super().__init__()
        self.config = c
        self.embedding = nn.Embedding(c.vocab_size, c.n_init)
        nn.init.uniform_(self.embedding.weight, -1 / c.vocab_size, 1 / c.vocab_size)
        self.embedding.weight.requires_grad_(not c.averages)
        self.counts_use = c.averages or c.revive > 0
        if self.counts_use:  # averages of how many features a code got, and of their sum
            self.register_buffer("age", torch.zeros(()))  # updates seen
            self.register_buffer("counts", torch.zeros(c.vocab_size))
            self.register_buffer("sums", torch.zeros(c.vocab_size, c.n_init))
        self.noted_step = None  # the update that the notes below are of

    def forward(self, z: Tensor, step: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Features (B, D, h, w) -> their codes (B, D, h, w) and the quantiser's loss, a scalar.

        Forward the codes, backward the gradient goes to z as if nothing had been rounded.
        """
        z, tokens = z.float(), nearest(z, self.embedding.weight)
        codes = F.embedding(tokens, self.embedding.weight).movedim(-1, 1)  # (B, D, h, w)
        loss = self.config.commitment * F.mse_loss(z, codes.detach())
        if not self.config.averages:
            loss = loss + F.mse_loss(codes, z.detach())
        if self.training and self.counts_use:
            self._note(z.detach().movedim(1, -1).flatten(0, 2), tokens.flatten(), step, generator)
        return z + (codes - z).detach(), loss

    @torch.no_grad()
    def _note(self, z: Tensor, tokens: Tensor, step: int, generator: Generator | None) -> None:
        """Add one part of update `step`, features (n, D) and their codes (n,), to its notes."""
        if self.noted_step != step:
            self.noted_step = step
            self.new_counts, self.new_sums = map(torch.zeros_like, (self.counts, self.sums))
        self.new_counts += torch.bincount(tokens, minlength=len(self.counts))
        self.new_sums.index_add_(0, tokens, z)
        if self.config.revive:  # features that are served badly are likelier to become codes
            error = (z - F.embedding(tokens, self.embedding.weight)).square().sum(1) + 1e-12
            if bool(error.isfinite().all()):
                chosen = torch.multinomial(error, len(self.counts), True, generator=generator)
                self.candidates = z[chosen]

    @torch.no_grad()
    def after_update(self) -> None:
        """Take the notes of the update into the averages; move codes; revive dead ones."""
        if self.noted_step is None:
            return
        c, codes, self.noted_step = self.config, self.embedding.weight, None
        self.age += 1
        self.counts.lerp_(self.new_counts, 1 - c.decay)
        self.sums.lerp_(self.new_sums, 1 - c.decay)
        rise = 1 - c.decay**self.age  # the weight that the averages have so far
        counts, total = self.counts / rise, self.counts.sum() / rise
        if c.averages:
            smooth = (counts + SMOOTH) / (total + c.vocab_size * SMOOTH) * total
            means = self.sums / rise / smooth[:, None]
            codes.copy_(torch.where(counts[:, None] > 0, means, codes))
        if c.revive and self.age * (1 - c.decay) >= 1:  # not before the averages know
            dead = counts < c.revive * total / c.vocab_size
            codes[dead] = self.candidates[dead]
            self.counts[dead] = self.counts.mean()  # alive for a while
            self.sums[dead] = self.counts[dead, None] * self.candidates[dead]


class VQVAE(nn.Module):
    """The dVAE's encoder and decoder around a Quantizer. As an image tokenizer it is like it."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.vocab_size, self.grid = config.vocab_size, config.grid
        self.image_size = config.image_size
        nets = replace(config, vocab_size=config.n_init)  # D features where the dVAE has K codes
        self.encoder, self.decoder = (  # with colours last convolutions are a quarter faster
            net(nets).to(memory_format=torch.channels_last) for net in (Encoder, Decoder)
        )
        self.quantizer = Quantizer(config)

    @property
    def codes(self) -> Tensor:
        """The code vectors, (K, D)."""
        return self.quantizer.embedding.weight

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> (B, D, h, w), before they become codes."""
        return self.encoder(map_pixels(check_images(images, self.config.n_pools)))

    def tokens(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> the nearest codes (B, h, w) int64."""
        return nearest(self.features(images), self.codes)

    def latents(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) int64 -> code vectors (B, D, h, w)."""
        return look_up(tokens, self.codes)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Code vectors (B, D, h, w) -> images (B, 3, H, W) in [0, 1]."""
        return unmap_pixels(self.decoder(z)[:, :CHANNELS].float().sigmoid())

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) int64 -> images (B, 3, H, W) in [0, 1]."""
        return self.decode_latents(self.latents(tokens))

    def error(self, images: Tensor, z: Tensor) -> Tensor:
        """How badly code vectors z (B, D, h, w) describe the images: a scalar, lower is better.

        'laplace': nats per pixel value, as in the dVAE. 'squares': of PIXEL_VARIANCE.
        """
        mu, log_b = self.decoder(z).float().chunk(2, dim=1)
        if self.config.likelihood == "laplace":
            if self.config.min_log_b is not None:
                log_b = log_b.clamp(min=self.config.min_log_b)
            return logit_laplace_nll(map_pixels(images), mu, log_b).mean()
        error = (mu.sigmoid() - map_pixels(images)) / (1 - 2 * PIXEL_MARGIN)
        return error.square().mean() / PIXEL_VARIANCE

    def loss(
        self, batch: dict[str, Tensor], step: int, generator: Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Error of the decoded codes and the quantiser's loss: both, as one scalar, and metrics."""
        z, quantising = self.quantizer(self.features(batch["images"]), step, generator)
        error = self.error(batch["images"], z)
        return error + quantising, {"error": error.detach(), "quantising": quantising.detach()}

    def after_update(self) -> None:
        """Called by the training loop once the optimiser has moved the weights."""
        self.quantizer.after_update()

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, step: int, generator: Generator | None = None
    ) -> dict[str, float]:
        """Returns error, as trained, psnr (dB), codes_used and perplexity over these images.

        With a likelihood also elbo, nats per pixel value: a token costs ln K, as nothing is drawn.
        """
        tokens = self.tokens(images)
        error = self.error(images, self.latents(tokens)).item()
        found = {"error": error} | measure(self, images, tokens)
        if self.config.likelihood == "laplace":
            cost = math.log(self.vocab_size) / (CHANNELS * 4**self.config.n_pools)
            found["elbo"] = -(error + cost)
        return found


def measure(model: nn.Module, images: Tensor, tokens: Tensor) -> dict[str, float]:
    """psnr (dB) of what `tokens` decode to, and the codebook's use."""
    error = (model.decode(tokens) - images).square().mean()
    use = codebook_use(tokens, model.vocab_size)
    return {"psnr": -10 * error.log10().item(), **use}
