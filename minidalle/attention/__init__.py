"""Attention under the paper's masks: `attend` picks how they are executed.

B batch, H heads, T states (text_len + grid**2), K head width.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 and figure 11.
"""

import torch
from torch import Tensor

from minidalle.attention.dense import dense, dense_mask
from minidalle.attention.masks import (
    KINDS,
    causal_mask,
    column_mask,
    conv_mask,
    layer_mask,
    may_see,
    row_mask,
)

__all__ = [
    "KINDS", "attend", "causal_mask", "column_mask", "conv_mask", "dense", "layer_mask", "may_see",
    "pick_method", "row_mask",
]  # fmt: skip

SMALL = 512  # states; below this a dense mask is as fast as anything


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kind: str,
    text_len: int,
    grid: int,
    kernel: int,
    method: str = "auto",
) -> Tensor:
    """Attend under the mask of one kind of layer.

    q, k, v: (B, H, T, K). The stream may stop early (an image in the making); then the mask is
    cut, and executed as a dense one. `method` says how: 'dense' multiplies everything,
    'gathered' what is in reach, 'flex' compiles a kernel, 'auto' picks the fastest.
    Returns (B, H, T, K). Raises ValueError for an unknown kind or method.
    """
    length = q.shape[2]
    if method == "auto":
        method = pick_method(length, q.device)
    if method == "dense" or length != text_len + grid**2:
        return dense(q, k, v, dense_mask(kind, text_len, grid, kernel, q.device)[:length, :length])
    if method == "flex":
        from minidalle.attention.flex import flex  # it imports half of torch.compile

        return flex(q, k, v, kind, text_len, grid, kernel)
    if method == "gathered":
        from minidalle.attention.gathered import gathered

        return gathered(q, k, v, kind, text_len, grid, kernel)
    raise ValueError(f"unknown method {method!r}; choose from auto, dense, gathered, flex")


def pick_method(length: int, device: torch.device) -> str:
    """Return the fastest way to attend over `length` states (see benchmarks/attention.py)."""
    if length < SMALL:
        return "dense"
    return "flex" if device.type == "cuda" else "gathered"
