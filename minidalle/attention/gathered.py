"""The masks from plain torch operations that read no more than what may be seen.

B batch, H heads, T states (text_len + grid**2), K head width, R rows of image states in reach.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 (column layers run on the transposed
image); Dao et al. 2022, arXiv:2205.14135, appendix B.2 (the gradients, and why not to keep).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minidalle.attention.dense import dense
from minidalle.attention.masks import causal_mask, layer_mask


@torch.compiler.disable  # within a compiled block, each of its steps for each head would be traced
def gathered(
    q: Tensor, k: Tensor, v: Tensor, kind: str, text_len: int, grid: int, kernel: int
) -> Tensor:
    """Attend to the text and to the few rows of the image that the mask reaches.

    Column layers run on the transposed image, where a column is a row, as in the paper.
    Arguments and result as `attend`, T complete.
    """
    texts, images = zip(*(x.split([text_len, grid**2], 2) for x in (q, k, v)), strict=True)
    images = [x.unflatten(2, (grid, grid)) for x in images]
    if kind == "column":
        images = [x.transpose(2, 3) for x in images]
    additive = _window_mask(kind, text_len, grid, kernel, q.device, q.dtype)
    image = _AttendWindows.apply(*images, *texts[1:], additive)  # (B, H, grid, grid, K)
    if kind == "column":
        image = image.transpose(2, 3)
    text = dense(*texts, _causal_mask(text_len, q.device))
    return torch.cat([text, image.flatten(2, 3)], 2)


class _AttendWindows(torch.autograd.Function):
    """Let image states attend to all text and to the rows in reach, one head at a time.

    Autograd would keep all weights of all heads. This keeps its inputs alone and makes a head's
    weights again on the way back: a sixth more products, but on numbers that stay in the
    processor's cache, and at most half the memory. There are no second derivatives.
    Source: Dao et al. 2022, arXiv:2205.14135, appendix B.2 (the gradients, and why not to keep).
    """

    @staticmethod
    def forward(ctx, q, k, v, text_k, text_v, additive) -> Tensor:
        """q, k, v (B, H, grid, grid, K), text_k, text_v (B, H, text, K). Returns as q."""
        ctx.save_for_backward(q, k, v, text_k, text_v, additive)
        out = torch.empty_like(q)
        for whole, *parts in zip(*map(_heads, (out, q, k, v, text_k, text_v)), strict=True):
            whole.copy_(_attend_head(*parts, additive))
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, additive = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        wholes = zip(*map(_heads, grads), strict=True)
        for whole, *parts in zip(wholes, *map(_heads, (grad, *inputs)), strict=True):
            for x, part in zip(whole, _attend_backward(*parts, additive), strict=True):
                x.copy_(part)
        return *grads, None


def _heads(x: Tensor) -> list[Tensor]:
    """Views of the B H heads in x (B, H, ...)."""
    return [head for heads in x.unbind() for head in heads.unbind()]


def _attend_head(q, k, v, text_k, text_v, additive) -> Tensor:
    """Let the image states of one head attend: q, k, v, result (grid, grid, K), texts (text, K)."""
    q = q.contiguous() * q.shape[-1] ** -0.5
    weights = _softmax_weights(q, _windows(k, additive), text_k, additive)
    on_text, on_image = weights.split([len(text_k), additive.shape[2]], -1)
    return torch.baddbmm(_rows(on_text, text_v), on_image, _windows(v, additive))


def _attend_backward(grad, q, k, v, text_k, text_v, additive) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, text_k and text_v from that of `_attend_head`'s result."""
    scale, sizes = q.shape[-1] ** -0.5, [len(text_k), additive.shape[2]]
    q, grad, k = q.contiguous() * scale, grad.contiguous(), _windows(k, additive)
    weights = _softmax_weights(q, k, text_k, additive)
    on_text, on_image = weights.split(sizes, -1)
    grad_text_v = on_text.flatten(0, 1).mT @ grad.flatten(0, 1)
    grad_v = _fold(on_image.mT @ grad)
    scores = torch.empty_like(weights)  # from here on gradients; first, those of the weights
    scores[..., : sizes[0]] = _rows(grad, text_v.mT)
    scores[..., sizes[0] :] = grad @ _windows(v, additive).mT
    scores *= weights  # softmax: weights * (gradients - mean of the gradients under the weights)
    scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1)
    del weights, on_text, on_image  # a third of the memory a head takes
    to_text, to_image = scores.split(sizes, -1)
    grad_q = torch.baddbmm(_rows(to_text, text_k), to_image, k).mul_(scale)
    grad_text_k = to_text.flatten(0, 1).mT @ q.flatten(0, 1)
    return grad_q, _fold(to_image.mT @ q), grad_v, grad_text_k, grad_text_v


def _softmax_weights(q, k, text_k, additive) -> Tensor:
    """One softmax over all text and the rows in reach. Returns (grid, grid, text + R grid)."""
    scores = [_rows(q, text_k.mT), torch.baddbmm(additive, q, k.mT)]
    return torch.cat(scores, -1).softmax(-1)


def _rows(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply all rows of x (grid, grid, …) with one matrix, in one product for speed."""
    return (x.flatten(0, 1) @ matrix).unflatten(0, x.shape[:2])


def _windows(x: Tensor, additive: Tensor) -> Tensor:
    """(grid, grid, K) -> (grid, R grid, K): each row and those just above it, without copies."""
    grid, reach = len(additive), additive.size(2)
    if reach > grid:
        x = F.pad(x, (0, 0, 0, 0, reach // grid - 1, 0))  # rows of zeros on top
    return x.flatten(0, 1).unfold(0, reach, grid).mT


def _fold(windows: Tensor) -> Tensor:
    """The way back of `_windows`: (grid, R grid, K) -> (grid, grid, K), a row's parts added up."""
    rows = windows.unflatten(1, (-1, len(windows)))  # (grid, R, grid, K)
    total = rows[:, -1].contiguous()
    for up in range(1, rows.shape[1]):
        total[:-up] += rows[up:, -1 - up]
    return total


@lru_cache(maxsize=64)
def _causal_mask(length: int, device) -> Tensor:
    with torch.inference_mode(False):  # a mask made while sampling must also serve training
        return causal_mask(length).to(device)


@lru_cache(maxsize=64)
def _window_mask(kind, text_len, grid, kernel, device, dtype) -> Tensor:
    """What to add to scores: -inf where the rows in reach are hidden. (grid, grid, R grid)."""
    # The rows (of the transposed image for columns) of a query's keys; wrapping adds one to conv.
    rows = min({"row": 2, "column": 1, "conv": kernel // 2 + 2}[kind], grid)
    with torch.inference_mode(False):
        mask = layer_mask(kind, text_len, grid, kernel)[text_len:, text_len:]
        mask = mask.unflatten(1, (grid, grid)).unflatten(0, (grid, grid))  # query row, column; key
        if kind == "column":
            mask = mask.permute(1, 0, 3, 2)
        mask = F.pad(mask, (0, 0, rows - 1, 0))  # hidden rows on top
        windows = [mask[row, :, row : row + rows] for row in range(grid)]
        mask = torch.stack(windows).flatten(2).to(device)
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
