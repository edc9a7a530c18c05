"""Draw many candidates for many captions, and score them all: what reranking chooses from.

C captions, P candidates a caption, L caption tokens, E width of CLIP's sphere, S side in pixels.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2.6 and figure 9c.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from minidalle.clip import pack_text
from minidalle.generate import Pipeline, sample


@dataclass(frozen=True)
class Pool:
    """Every candidate of every caption: images (C, P, 3, S, S) uint8, CLIP scores (C, P)."""

    images: Tensor
    scores: Tensor

    def first(self) -> Tensor:
        """One sample a caption, not chosen: (C, 3, S, S) float in [0, 1]."""
        return self.images[:, 0] / 255

    def best(self) -> Tensor:
        """The sample that CLIP likes best, of each caption: (C, 3, S, S) float in [0, 1]."""
        return self.images[torch.arange(len(self.images)), self.scores.argmax(1)] / 255


@torch.inference_mode()
def draw_pool(
    pipeline: Pipeline,
    captions: list[str],
    candidates: int,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int = 128,
    progress: bool = True,
) -> Pool:
    """Draw `candidates` pictures for every caption and score them.

    Returns scores of NaN where the pipeline has no clip. Ctrl-C is not caught: half a pool would
    be a biased one.
    """
    length = pipeline.prior.config.text_len - 1
    text = pipeline.tokenizer.encode_batch(captions, length)  # (C, L)
    rows = text.repeat_interleave(candidates, 0)  # (C * P, L)
    generator = torch.Generator().manual_seed(seed)
    towards = encode_captions(pipeline, captions)  # (C, E) or None
    images, scores = [], []
    bar = tqdm(total=len(rows), desc="candidates", disable=None if progress else True)
    for part in rows.split(batch_size):
        tokens = sample(pipeline.prior, part, len(part), temperature, generator=generator)
        drawn = pipeline.codebook.decode(tokens).float()
        owner = torch.arange(len(part)).add(sum(map(len, images))) // candidates
        if towards is None:
            scores.append(torch.full((len(part),), torch.nan))
        else:
            scores.append((pipeline.reranker.encode_image(drawn) * towards[owner]).sum(1).cpu())
        images.append((drawn * 255).round().byte().cpu())
        bar.update(len(part))
    bar.close()
    shape = (len(captions), candidates)
    return Pool(torch.cat(images).unflatten(0, shape), torch.cat(scores).view(shape))


@torch.inference_mode()
def encode_captions(pipeline: Pipeline, captions: list[str]) -> Tensor | None:
    """Place captions on CLIP's sphere: (C, E), or None without a clip."""
    if pipeline.reranker is None:
        return None
    clip = pipeline.reranker
    text = pipeline.tokenizer.encode_batch(captions, clip.config.context_length - 2)
    ids = pack_text(text, clip.config).to(clip.logit_scale.device)
    return torch.cat([clip.encode_text(part) for part in ids.split(256)])


@torch.inference_mode()
def encode_pictures(pipeline: Pipeline, images: Tensor) -> Tensor:
    """Place pictures (N, 3, S, S), uint8 or in [0, 1], on CLIP's sphere: (N, E), on the CPU."""
    clip = pipeline.reranker
    if not images.is_floating_point():
        images = images / 255
    parts = images.split(256)
    return torch.cat([clip.encode_image(part.to(clip.logit_scale.device)).cpu() for part in parts])


@torch.inference_mode()
def rebuild(pipeline: Pipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Send pictures (C, 3, S, S) uint8 through the dVAE: reconstructions in [0, 1], and tokens."""
    device = pipeline.prior.image_start.device
    parts = [pipeline.codebook.tokens(part.to(device) / 255) for part in images.split(256)]
    rebuilt = [pipeline.codebook.decode(part).float().cpu() for part in parts]
    return torch.cat(rebuilt), torch.cat(parts).cpu()
