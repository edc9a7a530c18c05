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
        from minidalle.flex import flex  # compiles kernels: only for those who ask

        return flex(q, k, v, kind, text_len, grid, kernel)
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


def gathered(
    q: Tensor, k: Tensor, v: Tensor, kind: str, text_len: int, grid: int, kernel: int
) -> Tensor:
    """Attend to the text and to the few rows of the picture that the mask reaches.

    Column layers run on the transposed picture, where a column is a row, as in the paper.
    Arguments and result as `attend`, T complete.
    """
    text = F.scaled_dot_product_attention(*(x[:, :, :text_len] for x in (q, k, v)), is_causal=True)
    parts = [x[:, :, text_len:].unflatten(2, (grid, grid)) for x in (q, k, v)]
    if kind == "column":
        parts = [x.transpose(2, 3) for x in parts]
    mask = _window_mask(kind, text_len, grid, kernel, q.device)  # (grid, grid, R grid)
    args = (*parts, k[:, :, :text_len], v[:, :, :text_len], mask)
    image = _attend_windows(*args)  # (B, H, grid, grid, K)
    if kind == "column":
        image = image.transpose(2, 3)
    return torch.cat([text, image.flatten(2, 3)], 2)


def _attend_windows(q, k, v, text_k, text_v, mask) -> Tensor:
    """One softmax over all text and the rows in reach, without a copy of the text's keys."""
    text_len, rows = text_k.shape[2], mask.shape[2] // mask.shape[1]
    q = q * q.shape[-1] ** -0.5
    k, v = _windows(k, rows), _windows(v, rows)  # (B, H, grid, R grid, K)
    to_text = (q.flatten(2, 3) @ text_k.mT).unflatten(2, q.shape[2:4])
    to_image = (q @ k.mT).masked_fill_(~mask, float("-inf"))
    weights = torch.cat([to_text, to_image], -1).softmax(-1)  # (B, H, grid, grid, text + R grid)
    del to_text, to_image  # a third of the peak memory
    on_text, on_image = weights.split([text_len, v.shape[3]], -1)
    from_text = (on_text.flatten(2, 3) @ text_v).unflatten(2, q.shape[2:4])
    return from_text + on_image @ v


def _windows(x: Tensor, rows: int) -> Tensor:
    """(B, H, grid, grid, K) -> (B, H, grid, rows grid, K): each row and those just above it."""
    if rows == 1:
        return x
    grid = x.shape[2]
    x = F.pad(x, (0, 0, 0, 0, rows - 1, 0))  # rows of zeros on top
    return torch.cat([x[:, :, i : i + grid] for i in range(rows)], 3)


def rows_in_reach(kind: str, grid: int, kernel: int) -> int:
    """Return how many rows (of the transposed picture for columns) a query's keys lie in."""
    reach = {"row": 2, "column": 1, "conv": kernel // 2 + 2}[kind]  # wrapping adds a row to conv
    return min(reach, grid)


@lru_cache(maxsize=64)
def _dense_mask(kind, text_len, grid, kernel, device) -> Tensor:
    with torch.inference_mode(False):  # a mask made while sampling must also serve training
        return layer_mask(kind, text_len, grid, kernel).to(device)


@lru_cache(maxsize=64)
def _window_mask(kind, text_len, grid, kernel, device) -> Tensor:
    """The image part of the mask cut to the rows in reach: (grid, grid, rows grid) bool."""
    rows = rows_in_reach(kind, grid, kernel)
    with torch.inference_mode(False):
        mask = layer_mask(kind, text_len, grid, kernel)[text_len:, text_len:]
        mask = mask.unflatten(1, (grid, grid)).unflatten(0, (grid, grid))  # query row, column; key
        if kind == "column":
            mask = mask.permute(1, 0, 3, 2)
        mask = F.pad(mask, (0, 0, rows - 1, 0))  # hidden rows on top
        windows = [mask[row, :, row : row + rows] for row in range(grid)]
        return torch.stack(windows).flatten(2).to(device)
