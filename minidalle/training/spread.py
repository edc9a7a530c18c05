"""A first codebook spread over the data, so that a short run does not start with few codes.

N images, K codes, C feature channels. Not in the paper, which trains long enough to do without.
Source: Arthur and Vassilvitskii 2007 (k-means++); Lloyd 1982 (k-means).
"""

import math

import torch
from torch import Tensor, nn

from minidalle.dvae import map_pixels

LOGIT_GAP = 8.0  # between a spread code and its nearest other, in nats
N_POINTS = 2**16  # features that k-means looks at, at most


@torch.no_grad()
def spread_codes(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Start a codebook with K different codes, each standing for something in the images.

    images: (N, 3, H, W) in [0, 1]. Where a code is a vector among the features, they become the
    K means. In a DiscreteVAE K cells are chosen by k-means++ from the untrained encoder's
    features, and code k starts as "near cell k": logits -|f - c_k|^2 / s, but for a constant that
    is the same for all. Its vectors start as a random projection of c_k, so that similar codes
    look alike.
    """
    if hasattr(model, "features"):
        features = model.features(images).movedim(1, -1).flatten(0, 2)  # (n, C)
        model.codes.copy_(k_means(features, model.vocab_size, generator))
        return
    # Cells that differ, as the untrained encoder sees them.
    blocks, n_codes = model.encoder.blocks, model.config.vocab_size
    features = blocks[:-1](map_pixels(images)).relu().permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
    centres = features[choose_spread(features, n_codes, generator)]  # (K, C)
    # The encoder names them.
    apart = torch.cdist(centres, centres).fill_diagonal_(math.inf)
    s = apart.min(dim=1).values.square().median() / LOGIT_GAP
    blocks.output.conv.w.copy_((2 * centres / s)[:, :, None, None])
    blocks.output.conv.b.copy_(-centres.square().sum(dim=1) / s)
    # The decoder starts with vectors as far apart.
    n_init = model.config.n_init
    projection = torch.randn(centres.shape[1], n_init, generator=generator).to(centres)
    vectors = (centres - centres.mean(dim=0)) @ projection  # (K, n_init)
    model.decoder.blocks.input.w.copy_((vectors / vectors.std()).T[:, :, None, None])


def choose_spread(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k rows of features (n, C): each next one with probability as its squared distance."""
    chosen = [torch.randint(len(features), (), generator=generator).to(features.device)]
    distance = torch.full((len(features),), math.inf, device=features.device)
    for _ in range(k - 1):
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(dim=1))
        weight = distance.cpu() + 1e-12  # cells may all be equal
        chosen.append(torch.multinomial(weight, 1, generator=generator)[0].to(features.device))
    return torch.stack(chosen)


def k_means(points: Tensor, k: int, generator: torch.Generator, rounds: int = 8) -> Tensor:
    """Return k centres (k, C) of points (n, C): k-means++, then `rounds` times the mean of each.

    A centre that no point is nearest to becomes a random point.
    """
    points = points[torch.randperm(len(points), generator=generator)[:N_POINTS]]
    centres = points[choose_spread(points, k, generator)]  # (k, C)
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(dim=1)  # (n,)
        counts = torch.bincount(nearest, minlength=k)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        other = points[torch.randint(len(points), (k,), generator=generator)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), other)
    return centres
