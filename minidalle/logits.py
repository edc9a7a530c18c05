"""From logits to a token: guidance, top-k, the nucleus, and one draw.

n rows, V vocabulary.
Source: Ho and Salimans 2022, arXiv:2207.12598 (guidance, here on logits as in Gafni et al. 2022,
arXiv:2203.13131); Holtzman et al. 2020, arXiv:1904.09751 (nucleus).
"""

import torch
from torch import Tensor


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Push logits (2, n, V), of the caption and of none, away from none; (1, n, V) are kept.

    Returns (n, V), u + guidance * (c - u).
    """
    if len(logits) == 1:
        return logits[0]
    return logits[1] + guidance * (logits[0] - logits[1])


def restrict(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return logits (n, V) with -inf outside the top_k likeliest and the top_p nucleus.

    The nucleus holds the fewest tokens that together have probability top_p or more.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p  # probability of all likelier tokens
        before[:, 0] = -1  # the likeliest stays, however small top_p
        outside = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Draw one token per row of logits (n, V) with a uniform number (n,) in [0, 1) each.

    Inverts the cumulative distribution: the token does not depend on the other rows.
    Returns (n,) int64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double() - logits.amax(-1, keepdim=True)  # else a small temperature overflows
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)  # (n, V)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
