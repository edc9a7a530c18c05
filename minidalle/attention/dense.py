"""The masks as plain masked attention: every product is made, then the hidden ones are forgotten.

B batch, H heads, T states (text_len + grid**2), K head width.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minidalle.attention.masks import layer_mask


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend to all keys, then forget those the mask (T, T) hides. Returns (B, H, T, K)."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # In bfloat16 the backward pass of torch's fused CPU kernel takes six times this one's time.
    hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    batch, scale = q.shape[:2], q.shape[-1] ** -0.5
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(hidden.expand(len(q), -1, -1), q, k.mT, alpha=scale)  # (B H, T, T)
    return (scores.softmax(-1) @ v).unflatten(0, batch)


def masks_are_constants() -> None:
    """Tell torch.compile that masks are made before, not within what it compiles."""
    torch.compiler.assume_constant_result(dense_mask)  # only now: it imports half of torch.compile


def dense_mask(*which) -> Tensor:
    return _make_dense_mask(*which)  # torch.compile can mark plain functions only


@lru_cache(maxsize=64)
def _make_dense_mask(kind, text_len, grid, kernel, device) -> Tensor:
    with torch.inference_mode(False):  # a mask made while sampling must also serve training
        return layer_mask(kind, text_len, grid, kernel).to(device)
