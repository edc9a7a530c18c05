"""The discrete VAE: images to a grid of tokens and back. B batch, K codes, h w token grid.

Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A; layer names and the
residual gain after github.com/openai/DALL-E, so that the released weights load.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.config import DVAEConfig, half_cosine

PIXEL_MARGIN = 0.1  # epsilon of appendix A.3
CHANNELS = 3


def map_pixels(images: Tensor) -> Tensor:
    """Shrink pixels from [0, 1] to [0.1, 0.9], away from where logit is infinite (A.3)."""
    return (1 - 2 * PIXEL_MARGIN) * images + PIXEL_MARGIN


def unmap_pixels(x: Tensor) -> Tensor:
    """Undo map_pixels and clamp to [0, 1]."""
    return ((x - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


def gumbel_softmax(
    logits: Tensor, tau: float, generator: torch.Generator | None = None, dim: int = 1
) -> Tensor:
    """Relaxed sample softmax((logits + g) / tau) over `dim`, g standard Gumbel noise (2.1).

    As tau -> 0 it becomes a one-hot sample from softmax(logits). The same relaxed vector serves
    the forward and the backward pass: no straight-through estimator.
    Raises ValueError unless tau > 0.
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    u = torch.rand(logits.shape, generator=generator, device=logits.device)  # multiples of 2^-24
    gumbel = -torch.log(-torch.log(u.clamp(min=2**-25)))
    return ((logits + gumbel) / tau).softmax(dim)


def logit_laplace_nll(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-ln f(x | mu, b) in nats, f the density of sigmoid(Laplace(mu, b)); elementwise (Eq. 2).

    x in (0, 1), as map_pixels gives it. Unbounded below as b -> 0.
    """
    log_scale = log_b + math.log(2) + torch.log(x * (1 - x))
    return log_scale + (torch.logit(x) - mu).abs() * torch.exp(-log_b)


def kl_to_uniform(logits: Tensor, dim: int = 1) -> Tensor:
    """KL(softmax(logits) || uniform) over `dim`, in nats: 0 for equal logits, ln K for one-hot.

    (B, K, h, w) -> (B, h, w). Computed from the plain logits: temperature and noise do not enter.
    """
    log_q = logits.log_softmax(dim)
    return (log_q.exp() * log_q).sum(dim) + math.log(logits.shape[dim])


class Conv2d(nn.Module):
    """A convolution that keeps the size: odd kernel k, stride 1, weight ~ N(0, 1 / (n_in k^2))."""

    def __init__(self, n_in: int, n_out: int, k: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, k, k) / math.sqrt(n_in * k * k))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Bottleneck residual block: x + gain * four convolutions, ReLU before each."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        widths = (n_in, n_out // 4, n_out // 4, n_out // 4, n_out)
        layers = OrderedDict()
        for i, k in enumerate(kernels, start=1):
            layers[f"relu_{i}"] = nn.ReLU()
            layers[f"conv_{i}"] = Conv2d(widths[i - 1], widths[i], k)
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential(layers)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.gain)


def _groups(config: DVAEConfig, widths: list[int], kernels: tuple[int, ...], resize) -> OrderedDict:
    """Groups group_1, group_2, … of n_blocks each; all but the last end by `resize`."""
    groups = OrderedDict()
    n_groups = len(widths) - 1
    gain = 1 / (n_groups * config.n_blocks) ** 2 if config.gain is None else config.gain
    for g in range(1, n_groups + 1):
        layers = OrderedDict()
        for i in range(1, config.n_blocks + 1):
            n_in = widths[g - 1] if i == 1 else widths[g]
            layers[f"block_{i}"] = Block(n_in, widths[g], kernels, gain)
        if g < n_groups:
            layers[resize[0]] = resize[1]()
        groups[f"group_{g}"] = nn.Sequential(layers)
    return groups


class Encoder(nn.Module):
    """Mapped pixels (B, 3, H, W) -> logits over the codes (B, K, h, w)."""

    def __init__(self, c: DVAEConfig):
        super().__init__()
        widths = [c.n_hid] + [c.n_hid * 2**g for g in range(c.n_pools + 1)]
        groups = _groups(c, widths, (3, 3, 3, 1), ("pool", lambda: nn.MaxPool2d(2)))
        output = OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], c.vocab_size, 1))
        self.blocks = nn.Sequential(
            OrderedDict(input=Conv2d(CHANNELS, c.n_hid, 7), **groups, output=nn.Sequential(output))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Decoder(nn.Module):
    """One-hot or relaxed codes (B, K, h, w) -> (B, 6, H, W): mu and ln b of the three colours."""

    def __init__(self, c: DVAEConfig):
        super().__init__()
        widths = [c.n_init] + [c.n_hid * 2**g for g in reversed(range(c.n_pools + 1))]
        up = ("upsample", lambda: nn.Upsample(scale_factor=2, mode="nearest"))
        groups = _groups(c, widths, (1, 3, 3, 3), up)
        output = OrderedDict(relu=nn.ReLU(), conv=Conv2d(c.n_hid, 2 * CHANNELS, 1))
        start = Conv2d(c.vocab_size, c.n_init, 1)
        layers = OrderedDict(input=start, **groups, output=nn.Sequential(output))
        self.blocks = nn.Sequential(layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.blocks(z)


class DiscreteVAE(nn.Module):
    """Encoder, decoder and the evidence lower bound that trains them."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def logits(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> unnormalised log-probabilities (B, K, h, w).

        H and W may be any multiples of 2**n_pools: everything is a convolution.
        """
        part, shape = 2**self.config.n_pools, tuple(images.shape)
        if images.ndim != 4 or shape[1] != CHANNELS or shape[2] % part or shape[3] % part:
            raise ValueError(f"images must be (B, 3, H, W) of multiples of {part}, got {shape}")
        if not images.is_floating_point():
            raise ValueError(f"images must be float in [0, 1], got {images.dtype}; divide by 255")
        return self.encoder(map_pixels(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Most likely code of each cell, int64 (B, h, w): no noise (footnote 6)."""
        return self.logits(images).argmax(dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens int64 (B, h, w) -> images (B, 3, H, W) in [0, 1]: sigmoid(mu), ln b dropped."""
        if tokens.ndim != 3 or tokens.is_floating_point():
            shape, kind = tuple(tokens.shape), tokens.dtype
            raise ValueError(f"tokens must be integers (B, h, w), got {kind} {shape}")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            found = f"{tokens.min()} to {tokens.max()}"
            raise ValueError(f"tokens must lie in [0, {self.config.vocab_size}), got {found}")
        mu, _ = self.decode_vectors(self.code_vectors(tokens))
        return unmap_pixels(mu.float().sigmoid())

    def code_vectors(self, tokens: Tensor) -> Tensor:
        """The codebook is the decoder's input convolution: look columns up, (B, n_init, h, w)."""
        codebook = self.decoder.blocks.input
        vectors = F.embedding(tokens, codebook.w[:, :, 0, 0].T) + codebook.b
        return vectors.permute(0, 3, 1, 2)

    def mix_vectors(self, codes: Tensor) -> Tensor:
        """Relaxed codes (B, h, w, K) -> the mixture of code vectors, (B, n_init, h, w)."""
        codebook = self.decoder.blocks.input
        return F.linear(codes, codebook.w[:, :, 0, 0], codebook.b).permute(0, 3, 1, 2)

    def decode_vectors(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors (B, n_init, h, w) -> mu and ln b, each (B, 3, H, W)."""
        x = vectors
        for name, block in self.decoder.blocks.named_children():
            x = x if name == "input" else block(x)
        mu, log_b = x.chunk(2, dim=1)
        if self.config.min_log_b is not None:
            log_b = log_b.clamp(min=self.config.min_log_b)
        return mu, log_b

    def schedule(self, step: int) -> tuple[float, float]:
        """Temperature and KL weight at an update (A.2)."""
        c = self.config
        return half_cosine(1, c.tau, step, c.tau_steps), half_cosine(0, c.beta, step, c.beta_steps)

    def bound(self, images: Tensor, vectors: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of Eq. 1, mean nats per pixel value and mean nats per token: nll, kl.

        vectors (B, n_init, h, w); logits (B, h, w, K).
        """
        mu, log_b = self.decode_vectors(vectors)
        nll = logit_laplace_nll(map_pixels(images), mu.float(), log_b.float()).mean()
        return nll, kl_to_uniform(logits, dim=-1).mean()

    def loss(
        self, batch: dict[str, Tensor], step: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-ELBO in nats per pixel value with the KL weighted by beta, on a relaxed sample.

        Equals [sum(nll) + beta * sum(KL)] / number of pixel values (A.2).
        Returns the loss and nll (nats per value), kl (nats per token), tau, beta.
        """
        images = batch["images"]
        tau, beta = self.schedule(step)
        # Codes last: a softmax over neighbouring numbers is several times faster.
        logits = self.logits(images).permute(0, 2, 3, 1).float()  # (B, h, w, K)
        codes = gumbel_softmax(logits, tau, generator, dim=-1)
        if self.config.hard:  # forward the drawn code, backward the gradient of the relaxed one
            codes = codes + (F.one_hot(codes.argmax(-1), codes.shape[-1]) - codes).detach()
        nll, kl = self.bound(images, self.mix_vectors(codes), logits)
        loss = nll + beta * kl * self.tokens_per_value
        return loss, {"nll": nll.detach(), "kl": kl.detach(), "tau": tau, "beta": beta}

    @property
    def tokens_per_value(self) -> float:
        """Tokens for each pixel value: 1/192 in the paper, 1024 / (3 * 256 * 256)."""
        return 1 / (CHANNELS * 4**self.config.n_pools)

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, step: int, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """How good is the bound really? The paper stops annealing tau where the two bounds agree.

        Returns elbo (nats per pixel value, beta = 1, its codes sampled from q, so that its mean is
        a bound of ln p), elbo_relaxed (the same with relaxed codes, as in training: no bound),
        psnr (dB, of the argmax reconstruction that stage two will see), codes_used and perplexity
        of the codebook over these images.
        """
        tau, _ = self.schedule(step)
        logits = self.logits(images).permute(0, 2, 3, 1).float()  # (B, h, w, K)
        codes = gumbel_softmax(logits, tau, generator, dim=-1)
        # The largest of logits plus Gumbel noise is a sample of q, whatever tau.
        drawn, mixed = self.code_vectors(codes.argmax(dim=-1)), self.mix_vectors(codes)
        bounds = {}
        for name, given in (("elbo", drawn), ("elbo_relaxed", mixed)):
            nll, kl = self.bound(images, given, logits)
            bounds[name] = -(nll + kl * self.tokens_per_value).item()
        tokens = logits.argmax(dim=-1)
        error = (self.decode(tokens) - images).square().mean()
        use = codebook_use(tokens, self.config.vocab_size)
        return {**bounds, "psnr": -10 * error.log10().item(), **use}


def codebook_use(tokens: Tensor, vocab_size: int) -> dict[str, float]:
    """codes_used: how many codes occur; perplexity: exp(entropy) of their frequencies."""
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()  # (K,)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {"codes_used": float((p > 0).sum()), "perplexity": entropy.exp().item()}
