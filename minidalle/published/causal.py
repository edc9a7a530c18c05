"""What the decoder-only relatives share: caption states, then image states, a cached decoder.

B batch, L text states that all image states see, S text states in all, N cells (grid**2), D width,
H heads, K head width, V codes; G captions, m images of each.

Other than in our own DALLE no state stands for the start of an image: the last text state predicts
the first image token, and the state of image token j predicts token j + 1.
Source: github.com/kakaobrain/minDALL-E and github.com/ai-forever/ru-dalle.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minidalle.attention import dense, may_see
from minidalle.attention.compiled import Graph
from minidalle.cache import LayerCache, Layout, layout
from minidalle.tokenizer import PAD

REACH = 5  # rows and columns that a convolution of 11 x 11 reaches to each side


@dataclass(frozen=True)
class Sizes:
    """What the checkpoint of such a prior is made of. caption_len counts ids, with all frames."""

    width: int
    n_layers: int
    n_heads: int
    caption_len: int
    text_vocab: int
    grid: int
    image_vocab: int


@lru_cache(maxsize=64)
def cell_mask(kind: str, grid: int) -> Tensor:
    """Say which cells [k] a cell [q] may see: (N, N) bool.

    kind: 'row' and 'column' as in DALL-E; 'all' before it; 'window' the cells before it that the
    convolution reaches, 'torus' the same where the grid's opposite edges touch.
    """
    with torch.inference_mode(False):
        cell = torch.arange(grid**2, device="cpu")
        q, k = cell[:, None], cell[None, :]
        if kind in ("row", "column"):
            return may_see(q, k, kind, 0, grid, 1)
        if kind == "all":
            return k <= q
        apart = torch.stack([q // grid - k // grid, q % grid - k % grid]).abs()  # (2, N, N)
        if kind == "torus":
            apart = torch.minimum(apart, grid - apart)
        return (k <= q) & (apart <= REACH).all(0)


@lru_cache(maxsize=64)
def places(kind: str, grid: int, device: torch.device) -> Layout:
    """Return where a layer's cache keeps the cells: rows and columns as DALLE's, else all."""
    if kind in ("row", "column"):
        return layout(kind, grid, 1, device)
    with torch.inference_mode(False):
        cells = torch.arange(grid**2, device=device)
        return Layout(cells, ~cell_mask(kind, grid).to(device), len(cells))


@lru_cache(maxsize=64)
def stream_mask(kind: str, text_len: int, grid: int, device: torch.device) -> Tensor:
    """Return the mask of a whole stream, (T, T) bool, T = text_len + N."""
    with torch.inference_mode(False):
        mask = torch.ones([text_len + grid**2] * 2, dtype=torch.bool, device="cpu").tril()
        mask[text_len:, text_len:] &= cell_mask(kind, grid)
        return mask.to(device)


class CausalPrior(nn.Module):
    """p(image tokens | text), by a transformer over both.

    A family's class gives the embeddings and the heads: ids(text) -> (B, S), embed_text(ids),
    embed_image(tokens, index), text_logits(x), image_logits(x); `layers`, each with
    project(x) -> q, k, v and finish(x, seen) -> x; `kinds`, the mask of each layer; and
    `seen_text`, L, which is S or S - 1: where it is less, the last text state counts as cell 0.
    """

    kinds: list[str]
    seen_text: int

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes, self.grid, self.image_vocab = sizes, sizes.grid, sizes.image_vocab
        self.caption_len, self.text_vocab = sizes.caption_len, sizes.text_vocab

    def null_text(self, n: int) -> Tensor:
        """Return n empty captions (n, caption_len) int64: what guidance moves away from."""
        return torch.full((n, self.caption_len), PAD, device=next(self.parameters()).device)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every id of the caption but the first, and every image token.

        text: (B, caption_len) int64 padded with PAD; image: (B, N) or (B, grid, grid) int64.
        Returns logits (B, S - 1, text ids) and (B, N, V). Pads are ids here, and are predicted.
        """
        ids = self.ids(text)
        x = self.start(ids, image.flatten(1)[:, :-1])
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x, _ = self.read(layer, kind, x)
        last = ids.shape[1] - 1  # the state that predicts the first image token
        return self.text_logits(x[:, :last]), self.image_logits(x[:, last:])

    @torch.no_grad()
    def log_likelihood(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln p(text after its first id) and ln p(image | text), (B,) each, in nats."""
        targets = self.ids(text)[:, 1:], image.flatten(1)
        nats = [
            F.cross_entropy(logits.float().mT, ids, reduction="none").sum(1)
            for logits, ids in zip(self(text, image), targets, strict=True)
        ]
        return -nats[0], -nats[1]

    def start(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """The states before the first layer of ids (B, S) and the first n tokens (B, n)."""
        index = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.cat([self.embed_text(ids), self.embed_image(tokens, index)], 1)

    def read(self, layer: nn.Module, kind: str, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take the first t states (B, t, D) through a layer; return them, and keys and values."""
        q, k, v = layer.project(x)  # (B, H, t, K) each
        t = x.shape[1]
        mask = stream_mask(kind, self.seen_text, self.grid, x.device)[:t, :t]
        seen = dense(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, t, D)
        return layer.finish(x, seen), (k, v)

    def decoder(
        self, text: Tensor, samples: int, prompt: Tensor, cached: bool = True, compile: bool = False
    ) -> "Decoder":
        """Return what predicts the image tokens of G captions; arguments as `DALLE.decoder`.

        Raises ValueError for what is not offered here: `compile`, and sampling without a cache.
        """
        if compile or not cached:
            raise ValueError("compile and cached=False are not offered for this prior")
        return Decoder(self, text, samples, prompt)


class Decoder:
    """Predicts image tokens from remembered keys and values, one state a token.

    The place of a token is a tensor, so that on a GPU a step is recorded once and then replayed.
    """

    def __init__(self, prior: CausalPrior, text: Tensor, samples: int, prompt: Tensor):
        self.prior, self.images = prior, (len(text), samples)
        self.graph: Graph | None = None
        # A prompt is read once for each caption, or once for each of its images if they differ.
        prompt = prompt.expand(len(text), -1, -1)  # (G, 1 or m, p)
        copies, p = prompt.shape[1:]
        known = prompt.flatten(0, 1)[:, : max(p - 1, 0)]  # the last is read by `step`
        ids = prior.ids(text).repeat_interleave(copies, 0)  # (G copies, S)
        x, text_len = prior.start(ids, known), prior.seen_text
        self.index = torch.tensor([known.shape[1]], device=x.device)  # of the token to read next
        self.shift = ids.shape[1] - text_len  # from the index of a token to its cell
        self.caches = []
        for layer, kind in zip(prior.layers, prior.kinds, strict=True):
            x, kv = prior.read(layer, kind, x)  # (G copies, t, D)
            kv = (y.unflatten(0, (-1, copies)).transpose(1, 2) for y in kv)  # (G, H, copies, t, K)
            (text_k, k), (text_v, v) = (y.tensor_split([text_len], 3) for y in kv)
            where = places(kind, prior.grid, x.device)
            words = text_k[:, :, 0].contiguous(), text_v[:, :, 0].contiguous()
            self.caches.append(LayerCache(kind, prior.grid, where, *words, samples))
            self.caches[-1].put(k.shape[3], k, v)
        first = prior.image_logits(x[:, -1]).float()  # of cell 0, where there is no prompt
        self.first = first.unflatten(0, (-1, copies))  # (G, copies, V)

    def step(self, token: Tensor | None) -> Tensor:
        """Read the token (G m,) before the next cell, None at cell 0, and predict that cell.

        Returns logits (G m, V) float32.
        """
        if token is None:
            return self.first.expand(-1, self.images[1], -1).flatten(0, 1)
        if self.graph is None and token.device.type == "cuda":
            self.graph = Graph(self._predict, token)
        logits = (self.graph or self._predict)(token)
        self.index += 1
        return logits

    def _predict(self, token: Tensor) -> Tensor:
        """Read the token at `index`. Safe to repeat: the warm-up of a recording runs it twice."""
        prior = self.prior
        x = prior.embed_image(token[:, None], self.index)  # (G m, 1, D)
        at = {kept.kind: kept.layout.at(self.index + self.shift) for kept in self.caches}
        for layer, kept in zip(prior.layers, self.caches, strict=True):
            qkv = (y[:, :, 0].unflatten(0, self.images) for y in layer.project(x))
            q, k, v = (y.transpose(1, 2) for y in qkv)  # (G, H, m, K) each
            seen = kept.attend(*at[kept.kind], q, k, v)
            x = layer.finish(x, seen.transpose(1, 2).reshape(x.shape))
        return prior.image_logits(x[:, 0]).float()
