"""Remember keys and values, so that the next image token costs one state and not all of them.

G captions, m samples per caption, H heads, K head width, S slots, L text states, D width.
Source: Ramesh et al. 2021, arXiv:2102.12092, appendix B.1 (what the masks reach); Shazeer 2019,
arXiv:1911.02150, section 2.4 (what decoding costs).
"""

import torch
from torch import Tensor

from minidalle.attention import attend, may_see
from minidalle.config import DALLEConfig
from minidalle.dalle import DALLE


class LayerCache:
    """Keys and values of one layer that its mask can still reach.

    Those of a caption's text are kept once for all its samples: (G, H, L, K). Those of the image
    are kept in slots: (G, H, m, S, K). A row layer reuses grid + 1 of them, a column layer keeps
    its columns side by side, a conv layer reuses as many as its kernel reaches back.
    """

    def __init__(
        self, config: DALLEConfig, kind: str, text_k: Tensor, text_v: Tensor, samples: int
    ):
        self.kind, self.grid = kind, config.grid
        self.text_k, self.text_v = text_k, text_v
        offset = torch.arange(config.grid**2)
        seen = may_see(offset, torch.zeros_like(offset), kind, 0, config.grid, config.kernel)
        self.offsets = offset[seen].to(text_k.device)  # how far back the mask reaches, ascending
        self.counts = seen.cumsum(0).tolist()  # of those that do not leave the picture, per cell
        self.slots = config.grid**2 if kind == "column" else int(self.offsets[-1]) + 1
        captions, heads, _, width = text_k.shape
        shape = (captions, heads, samples, self.slots, width)
        self.k, self.v = text_k.new_empty(shape), text_v.new_empty(shape)

    def slot(self, cell: int) -> int:
        """Return where the state of an image cell is kept."""
        if self.kind == "column":
            return cell % self.grid * self.grid + cell // self.grid
        return cell % self.slots

    def reach(self, cell: int) -> slice | Tensor:
        """Return the slots that the state of an image cell may see, itself included."""
        if self.kind == "column":
            top = cell % self.grid * self.grid
            return slice(top, top + cell // self.grid + 1)
        if self.kind == "row":
            return slice(0, min(cell + 1, self.slots))
        return (cell - self.offsets[: self.counts[cell]]) % self.slots

    def put(self, cells: range, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values of these cells, each (G, H, m or 1, cells, K)."""
        kept = cells[-self.slots :]  # the others would be overwritten at once
        slots = [self.slot(cell) for cell in kept]
        self.k[:, :, :, slots] = k[:, :, :, len(cells) - len(kept) :]
        self.v[:, :, :, slots] = v[:, :, :, len(cells) - len(kept) :]

    def attend(self, cell: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v of a cell and attend with q, each (G, H, m, K). Returns (G, H, m, K)."""
        slot = self.slot(cell)
        self.k[:, :, :, slot], self.v[:, :, :, slot] = k, v
        reach = self.reach(cell)
        q = q * q.shape[-1] ** -0.5
        to_text = q @ self.text_k.mT  # (G, H, m, L)
        to_image = (self.k[:, :, :, reach] @ q[..., None])[..., 0]  # (G, H, m, keys)
        weights = torch.cat([to_text, to_image], -1).softmax(-1)
        from_text, from_image = weights.split([to_text.shape[-1], to_image.shape[-1]], -1)
        image = from_image[..., None, :] @ self.v[:, :, :, reach]  # (G, H, m, 1, K)
        return from_text @ self.text_v + image[..., 0, :]


class Decoder:
    """A DALLE that reads image tokens one at a time and predicts the next.

    text: (G, L - 1) int64, captions padded with PAD. samples: m, pictures per caption.
    prompt: (G or 1, m or 1, p) int64, the leading tokens of the pictures, read at once.
    """

    def __init__(self, dalle: DALLE, text: Tensor, samples: int, prompt: Tensor):
        self.dalle, self.samples, self.captions = dalle, samples, len(text)
        self.cell = prompt.shape[-1]  # the next one to predict
        self.cells = dalle.cells()
        self.caches: list[LayerCache] = []
        self._read(text, prompt.expand(len(text), -1, -1))

    def _read(self, text: Tensor, prompt: Tensor) -> None:
        """Fill the caches with the text and the states of cells before the next."""
        c = self.dalle.config
        copies = prompt.shape[1]
        words = self.dalle.embed_text(text).repeat_interleave(copies, 0)  # (G copies, L, D)
        known = prompt.flatten(0, 1)[:, : max(self.cell - 1, 0)]  # the last is read by `step`
        image = self.dalle.embed_image(known)[:, : self.cell]
        x = torch.cat([words, image], 1)
        for block in self.dalle.transformer.blocks:
            a = block.attention
            q, k, v = a.project(x)  # (G copies, H, L + p, K)
            x = x + a.merge(attend(q, k, v, a.kind, c.text_len, c.grid, c.kernel, c.attention))
            x = x + block.mlp(x)
            k, v = (y.unflatten(0, (-1, copies)).transpose(1, 2) for y in (k, v))
            text_k, text_v = (y[:, :, 0, : c.text_len].contiguous() for y in (k, v))
            cache = LayerCache(c, a.kind, text_k, text_v, self.samples)
            cache.put(range(self.cell), k[:, :, :, c.text_len :], v[:, :, :, c.text_len :])
            self.caches.append(cache)

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, None at cell 0, and predict that cell.

        Returns logits (G m, image_vocab), float32.
        """
        dalle, lanes = self.dalle, (self.captions, self.samples)
        if self.cell == 0:
            x = dalle.image_start.expand(self.captions * self.samples, -1)
        else:
            x = dalle.image_embedding(token)
        x = x + self.cells[self.cell]  # (G m, D)
        for block, cache in zip(dalle.transformer.blocks, self.caches, strict=True):
            a = block.attention
            qkv = a.qkv(a.norm(x)).view(*lanes, 3, dalle.config.n_heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (G, H, m, K) each
            heads = cache.attend(self.cell, q, k, v)
            x = x + a.out(heads.transpose(1, 2).reshape(len(x), -1))
            x = x + block.mlp(x)
        self.cell += 1
        return dalle.image_head(dalle.transformer.norm(x)).float()
