"""The masks as a compiled GPU kernel that skips the tiles in which nothing may be seen.

B batch, H heads, T states (text_len + grid**2), K head width.
Source: Dong et al. 2024, arXiv:2412.05496 (FlexAttention); Ramesh et al. 2021, arXiv:2102.12092,
appendix B.1 (why column layers run on transposed image states).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from minidalle.attention.compiled import allow_kernels
from minidalle.attention.masks import may_see


@torch.compiler.disable  # else a compiled block would make its mask anew at every call
def flex(
    q: Tensor, k: Tensor, v: Tensor, kind: str, text_len: int, grid: int, kernel: int
) -> Tensor:
    """Attend under the mask of one kind of layer; q, k, v and the result are (B, H, T, K).

    Compiled on a GPU; elsewhere slow, and a forward pass only.
    Raises ValueError when asked for gradients elsewhere, which torch cannot give.
    """
    grads = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if grads and q.device.type != "cuda":
        raise ValueError(f"attention='flex' cannot train on {q.device.type}; use 'gathered'")
    if kind == "column":  # in raster order no tile of a column mask is empty
        q, k, v = (transpose_image(x, text_len, grid) for x in (q, k, v))
    allow_kernels()
    attention = _compiled() if q.device.type == "cuda" else flex_attention
    block_mask = _block_mask(kind, text_len, grid, kernel, q.device)
    seen = attention(q, k, v, block_mask=block_mask)
    return transpose_image(seen, text_len, grid) if kind == "column" else seen


def transpose_image(x: Tensor, text_len: int, grid: int) -> Tensor:
    """Swap rows and columns of the image states of x (B, H, T, K)."""
    text, image = x.split([text_len, grid**2], 2)
    image = image.unflatten(2, (grid, grid)).transpose(2, 3).flatten(2, 3)
    return torch.cat([text, image], 2)


@lru_cache(maxsize=1)
def _compiled():
    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def _block_mask(kind: str, text_len: int, grid: int, kernel: int, device) -> BlockMask:
    def raster(i: Tensor) -> Tensor:
        """Where state i of the transposed stream lies in the stream."""
        cell = i - text_len
        return torch.where(i < text_len, i, text_len + cell % grid * grid + cell // grid)

    def mask_mod(batch, head, q: Tensor, k: Tensor) -> Tensor:
        if kind == "column":
            q, k = raster(q), raster(k)
        return may_see(q, k, kind, text_len, grid, kernel)

    length = text_len + grid**2
    with torch.inference_mode(False):
        return create_block_mask(mask_mod, None, None, length, length, device=device)
