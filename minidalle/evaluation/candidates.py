"""Draw many candidates for many captions, and score them all: what reranking chooses from.

C captions, P candidates a caption, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.6 and figure 9c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from minidalle.generate import Pipeline, sample


@dataclass(frozen=True)
class Candidates:
    """Every candidate of every caption: images (C, P, 3, S, S) uint8, CLIP scores (C, P)."""

    images: Tensor
    scores: Tensor

    def first(self) -> Tensor:
        """One sample a caption, not chosen: (C, 3, S, S) float in [0, 1]."""
        return self.images[:, 0] / 255

    def best(self, k: int | None = None) -> Tensor:
        """What CLIP likes best among the first k of each caption: (C, 3, S, S) in [0, 1]."""
        rows = torch.arange(len(self.images))
        return self.images[rows, self.scores[:, :k].argmax(1)] / 255


@torch.inference_mode()
def draw_candidates(
    pipeline: Pipeline,
    captions: Sequence[str],
    candidates: int,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 128,
) -> Candidates:
    """Draw `candidates` images for every caption and score them; scores are NaN without a clip.

    Ctrl-C is not caught: the captions drawn so far would be a biased choice.
    """
    length = pipeline.prior.caption_len
    text = pipeline.tokenizer.encode_batch(list(captions), length)  # (C, L)
    rows = text.repeat_interleave(candidates, 0)  # (C * P, L)
    generator = torch.Generator().manual_seed(seed)
    images = []
    with tqdm(total=len(rows), desc="candidates", disable=None) as bar:
        for part in rows.split(batch_size):
            tokens = sample(pipeline.prior, part, len(part), temperature, generator=generator)
            drawn = pipeline.codebook.decode(tokens).float()  # (batch, 3, S, S)
            images.append((drawn * 255).round().byte().cpu())
            bar.update(len(part))
    drawn = torch.cat(images).unflatten(0, (len(captions), candidates))  # (C, P, 3, S, S)
    scores = [pipeline.score([c], some / 255) for c, some in zip(captions, drawn, strict=True)]
    return Candidates(drawn, torch.stack(scores))


@torch.inference_mode()
def clip_features(pipeline: Pipeline, images: Tensor) -> Tensor:
    """Place images (N, 3, S, S), uint8 or in [0, 1], on CLIP's sphere: (N, E), on the CPU."""
    device = next(pipeline.reranker.parameters()).device
    parts = [part.to(device) for part in images.split(256)]
    parts = [part / 255 if part.dtype == torch.uint8 else part for part in parts]
    return torch.cat([pipeline.reranker.encode_image(part).cpu() for part in parts])


@torch.inference_mode()
def reconstruct(pipeline: Pipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Send images (N, 3, S, S) uint8 through the image tokenizer.

    Returns reconstructions (N, 3, S, S) in [0, 1], and tokens (N, grid, grid).
    """
    device = next(pipeline.codebook.parameters()).device
    tokens = [pipeline.codebook.tokens(part.to(device) / 255) for part in images.split(256)]
    images = [pipeline.codebook.decode(part).float().cpu() for part in tokens]
    return torch.cat(images), torch.cat(tokens).cpu()
