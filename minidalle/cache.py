"""Remember keys and values, so that the next image token costs one state and not all of them.

G captions, m samples per caption, H heads, K head width, S slots, R slots that a cell reads,
L text states, N cells, D width.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 (what the masks reach); Shazeer 2019,
arXiv:1911.02150, section 2.4 (what decoding costs).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from minidalle.attention import may_see
from minidalle.transformer import Block


class Layout(NamedTuple):
    """Where the layers of one kind keep the states of the image's cells, and what each reads.

    A row layer reuses grid + 1 slots in turn, a conv layer as many as its kernel reaches back,
    and a cell reads them all. A column layer keeps its columns side by side, and reads one.
    """

    slot: Tensor  # (N,) int64, of each cell
    hidden: Tensor  # (N, R) bool, the slots that are read but not seen
    slots: int

    def at(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return slot (1,) and hidden (1, R) of a cell (1,) int64, without asking its value."""
        return self.slot.index_select(0, cell), self.hidden.index_select(0, cell)


@lru_cache(maxsize=64)
def layout(kind: str, grid: int, kernel: int, device: torch.device) -> Layout:
    """Return the layout of a kind of layer."""
    with torch.inference_mode(False):
        cell = torch.arange(grid**2)
        back = may_see(cell, torch.zeros_like(cell), kind, 0, grid, kernel)  # (N,) by distance
        slots = int(cell[back].max()) + 1
        slot = cell % slots
        held = cell[:, None] - (cell[:, None] - cell[:slots]) % slots  # (N, S), below 0: nothing
        if kind == "column":
            slots = grid**2
            slot = cell % grid * grid + cell // grid
            held = cell[:, None] % grid + cell[:grid] * grid  # (N, grid)
        seen = (held >= 0) & may_see(cell[:, None], held, kind, 0, grid, kernel)
        return Layout(slot.to(device), (~seen).to(device), slots)


class LayerCache:
    """Keys and values of one layer that its mask can still reach.

    Those of a caption's text are kept once for all its samples: (G, H, L, K). Those of the image
    are kept in slots: (G, H, m, S, K).
    """

    def __init__(
        self, kind: str, grid: int, places: Layout, text_k: Tensor, text_v: Tensor, samples: int
    ):
        self.kind, self.grid, self.layout, self.slots = kind, grid, places, places.slots
        self.text_k, self.text_v = text_k, text_v
        captions, heads, _, width = text_k.shape
        shape = (captions, heads, samples, self.slots, width)
        self.k, self.v = text_k.new_zeros(shape), text_v.new_zeros(shape)  # 0 times NaN were NaN

    def put(self, n: int, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values of cells 0 … n - 1, each (G, H, m or 1, n, K)."""
        kept = slice(max(0, n - self.slots), n)  # the others would be overwritten at once
        slot = self.layout.slot[kept]
        self.k[:, :, :, slot] = k[:, :, :, kept]
        self.v[:, :, :, slot] = v[:, :, :, kept]

    def attend(self, slot: Tensor, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v of the cell at `Layout.at` and attend with q, each (G, H, m, K).

        Returns (G, H, m, K).
        """
        self.k.index_copy_(3, slot, k[:, :, :, None])
        self.v.index_copy_(3, slot, v[:, :, :, None])
        keys, values = self.read(self.k, slot), self.read(self.v, slot)  # (G, H, m, R, K)
        q = q * q.shape[-1] ** -0.5
        to_text = q @ self.text_k.mT  # (G, H, m, L)
        to_image = (keys @ q[..., None])[..., 0]  # (G, H, m, R)
        to_image = to_image.masked_fill(hidden, float("-inf"))
        weights = torch.cat([to_text, to_image], -1).softmax(-1)
        from_text, from_image = weights.split([to_text.shape[-1], to_image.shape[-1]], -1)
        image = from_image[..., None, :] @ values  # (G, H, m, 1, K)
        return from_text @ self.text_v + image[..., 0, :]

    def read(self, slots: Tensor, slot: Tensor) -> Tensor:
        """Return those of slots (G, H, m, S, K) that the cell at `slot` reads: (G, H, m, R, K)."""
        if self.kind != "column":
            return slots
        columns = slots.unflatten(3, (self.grid, self.grid))
        return columns.index_select(3, slot // self.grid)[:, :, :, 0]


def step_layer(block: Block, cache: LayerCache, slot: Tensor, hidden: Tensor, x: Tensor) -> Tensor:
    """Take one state of every image, x (G m, D), through a block. Returns (G m, D)."""
    a, (captions, heads, samples) = block.attention, cache.k.shape[:3]
    qkv = a.qkv(a.norm(x)).view(captions, samples, 3, heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (G, H, m, K) each
    seen = cache.attend(slot, hidden, q, k, v)
    x = x + a.out(seen.transpose(1, 2).reshape(len(x), -1))
    return x + block.mlp(x)
