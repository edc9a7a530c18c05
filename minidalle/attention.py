"""Which earlier states may a state see, and how does that cost no more than what it sees?

B batch, H heads, T states (text_len + grid**2), K head width, R rows of image states in reach.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 and figure 11.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("row", "column", "conv")
METHODS = ("auto", "dense", "gathered", "flex")
SMALL = 512  # states; below this a dense mask is as fast as anything


def causal_mask(length: int) -> Tensor:
    """Allow every state itself and all before it. Returns (length, length) bool."""
    if length < 1:
        raise ValueError(f"length must be positive, got {length}")
    return torch.ones(length, length, dtype=torch.bool).tril()


def row_mask(text_len: int, grid: int) -> Tensor:
    """Allow each image state all text and the `grid` image states before it.

    text_len is in states, grid in image tokens per side.
    Returns (T, T) bool, T = text_len + grid**2; [q, k] is True when q may see k.
    Raises ValueError unless both are positive.
    """
    return layer_mask("row", text_len, grid, 1)


def column_mask(text_len: int, grid: int) -> Tensor:
    """Allow each image state all text and the states above it in its column.

    Arguments, result and errors as `row_mask`.
    """
    return layer_mask("column", text_len, grid, 1)


def conv_mask(text_len: int, grid: int, kernel: int) -> Tensor:
    """Allow each image state all text and the earlier half of a kernel around it.

    The kernel slides over the flattened grid, so its columns wrap around the picture's edges.
    Arguments, result and errors as `row_mask`; kernel must be odd.
    """
    return layer_mask("conv", text_len, grid, kernel)


def layer_mask(kind: str, text_len: int, grid: int, kernel: int) -> Tensor:
    """Return the mask of one kind of layer, (T, T) bool; errors as `conv_mask`."""
    if text_len < 1 or grid < 1:
        raise ValueError(f"lengths must be positive, got {text_len=} {grid=}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd and positive, got {kernel=}")
    position = torch.arange(text_len + grid**2, device="cpu")  # also inside torch.device('meta')
    return may_see(position[:, None], position[None, :], kind, text_len, grid, kernel)


def may_see(q: Tensor, k: Tensor, kind: str, text_len: int, grid: int, kernel: int) -> Tensor:
    """Say whether the state at position q may see the one at k (int64 of equal or fitting shapes).

    Returns bool. Raises ValueError for an unknown kind.
    """
    d = q - k  # how far back k lies
    if kind == "row":
        near = d <= grid
    elif kind == "column":
        near = d % grid == 0
    elif kind == "conv":
        half = kernel // 2
        near = (d // grid <= half) & ((d % grid <= half) | (d % grid >= grid - half))
    else:
        raise ValueError(f"unknown kind {kind!r}; choose from {', '.join(KINDS)}")
    return (d >= 0) & ((k < text_len) | near)


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

    q, k, v: (B, H, T, K). The stream may stop early (a picture in the making); then the mask is
    cut, and executed as a dense one. `method` says how: 'dense' multiplies everything,
    'gathered' what is in reach, 'flex' compiles a kernel, 'auto' picks the fastest.
    Returns (B, H, T, K). Raises ValueError for an unknown kind or method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    length = q.shape[2]
    if method == "auto":
        method = pick_method(length, q.device)
    if method == "dense" or length != text_len + grid**2:
        return dense(q, k, v, _dense_mask(kind, text_len, grid, kernel, q.device)[:length, :length])
    if method == "flex":
        from minidalle.flex import flex  # these import half of torch.compile: if asked for

        return flex(q, k, v, kind, text_len, grid, kernel)
    from minidalle.gathered import gathered

    return gathered(q, k, v, kind, text_len, grid, kernel)


def pick_method(length: int, device: torch.device) -> str:
    """Return the fastest way to attend over `length` states (see benchmarks/attention.py)."""
    if length < SMALL:
        return "dense"
    return "flex" if device.type == "cuda" else "gathered"


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
    torch.compiler.assume_constant_result(_dense_mask)  # only now: it imports half of torch.compile


def _dense_mask(*which) -> Tensor:
    return _make_dense_mask(*which)  # torch.compile can mark plain functions only


@lru_cache(maxsize=64)
def _make_dense_mask(kind, text_len, grid, kernel, device) -> Tensor:
    with torch.inference_mode(False):  # a mask made while sampling must also serve training
        return layer_mask(kind, text_len, grid, kernel).to(device)
