"""Which earlier states may a state see?

T states (text_len + grid**2).
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 and figure 11.
"""

import torch
from torch import Tensor

KINDS = ("row", "column", "conv")


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

    The kernel slides over the flattened grid, so its columns wrap around the image's edges.
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
