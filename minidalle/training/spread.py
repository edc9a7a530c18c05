"""A first codebook spread over the data, so that a short run does not start with few codes.

N images, K codes, C feature channels. Not in the paper, which trains long enough to do without.
Source: Arthur and Vassilvitskii 2007 (k-means++).
"""

import math

import torch
from torch import Tensor, nn

LOGIT_GAP = 8.0  # between a spread code and its nearest other, in nats


@torch.no_grad()
def spread_codes(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Start a DiscreteVAE with K different codes, each standing for something in the images.

    K cells are chosen by k-means++ from the untrained encoder's features of images (N, 3, H, W),
    mapped to [0.1, 0.9], and code k starts as "near cell k": logits -|f - c_k|^2 / s, but for a
    constant that is the same for all.
    Code vectors start as a random projection of c_k, so that similar codes look alike.
    """
    # Cells that differ, as the untrained encoder sees them.
    blocks, n_codes = model.encoder.blocks, model.config.vocab_size
    features = blocks[:-1](images).relu().permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
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
