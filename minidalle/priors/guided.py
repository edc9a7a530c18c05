"""No prior at all: search for the tokens that CLIP likes best, by its gradient.

Nothing is learnt of images and captions but what CLIP knows, so its score rises and what it
cannot see goes wrong. n images, K codes, D width of a code, h w token grid, S image side.
Source: the community's "VQGAN+CLIP" and "OpenAI dVAE + CLIP", github.com/EleutherAI/vqgan-clip and
github.com/nerdyrodent/VQGAN-CLIP.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from minidalle.dvae import PIXEL_MARGIN

SMALLEST_CUT = 0.75  # of the image's side
MOST_NOISE = 0.1  # on a cut-out, standard deviation


class Clamp(torch.autograd.Function):
    """Clamp to [0, 1]; a gradient passes outside only where a step along it leads back inside."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (gradient * (x - x.clamp(0, 1)) >= 0)


@torch.enable_grad()
def search(
    codebook: nn.Module,
    clip: nn.Module,
    caption: str,
    n: int = 1,
    steps: int = 200,
    lr: float = 0.3,
    cuts: int = 8,
    generator: Generator | None = None,
    watch: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Search for n images of a caption, each from its own random start.

    A dVAE has logits over its codes, of which a token is drawn at each step (straight-through);
    where tokens are nearest vectors, the vectors move. clip: the reranker, with its tokenizer.
    cuts: random squares of each image that CLIP looks at, since it is easily fooled by one view.
    watch: called with the number of steps done and the tokens (n, h, w) of the moment.
    Returns images (n, 3, S, S) in [0, 1]. Raises ValueError for numbers that make no sense.
    """
    if min(n, steps, cuts) < 1 or not lr > 0:
        raise ValueError(f"n, steps, cuts and lr must be positive, got {n}, {steps}, {cuts}, {lr}")
    wanted = clip.encode_captions([caption]).detach()  # (1, E)
    kind = Vectors if hasattr(codebook, "decode_latents") else Logits
    here = kind(codebook, n, wanted.device, generator)
    optimizer = torch.optim.AdamW([here.variable], lr, weight_decay=0.0)
    for step in range(steps):
        images = Clamp.apply(here.images())  # (n, 3, S, S)
        seen = clip.encode_image(_cut_out(images, clip.config.image_size, cuts, generator))
        # Half the squared angle between image and caption, a distance on the sphere.
        apart = 2 * ((seen - wanted).norm(dim=-1) / 2).arcsin().square()
        (here.variable.grad,) = torch.autograd.grad(apart.sum() / cuts, here.variable)
        optimizer.step()
        here.after_step()
        if watch is not None:
            watch(step + 1, here.tokens())
    return codebook.decode(here.tokens())


class Logits:
    """Logits over the codes of a dVAE, (n, h, w, K), from N(0, 1)."""

    def __init__(self, dvae: nn.Module, n: int, device, generator: Generator | None):
        c, self.dvae, self.generator = dvae.config, dvae, generator
        start = torch.randn(n, c.grid, c.grid, c.vocab_size, generator=generator)
        self.variable = start.to(device).requires_grad_()

    def images(self) -> Tensor:
        soft = self.variable.softmax(-1)
        drawn = torch.multinomial(soft.detach().flatten(0, 2).cpu(), 1, generator=self.generator)
        drawn = drawn.view(soft.shape[:3]).to(soft.device)
        hard = F.one_hot(drawn, soft.shape[-1]).float()
        mixed = self.dvae.mix_vectors(soft + (hard - soft).detach())
        mu, _ = self.dvae.decode_vectors(mixed)
        return (mu.sigmoid() - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)  # not clamped

    def after_step(self) -> None:
        pass

    def tokens(self) -> Tensor:
        return self.variable.argmax(-1)


class Vectors:
    """Vectors (n, D, h, w) beside the codes of a VQ-VAE or VQGAN, from random codes."""

    def __init__(self, codebook: nn.Module, n: int, device, generator: Generator | None):
        c, self.codebook, self.codes = codebook.config, codebook, codebook.codes
        start = torch.randint(c.vocab_size, (n, c.grid, c.grid), generator=generator)
        self.variable = codebook.latents(start.to(device)).detach().clone().requires_grad_()
        self.low, self.high = self.codes.detach().aminmax(dim=0)  # (D,) each

    def images(self) -> Tensor:
        z = self.variable
        nearest = self.codebook.latents(self.tokens())
        return self.codebook.decode_latents(z + (nearest - z).detach())

    @torch.no_grad()
    def after_step(self) -> None:
        self.variable.clamp_(self.low[:, None, None], self.high[:, None, None])

    def tokens(self) -> Tensor:
        z = self.variable.detach().movedim(1, -1)  # (n, h, w, D)
        return torch.cdist(z.flatten(1, 2), self.codes).argmin(-1).view(z.shape[:3])


def _cut_out(images: Tensor, size: int, cuts: int, generator: Generator | None) -> Tensor:
    """Random squares of images (n, 3, S, S), resampled and noisy: (cuts * n, 3, size, size)."""
    side, found = images.shape[-1], []
    for share, top, left, noise in torch.rand(cuts, 4, generator=generator).tolist():
        part = round(side * (SMALLEST_CUT + (1 - SMALLEST_CUT) * share))
        top, left = (int(x * (side - part + 1)) for x in (top, left))
        cut = images[:, :, top : top + part, left : left + part]
        cut = F.interpolate(cut, (size, size), mode="bicubic", antialias=True)
        speckle = torch.randn(cut.shape, generator=generator).to(cut.device)
        found.append(cut + MOST_NOISE * noise * speckle)
    return torch.cat(found)
